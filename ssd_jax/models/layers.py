"""The layers that all networks of the package share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.models.convolution import convolution
from ssd_jax.models.groups import group_size, group_sums

# Marks the kernels that `initialise.init_variables` fills by its own rule. Flax traces it at every
# start; Linen's default initialiser would take four times as long.
TRACED_INIT = nn.initializers.he_uniform()


@dataclasses.dataclass(frozen=True)
class ConvStyle:
    """The settings that all convolutions of a network share.

    `batch_norm` is "none", "frozen" or "batch"; the other `batch_norm` settings and `batch_axis`
    are those of `GroupedBatchNorm`. Parameters are float32 whatever `dtype` the network computes
    in.
    """

    width: float = 1.0
    dtype: Any = jnp.float32
    bias: bool = True
    batch_norm: str = "none"
    batch_norm_group: int = 0
    batch_norm_epsilon: float = 1e-5
    batch_norm_momentum: float = 0.9
    batch_norm_scale: bool = True
    batch_axis: str | None = None

    def channels(self, full: int) -> int:
        """The number of channels at this width: the nearest multiple of 8, at least 8."""
        return max(8, 8 * int(full * self.width / 8 + 0.5))


def conv_layer(
    x: Float[Array, "B _ _ _"],
    channels: int,
    *,
    style: ConvStyle,
    name: str,
    train: bool,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
    relu: bool = True,
    norm_scale: float = 1.0,
) -> Float[Array, "B _ _ _"]:
    """Convolution, then BatchNorm if the style has it, then ReLU; inside a compact method.

    The modules are `name` and `name_bn`, so the convolutions have the same path with and without
    BatchNorm. `padding` None keeps the size at stride 1 and halves it, rounded up, at stride 2: the
    symmetric padding of Caffe, MXNet and PyTorch, not "SAME" (which is asymmetric). `norm_scale` is
    the initial value of BatchNorm's factors.
    """
    pad = dilation * (kernel // 2) if padding is None else padding
    x = nn.Conv(
        channels,
        (kernel, kernel),
        strides=stride,
        padding=pad,
        kernel_dilation=dilation,
        use_bias=style.bias,
        dtype=style.dtype,
        kernel_init=TRACED_INIT,
        conv_general_dilated=convolution,
        name=name,
    )(x)
    x = batch_norm(x, style=style, name=f"{name}_bn", train=train, initial_scale=norm_scale)
    return rectify(x) if relu else x


@jax.custom_jvp
def rectify(x: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """ReLU whose gradient tests where its result is 0, not where `x` is positive.

    Training then stores only the result, which the next layer stores anyway. If the gradient tested
    whether the result is positive, XLA would use `x` again (experiments/speed/README.md, "Compiled
    for a GPU").
    """
    return jnp.maximum(x, 0)


rectify.defjvps(lambda tangent, y, x: jnp.where(y == 0, jnp.zeros_like(tangent), tangent))


def batch_norm(
    x: Float[Array, "B h w c"],
    *,
    style: ConvStyle,
    name: str,
    train: bool,
    initial_scale: float = 1.0,
) -> Float[Array, "B h w c"]:
    """The style's BatchNorm, if it has one; inside a compact method."""
    if style.batch_norm == "none":
        return x
    return GroupedBatchNorm(
        group=style.batch_norm_group,
        frozen=style.batch_norm == "frozen",
        momentum=style.batch_norm_momentum,
        epsilon=style.batch_norm_epsilon,
        use_scale=style.batch_norm_scale,
        initial_scale=initial_scale,
        batch_axis=style.batch_axis,
        name=name,
    )(x, train=train)


class GroupedBatchNorm(nn.Module):
    """BatchNorm with training statistics over groups of consecutive images.

    With `group` = N, images 0..N-1 share one mean and variance, N..2N-1 the next: like the
    per-device statistics of other frameworks, but the same on any number of devices. 0 makes the
    whole batch one group (SyncBN). The running statistics follow the mean over the groups. `frozen`
    uses the running statistics as constants in training too; scale and bias are still trained.
    Without `use_scale` there is no scale (MXNet's `fix_gamma`). Statistics are float32 for every
    input dtype; the variance is the biased one, also in the running statistics.

    `batch_axis` is needed for training inside `jax.shard_map`: the mapped axis over which the batch
    is sharded. A group on several devices costs one all-reduce in each direction. The running
    statistics then follow the local images, and the caller averages them over the axis.
    """

    group: int = 0
    frozen: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    initial_scale: float = 1.0
    batch_axis: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B h w c"]:
        """Normalise; in training, unless frozen, also update the collection `batch_stats`."""
        shape = x.shape[-1:]
        initial_scale = nn.initializers.constant(self.initial_scale)
        scale = self.param("scale", initial_scale, shape) if self.use_scale else 1.0
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)

        exact = x.astype(jnp.float32)
        if train and not self.frozen and not self.is_initializing():
            mean, var = self._statistics(exact)
            for running, current in ((running_mean, mean), (running_var, var)):
                step = current.mean((0, 1, 2)) - running.value
                running.value = running.value + (1 - self.momentum) * step
        else:
            mean, var = running_mean.value, running_var.value

        normalised = (exact - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return normalised.astype(x.dtype)

    def _statistics(
        self, x: Float[Array, "B h w c"]
    ) -> tuple[Float[Array, "B 1 1 c"], Float[Array, "B 1 1 c"]]:
        # E[x²] - E[x]² needs one pass over the map, and one all-reduce if the group is on several
        # devices; the textbook form needs two of each.
        moments = jnp.stack([x.mean((1, 2)), jnp.square(x).mean((1, 2))], axis=1)
        size = group_size(len(x), self.group, batch_axis=self.batch_axis)
        mean, square = jnp.split(
            group_sums(moments, self.group, batch_axis=self.batch_axis) / size, 2, axis=1
        )
        var = jnp.maximum(square - jnp.square(mean), 0.0)
        return mean[:, :, None], var[:, :, None]


class L2Normalize(nn.Module):
    """Scale each pixel's channel vector to length 1, then each channel by a learned factor.

    ParseNet, arXiv:1506.04579, section 3.3. The SSD paper starts the factors at 20.
    """

    initial_scale: float = 20.0
    epsilon: float = 1e-10

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
        """Normalise over the last axis, in float32."""
        scale = self.param("scale", nn.initializers.constant(self.initial_scale), x.shape[-1:])
        exact = x.astype(jnp.float32)
        square = jnp.square(exact).sum(-1, keepdims=True)
        return (exact * jax.lax.rsqrt(square + self.epsilon) * scale).astype(x.dtype)
