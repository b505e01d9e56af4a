"""Writes a source as a data set of TensorFlow Datasets, without TensorFlow.

TFDS's `GeneratorBasedBuilder` shuffles the examples, and needs TensorFlow for more than 1000 MiB.
Its `ShardBasedBuilder` writes the images in their order, and holds only a few in memory.
"""

import contextlib
import functools
import io
import itertools
import math
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssd_jax.data.sources.base import Source
from ssd_jax.data.sources.image_file import image_suffix
from ssd_jax.data.writers import file_stems, in_parallel, no_box_fits, nothing_left, too_thin
from ssd_jax.errors import DataError, UserError

# 100 MB of VOC, 160 MB of COCO: TFDS recommends shards of 64 MB to 1 GB.
IMAGES_OF_A_SHARD = 1000


def write_tfds(folder: pathlib.Path, source: Source, name: str) -> None:
    """Write a TFDS data set NAME in the array_record format, with one split, also called NAME.

    The features are those of TFDS's `voc` that a source has, but boxes are edges in [0, 1], as in
    this package.
    """
    check_set_name(name)
    import tensorflow_datasets as tfds

    examples = _examples(source)
    shards = math.ceil(len(source) / IMAGES_OF_A_SHARD)

    class Converted(tfds.core.ShardBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=_features(source.classes))

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list]:
            # If images are left out, the last shards get fewer, or none.
            return {
                name: [functools.partial(itertools.islice, examples, IMAGES_OF_A_SHARD)] * shards
            }

    Converted.name = name
    builder = Converted(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS announces a download and makes a folder for it, but nothing is downloaded.
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads, download_config=config)


def check_set_name(name: str) -> None:
    """Raise a `UserError` for a name that TFDS does not accept for a data set and a split."""
    if not re.fullmatch(r"[a-zA-Z]\w*", name) or name == "voc":
        raise UserError(
            f"the name of a TFDS data set is {name!r}: expected a letter, then letters, digits or "
            "'_', and not voc, which TFDS itself uses. Give another name"
        )


def _features(classes: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),  # files are stored as they are, JPEG or PNG
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=classes),
                    "is_difficult": np.bool_,
                }
            ),
        }
    )


def _examples(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """All images as TFDS examples, in order; errors of unwritable ones go to `source.problems`.

    It is a `UserError` if no image is left.
    """
    stems = file_stems(source.names)

    def read(index: int) -> tuple[bytes, dict[str, Any]] | None:
        try:
            data = source.read_image(index)
            suffix = image_suffix(data, source.locate(index))
        except DataError as error:
            source.problems(error)
            return None
        objects = list(_objects(source, index, data))
        if (count := int(source.object_counts[index])) and not objects:
            source.problems(no_box_fits(source.locate(index), count))
            return None
        return data, {"image/filename": f"{stems[index]}{suffix}", "objects": objects}

    count = 0
    for made in in_parallel(read, len(source)):
        if made is not None:
            data, example = made
            # TFDS keeps all examples of a shard: closing the file frees the memory of the image.
            with io.BytesIO(data) as image:
                yield count, {"image": image, **example}
            count += 1
    if not count:
        raise nothing_left(source)


def _objects(source: Source, index: int, data: bytes) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    example = source.example(index, data)
    rows = zip(
        example.boxes.tolist(), example.labels.tolist(), example.difficult.tolist(), strict=True
    )
    for number, (box, label, difficult) in enumerate(rows, 1):
        xmin, ymin, xmax, ymax = box
        if xmax <= xmin or ymax <= ymin:
            source.problems(too_thin(f"{example.name}, object {number}", box))
        else:
            bbox = tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)
            yield {"bbox": bbox, "label": label, "is_difficult": difficult}
