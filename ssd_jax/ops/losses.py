"""The training objective of one image, as sums (SSD paper, equation 1 and "Hard negative mining").

They are sums because only the caller knows the counts over many images that divide them
(`train.step.batch_loss`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ssd_jax.errors import check_choice
from ssd_jax.ops.box_losses import BOX_LOSSES, overlap_loss
from ssd_jax.ops.boxes import VARIANCES, decode, iou
from ssd_jax.types import Targets

CLASS_LOSSES = ("softmax", "focal", "quality_focal", "varifocal")

# Deltas this close, relative to the target, count as equal: MXNet counts equal float32 numbers, but
# XLA's logarithms and divisions by constants differ from C's in the last digits.
_ROUNDING = 1e-6


class LossSums(NamedTuple):
    """Losses summed over the anchors of an image, and the counts to divide them by.

    `num_classified` counts the anchors in the class loss, positives and chosen negatives;
    `num_box_errors` counts the box deltas that are not exactly right, at most four per positive.
    """

    class_loss: Float[Array, "*B"]
    box_loss: Float[Array, "*B"]
    num_positive: Int[Array, "*B"]
    num_classified: Int[Array, "*B"]
    num_box_errors: Int[Array, "*B"]


@jax.named_scope("mine")
def mine_hard_negatives(
    background: Float[Array, "A"],
    positive: Bool[Array, "A"],
    negative: Bool[Array, "A"],
    *,
    negatives_per_positive: int | float = 3,
    minimum: int = 3,
) -> Bool[Array, "A"]:
    """The mask of hard negatives: the least background-like ones, a few for each positive.

    Those with the lowest probability of `background`, float32 in [0, 1], are chosen; of equal ones
    the lower index wins. An image with few or no positives gets `minimum`; 3 treats an image
    without objects like one with a single positive. If `negatives_per_positive` is 0 there is no
    hard-negative mining: all negatives are chosen.

    This selects the first few places of a sort without sorting: the probability of the last place
    is found three bits at a time, in a twentieth of the time of an argsort on a CPU. More bits per
    round mean fewer kernels on a GPU, but more comparisons (experiments/speed/README.md).
    """
    if negatives_per_positive <= 0:
        return negative
    count = (negatives_per_positive * positive.sum()).astype(jnp.int32)  # 2.5 for 1 makes 2
    count = jnp.maximum(count, minimum)
    # The bits of non-negative floats, read as integers, have the same order; those of 1 need 30.
    bits = jnp.where(negative, jax.lax.bitcast_convert_type(background, jnp.int32), 1 << 30)

    def add_digit(i, last_place):
        digit = 1 << (27 - 3 * i)
        too_few = (bits[:, None] < last_place + digit * jnp.arange(1, 8)).sum(axis=0) < count
        return last_place + digit * too_few.sum(dtype=jnp.int32)

    # The initial value is computed from the input, so that types agree inside `jax.shard_map`.
    last_place = jax.lax.fori_loop(0, 10, add_digit, jnp.zeros_like(bits[0]))
    before, tied = bits < last_place, bits == last_place
    return before | (tied & (jnp.cumsum(tied) <= count - before.sum()))


def multibox_loss(
    box_deltas: Float[Array, "A 4"],
    class_logits: Float[Array, "A channels"],
    targets: Targets,
    anchors: Float[Array | np.ndarray, "A 4"],
    *,
    class_loss: str = "softmax",
    box_loss: str = "smooth_l1",
    negatives_per_positive: int | float = 3,
    minimum_negatives: int = 3,
    label_smoothing: float = 0.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    variances: tuple[float, float, float, float] = VARIANCES,
) -> LossSums:
    """A box loss over the positives, a class loss over positives and negatives.

    `class_logits` have background first; they may be of any float type, the loss is float32.
    `anchors` and `variances` are those that the targets were made with.

    * `class_loss` "softmax": cross-entropy over positives and hard negatives. `label_smoothing` is
      the fraction of the target that is spread evenly over all channels (Szegedy et al.
      2016, arXiv:1512.00567, section 7).
    * the others: `sigmoid_loss` over the classes of all positives and negatives.
    * `box_loss` "smooth_l1" of the deltas, or an `overlap_loss` of the decoded boxes.
    """
    check_choice("class_loss", class_loss, CLASS_LOSSES)
    check_choice("box_loss", box_loss, ("smooth_l1", *BOX_LOSSES))
    logits, deltas = class_logits.astype(jnp.float32), box_deltas.astype(jnp.float32)
    # XLA removes both if no loss uses them, as with the paper's softmax and smooth L1.
    boxes = decode(deltas, anchors, variances)
    target_boxes = decode(targets.box_deltas, anchors, variances)

    if class_loss == "softmax":
        classified = targets.positive | mine_hard_negatives(
            jax.nn.softmax(jax.lax.stop_gradient(logits))[:, 0],
            targets.positive,
            targets.negative,
            negatives_per_positive=negatives_per_positive,
            minimum=minimum_negatives,
        )
        class_losses = _cross_entropy(logits, targets.class_ids, label_smoothing)
    else:
        classified = targets.positive | targets.negative
        class_losses = sigmoid_loss(
            logits[:, 1:],
            targets.class_ids[:, None] == jnp.arange(1, logits.shape[1]),
            iou(jax.lax.stop_gradient(boxes), target_boxes),
            kind=class_loss,
            alpha=focal_alpha,
            gamma=focal_gamma,
        ).sum(axis=1)

    error = deltas - targets.box_deltas
    if box_loss == "smooth_l1":
        box_losses = optax.huber_loss(error)
    else:
        box_losses = overlap_loss(boxes, target_boxes, kind=box_loss)[:, None]
    is_wrong = jnp.abs(error) > _ROUNDING * jnp.abs(targets.box_deltas)
    return LossSums(
        class_loss=jnp.sum(class_losses, where=classified),
        box_loss=jnp.sum(box_losses, where=targets.positive[:, None]),
        num_positive=targets.positive.sum(),
        num_classified=classified.sum(),
        num_box_errors=jnp.sum(is_wrong, where=targets.positive[:, None]),
    )


def sigmoid_loss(
    logits: Float[Array, "A C"],
    targets: Bool[Array, "A C"],
    quality: Float[Array, "A"],
    *,
    kind: str,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "A C"]:
    """Binary cross-entropy of each class, weighted so that many easy negatives count little.

    With p = sigmoid(logit), and `quality` the IoU of an anchor's box with its target:

    * focal: (1 - p)^gamma where `targets`, p^gamma elsewhere, times alpha or 1 - alpha (Lin et al.
      2017, arXiv:1708.02002, equation 5).
    * quality_focal: the target of p is the quality, weighted by |quality - p|^gamma (Li et al.
      2020, arXiv:2006.04388, equation 4); no alpha.
    * varifocal: the target of p is the quality, weighted by it; elsewhere alpha p^gamma (Zhang et
      al. 2021, arXiv:2008.13367, equation 2).
    """
    check_choice("class_loss", kind, CLASS_LOSSES[1:])
    if kind == "focal":
        return optax.sigmoid_focal_loss(
            logits, targets.astype(jnp.float32), alpha=alpha, gamma=gamma
        )
    score, soft_targets = jax.nn.sigmoid(logits), jnp.where(targets, quality[:, None], 0.0)
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, soft_targets)
    if kind == "quality_focal":
        # At 0 a power below 1 has no finite gradient.
        distance = jnp.maximum(jnp.abs(soft_targets - score), jnp.finfo(jnp.float32).tiny)
        return distance**gamma * cross_entropy
    # As in the authors' code, the weights are constants without a gradient.
    weights = jnp.where(targets, soft_targets, alpha * jax.lax.stop_gradient(score) ** gamma)
    return weights * cross_entropy


def _cross_entropy(logits, class_ids, smoothing):
    # A sum over channels, because the gradient of an index is a scatter, whose result differs every
    # time on a GPU.
    target = jax.nn.one_hot(class_ids, logits.shape[1])
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(target, smoothing))
