"""The training objective of one image, as sums (SSD paper, equation 1 and "Hard negative mining").

Sums, because they are divided by counts over many images, which only the caller knows
(`train.step.batch_loss`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ssd_jax.types import Targets

# Offsets this close, as a part of the wanted one, are the same: MXNet counts equal float32 numbers,
# and XLA's logarithms and its divisions by constants differ from C's in the last places.
_ROUNDING = 1e-6


class LossSums(NamedTuple):
    """Losses summed over the anchors of an image, and the counts to divide them by.

    `num_classified` counts the anchors in the class loss, positives and chosen negatives;
    `num_box_errors` the offsets that are not exactly right, at most four a positive.
    """

    class_loss: Float[Array, "*B"]
    box_loss: Float[Array, "*B"]
    num_positive: Int[Array, "*B"]
    num_classified: Int[Array, "*B"]
    num_box_errors: Int[Array, "*B"]


def mine_hard_negatives(
    background: Float[Array, "A"],
    positive: Bool[Array, "A"],
    negative: Bool[Array, "A"],
    *,
    negatives_per_positive: int | float = 3,
    minimum: int = 3,
) -> Bool[Array, "A"]:
    """The negatives that the network takes least for background, a few for each positive.

    Chosen are the least probabilities of `background`, float32 in [0, 1]; of equal ones the lower
    index wins. `minimum` is what an image with few or no positives gets; 3 treats an image without
    objects like one with a single positive. Without `negatives_per_positive` above 0 there is no
    mining: all negatives are chosen.

    The mask of the first few places of a sort, without the sort: the probability of the last place
    is found bit by bit, in a twentieth of the time of an argsort on a CPU.
    """
    if negatives_per_positive <= 0:
        return negative
    wanted = (negatives_per_positive * positive.sum()).astype(jnp.int32)  # 2.5 for 1 makes 2
    wanted = jnp.maximum(wanted, minimum)
    # The bits of a non-negative float, read as an integer, keep its order; those of 1 need 30.
    bits = jnp.where(negative, jax.lax.bitcast_convert_type(background, jnp.int32), 1 << 30)

    def clear_bit(i, last_place):
        lower = last_place & ~(1 << (29 - i))
        return jnp.where((bits <= lower).sum() >= wanted, lower, last_place)

    # The loop starts from a computed value, so that its types agree inside `jax.shard_map`.
    last_place = jax.lax.fori_loop(0, 30, clear_bit, jnp.full_like(bits[0], (1 << 30) - 1))
    before, tied = bits < last_place, bits == last_place
    return before | (tied & (jnp.cumsum(tied) <= wanted - before.sum()))


def multibox_loss(
    box_deltas: Float[Array, "A 4"],
    class_logits: Float[Array, "A channels"],
    targets: Targets,
    *,
    negatives_per_positive: int | float = 3,
    minimum_negatives: int = 3,
) -> LossSums:
    """Smooth L1 over the positives, softmax cross-entropy over positives and hard negatives.

    `class_logits` hold background first; they may be of any float type, the loss is float32.
    """
    logits = class_logits.astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits)
    hard = mine_hard_negatives(
        jax.nn.softmax(jax.lax.stop_gradient(logits))[:, 0],
        targets.positive,
        targets.negative,
        negatives_per_positive=negatives_per_positive,
        minimum=minimum_negatives,
    )
    classified = targets.positive | hard
    asked = jnp.arange(class_logits.shape[1]) == targets.class_ids[:, None]
    cross_entropy = -jnp.sum(log_probabilities, axis=1, where=asked)
    error = box_deltas.astype(jnp.float32) - targets.box_deltas
    is_wrong = jnp.abs(error) > _ROUNDING * jnp.abs(targets.box_deltas)
    return LossSums(
        class_loss=jnp.sum(cross_entropy, where=classified),
        box_loss=jnp.sum(optax.huber_loss(error), where=targets.positive[:, None]),
        num_positive=targets.positive.sum(),
        num_classified=classified.sum(),
        num_box_errors=jnp.sum(is_wrong, where=targets.positive[:, None]),
    )
