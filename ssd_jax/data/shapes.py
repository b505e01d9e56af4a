"""A synthetic data set to get started with: shapes on textured backgrounds, as a VOC folder.

Crosses, rings and triangles, turned and slightly stretched, in colours that do not reveal the
class, among strokes that are not objects, on noise, gradients, stripes and checks. An object's box
is tight around its visible pixels, as VOC's annotation guidelines require. It is `difficult` if
less than `CLEARLY_VISIBLE` of its area is visible (the rest is covered or beyond the border), if a
side of its box is less than `CLEARLY_WHOLE` of the whole shape's (a triangle without its tip), or
if it is smaller than `CLEARLY_LARGE`.
"""

import os
import pathlib
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

CLASSES = ("cross", "ring", "triangle")

# Sizes are the longer side of the box over the shorter side of the image.
SMALLEST, LARGEST, CLEARLY_LARGE = 0.05, 0.8, 0.15
CLEARLY_VISIBLE, LEAST_VISIBLE = 0.92, 0.4
CLEARLY_WHOLE = 0.85
# NMS could remove one of two boxes with a larger IoU.
LARGEST_OVERLAP = 0.1
LARGEST_TURN = 15.0  # degrees; with any angle a small network needs several times as many steps
EMPTY_IMAGES = 0.07
MOST_OBJECTS = 3

_SUB_PIXEL_BITS = 4  # OpenCV draws at 1/16 pixel
_ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_CIRCLE = np.stack([np.sin(_ANGLES), -np.cos(_ANGLES)], axis=1)
_ARM = np.array([(-1, 3), (1, 3), (1, 1)]) / 3
_QUARTER_TURN = np.array([(0, -1), (1, 0)])
# One or two outlines per class; the area inside both is a hole.
_UNIT_OUTLINES = (
    (np.concatenate([_ARM @ np.linalg.matrix_power(_QUARTER_TURN, k) for k in range(4)]),),
    (_CIRCLE, 0.55 * _CIRCLE),
    (_CIRCLE[::16],),
)


class DrawnObject(NamedTuple):
    """A drawn object; `box` is (xmin, ymin, xmax, ymax) in pixels from 1, inclusive."""

    label: int
    box: tuple[int, int, int, int]
    difficult: bool


class _Whole(NamedTuple):
    """A shape including its hidden parts: area and (width, height) in pixels."""

    label: int
    area: float
    sides: tuple[float, float]


def write_shapes(
    folder: str | os.PathLike,
    *,
    train: int,
    val: int,
    test: int = 0,
    seed: int,
    image_size: int = 192,
) -> None:
    """Write a VOC folder with the image sets train, val and, if `test` is not 0, test.

    Image sides are between 5/6 of `image_size` and `image_size`. Each image is a function of
    (`seed`, index); the image sets are written last, so a folder that has them is complete.
    """
    folder = pathlib.Path(folder)
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(train + val + test), desc="drawing", disable=None):
        image, objects = draw_shapes(seed, index, image_size=image_size)
        jpeg = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 92))[1]
        (folder / "JPEGImages" / f"{index:06d}.jpg").write_bytes(jpeg.tobytes())
        annotation = _annotation(f"{index:06d}.jpg", image.shape[:2], objects)
        (folder / "Annotations" / f"{index:06d}.xml").write_text(annotation, encoding="utf-8")
    start = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        ids = "".join(f"{index:06d}\n" for index in range(start, start + count))
        if ids:
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(ids, encoding="utf-8")
        start += count


