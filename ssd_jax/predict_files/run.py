"""From images and videos to files: frames in batches to a detector, results to writers."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from tqdm import tqdm

from ssd_jax.data.storage import is_remote
from ssd_jax.errors import DataError, UserError, counted
from ssd_jax.files import make_folder
from ssd_jax.predict import AnyDetector, padded, without_padding
from ssd_jax.predict_files import outputs
from ssd_jax.predict_files.inputs import Frame, Item, find_items, read_frames
from ssd_jax.predict_files.outputs import Result, Results
from ssd_jax.types import Detections

FORMATS = {
    "json": outputs.write_json_files,
    "jsonl": outputs.write_json_lines,
    "coco": outputs.write_coco,
    "voc": outputs.write_voc,
}


def run_prediction(
    detector: AnyDetector,
    places: Sequence[str],
    out: str | pathlib.Path,
    *,
    format: str = "json",
    draw: bool | None = None,
    score: float = 0.5,
    min_score: float = 0.0,
    batch_size: int = 8,
    annotations: pathlib.Path | None = None,
) -> None:
    """Run a detector on all images and videos at `places`, and write into the folder `out`.

    `format` is one of FORMATS; `draw` adds drawings of the detections that score at least `score`
    (default: for the format json). Detections below `min_score` are not written. `annotations` is
    the argument of `outputs.write_coco`.

    Raises:
      UserError: an input or a setting is wrong; or, after all others were written, some images
        could not be read.
    """
    out = pathlib.Path(out)
    drawing = draw or (draw is None and format == "json")
    # In a file of many lines, images are identified by their places.
    key = "place" if format == "jsonl" and not drawing else "stem"
    items = find_items(places, key=key, out=out)
    _keep_what_is_there(items, out, json=format == "json", drawing=drawing)
    make_folder(out)
    options: dict[str, Any] = {"items": items} if format in ("coco", "voc") else {}
    if annotations is not None:
        options["annotations"] = annotations

    def write(results: Results) -> Results:
        results = FORMATS[format](_at_least(results, min_score), out, detector.classes, **options)
        if drawing:
            results = outputs.draw(results, out, detector.classes, score=score)
        return results

    _run(detector, items, write, batch_size=batch_size)
    print(f"results in {out}")
    if format == "coco" and annotations is None:
        print(
            "image ids: the names, as numbers if possible; category ids: 1 to "
            f"{len(detector.classes)}, in the order of the classes. --annotations FILE uses the "
            "ids of a COCO file, which may differ."
        )


def run_transform(
    detector: AnyDetector, places: Sequence[str], out: str, *, batch_size: int = 8
) -> None:
    """Run a batch transform: `outputs.write_transform` for the images without a result.

    Raises:
      UserError: as in `run_prediction`, and if a place is a video.
    """
    items = find_items(places, key="name")
    if videos := [item.shown for item in items if item.is_video]:
        raise UserError(
            f"{videos[0]}: a batch transform takes images. Choose another --format for videos."
        )
    if not is_remote(out):
        make_folder(pathlib.Path(out))
    waiting = outputs.not_transformed(items, out)
    if len(waiting) < len(items):
        print(f"{len(items) - len(waiting):,} of {len(items):,} were already done")
    _run(
        detector,
        waiting,
        lambda results: outputs.write_transform(results, out),
        batch_size=batch_size,
    )
    print(f"results in {out}")


def _run(detector: AnyDetector, items: Sequence[Item], write, *, batch_size: int) -> None:
    unreadable: list[DataError] = []
    frames = read_frames(items, detector.canvas, unreadable=unreadable.append)
    # The number of frames of a video is known only when it has been read.
    total = None if any(item.is_video for item in items) else len(items)
    batch_size = min(batch_size, total or batch_size)
    with contextlib.closing(frames):
        results = write(_detect(detector, frames, batch_size))
        count = sum(1 for _ in tqdm(results, "predicting", total, unit=" images", disable=None))
    print(counted(count, "image"))
    if unreadable:
        for error in unreadable:
            print(error, file=sys.stderr)
        raise UserError(
            f"{len(unreadable)} of {len(items)} images could not be read, the first is "
            f"{unreadable[0].where}; the others are done. Replace these, or leave them out."
        )


def _at_least(results: Results, score: float) -> Results:
    for frame, found in results:
        keep = found.scores >= score
        yield Result(frame, Detections(*(column[keep] for column in found)))


def _keep_what_is_there(
    items: Sequence[Item], out: pathlib.Path, *, json: bool, drawing: bool
) -> None:
    """Refuse to overwrite an image, or a file beside one: its annotation, its mask."""
    if not (json or drawing):
        return
    places = [pathlib.Path(item.place) for item in items if not is_remote(item.place)]
    images = {real for place in places for real in (_entry(place), place.resolve())}
    folders = {image.parent for image in images}
    for item in items:
        drawn, result = _entry(outputs.drawn_path(out, item)), _entry(outputs.json_path(out, item))
        if drawing and drawn in images:
            raise UserError(
                f"{drawn}: the drawing of {item.shown} would overwrite this image. Choose another "
                "--out."
            )
        for written, path, what, may in (
            (drawing, drawn, "drawing of", "be its mask or another image"),
            (json, result, "detections in", "hold its annotations"),
        ):
            if written and path.parent in folders and os.path.lexists(path):
                raise UserError(
                    f"{path}: the {what} {item.shown} would overwrite this file, which may {may}. "
                    "Choose another --out, or remove it if it is the result of an earlier command."
                )


def _entry(path: pathlib.Path) -> pathlib.Path:
    """The path without links except the last part, which a file that is written replaces."""
    return path.parent.resolve() / path.name


def _detect(detector: AnyDetector, frames: Iterator[Frame], batch_size: int) -> Results:
    while chunk := list(islice(frames, batch_size)):
        pictures = [(frame.canvas, frame.extent) for frame in chunk]
        batch = detector.predict(*padded(pictures, batch_size, detector.canvas))
        for row, frame in enumerate(chunk):
            yield Result(frame, without_padding(batch, row))
