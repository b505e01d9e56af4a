"""Writers of detections: JSON, JSON lines, COCO, VOC, batch transform, and drawings.

A writer is a generator that writes results and passes them on, so that writers can be chained. A
file gets its name only when it is complete, by a rename.
"""

import contextlib
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from ssd_jax.answers import normalised
from ssd_jax.data import codes
from ssd_jax.data.sources.coco import MAX_BYTES, read_categories
from ssd_jax.data.sources.json_records import read_json
from ssd_jax.data.storage import is_remote, list_urls, upload
from ssd_jax.errors import DataError, UserError
from ssd_jax.files import json_line, whole_file, write_json, write_text
from ssd_jax.predict_files.inputs import Frame, Item
from ssd_jax.types import VOC_OFFSET, Detections
from ssd_jax.visualize.boxes import draw_boxes, save_png


class Result(NamedTuple):
    """The detections in a frame, by falling score and without padding."""

    frame: Frame
    found: Detections

    @property
    def boxes_px(self) -> Float[np.ndarray, "N 4"]:
        """The boxes in pixels of the image."""
        height, width = self.frame.size
        return self.found.boxes * np.array([width, height, width, height])

    @property
    def image_id(self) -> str:
        """The image's name without suffix; for a video, followed by the frame number."""
        number = self.frame.number
        return self.frame.item.stem + ("" if number is None else f"/{number:06d}")


Results = Iterator[Result]


def write_json_files(results: Results, out: pathlib.Path, classes: Sequence[str]) -> Results:
    """`NAME.json` for each image; `NAME.jsonl` for each video, one line per frame."""
    for item, frames in _by_item(results):
        if item.is_video:
            yield from _write_lines(frames, json_path(out, item), classes)
        else:
            for result in frames:
                write_json(json_path(out, item), describe(result, classes))
                yield result


def write_json_lines(results: Results, out: pathlib.Path, classes: Sequence[str]) -> Results:
    """`detections.jsonl`: one line per image or frame."""
    return _write_lines(results, out / "detections.jsonl", classes)


def write_coco(
    results: Results,
    out: pathlib.Path,
    classes: Sequence[str],
    *,
    items: Sequence[Item],
    annotations: pathlib.Path | None = None,
) -> Results:
    """`detections.json`: COCO's list of results (cocodataset.org, "Results format").

    With `annotations`, a COCO file, ids are those of its images, by name, and of its categories.
    Otherwise an image's id is its name, as a number if possible, and categories count from 1 in
    the order of the classes.

    Raises:
      UserError: an item has no id, or another item's; raised before the first result is requested.
    """
    if annotations is None:
        ids, categories = _numbers(items), range(1, len(classes) + 1)
    else:
        ids, categories = _annotated_ids(annotations, items, classes)
    found = []
    for result in results:
        for box, score, label in zip(
            result.boxes_px.tolist(), result.found.scores, result.found.labels, strict=True
        ):
            xmin, ymin, xmax, ymax = box
            found.append(
                {
                    "image_id": ids.get(result.frame.item, result.image_id),
                    "category_id": categories[label],
                    "bbox": [round(x, 3) for x in (xmin, ymin, xmax - xmin, ymax - ymin)],
                    "score": float(score),
                }
            )
        yield result
    write_text(out / "detections.json", json.dumps(found) + "\n")


def write_voc(
    results: Results, out: pathlib.Path, classes: Sequence[str], *, items: Sequence[Item]
) -> Results:
    """`comp4_det_test_CLASS.txt` for each class: the results of the VOC devkit.

    A line is `IMAGE SCORE XMIN YMIN XMAX YMAX`; pixels count from 1 and both corners are inside.

    Raises:
      UserError: the format cannot hold a name; raised before the first result is requested.
    """
    for name in classes:
        if "/" in name or "\\" in name or "\0" in name:
            raise UserError(
                f"the class {name!r} cannot be part of a file name, which the VOC format needs. "
                "Choose another --format."
            )
    for item in items:
        if len(item.stem.split()) != 1:
            raise UserError(
                f"{item.shown}: its name has a space, which ends a name in the VOC "
                "format. Rename it, or choose another --format."
            )
    lines: list[list[str]] = [[] for _ in classes]
    for result in results:
        for box, score, label in zip(
            result.boxes_px + VOC_OFFSET, result.found.scores, result.found.labels, strict=True
        ):
            numbers = " ".join(f"{x:.2f}" for x in box)
            lines[label].append(f"{result.image_id} {score:.6f} {numbers}\n")
        yield result
    for name, of_class in zip(classes, lines, strict=True):
        write_text(out / f"comp4_det_test_{name}.txt", "".join(of_class))


def write_transform(results: Results, out: str) -> Results:
    """`NAME.SUFFIX.out` for each image, as written by a SageMaker batch transform.

    The content is the response of `/invocations`; `out` may be a prefix of a bucket.
    """
    for result in results:
        place = _transformed(out, result.frame.item)
        text = json.dumps(normalised(result.found))
        if is_remote(out):
            with tempfile.TemporaryDirectory() as folder:
                file = pathlib.Path(folder, "out")
                file.write_text(text, encoding="utf-8")
                upload(file, place)
        else:
            write_text(place, text)
        yield result


def not_transformed(items: Sequence[Item], out: str) -> list[Item]:
    """The items for which `out` has no file of an earlier call of `write_transform`."""
    if not is_remote(out):
        return [item for item in items if not os.path.exists(_transformed(out, item))]
    try:
        there = set(list_urls(out))
    except DataError as error:
        if error.code != codes.OBJECT_MISSING:
            raise
        there = set()
    return [item for item in items if _transformed(out, item) not in there]


