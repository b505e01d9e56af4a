"""The training objective of one image, as sums (SSD paper, equation 1 and "Hard negative mining").

Sums, because the paper divides by the matched anchors of the whole batch, which only the caller
knows: loss = (class_loss + box_loss) / max(num_positive, 1), each summed over the batch first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ssd_jax.types import Targets


class LossSums(NamedTuple):
    """Losses summed over the anchors of an image, and the number of its positive anchors."""

    class_loss: Float[Array, "*B"]
    box_loss: Float[Array, "*B"]
    num_positive: Int[Array, "*B"]


def mine_hard_negatives(
    background_loss: Float[Array, "A"],
    positive: Bool[Array, "A"],
    negative: Bool[Array, "A"],
    *,
    negatives_per_positive: int = 3,
    minimum: int = 3,
) -> Bool[Array, "A"]:
    """The negatives that the network takes least for background, a few for each positive.

    Of equal losses the lower index wins. `minimum` is what an image with few or no positives gets;
    3 treats an image without objects like one with a single positive. `background_loss` is float32
    and not negative.

    The mask of the first few places of a sort, without the sort: the loss of the last place is
    found bit by bit, in a twentieth of the time of an argsort on a CPU.
    """
    wanted = jnp.maximum(negatives_per_positive * positive.sum(), minimum)
    # The bits of a non-negative float, read as an integer, keep its order.
    hardness = jax.lax.bitcast_convert_type(jnp.abs(background_loss), jnp.int32)
    hardness = jnp.where(negative, hardness, -1)

    def set_bit(i, threshold):
        higher = threshold | (1 << (30 - i))
        return jnp.where((hardness >= higher).sum() >= wanted, higher, threshold)

    threshold = jax.lax.fori_loop(0, 31, set_bit, jnp.zeros_like(hardness[0]))
    above, tied = hardness > threshold, hardness == threshold
    return above | (tied & (jnp.cumsum(tied) <= wanted - above.sum()))


def multibox_loss(
    box_deltas: Float[Array, "A 4"],
    class_logits: Float[Array, "A channels"],
    targets: Targets,
    *,
    negatives_per_positive: int = 3,
    minimum_negatives: int = 3,
) -> LossSums:
    """Smooth L1 over the positives, softmax cross-entropy over positives and hard negatives.

    `class_logits` hold background first; they may be of any float type, the loss is float32.
    """
    log_probabilities = jax.nn.log_softmax(class_logits.astype(jnp.float32))
    hard = mine_hard_negatives(
        jax.lax.stop_gradient(-log_probabilities[:, 0]),
        targets.positive,
        targets.negative,
        negatives_per_positive=negatives_per_positive,
        minimum=minimum_negatives,
    )
    asked = jnp.arange(class_logits.shape[1]) == targets.class_ids[:, None]
    cross_entropy = -jnp.sum(log_probabilities, axis=1, where=asked)
    smooth_l1 = optax.huber_loss(box_deltas.astype(jnp.float32), targets.box_deltas, delta=1.0)
    return LossSums(
        class_loss=jnp.sum(cross_entropy, where=targets.positive | hard),
        box_loss=jnp.sum(smooth_l1, where=targets.positive[:, None]),
        num_positive=targets.positive.sum(),
    )