def draw_shapes(
    seed: int, index: int, *, image_size: int = 192
) -> tuple[UInt8[np.ndarray, "H W 3"], list[DrawnObject]]:
    """Draw one RGB image; returns it and its visible objects."""
    rng = np.random.default_rng((seed, index))
    height, width = (int(side) for side in rng.integers(image_size * 5 // 6, image_size + 1, 2))
    image = _background(rng, height, width)
    # The object that each pixel shows: 0 for none, k for the k-th one placed.
    owner = np.zeros((height, width), np.uint8)
    _draw_strokes(rng, image, owner, count=int(rng.integers(0, 3)))

    placed: list[_Whole] = []
    wanted = 0 if rng.random() < EMPTY_IMAGES else int(rng.integers(1, MOST_OBJECTS + 1))
    for _ in range(4 * wanted):
        if len(placed) == wanted:
            break
        label = int(rng.integers(len(CLASSES)))
        outlines = _random_outlines(rng, label, height, width)
        mask, area = _filled(outlines, height, width)
        whole = _Whole(label, area, tuple(np.ptp(outlines[0], axis=0).tolist()))
        covered = np.where(mask >= 128, np.uint8(len(placed) + 1), owner)
        if _all_separable(covered, [each.area for each in (*placed, whole)]):
            owner = covered
            placed.append(whole)
            _paint(rng, image, mask)
    crossed = image.copy(), owner.copy()
    _draw_strokes(rng, *crossed, count=int(rng.integers(0, 2)))
    if _all_separable(crossed[1], [each.area for each in placed]):
        image, owner = crossed

    grain = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape) >> 4
    image = cv2.subtract(cv2.add(image, grain), np.full_like(grain, 8))
    return image, [
        _described(whole, owner == number) for number, whole in enumerate(placed, start=1)
    ]


def _random_outlines(
    rng: np.random.Generator, label: int, height: int, width: int
) -> list[Float[np.ndarray, "_P 2"]]:
    stretch = rng.uniform(0.85, 1.0, 2)
    angle = np.deg2rad(rng.uniform(-LARGEST_TURN, LARGEST_TURN))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outlines = [points * stretch @ turn.T for points in _UNIT_OUTLINES[label]]
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    # Spread over the logarithm of the size, but rarely near either end.
    size = SMALLEST * (LARGEST / SMALLEST) ** rng.beta(3.0, 1.7) * min(height, width)
    scale = size / (high - low).max()
    sides = np.array([width, height])
    margin = np.minimum(0.4 * (high - low) * scale, sides / 2)  # 10 % of a side beyond the border
    centre = rng.uniform(margin, sides - margin)
    return [
        ((points - (low + high) / 2) * scale + centre).astype(np.float32) for points in outlines
    ]


def _filled(
    outlines: list[Float[np.ndarray, "_P 2"]], height: int, width: int
) -> tuple[UInt8[np.ndarray, "H W"], float]:
    """The opacity of each pixel, and the area of the whole shape, including beyond the border."""
    mask = np.zeros((height, width), np.uint8)
    points = [np.round(outline * 2**_SUB_PIXEL_BITS).astype(np.int32) for outline in outlines]
    cv2.fillPoly(mask, points, 255, lineType=cv2.LINE_AA, shift=_SUB_PIXEL_BITS)
    outer, *holes = (float(cv2.contourArea(outline)) for outline in outlines)
    return mask, outer - sum(holes)


def _all_separable(owner: UInt8[np.ndarray, "H W"], areas: list[float]) -> bool:
    """Whether enough of every object is visible, none is a sliver, and no boxes nearly coincide."""
    shown = [owner == number for number in range(1, len(areas) + 1)]
    visible = np.array([np.count_nonzero(pixels) for pixels in shown])
    if (visible < LEAST_VISIBLE * np.array(areas)).any():
        return False
    boxes = np.array([_tight_box(pixels) for pixels in shown]).reshape(-1, 4)
    if (boxes[:, 2:] - boxes[:, :2] < 2).any():
        return False
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.prod(np.maximum(high - low + 1, 0), axis=-1)
    area = np.diagonal(overlap)
    iou = overlap / (area[:, None] + area[None, :] - overlap)
    return not (np.triu(iou, k=1) > LARGEST_OVERLAP).any()


def _tight_box(shown: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    xmin, ymin, width, height = cv2.boundingRect(shown.view(np.uint8))
    return xmin + 1, ymin + 1, xmin + width, ymin + height


def _described(whole: _Whole, shown: Bool[np.ndarray, "H W"]) -> DrawnObject:
    box = _tight_box(shown)
    sides = box[2] - box[0] + 1, box[3] - box[1] + 1
    hidden = np.count_nonzero(shown) < CLEARLY_VISIBLE * whole.area
    cut = any(s < CLEARLY_WHOLE * of for s, of in zip(sides, whole.sides, strict=True))
    small = max(sides) < CLEARLY_LARGE * min(shown.shape)
    return DrawnObject(whole.label, box, bool(hidden or cut or small))


def _background(rng: np.random.Generator, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    centre = rng.uniform(60, 196, 3)
    colours = np.clip(centre + rng.uniform(-45, 45, (3, 3)), 0, 255)
    steps = np.linspace(0, 2, 256)
    table = np.stack([np.interp(steps, range(3), channel) for channel in colours.T], axis=1)
    return cv2.applyColorMap(_texture(rng, height, width), table.astype(np.uint8)[:, None])


def _texture(rng: np.random.Generator, height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """A random pattern over the full range of grey: noise, a gradient, stripes or checks."""
    kind = rng.integers(5)
    if kind <= 1:  # noise, coarse or fine
        cells = int(rng.integers(3, 9) if kind == 0 else rng.integers(16, 49))
        grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
        return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    along = cosine * x + sine * y
    if kind == 2:  # a gradient
        return (along * 180 + 128).astype(np.uint8)
    wave = np.sin(np.float32(2 * np.pi * rng.uniform(2, 12)) * along)
    if kind == 4:  # checks
        across = cosine * y - sine * x
        wave *= np.sin(np.float32(2 * np.pi * rng.uniform(2, 8)) * across)
    return (wave * 127 + 128).astype(np.uint8)


def _paint(
    rng: np.random.Generator, image: UInt8[np.ndarray, "H W 3"], mask: UInt8[np.ndarray, "H W"]
) -> None:
    """Blend in, in place, a shaded colour that stands out from what it covers."""
    xmin, ymin, width, height = cv2.boundingRect(mask)
    window = (slice(ymin, ymin + height), slice(xmin, xmin + width))
    ground, opacity = image[window], mask[window][..., None] / np.float32(255)
    candidates = rng.uniform(0, 255, (16, 3))
    distance = np.linalg.norm(candidates - cv2.mean(ground, mask[window])[:3], axis=1)
    # The first that is far enough away; the farthest would nearly always be black or white.
    colour = candidates[np.argmax(distance > min(150, distance.max() - 1))].astype(np.float32)
    shade = (_texture(rng, height, width) - np.float32(128)) * np.float32(rng.uniform(0, 0.15))
    paint = np.clip(colour + shade[..., None], 0, 255)
    image[window] = ground + (paint - ground) * opacity


def _draw_strokes(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "H W 3"],
    owner: UInt8[np.ndarray, "H W"],
    *,
    count: int,
) -> None:
    """Draw lines and open arcs, in place; they take the pixels from the objects."""
    height, width = owner.shape
    for _ in range(count):
        thickness = int(rng.integers(1, 4))
        colour = rng.uniform(0, 255, 3).tolist()
        line = _random_stroke(rng, height, width)
        cv2.polylines(image, [line], False, colour, thickness, lineType=cv2.LINE_AA)
        cv2.polylines(owner, [line], False, 0, thickness)


def _random_stroke(rng: np.random.Generator, height: int, width: int) -> Int[np.ndarray, "P 2"]:
    centre = rng.uniform(0, 1, 2) * (width, height)
    radius = rng.uniform(0.04, 0.25) * min(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:  # a line
        turn = np.array([angle, angle + np.pi])
    else:  # an arc of at most half a turn
        turn = angle + np.linspace(0, rng.uniform(0.5, np.pi), 16)
    points = centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return np.round(points).astype(np.int32)


def _annotation(filename: str, size: tuple[int, int], objects: list[DrawnObject]) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    parts = [
        f"<filename>{filename}</filename>",
        f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>",
    ]
    for thing in objects:
        corners = "".join(
            f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, thing.box, strict=True)
        )
        parts.append(
            f"<object><name>{CLASSES[thing.label]}</name>"
            f"<difficult>{int(thing.difficult)}</difficult><bndbox>{corners}</bndbox></object>"
        )
    return "<annotation>\n  " + "\n  ".join(parts) + "\n</annotation>\n"
