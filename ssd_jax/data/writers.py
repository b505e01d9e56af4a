"""Sources to files: images byte for byte, annotations in each format.

A writer gets an empty folder and a name, and writes the files of a set NAME into the folder. Values
that a format has no place for are written where its other readers do not look, so that nothing is
lost when it is read back: `"difficult": 1` in JSON, `classes.txt` if a format lists no classes.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar
from xml.sax.saxutils import escape

import numpy as np
from tqdm import tqdm

from ssd_jax.data import codes
from ssd_jax.data.sources.base import Source
from ssd_jax.data.sources.image_file import image_size, image_suffix
from ssd_jax.data.sources.recordio_writer import write_recordio
from ssd_jax.errors import DataError, UserError
from ssd_jax.types import VOC_OFFSET, Example

THREADS = 4
_AHEAD = 4 * THREADS
# Common systems allow 255 bytes for a file name, including the suffix and a number.
_LONGEST_STEM = 240
T = TypeVar("T")


class PixelObject(NamedTuple):
    """An object with its box in pixels: xmin, ymin, xmax, ymax, to three decimals."""

    class_id: int
    box: tuple[float | int, ...]
    difficult: int


class Picture(NamedTuple):
    """An image whose file was written, and its objects."""

    stem: str
    file_name: str
    size: tuple[int, int]
    objects: tuple[PixelObject, ...]


def write_voc(folder: pathlib.Path, source: Source, name: str) -> None:
    """PASCAL VOC, image set NAME; the class list in `classes.txt`.

    Pixels count from 1 and both corners are inside the box, so a box of a pixel or less cannot be
    written.
    """
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)

    def annotate(picture: Picture) -> str:
        text = _voc_annotation(picture, source.classes)
        (folder / "Annotations" / f"{picture.stem}.xml").write_text(text, encoding="utf-8")
        return picture.stem

    ids = _write_images(source, folder / "JPEGImages", annotate, first_pixel=1)
    _write_lines(folder / "ImageSets" / "Main" / f"{name}.txt", ids)
    _write_lines(folder / "classes.txt", source.classes)


def write_json_folder(folder: pathlib.Path, source: Source, name: str) -> None:
    """SageMaker's pair of folders, NAME and NAME_annotation; each file lists all classes."""
    images, annotations = folder / name, folder / f"{name}_annotation"
    images.mkdir()
    annotations.mkdir()
    names = [{"class_id": i, "name": class_name} for i, class_name in enumerate(source.classes)]

    def annotate(picture: Picture) -> str:
        record = {"file": picture.file_name, **_sagemaker_record(picture), "categories": names}
        (annotations / f"{picture.stem}.json").write_text(_dump(record), encoding="utf-8")
        return picture.stem

    for _ in _write_images(source, images, annotate):
        pass


def write_manifest(folder: pathlib.Path, source: Source, name: str) -> None:
    """An augmented manifest NAME with references to images in a folder of the same name."""
    images = folder / pathlib.PurePath(name).stem
    images.mkdir()
    class_map = {str(class_id): class_name for class_id, class_name in enumerate(source.classes)}
    metadata = {"class-map": class_map, "type": "groundtruth/object-detection"}

    def annotate(picture: Picture) -> str:
        reference = f"{images.name}/{picture.file_name}"
        record = _sagemaker_record(picture)
        return _dump({"source-ref": reference, "objects": record, "objects-metadata": metadata})

    _write_lines(folder / name, _write_images(source, images, annotate))


