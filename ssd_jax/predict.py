"""Pictures -> detections: the one path of evaluation, prediction, serving and export."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ssd_jax.data.decode import decode_image
from ssd_jax.models.ssd import SSD
from ssd_jax.ops.detect import detect
from ssd_jax.ops.images import normalise, resize
from ssd_jax.types import Detections


@jax.named_scope("network")
def run_network(
    model: SSD, variables: Any, images: Float[Array, "B S S 3"], *, flip: bool = False
) -> tuple[Float[Array, "B A 4"], Float[Array, "B A channels"]]:
    """Box deltas and class logits; with `flip` also of the mirrored images, behind the others.

    They belong to `predicting_anchors`.
    """
    outputs = model.apply(variables, images, train=False)
    if not flip:
        return outputs
    box_deltas, class_logits = model.apply(variables, images[:, :, ::-1], train=False)
    # Brought back from the mirrored image, a shift to the right is one to the left.
    mirrored = box_deltas * jnp.array([-1.0, 1.0, 1.0, 1.0]), class_logits
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), outputs, mirrored)


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
    """Returns `predict(variables, canvas, extent) -> Detections`, to be jitted by the caller.

    The pictures come as `types.Batch` holds them. Each is looked at in every image size that
    `anchors` has those of, and with `flip` mirrored as well; the boxes of all these views suppress
    each other. `detect_settings` go to `ops.detect.detect`.
    """
    all_anchors = np.concatenate([predicting_anchors(each, flip=flip) for each in anchors.values()])
    detect_settings |= {"activation": model.heads.class_activation}

    def predict(
        variables: Any, canvas: UInt8[Array, "B H W 3"], extent: Int[Array, "B 2"]
    ) -> Detections:
        def view(size):
            images = jax.vmap(lambda c, e: resize(c, e, size=size))(canvas, extent)
            return run_network(model, variables, normalise(images, mean, std), flip=flip)

        box_deltas, class_logits = jax.tree.map(
            lambda *views: jnp.concatenate(views, axis=1), *map(view, anchors)
        )
        return jax.vmap(lambda d, c: detect(d, c, all_anchors, **detect_settings))(
            box_deltas, class_logits
        )

    return predict


class OnPictures:
    """Makes what detects in decoded pictures, as `serve.engine.AnyDetector`, take encoded ones."""

    def __call__(self, images: Sequence[bytes], *, names: Sequence[str] = ()) -> list[Detections]:
        """Detections of each encoded picture (JPEG, PNG), without padding.

        Boxes are normalised to the picture. `names` stand in the message of the `DataError` that
        a picture raises which does not decode.
        """
        found = []
        for index, data in enumerate(images):
            name = names[index] if names else f"image {index}"
            canvas, extent, _ = decode_image(data, name, self.canvas)
            batch = self.predict(canvas[None], np.asarray(extent, np.int32)[None])
            rows = jax.tree.map(lambda x: x[0], batch)
            found.append(jax.tree.map(lambda x, keep=rows.valid: x[keep], rows))
        return found
