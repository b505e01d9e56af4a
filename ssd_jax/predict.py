"""Images -> detections: the common path of evaluation, prediction, serving and export."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, no_type_check, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ssd_jax.data.decode import decode_image, draw_pixels
from ssd_jax.errors import UserError
from ssd_jax.models.ssd import SSD
from ssd_jax.ops.detect import class_scores, multibox_detection
from ssd_jax.ops.images import normalise, resize
from ssd_jax.types import Detections


def prepare(
    canvas: UInt8[Array, "B H W 3"], extent: Int[Array, "B 2"], *, size: int
) -> Float[Array, "B S S 3"]:
    """Resize images, given as in `types.Batch`, to the network's input: RGB values 0..255."""
    return jax.vmap(lambda c, e: resize(c, e, size=size))(canvas, extent)


def run_network(
    model: SSD,
    variables: Any,
    images: Float[Array, "B S S 3"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    flip: bool = False,
) -> tuple[Float[Array, "B A 4"], Float[Array, "B A channels"]]:
    """Box deltas and class scores, in float32, for RGB values 0..255.

    With `flip` they are followed by those of the mirrored images. They belong to
    `predicting_anchors`.
    """
    images = normalise(images, mean, std)
    with jax.named_scope("network"):
        box_deltas, class_logits = model.apply(variables, images, train=False)
        if flip:
            deltas, logits = model.apply(variables, images[:, :, ::-1], train=False)
            # Mirrored back, a shift to the right becomes a shift to the left.
            deltas *= jnp.array([-1.0, 1.0, 1.0, 1.0])
            box_deltas = jnp.concatenate([box_deltas, deltas], axis=1)
            class_logits = jnp.concatenate([class_logits, logits], axis=1)
    return box_deltas, class_scores(class_logits, activation=model.heads.class_activation)


def finish(
    box_deltas: Float[Array, "B A 4"],
    scores: Float[Array, "B A channels"],
    *,
    anchors: Float[np.ndarray, "A 4"],
    **settings: int | float | str,
) -> Detections:
    """The detections of each image; `settings` go to `ops.detect.multibox_detection`."""
    return jax.vmap(lambda d, s: multibox_detection(d, s, anchors, **settings))(box_deltas, scores)


def predicting_anchors(
    anchors: Float[np.ndarray, "A 4"], *, flip: bool = False
) -> Float[np.ndarray, "_ 4"]:
    """The anchors that the outputs of `run_network` belong to."""
    if not flip:
        return anchors
    xmin, ymin, xmax, ymax = anchors.T
    return np.concatenate([anchors, np.stack([1 - xmax, ymin, 1 - xmin, ymax], axis=1)])


def make_predict(
    model: SSD,
    anchors: Mapping[int, Float[np.ndarray, "_ 4"]],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    flip: bool = False,
    **detect_settings: int | float | str,
) -> Callable[[Any, Array, Array], Detections]:
    """Make `predict(variables, canvas, extent) -> Detections`, to be jitted by the caller.

    The images are given as in `types.Batch`. Detections are made at every image size in `anchors`,
    and with `flip` in the mirrored image as well; NMS runs over the boxes of all these views
    together. `detect_settings` go to `finish`.
    """
    all_anchors = np.concatenate([predicting_anchors(each, flip=flip) for each in anchors.values()])

    def predict(
        variables: Any, canvas: UInt8[Array, "B H W 3"], extent: Int[Array, "B 2"]
    ) -> Detections:
        def view(size):
            images = prepare(canvas, extent, size=size)
            return run_network(model, variables, images, mean=mean, std=std, flip=flip)

        views = map(view, anchors)
        outputs = (jnp.concatenate(each, axis=1) for each in zip(*views, strict=True))
        return finish(*outputs, anchors=all_anchors, **detect_settings)

    return predict


# The bytes of a JPEG or PNG file, its path, or RGB pixels.
Picture = bytes | str | os.PathLike | UInt8[np.ndarray, "H W 3"]


@runtime_checkable
class AnyDetector(Protocol):
    """A run's `Detector` or an exported one; `canvas` is the side in pixels."""

    classes: tuple[str, ...]
    canvas: int

    def predict(
        self, canvas: UInt8[np.ndarray, "B S S 3"], extent: Int[np.ndarray, "B 2"]
    ) -> Detections:
        """The detections in decoded images, padded to the same number for each."""


class OnPictures:
    """Extends a detector for decoded images (`AnyDetector`) to files, bytes and arrays."""

    @no_type_check  # jaxtyping in tests would hide the errors raised below
    def __call__(
        self, images: Sequence[Picture], *, names: Sequence[str] = (), batch_size: int = 1
    ) -> list[Detections]:
        """The detections in each image, without padding.

        An image is the bytes of a JPEG or PNG file, the path of one, or a uint8 array in RGB.
        Boxes are normalised to the image. `names` are used in messages; by default the path, or
        "image 0" and so on. On a GPU many images take less time in batches; a program is compiled
        for each batch size.

        Raises:
          UserError: an image is none of these, or is not in a list; `batch_size` is below 1.
          DataError: an image cannot be decoded.
        """
        alone = isinstance(images, bytes | bytearray | str | os.PathLike)
        if alone or (isinstance(images, np.ndarray) and images.ndim == 3):
            raise UserError(
                f"images: got a single {type(images).__name__}, expected a list of images. Put "
                "it in brackets: detector([image])."
            )
        if batch_size < 1:
            raise UserError(f"batch_size: got {batch_size}, expected at least 1.")
        found = []
        for start in range(0, len(images), batch_size):
            pictures = []
            for index, picture in enumerate(images[start : start + batch_size], start):
                name = names[index] if names else _called(picture, index)
                pictures.append(_on_canvas(picture, name, self.canvas))
            batch = self.predict(*padded(pictures, batch_size, self.canvas))
            found += [without_padding(batch, row) for row in range(len(pictures))]
        return found


def padded(
    pictures: Sequence[tuple[UInt8[np.ndarray, "S S 3"], tuple[int, int]]], rows: int, side: int
) -> tuple[UInt8[np.ndarray, "rows S S 3"], Int[np.ndarray, "rows 2"]]:
    """Decoded images and their extents as a batch of `rows`: one shape, one compilation."""
    canvas = np.zeros((rows, side, side, 3), np.uint8)
    extent = np.full((rows, 2), side, np.int32)
    for row, (image, size) in enumerate(pictures):
        canvas[row], extent[row] = image, size
    return canvas, extent


def without_padding(batch: Detections, row: int) -> Detections:
    """The detections of one image of a batch."""
    return jax.tree.map(lambda each: each[row][batch.valid[row]], batch)


def _called(picture: object, index: int) -> str:
    return str(picture) if isinstance(picture, str | os.PathLike) else f"image {index}"


def _on_canvas(
    picture: object, name: str, side: int
) -> tuple[UInt8[np.ndarray, "S S 3"], tuple[int, int]]:
    """Like `decode_image`, without the size of the image."""
    if isinstance(picture, str | os.PathLike):
        if not os.path.isfile(picture):
            raise UserError(f"{name}: no such file. Give the path of a JPEG or PNG file.")
        picture = pathlib.Path(picture).read_bytes()
    if isinstance(picture, bytes | bytearray):
        return decode_image(picture, name, side)[:2]
    if not isinstance(picture, np.ndarray):
        got = type(picture).__name__
    elif (
        picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size
    ):
        got = f"an array of {picture.dtype} with the shape {picture.shape}"
    else:
        canvas = np.empty((side, side, 3), np.uint8)
        bgr = np.ascontiguousarray(picture[..., ::-1])
        return canvas, draw_pixels(canvas, bgr, picture.shape[:2])
    raise UserError(
        f"{name}: got {got}, expected the bytes of a JPEG or PNG file, its path, or an array of "
        "uint8 with the shape (height, width, 3), in RGB."
    )