def write_coco(folder: pathlib.Path, source: Source, name: str) -> None:
    """A COCO file NAME with images in a folder of the same name; difficult objects are `iscrowd`.

    If the file names are numbers they become the image ids, as in COCO's own sets; otherwise ids
    count from 1.
    """
    images = folder / pathlib.PurePath(name).stem
    images.mkdir()
    pictures = list(_write_images(source, images, lambda picture: picture))
    ids = _image_ids([picture.stem for picture in pictures])
    numbers = itertools.count(1)
    value = {
        "images": [
            {"id": i, "file_name": p.file_name, "height": p.size[0], "width": p.size[1]}
            for i, p in zip(ids, pictures, strict=True)
        ],
        "annotations": [
            _coco_object(thing, next(numbers), image)
            for image, picture in zip(ids, pictures, strict=True)
            for thing in picture.objects
        ],
        "categories": [{"id": i, "name": c} for i, c in enumerate(source.classes, 1)],
    }
    (folder / name).write_text(_dump(value), encoding="utf-8")


def write_record_file(folder: pathlib.Path, source: Source, name: str) -> None:
    """A RecordIO file NAME with its index and list; the class list in `.classes.txt`.

    Image bytes are copied without a check; only a file that cannot be read is a problem.
    """
    if source.problems.policy == "skip":
        source = _readable(source)  # a record that was started has to be written
    images = in_parallel(source.read_image, len(source))
    write_recordio(folder / name, source, images=images)
    _write_lines((folder / name).with_suffix(".classes.txt"), source.classes)


def file_stems(names: Sequence[str]) -> list[str]:
    """A file name for each name: without folders, printable, unique even if case is ignored."""
    stems, taken = [], set()
    for name in names:
        plain = "".join(letter if letter.isprintable() else "_" for letter in name)
        plain = plain.translate(dict.fromkeys(map(ord, '/\\:*?"<>|'), "_")).strip(" .")
        plain = stem = plain.encode()[:_LONGEST_STEM].decode(errors="ignore") or "image"
        for number in itertools.count(2):
            if stem.casefold() not in taken:
                break
            stem = f"{plain}_{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def check_class_names(classes: Sequence[str]) -> None:
    """Raise a `UserError` for a class name that not all formats can hold."""
    for name in classes:
        if not name or not name.isprintable() or name != name.strip():
            raise UserError(
                f"the class {name!r} cannot be written, expected printable characters without "
                "spaces at the ends. Give other class names"
            )


def _write_images(
    source: Source,
    folder: pathlib.Path,
    annotate: Callable[[Picture], T],
    *,
    first_pixel: int = 0,
) -> Iterator[T]:
    """Write all images and yield `annotate`'s result (never None) for each, in order.

    Images and boxes that cannot be written go to `source.problems`, and are left out if it returns.
    It is a `UserError` if no image is left.
    """
    stems = file_stems(source.names)

    def write(index: int) -> T | None:
        try:
            data = source.read_image(index)
            suffix = image_suffix(data, source.locate(index))
            example = source.example(index, data)
            size = example.size or image_size(data, example.name)
        except DataError as error:
            source.problems(error)
            return None
        objects = tuple(_objects(source, example, size, first_pixel))
        if len(example.labels) > len(objects) == 0:
            source.problems(no_box_fits(example.name, len(example.labels)))
            return None
        file_name = f"{stems[index]}{suffix}"
        (folder / file_name).write_bytes(data)
        return annotate(Picture(stems[index], file_name, size, objects))

    count = 0
    for made in in_parallel(write, len(source)):
        if made is not None:
            count += 1
            yield made
    if not count:
        raise nothing_left(source)


def in_parallel(work: Callable[[int], T], count: int) -> Iterator[T]:
    """`work(0)`, `work(1)`, ... in order; only a few are computed ahead, which bounds memory."""
    waiting: collections.deque[Future[T]] = collections.deque()
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=count, unit=" images", disable=None) as bar,
    ):
        for index in range(count):
            waiting.append(pool.submit(work, index))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
                bar.update()
        while waiting:
            yield waiting.popleft().result()
            bar.update()


def _readable(source: Source) -> Source:
    """The source's readable images; the errors of the others go to `source.problems`."""
    images = []
    for index in range(len(source)):
        try:
            source.read_image(index)
            images.append(index)
        except DataError as error:
            source.problems(error)
    if not images:
        raise nothing_left(source)
    return source.take(images)


