"""The networks in Flax NNX, channels last, over a convolution layer that the caller chooses.

`conv(in_features, out_features, window, stride=, padding=, groups=, bias=, rngs=)` builds a layer; CONVS holds the choices.
Padding is PyTorch's, the same at both ends, so that the trained weights of either framework fit.
"""

import jax
import jax.numpy as jnp
from flax import nnx

import gconv

# --- the convolution layers ------------------------------------------------------------------------------------------


def gconv_layer(n_in, n_out, window, *, stride=1, padding=0, groups=1, bias=False, implementation=None, rngs):
    options = {"strides": stride, "padding": padding, "use_bias": bias, "implementation": implementation}
    return gconv.nnx.GroupedConv(n_in, window, n_out // groups, groups, **options, rngs=rngs)


def flax_layer(n_in, n_out, window, *, stride=1, padding=0, groups=1, bias=False, rngs):
    window = (window,) * 2 if isinstance(window, int) else window
    options = {"strides": stride, "padding": padding, "use_bias": bias, "feature_group_count": groups}
    return nnx.Conv(n_in, n_out, window, **options, rngs=rngs)


CONVS = {"gconv": gconv_layer, "nnx.Conv": flax_layer}


class ConvNorm(nnx.Module):
    """Convolution, batch norm and, unless it is None, an activation."""

    def __init__(self, conv, n_in, n_out, window=1, *, stride=1, groups=1, activation=nnx.relu, rngs):
        self.conv = conv(n_in, n_out, window, stride=stride, padding=(window - 1) // 2, groups=groups, rngs=rngs)
        self.norm = nnx.BatchNorm(n_out, momentum=0.9, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


def mean_over_image(x):
    return x.mean((1, 2))


# --- MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381, table 2) -------------------------------------


class InvertedResidual(nnx.Module):
    def __init__(self, conv, n_in, n_out, *, stride, expansion, rngs):
        hidden = n_in * expansion
        self.residual = stride == 1 and n_in == n_out
        self.layers = nnx.List()
        if expansion != 1:
            self.layers.append(ConvNorm(conv, n_in, hidden, activation=nnx.relu6, rngs=rngs))
        self.layers.append(ConvNorm(conv, hidden, hidden, 3, stride=stride, groups=hidden, activation=nnx.relu6, rngs=rngs))
        self.layers.append(ConvNorm(conv, hidden, n_out, activation=None, rngs=rngs))

    def __call__(self, x):
        out = x
        for layer in self.layers:
            out = layer(out)
        return x + out if self.residual else out


class MobileNetV2(nnx.Module):
    # expansion, channels, repeats, stride of the first
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, conv, *, classes=1000, rngs):
        self.stem = ConvNorm(conv, 3, 32, 3, stride=2, activation=nnx.relu6, rngs=rngs)
        self.blocks, width = nnx.List(), 32
        for expansion, channels, repeats, stride in self.STAGES:
            for i in range(repeats):
                options = {"stride": stride if i == 0 else 1, "expansion": expansion}
                self.blocks.append(InvertedResidual(conv, width, channels, **options, rngs=rngs))
                width = channels
        self.last = ConvNorm(conv, width, 1280, activation=nnx.relu6, rngs=rngs)
        self.head = nnx.Linear(1280, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(mean_over_image(self.last(x)))


# --- EfficientNet-B0 (Tan and Le 2019, https://arxiv.org/abs/1905.11946, table 1) --------------------------------------


class SqueezeExcite(nnx.Module):
    def __init__(self, conv, channels, squeezed, *, rngs):
        self.reduce = conv(channels, squeezed, 1, bias=True, rngs=rngs)
        self.expand = conv(squeezed, channels, 1, bias=True, rngs=rngs)

    def __call__(self, x):
        scale = x.mean((1, 2), keepdims=True)
        return x * nnx.sigmoid(self.expand(nnx.silu(self.reduce(scale))))


class MBConv(nnx.Module):
    def __init__(self, conv, n_in, n_out, window, *, stride, expansion, rngs):
        hidden = n_in * expansion
        self.residual = stride == 1 and n_in == n_out
        self.layers = nnx.List()
        if expansion != 1:
            self.layers.append(ConvNorm(conv, n_in, hidden, activation=nnx.silu, rngs=rngs))
        self.layers.append(ConvNorm(conv, hidden, hidden, window, stride=stride, groups=hidden, activation=nnx.silu, rngs=rngs))
        self.layers.append(SqueezeExcite(conv, hidden, max(1, n_in // 4), rngs=rngs))
        self.layers.append(ConvNorm(conv, hidden, n_out, activation=None, rngs=rngs))

    __call__ = InvertedResidual.__call__


class EfficientNetB0(nnx.Module):
    # expansion, window, channels, repeats, stride of the first
    STAGES = ((1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
              (6, 3, 320, 1, 1))  # fmt: skip

    def __init__(self, conv, *, classes=1000, rngs):
        self.stem = ConvNorm(conv, 3, 32, 3, stride=2, activation=nnx.silu, rngs=rngs)
        self.blocks, width = nnx.List(), 32
        for expansion, window, channels, repeats, stride in self.STAGES:
            for i in range(repeats):
                options = {"stride": stride if i == 0 else 1, "expansion": expansion}
                self.blocks.append(MBConv(conv, width, channels, window, **options, rngs=rngs))
                width = channels
        self.last = ConvNorm(conv, width, 1280, activation=nnx.silu, rngs=rngs)
        self.head = nnx.Linear(1280, classes, rngs=rngs)

    __call__ = MobileNetV2.__call__


# --- ResNeXt-50 32x4d (Xie et al. 2017, https://arxiv.org/abs/1611.05431, table 1) -------------------------------------
# --- RegNetX-400MF (Radosavovic et al. 2020, https://arxiv.org/abs/2003.13678, table 2) --------------------------------


class Bottleneck(nnx.Module):
    """1x1, grouped 3x3, 1x1, and the input added, through a projection where sizes change."""

    def __init__(self, conv, n_in, width, n_out, *, stride, groups, rngs):
        self.reduce = ConvNorm(conv, n_in, width, rngs=rngs)
        self.grouped = ConvNorm(conv, width, width, 3, stride=stride, groups=groups, rngs=rngs)
        self.expand = ConvNorm(conv, width, n_out, activation=None, rngs=rngs)
        self.project = nnx.data(None)
        if stride != 1 or n_in != n_out:
            self.project = ConvNorm(conv, n_in, n_out, stride=stride, activation=None, rngs=rngs)

    def __call__(self, x):
        shortcut = x if self.project is None else self.project(x)
        return nnx.relu(shortcut + self.expand(self.grouped(self.reduce(x))))


class ResNeXt50(nnx.Module):
    STAGES = ((128, 256, 3, 1), (256, 512, 4, 2), (512, 1024, 6, 2), (1024, 2048, 3, 2))  # width, channels, repeats, stride

    def __init__(self, conv, *, classes=1000, rngs):
        self.stem = ConvNorm(conv, 3, 64, 7, stride=2, rngs=rngs)
        self.blocks, n_in = nnx.List(), 64
        for width, channels, repeats, stride in self.STAGES:
            for i in range(repeats):
                options = {"stride": stride if i == 0 else 1, "groups": 32}
                self.blocks.append(Bottleneck(conv, n_in, width, channels, **options, rngs=rngs))
                n_in = channels
        self.head = nnx.Linear(n_in, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(self.stem(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(mean_over_image(x))


class RegNetX400MF(nnx.Module):
    STAGES = ((32, 1), (64, 2), (160, 7), (400, 12))  # channels, repeats; groups of 16 channels

    def __init__(self, conv, *, classes=1000, rngs):
        self.stem = ConvNorm(conv, 3, 32, 3, stride=2, rngs=rngs)
        self.blocks, n_in = nnx.List(), 32
        for channels, repeats in self.STAGES:
            for i in range(repeats):
                options = {"stride": 2 if i == 0 else 1, "groups": channels // 16}
                self.blocks.append(Bottleneck(conv, n_in, channels, channels, **options, rngs=rngs))
                n_in = channels
        self.head = nnx.Linear(n_in, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(mean_over_image(x))


# --- ConvNeXt-T (Liu et al. 2022, https://arxiv.org/abs/2201.03545) -----------------------------------------------------


class ConvNeXtBlock(nnx.Module):
    def __init__(self, conv, channels, *, rngs):
        self.depthwise = conv(channels, channels, 7, padding=3, groups=channels, bias=True, rngs=rngs)
        self.norm = nnx.LayerNorm(channels, epsilon=1e-6, rngs=rngs)
        self.widen = nnx.Linear(channels, 4 * channels, rngs=rngs)
        self.narrow = nnx.Linear(4 * channels, channels, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full(channels, 1e-6))

    def __call__(self, x):
        out = nnx.gelu(self.widen(self.norm(self.depthwise(x))), approximate=False)
        return x + self.layer_scale[...] * self.narrow(out)


class Downsample(nnx.Module):
    def __init__(self, conv, n_in, n_out, *, rngs):
        self.norm = nnx.LayerNorm(n_in, epsilon=1e-6, rngs=rngs)
        self.conv = conv(n_in, n_out, 2, stride=2, bias=True, rngs=rngs)

    def __call__(self, x):
        return self.conv(self.norm(x))


class ConvNeXtT(nnx.Module):
    STAGES = ((96, 3), (192, 3), (384, 9), (768, 3))  # channels, repeats

    def __init__(self, conv, *, classes=1000, rngs):
        n_in = self.STAGES[0][0]
        self.stem = conv(3, n_in, 4, stride=4, bias=True, rngs=rngs)
        self.stem_norm = nnx.LayerNorm(n_in, epsilon=1e-6, rngs=rngs)
        self.blocks = nnx.List()
        for channels, repeats in self.STAGES:
            if channels != n_in:
                self.blocks.append(Downsample(conv, n_in, channels, rngs=rngs))
                n_in = channels
            for _ in range(repeats):
                self.blocks.append(ConvNeXtBlock(conv, channels, rngs=rngs))
        self.norm = nnx.LayerNorm(n_in, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(n_in, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(mean_over_image(x)))


# --- a Mamba-2 style block (Dao and Gu 2024, https://arxiv.org/abs/2405.21060) ------------------------------------------


class Mamba(nnx.Module):
    """Projection, causal depthwise convolution of 4 taps, state space layer in its dual (matrix) form over one chunk, gate.

    Input and output `(batch, steps, features)`.
    """

    HEAD, STATE = 64, 64

    def __init__(self, conv, *, features=256, rngs):
        inner, heads, mixed = 2 * features, 2 * features // self.HEAD, 2 * features + 2 * self.STATE
        self.project = nnx.Linear(features, inner + mixed + heads, use_bias=False, rngs=rngs)
        self.conv = conv(mixed, mixed, (4,), padding=((3, 0),), groups=mixed, bias=True, rngs=rngs)
        self.decay = nnx.Param(jnp.log(jnp.arange(1.0, heads + 1)))
        self.step_bias = nnx.Param(jnp.zeros(heads))
        self.skip = nnx.Param(jnp.ones(heads))
        self.norm = nnx.RMSNorm(inner, epsilon=1e-5, rngs=rngs)
        self.out = nnx.Linear(inner, features, use_bias=False, rngs=rngs)

    def __call__(self, x):
        heads = self.decay.shape[0]
        inner = heads * self.HEAD
        gate, mixed, step = jnp.split(self.project(x), [inner, 2 * inner + 2 * self.STATE], -1)
        values, keys, queries = jnp.split(nnx.silu(self.conv(mixed)), [inner, inner + self.STATE], -1)
        values = values.reshape(*values.shape[:2], heads, self.HEAD)
        step = nnx.softplus(step + self.step_bias[...])
        total = jnp.cumsum(-jnp.exp(self.decay[...]) * step, axis=1).swapaxes(1, 2)  # (batch, heads, steps)
        before = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
        weights = jnp.exp(jnp.where(before, total[..., :, None] - total[..., None, :], -jnp.inf))
        scores = jnp.einsum("btn,bsn->bts", queries, keys)[:, None] * weights
        mixed = jnp.einsum("bhts,bshp->bthp", scores, values * step[..., None]) + self.skip[...][:, None] * values
        return self.out(self.norm(mixed.reshape(*mixed.shape[:2], inner) * nnx.silu(gate)))


# What the papers' reference implementations count (torchvision's documentation of each model).
PARAMETERS = {
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "resnext50_32x4d": 25_028_904,
    "convnext_t": 28_589_128,
    "regnetx_400mf": 5_495_976,
}
NETWORKS = {
    "mobilenet_v2": MobileNetV2,
    "efficientnet_b0": EfficientNetB0,
    "resnext50_32x4d": ResNeXt50,
    "convnext_t": ConvNeXtT,
    "regnetx_400mf": RegNetX400MF,
    "mamba": Mamba,
}
IMAGES = tuple(PARAMETERS)


class Small(EfficientNetB0):
    """Two blocks like EfficientNet's, the second with a residual, which compile in seconds: for quick runs and tests."""

    STAGES = ((1, 3, 16, 1, 1), (4, 5, 16, 1, 1))


ALL = NETWORKS | {"small": Small}


def parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def input_shape(name: str, batch: int, size: int) -> tuple[int, ...]:
    """`size` is the image's side, or of the Mamba block the number of steps."""
    return (batch, size, 256) if name == "mamba" else (batch, size, size, 3)
