"""Detection data sets of TensorFlow Datasets, read without TensorFlow.

They must be prepared in the array_record format, the only one with random access without it.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd_jax.data import codes
from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    source_of_objects,
)
from ssd_jax.data.sources.image_file import image_size
from ssd_jax.data.sources.json_records import short_names
from ssd_jax.errors import DataError, UserError, first_line
from ssd_jax.types import VOC_OFFSET

# Names of features; the first that a data set has is used.
_LABELS = ("label", "type", "category")
_DIFFICULT = ("is_difficult", "is_crowd")
_NAMES = ("image/filename", "image/id", "filename", "image_id")


class _Fields(NamedTuple):
    image: str
    objects: str
    box: str
    label: str
    difficult: str | None
    name: str | None


def open_tfds(
    name: str | os.PathLike,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
    problems: Problems | None = None,
) -> Source:
    """Open the images of a split, such as `train+validation` or `train[:10%]`.

    `name` is as in `tfds.builder`, with `data_dir` (default: TFDS's own, `TFDS_DATA_DIR`), or the
    folder of a prepared version, with its `dataset_info.json`. The features must include one
    sequence of boxes with class labels. All records are read once for their annotations, at some
    thousand images per second. Classes are in TFDS's order; given `classes` are matched by name.

    `voc` keeps xmin and ymin as the devkit counts them, from 1: here they are moved to the edges
    that `open_voc` gives.
    """
    problems = problems or Problems()
    builder = _builder(name, data_dir)
    fields = _fields(builder)
    where = f"tfds:{builder.info.full_name}, split {split}"
    of_voc = builder.name == "voc"
    records = _records(builder, split)
    read_objects = _reader(records, _parser(builder, fields, with_image=of_voc), where)
    read_image = _reader(records, _parser(builder, fields, with_objects=False), where)
    label_names = builder.info.features[fields.objects].feature[fields.label].names

    names, sizes, counts, boxes, labels, difficult = [], [], [], [], [], []
    for number in range(len(records)):
        record = read_objects(number)
        found = record[fields.objects]
        box = np.asarray(found[fields.box], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
        size = (0, 0)
        if of_voc:
            size = image_size(record[fields.image], f"{where}, record {number}")
            box = box - VOC_OFFSET / (size[::-1] * 2)
        names.append(_text(record[fields.name]) if fields.name else f"{number:06d}")
        sizes.append(size)
        counts.append(len(box))
        boxes.append(box)
        labels.extend(int(label) for label in found[fields.label])
        flags = found[fields.difficult] if fields.difficult else [False] * len(box)
        difficult.extend(bool(flag) for flag in flags)
    if len(set(names)) < len(names):
        names = [f"{number:06d}" for number in range(len(names))]
    classes = tuple(classes or label_names)
    all_boxes = np.concatenate([np.zeros((0, 4)), *boxes])
    texts = [
        label_names[label] if 0 <= label < len(label_names) else str(label) for label in labels
    ]

    source = source_of_objects(
        names=short_names(names),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        object_counts=np.array(counts, np.int64),
        written=all_boxes,
        boxes=all_boxes,
        labels=class_ids(texts, classes),
        difficult=np.array(difficult, bool),
        classes=classes,
        read_image=lambda index: read_image(index)[fields.image],
        locate=lambda index: f"{where}, record {index} ({names[index]})",
        problems=problems,
        locate_object=lambda image, number: f"{where}, {names[image]}, object {number}",
        label_text=texts.__getitem__,
        files=sorted(map(str, builder.data_path.iterdir())),
    )
    return check_not_empty(source, where)


def _builder(name: str | os.PathLike, data_dir: str | os.PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        if (pathlib.Path(name) / "dataset_info.json").is_file():
            return tfds.builder_from_directory(name)
        builder = tfds.builder(str(name), data_dir=data_dir, file_format="array_record")
    except Exception as error:  # of many kinds if its files are damaged
        raise UserError(
            f"tfds:{name} cannot be opened ({first_line(error)}). Correct its name, or prepare it "
            "again"
        ) from error
    if not builder.info.splits:
        raise UserError(
            f"tfds:{name} is not prepared in {builder.data_dir}: expected the record files there. "
            "Prepare it (VOC: ssd-jax data prepare voc), or set TFDS_DATA_DIR"
        )
    return builder


def _fields(builder: Any) -> _Fields:
    """The names of the features to read."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    for key in features:
        inner = getattr(features[key], "feature", None)
        if not isinstance(inner, tfds.features.FeaturesDict):
            continue
        boxes = [
            k
            for k in inner
            if isinstance(inner[k], tfds.features.BBoxFeature)
            and getattr(inner[k].bbox_format, "value", "REL_YXYX") == "REL_YXYX"
        ]
        labels = [k for k in inner if isinstance(inner[k], tfds.features.ClassLabel)]
        label = next((k for k in _LABELS if k in labels), None)
        if len(boxes) == len(images) == 1 and label:
            difficult = next((k for k in _DIFFICULT if k in inner), None)
            name = next((k for k in _NAMES if k in features), None)
            return _Fields(images[0], key, boxes[0], label, difficult, name)
    raise UserError(
        f"tfds:{builder.info.full_name} is not a detection data set: expected one image and a "
        f"sequence of boxes with class labels, got {', '.join(features)}"
    )


def _records(builder: Any, split: str) -> Any:
    """The records of a split as they are stored, a sequence of bytes."""
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as error:
        raise UserError(
            f"tfds:{builder.info.full_name} is prepared as {builder.info.file_format.value}, "
            "expected array_record. Prepare it with tfds.builder(..., file_format='array_record')"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"tfds:{builder.info.full_name}: its record files are damaged ({first_line(error)}). "
            "Prepare it again"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(
            f"tfds:{builder.info.full_name} has no split {split!r}: expected one of "
            f"{', '.join(builder.info.splits)}, or a sum such as train+validation"
        ) from error


def _reader(
    records: Any, parse: Callable[[bytes], dict[str, Any]], where: str
) -> Callable[[int], dict[str, Any]]:
    """A function that reads and parses the record of a number."""

    def read(number: int) -> dict[str, Any]:
        try:
            return parse(records[number])
        except (RuntimeError, ValueError, IndexError) as error:  # of ArrayRecord and of TFDS
            raise DataError(
                codes.RECORD_DAMAGED,
                f"{where}, record {number}",
                f"it cannot be read ({first_line(error)})",
                "Prepare the data set again",
            ) from error

    return read


def _parser(
    builder: Any, fields: _Fields, *, with_image: bool = True, with_objects: bool = True
) -> Callable[[bytes], dict[str, Any]]:
    """A function that reads the wanted features of a record, and the image as encoded bytes."""
    import tensorflow_datasets as tfds

    # Not `PartialDecoding`, which imports TensorFlow.
    features, wanted = builder.info.features, {}
    if with_image:
        wanted[fields.image] = features[fields.image]
    if with_objects:
        inner = features[fields.objects].feature
        keys = (fields.box, fields.label, fields.difficult)
        wanted[fields.objects] = tfds.features.Sequence({key: inner[key] for key in keys if key})
    if with_objects and fields.name:
        wanted[fields.name] = features[fields.name]
    features = tfds.features.FeaturesDict(wanted)
    decoders = {fields.image: tfds.decode.SkipDecoding()} if with_image else None
    return lambda record: features.deserialize_example_np(record, decoders=decoders)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
