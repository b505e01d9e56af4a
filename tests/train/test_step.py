"""One training step: what it learns from, and what it does not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hlo import QUICK
from jax.sharding import PartitionSpec

from ssd_jax.errors import UserError
from ssd_jax.ops.augment import Augmentation
from ssd_jax.sharding import make_mesh
from ssd_jax.train.optimizer import build_optimizer
from ssd_jax.train.state import TrainState
from ssd_jax.train.step import augment_batch, batch_loss, train_step
from ssd_jax.types import Batch

AUGMENTATION = {"seed": 3, "image_size": 8, "settings": Augmentation(), "fill": (0.0, 0.0, 0.0)}
ANCHORS = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.5, 0.5, 1]], np.float32)


class Linear(nn.Module):
    """The least that can be trained: two layers on the mean colour."""

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.Dense(2, name="base")(images.mean(axis=(1, 2)))
        outputs = nn.Dense(3 * 6, name="head")(features).reshape(-1, 3, 6)
        return outputs[..., :4], outputs[..., 4:]


def batch_of(valid):
    """Images with up to one object each, which the first or the second anchor fits exactly."""
    size = len(valid)
    return Batch(
        canvas=jnp.asarray(np.random.default_rng(0).integers(0, 256, (size, 8, 8, 3), np.uint8)),
        extent=jnp.full((size, 2), 8),
        size=jnp.full((size, 2), 8),
        boxes=jnp.asarray(np.resize(ANCHORS[:2], (size, 1, 4))),
        labels=jnp.zeros((size, 1), jnp.int32),
        difficult=jnp.zeros((size, 1), bool),
        valid=jnp.asarray(valid)[:, None],
        sample_id=jnp.arange(size),
        real=jnp.ones(size, bool),
    )


@functools.cache
def compiled_loss(**settings):
    return jax.jit(functools.partial(batch_loss, **settings), compiler_options=QUICK)


def loss_of(valid, logits=0.0, **settings):
    batch = batch_of(valid)
    class_logits = jnp.zeros((len(valid), 3, 2)).at[..., 0].set(logits)
    deltas = jnp.ones((len(valid), 3, 4))
    return compiled_loss(**settings)(deltas, class_logits, batch, ANCHORS)


# What images of one object and of none contribute, where the odds are equal: an anchor log 2, a
# positive one with four offsets that are off by 1, and up to three negatives.
ONE_OBJECT, NO_OBJECT = 3 * np.log(2) + 4 * 0.5, 3 * np.log(2)


def test_the_loss_is_divided_by_the_positives_of_the_whole_batch():
    assert float(loss_of([True, True])[0]) == pytest.approx(2 * ONE_OBJECT / 2, rel=1e-6)
    assert float(loss_of([True] * 3)[0]) == pytest.approx(ONE_OBJECT, rel=1e-6)


def test_groups_are_counted_apart_and_averaged():
    loss, _ = loss_of([True, False], group=1)
    assert float(loss) == pytest.approx((ONE_OBJECT + NO_OBJECT) / 2, rel=1e-6)
    loss, _ = loss_of([True, True], group=1)
    assert float(loss) == pytest.approx(ONE_OBJECT, rel=1e-6)


@pytest.mark.parametrize(("group", "normalization"), [(0, "positives"), (1, "valid"), (4, "valid")])
def test_the_loss_does_not_depend_on_how_the_batch_is_cut(group, normalization):
    batch = batch_of([True, False, False, True, True, True, False, False])
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(8, 3, 2)))

    def value_and_gradient(batch_axis, logits, batch):
        def value(logits):
            deltas = jnp.ones((len(logits), 3, 4))
            return batch_loss(
                deltas, logits, batch, ANCHORS,
                group=group, normalization=normalization, batch_axis=batch_axis,
            )[0]  # fmt: skip

        loss, gradient = jax.value_and_grad(value)(logits)
        return (jax.lax.pmean(loss, batch_axis) if batch_axis else loss), gradient

    cut, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        functools.partial(value_and_gradient, "data"),
        mesh=make_mesh(),
        in_specs=cut,
        out_specs=(whole, cut),
    )
    loss, gradient = jax.jit(sharded, compiler_options=QUICK)(logits, batch)
    alone = jax.jit(functools.partial(value_and_gradient, None), compiler_options=QUICK)
    expected, expected_gradient = alone(logits, batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    # The loss of the batch is the mean of the devices' losses.
    np.testing.assert_allclose(gradient / 8, expected_gradient, rtol=1e-5, atol=1e-7)


def test_normalization_valid_divides_by_what_each_loss_sums_over():
    for valid in ([True, True], [True, False]):
        _, metrics = loss_of(valid, normalization="valid", minimum_negatives=2)
        assert float(metrics["class_loss"]) == pytest.approx(np.log(2), rel=1e-6)
        assert float(metrics["box_loss"]) == pytest.approx(0.5, rel=1e-6)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="groups of 3 images do not divide a batch of 2"):
        loss_of([True, True], group=3)
    with pytest.raises(UserError, match="expected positives or valid"):
        loss_of([True, True], normalization="batch")


def test_the_keywords_of_matching_reach_it():
    ignored, _ = loss_of([True, False], empty_is_negative=False)
    assert float(ignored) == pytest.approx(ONE_OBJECT, rel=1e-6)
    # No IoU exceeds 1, so one anchor of an image is positive, and none lies below 0.
    alone, _ = loss_of([True, True], iou_threshold=1.0, strict=True, negative_iou_threshold=0.0)
    assert float(alone) == pytest.approx(np.log(2) + 2, rel=1e-6)
    # Every IoU reaches 0, so all three are positive and are averaged.
    _, metrics = loss_of([True, True], iou_threshold=0.0)
    assert float(metrics["class_loss"]) == pytest.approx(np.log(2), rel=1e-6)


def test_the_box_loss_is_weighted():
    _, metrics = loss_of([True, True])
    weighted, _ = loss_of([True, True], box_weight=3.0)
    assert float(weighted) == pytest.approx(
        float(metrics["class_loss"] + 3 * metrics["box_loss"]), rel=1e-6
    )


@pytest.mark.parametrize("images", [1, 8])
def test_images_without_objects_are_negatives_and_weigh_as_much_as_one_object(images):
    loss, metrics = loss_of([False] * images)
    assert float(loss) == pytest.approx(NO_OBJECT, rel=1e-6)
    mixed, _ = loss_of([True, *[False] * images])
    assert float(mixed) == pytest.approx(ONE_OBJECT, rel=1e-6)  # as many negatives each
    assert float(metrics["box_loss"]) == 0.0
    assert float(loss_of([False, False], logits=50.0)[0]) == pytest.approx(0.0)


def test_a_sample_is_augmented_alike_whatever_its_neighbours():
    batch = batch_of([True, True, True])
    augment = jax.jit(lambda batch, step: augment_batch(batch, step, **AUGMENTATION))
    images, _ = augment(batch, 5)
    reversed_images, _ = augment(jax.tree.map(lambda x: x[::-1], batch), 5)
    np.testing.assert_array_equal(images, reversed_images[::-1])
    assert not np.array_equal(images, augment(batch, 6)[0])


def test_a_rate_of_zero_freezes_and_leaves_no_gradient():
    frozen = (("*/base/*", 0.0),)
    optimizer = build_optimizer(
        lambda _: 0.1, rate_multipliers=frozen, learning_rate_in_momentum=True
    )
    params = Linear().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=True)["params"]
    state = TrainState(jnp.zeros((), int), params, {}, optimizer.init(params))
    step = functools.partial(
        train_step,
        mesh=make_mesh(jax.devices()[:1]),
        model=Linear(),
        optimizer=optimizer,
        schedule=lambda _: 0.1,
        augment=functools.partial(
            augment_batch, **AUGMENTATION | {"settings": Augmentation(distort=None, crop=None)}
        ),
        loss=functools.partial(batch_loss, anchors=ANCHORS, batch_axis="data"),
        mean=(127.0,) * 3,
        std=(64.0,) * 3,
        rate_multipliers=frozen,
    )
    step = jax.jit(step, compiler_options=QUICK)
    after, _ = step(state, batch_of([True, True]))
    # With momentum from before it was frozen.
    rolling = state.replace(opt_state=jax.tree.map(jnp.ones_like, state.opt_state))
    for each in (after, step(rolling, batch_of([True, True]))[0]):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, each.params)
        assert moved == {part: dict.fromkeys(("kernel", "bias"), part == "head") for part in params}
    # Weight decay pulls at kernels only, so a bias shows the gradient alone.
    assert not optax.tree.get(after.opt_state, "trace")["base"]["bias"].any()


class Dropped(nn.Module):
    """Box deltas that tell which of 3 anchors an image keeps."""

    @nn.compact
    def __call__(self, images, *, train):
        scale = self.param("scale", nn.initializers.ones, ())
        kept = nn.Dropout(0.5, deterministic=not train)(jnp.ones((len(images), 3, 4)))
        return scale * kept, jnp.zeros((len(images), 3, 2))


def test_dropout_is_a_function_of_seed_step_and_device():
    powers = 2.0 ** jnp.arange(12)

    def loss(box_deltas, class_logits, batch):
        mask = jnp.sum(box_deltas.reshape(-1, 12) * powers, axis=1).mean()
        return mask, {"mask": mask, "square": mask**2, "number": 3}

    params = {"scale": jnp.ones(())}
    optimizer = optax.sgd(0.0)
    step = functools.partial(
        train_step,
        mesh=make_mesh(jax.devices()[:2]),
        model=Dropped(),
        optimizer=optimizer,
        schedule=lambda _: 0.0,
        augment=lambda batch, step: (batch.canvas.astype(jnp.float32), batch),
        loss=loss,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    step = jax.jit(step, compiler_options=QUICK)

    def metrics(number):
        state = TrainState(jnp.int32(number), params, {}, optimizer.init(params))
        return jax.device_get(step(state, batch_of([True, True]))[1])

    first, again, later = map(metrics, (5, 5, 6))
    assert first == again
    assert first["mask"] != later["mask"]
    # The mean of squares is the square of the mean where all devices draw the same.
    assert first["square"] > 1.001 * first["mask"] ** 2
    assert first["number"] == 3