def nothing_left(source: Source) -> UserError:
    """The error for a set none of whose images can be written."""
    why = ", ".join(f"{count} {code}" for code, count in source.problems.counts.items())
    return UserError(f"nothing to write: every image was left out, {why}. See `ssd-jax doctor`")


def _objects(
    source: Source, example: Example, size: tuple[int, int], first_pixel: int
) -> Iterator[PixelObject]:
    """The objects of an example in pixels, with xmin and ymin counted from `first_pixel`."""
    sides = np.array(size[::-1] * 2)
    corners = np.round(example.boxes.astype(np.float64) * sides, 3) + first_pixel * VOC_OFFSET
    rows = zip(corners.tolist(), example.labels.tolist(), example.difficult.tolist(), strict=True)
    for number, (box, label, difficult) in enumerate(rows, 1):
        if box[2] <= box[0] or box[3] <= box[1]:
            source.problems(too_thin(f"{example.name}, object {number}", box))
        else:
            yield PixelObject(label, tuple(map(_number, box)), int(difficult))


def too_thin(where: str, box: Sequence[float]) -> DataError:
    """The error for a box that has no area left in the precision of a format."""
    return DataError(
        codes.BOX_WITHOUT_AREA,
        where,
        f"box ({', '.join(map(str, box))}) is too thin for the output format",
        "Choose another format",
    )


def no_box_fits(where: str, count: int) -> DataError:
    """The error for an image that would become one without objects, for its boxes are too thin."""
    problem = f"none of its {count} boxes can be written, so the image is left out"
    return DataError(codes.NO_BOX_LEFT, where, problem, "Choose another format")


def _number(value: float | int) -> float | int:
    """An int if the value is whole, because some readers know only ints; else three decimals."""
    value = round(value, 3)
    return int(value) if value == int(value) else value


def _sagemaker_record(picture: Picture) -> dict:
    height, width = picture.size
    annotations = []
    for thing in picture.objects:
        xmin, ymin, xmax, ymax = thing.box
        sides = {"left": xmin, "top": ymin}
        sides |= {"width": _number(xmax - xmin), "height": _number(ymax - ymin)}
        extra = {"difficult": 1} if thing.difficult else {}
        annotations.append({"class_id": thing.class_id, **sides, **extra})
    size = {"width": width, "height": height, "depth": 3}
    return {"image_size": [size], "annotations": annotations}


def _image_ids(stems: Sequence[str]) -> Sequence[int]:
    """The stems as numbers, if all are different numbers that readers can hold; else 1, 2, ..."""
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    is_each_its_own = len(set(numbers)) == len(stems) and max(numbers) < 2**53
    return numbers if is_each_its_own else range(1, len(stems) + 1)


def _coco_object(thing: PixelObject, number: int, image: int) -> dict:
    xmin, ymin, xmax, ymax = thing.box
    width, height = _number(xmax - xmin), _number(ymax - ymin)
    return {
        "id": number,
        "image_id": image,
        "category_id": thing.class_id + 1,
        "bbox": [xmin, ymin, width, height],
        "area": _number(width * height),
        "iscrowd": thing.difficult,
    }


def _voc_annotation(picture: Picture, classes: Sequence[str]) -> str:
    height, width = picture.size
    objects = []
    for thing in picture.objects:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        # TFDS's reader requires pose and truncated.
        objects.append(
            f"<object><name>{escape(classes[thing.class_id])}</name><pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>{thing.difficult}</difficult>"
            f"<bndbox>{box}</bndbox></object>\n"
        )
    return (
        f"<annotation>\n<filename>{escape(picture.file_name)}</filename>\n"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"{''.join(objects)}</annotation>\n"
    )


def _dump(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write_lines(path: pathlib.Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