def draw(results: Results, out: pathlib.Path, classes: Sequence[str], *, score: float) -> Results:
    """`NAME.png` for each image, `NAME.mp4` for each video: boxes with at least `score`."""
    for item, frames in _by_item(results):
        drawings = ((result, _drawing(result, classes, score)) for result in frames)
        if item.is_video:
            yield from _write_video(drawings, drawn_path(out, item))
        else:
            for result, drawing in drawings:
                with whole_file(drawn_path(out, item)) as part:
                    save_png(part, drawing)
                yield result


def drawn_path(out: pathlib.Path, item: Item) -> pathlib.Path:
    """The path of an item's drawing."""
    return _beside(out, item, "mp4" if item.is_video else "png")


def json_path(out: pathlib.Path, item: Item) -> pathlib.Path:
    """The path to which `write_json_files` writes an item's detections."""
    return _beside(out, item, "jsonl" if item.is_video else "json")


def describe(result: Result, classes: Sequence[str]) -> dict[str, Any]:
    """A result in the form of our own JSON format."""
    frame = result.frame
    place = {} if frame.number is None else {"frame": frame.number, "seconds": frame.seconds}
    found = zip(result.boxes_px, result.found.scores, result.found.labels, strict=True)
    return {
        "image": frame.item.shown,
        **place,
        "width": frame.size[1],
        "height": frame.size[0],
        "detections": [
            {"class": classes[label], "score": score, "box_xyxy_px": box}
            for box, score, label in found
        ],
    }


def _by_item(results: Results) -> Iterator[tuple[Item, Results]]:
    return itertools.groupby(results, key=lambda result: result.frame.item)


def _beside(out: pathlib.Path, item: Item, suffix: str) -> pathlib.Path:
    return out / f"{item.stem}.{suffix}"


def _transformed(out: str, item: Item) -> str:
    return f"{out.rstrip('/')}/{item.name}.out"


def _write_lines(results: Results, path: pathlib.Path, classes: Sequence[str]) -> Results:
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for result in results:
            file.write(json_line(describe(result, classes)))
            yield result


def _drawing(result: Result, classes: Sequence[str], score: float) -> UInt8[np.ndarray, "h w 3"]:
    shown = result.found.scores >= score
    return draw_boxes(
        result.frame.pixels(),
        result.found.boxes[shown],
        result.found.labels[shown],
        classes=classes,
        scores=result.found.scores[shown],
    )


def _write_video(
    drawings: Iterable[tuple[Result, UInt8[np.ndarray, "h w 3"]]], path: pathlib.Path
) -> Results:
    with whole_file(path) as part:
        frames, writer = 0, None
        with contextlib.ExitStack() as stack:
            for result, drawing in drawings:
                if writer is None:
                    rate = result.frame.frames_per_second or 0.0
                    writer = _video_writer(part, rate, drawing.shape[1::-1])
                    stack.callback(writer.release)
                    if not writer.isOpened():
                        raise UserError(
                            f"{path}: OpenCV cannot write a video there. Give --no-draw."
                        )
                writer.write(cv2.cvtColor(drawing, cv2.COLOR_RGB2BGR))
                frames += 1
                yield result
        _check_video(part, frames, path)


def _video_writer(part: pathlib.Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    if not 0.01 <= rate <= 1000:  # a wrong header, perhaps more than MPEG-4 can say
        rate = 25.0
    return cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)


def _check_video(part: pathlib.Path, frames: int, path: pathlib.Path) -> None:
    """OpenCV does not tell when it cannot write a frame, such as on a full disk."""
    video = cv2.VideoCapture(str(part))
    written = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    if written != frames:
        raise UserError(
            f"{path}: the video could not be written as a whole; the disk may be full. Make room, "
            "or give --no-draw."
        )


def _numbers(items: Sequence[Item]) -> dict[Item, int]:
    """Image ids from names that are numbers, each of only one item; video frames have none."""
    numbered = [item for item in items if item.stem.isdecimal() and not item.is_video]
    owners: dict[int, Item] = {}
    for item in numbered:
        other = owners.setdefault(int(item.stem), item)
        if other != item:
            raise UserError(
                f"{item.stem} and {other.stem} would both have the image id {int(item.stem)}. "
                "Rename one, or give --annotations with the ids."
            )
    return {item: number for number, item in owners.items()}


def _annotated_ids(
    path: pathlib.Path, items: Sequence[Item], classes: Sequence[str]
) -> tuple[dict[Item, int], list[int]]:
    """The ids of each item and each class in an annotation file."""
    value = read_json(path, max_bytes=MAX_BYTES, drop=("segmentation",))
    try:
        images = {item["file_name"]: item["id"] for item in value["images"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not COCO annotations ({error!r}). Expected lists of images (id, file_name) "
            "and categories (id, name)."
        ) from error
    categories = {name: number for number, name in read_categories(value, str(path)).items()}
    if missing := [name for name in classes if name not in categories]:
        raise UserError(
            f"{path}: no category is called {', '.join(missing)}, which the detector has. Give "
            "annotations with the classes that it was trained on."
        )
    for item in items:
        if item.name not in images or item.is_video:
            raise UserError(
                f"{item.name}: the annotations have no image with that file_name. Give the folder "
                "that the file_names are relative to, and the annotations of its images."
            )
    return {item: images[item.name] for item in items}, [categories[name] for name in classes]
