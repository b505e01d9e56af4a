"""Images of boxes, batches and detections, as uint8 RGB arrays [H, W, 3].

If a colour has a meaning, the line style has the same meaning.
"""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image, ImageColor, ImageDraw

from ssd_jax.errors import UserError
from ssd_jax.evaluation import voc
from ssd_jax.visualize.fonts import runs_of
from ssd_jax.visualize.style import INK, PALETTE

# Lengths of dashes and gaps in pixels; 0 is a solid line.
DASHES = {"-": 0, "--": 9, ":": 4}
# In pixels, for an image with names.
SMALLEST_SIDE = 320
# No image is enlarged beyond it.
LARGEST_SIDE = 4096
# Times its height, of an image in a figure of many.
WIDEST = 4


class Mark(NamedTuple):
    """A box to draw, normalised xyxy, with its name; `line` is a key of DASHES."""

    box: np.ndarray
    text: str
    color: str
    line: str = "-"


class Style(NamedTuple):
    """How an outcome is drawn, and its name in the legend."""

    text: str
    color: str
    line: str


CORRECT = Style("correct", PALETTE[0], "-")
FALSE = Style("false", PALETTE[1], "-")
MISSED = Style("missed", PALETTE[4], "--")
DIFFICULT = Style("difficult, not counted", "#BBBBBB", ":")
OUTCOMES = {voc.TRUE_POSITIVE: CORRECT, voc.FALSE_POSITIVE: FALSE, voc.IGNORED: DIFFICULT}


# ---- boxes on images ----


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[Array | np.ndarray, "K 4"],
    labels: Int[Array | np.ndarray, "K"],
    *,
    classes: Sequence[str],
    scores: Float[Array | np.ndarray, "K"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its normalised xyxy boxes, each in the colour of its class.

    Lines and letters scale with the image. An image whose shorter side is below SMALLEST_SIDE is
    enlarged to it, because names do not fit on a smaller one, but to LARGEST_SIDE at most.
    """
    return _annotate(image, _class_marks(boxes, labels, classes, scores), SMALLEST_SIDE)


def image_grid(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]], *, columns: int, gap: int = 8
) -> UInt8[np.ndarray, "H W 3"]:
    """Arrange images in rows on white; smaller ones are centred in their row and column."""
    if not images:
        raise UserError("got no images for a mosaic; expected at least one")
    columns = min(columns, len(images))
    sizes = np.zeros((math.ceil(len(images) / columns) * columns, 2), int)
    sizes[: len(images)] = [image.shape[:2] for image in images]
    sizes = sizes.reshape(-1, columns, 2)
    heights, widths = sizes[..., 0].max(axis=1), sizes[..., 1].max(axis=0)
    tops, lefts = (np.cumsum(each + gap) - each - gap for each in (heights, widths))
    picture = np.full((tops[-1] + heights[-1], lefts[-1] + widths[-1], 3), 255, np.uint8)
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        height, width = image.shape[:2]
        top = tops[row] + (heights[row] - height) // 2
        left = lefts[column] + (widths[column] - width) // 2
        picture[top : top + height, left : left + width] = image
    return picture


def training_grid(
    images: Float[Array | np.ndarray, "B S S 3"] | UInt8[Array | np.ndarray, "B S S 3"],
    boxes: Float[Array | np.ndarray, "B G 4"],
    labels: Int[Array | np.ndarray, "B G"],
    valid: Bool[Array | np.ndarray, "B G"],
    *,
    classes: Sequence[str],
    columns: int = 4,
) -> UInt8[np.ndarray, "H W 3"]:
    """An augmented batch as the network sees it, before normalisation: RGB values 0 to 255."""
    pixels = np.clip(np.rint(np.asarray(images)), 0, 255).astype(np.uint8)
    boxes, labels, valid = np.asarray(boxes), np.asarray(labels), np.asarray(valid)
    tiles = [
        draw_boxes(image, box[keep], label[keep], classes=classes)
        for image, box, label, keep in zip(pixels, boxes, labels, valid, strict=True)
    ]
    return image_grid(tiles, columns=columns)


def detection_grid(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    ground_truths: Sequence[voc.GroundTruth],
    detections: Sequence[voc.ScoredBoxes],
    *,
    classes: Sequence[str],
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    columns: int = 2,
    height: int = 320,
) -> UInt8[np.ndarray, "H W 3"]:
    """Pairs of ground truth and detections, with correct, false and missed ones distinguished.

    All boxes are normalised xyxy. Outcomes follow the VOC rules, on continuous boxes, for the
    detections that score at least `score_threshold`. Every image is scaled to `height` pixels, or
    to WIDEST times as many in width.
    """
    shown = [
        voc.ScoredBoxes(*(column[found.scores >= score_threshold] for column in found))
        for found in detections
    ]
    options = {"num_classes": len(classes), "iou_threshold": iou_threshold, "plus_one": False}
    matches = voc.match_detections(ground_truths, shown, **options)
    was_found = np.isin(np.arange(sum(len(t.labels) for t in ground_truths)), matches.truth)
    pairs = []
    for image, truth, found, hits, outcomes in zip(
        images,
        ground_truths,
        shown,
        _split(was_found, ground_truths),
        _split(matches.outcome, shown),
        strict=True,
    ):
        truth_styles = [
            DIFFICULT if difficult else CORRECT if hit else MISSED
            for difficult, hit in zip(truth.difficult, hits, strict=True)
        ]
        truth_marks = _class_marks(truth.boxes, truth.labels, classes)
        found_marks = _class_marks(found.boxes, found.labels, classes, found.scores)
        found_styles = [OUTCOMES[outcome] for outcome in outcomes]
        image = _scaled(image, min(height / image.shape[0], WIDEST * height / image.shape[1]))
        halves = [
            _annotate(image, _restyled(truth_marks, truth_styles)),
            _annotate(image, _restyled(found_marks, found_styles)),
        ]
        pairs.append(image_grid(halves, columns=2, gap=4))
    picture = image_grid(pairs, columns=columns, gap=24)
    title = f"Left: ground truth. Right: detections that score at least {score_threshold:g}."
    header = _legend(title, (CORRECT, FALSE, MISSED, DIFFICULT), picture.shape[1])
    picture = image_grid([header, picture], columns=1, gap=0)
    return np.pad(picture, ((0, 16), (16, 16), (0, 0)), constant_values=255)


def save_png(path: str | os.PathLike, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write an RGB image; folders are made as needed."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG")


# ---- inside ----


def _class_marks(boxes, labels, classes, scores=None):
    texts = [classes[label] for label in np.asarray(labels)]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
    colors = [PALETTE[label % len(PALETTE)] for label in np.asarray(labels)]
    return [Mark(*each) for each in zip(np.asarray(boxes), texts, colors, strict=True)]


def _restyled(marks, styles):
    """Marks in the style of their outcome; boxes that do not count have no name."""
    return [
        Mark(mark.box, "" if style is DIFFICULT else mark.text, style.color, style.line)
        for mark, style in zip(marks, styles, strict=True)
    ]


def _split(column, records):
    """A column of the boxes of all images, split by image."""
    return np.split(column, np.cumsum([len(record.labels) for record in records])[:-1])


def _scaled(image, scale):
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=method)


def _annotate(image, marks, min_side=0):
    enlarge = min(min_side / min(image.shape[:2]), LARGEST_SIDE / max(image.shape[:2]))
    image = _scaled(image, enlarge) if enlarge > 1 else image.copy()
    height, width = image.shape[:2]
    unit = max(1.0, (min(height, width) / 400) ** 0.7)
    thickness = round(2.4 * unit)
    # Small boxes come last, on top of the large ones around them.
    marks = sorted(marks, key=lambda mark: -np.prod(mark.box[2:] - mark.box[:2]))
    boxes = [np.rint(mark.box * [width, height, width, height]).astype(int) for mark in marks]
    for mark, box in zip(marks, boxes, strict=True):
        # A dark edge around the coloured line keeps it visible on any image.
        _blend_outline(image, box, thickness + 2, "#000000", 0.45)
        _blend_outline(image, box, thickness, mark.color, 1.0, round(DASHES[mark.line] * unit))
    picture = Image.fromarray(image)
    pen, taken = ImageDraw.Draw(picture), []
    for mark, box in zip(marks, boxes, strict=True):
        if not mark.text:
            continue
        runs = runs_of(mark.text, round(12 * unit))
        length = _length(runs)
        size = np.ceil([length + 6 * unit, 17 * unit]).astype(int)
        left, top, right, bottom = place = _free_place(size, box, taken, (width, height))
        taken.append(place)
        pen.rectangle((left, top, right - 1, bottom - 1), mark.color)
        start = ((left + right - length) / 2, (top + bottom) / 2)
        _draw_runs(pen, start, runs, _ink_on(mark.color))
    return np.asarray(picture)


def _blend_outline(image, box, thickness, color, opacity, dash=0):
    """Draw a rectangle centred on the box's edges into `image`, solid or in dashes."""
    height, width = image.shape[:2]
    outer = np.clip(box + np.array([-1, -1, 1, 1]) * thickness // 2, 0, [width, height] * 2)
    y, x = np.ogrid[outer[1] : outer[3], outer[0] : outer[2]]
    inner = box + np.array([1, 1, -1, -1]) * (thickness - thickness // 2)
    line = (x < inner[0]) | (x >= inner[2]) | (y < inner[1]) | (y >= inner[3])
    if dash:
        line &= (x + y) // dash % 2 == 0
    region = image[outer[1] : outer[3], outer[0] : outer[2]]
    region[line] = (1 - opacity) * region[line] + opacity * np.array(ImageColor.getrgb(color))


def _free_place(size, box, taken, limits):
    """The place of a tag, xyxy: above, inside or below the box, clear of other tags if possible."""
    (left, top, right, bottom), (width, height) = box, size
    lefts, tops = (left, right - width), (top - height, top, bottom, bottom - height)
    corners = np.array([(x, y) for y in tops for x in lefts])
    corners = np.clip(corners, 0, np.maximum(np.array(limits) - size, 0))
    places = np.concatenate([corners, corners + size], axis=1)
    others = np.array(taken, int).reshape(-1, 1, 4)
    shared = np.minimum(places[:, 2:], others[..., 2:]) - np.maximum(places[:, :2], others[..., :2])
    hidden = np.prod(np.maximum(shared, 0), axis=-1).sum(axis=0)
    return tuple(places[np.argmin(hidden)].tolist())


def _length(runs):
    return sum(font.getlength(part) for part, font in runs)


def _draw_runs(pen, start, runs, color):
    """Draw the runs of a text that starts at (x, y), the middle of its left end."""
    x, y = start
    for part, font in runs:
        pen.text((x, y), part, color, font, anchor="lm")
        x += font.getlength(part)


def _ink_on(color):
    red, green, blue = ImageColor.getrgb(color)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"


def _legend(title, styles, width):
    """A strip to put above a mosaic: the title, then a sample of each style."""
    size = int(np.clip(width / 55, 13, 22))
    heading, texts = runs_of(title, size), [runs_of(style.text, size) for style in styles]
    lengths = [4.5 * size + _length(text) for text in texts]
    lefts = np.cumsum([0, *lengths[:-1]]).astype(int)
    width = max(width, math.ceil(max(sum(lengths), _length(heading))))
    strip = np.full((round(size * 4.4), width, 3), 255, np.uint8)
    for left, style in zip(lefts, styles, strict=True):
        sample = np.rint([left + 2, size * 2.4, left + size * 2, size * 3.6]).astype(int)
        _blend_outline(strip, sample, 3, style.color, 1.0, DASHES[style.line])
    picture = Image.fromarray(strip)
    pen = ImageDraw.Draw(picture)
    _draw_runs(pen, (0, size), heading, INK)
    for left, text in zip(lefts, texts, strict=True):
        _draw_runs(pen, (left + size * 2.6, size * 3), text, INK)
    return np.asarray(picture)
