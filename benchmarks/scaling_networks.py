"""The two networks that `scaling` compiles, in Flax NNX over a convolution layer that the caller chooses."""

import jax.numpy as jnp
from flax import nnx

import gconv


def gconv_layer(n_in, n_out, window, *, stride=1, padding=0, groups=1, bias=False, rngs):
    options = dict(strides=stride, padding=padding, use_bias=bias, rngs=rngs)
    return gconv.nnx.GroupedConv(n_in, window, n_out // groups, groups, **options)


class ConvNorm(nnx.Module):
    """Convolution, batch normalization and, unless it is the last of a branch, ReLU."""

    def __init__(self, conv, n_in, n_out, window=1, *, stride=1, groups=1, relu=True, rngs):
        self.conv = conv(n_in, n_out, window, stride=stride, padding=(window - 1) // 2, groups=groups, rngs=rngs)
        self.norm, self.relu = nnx.BatchNorm(n_out, rngs=rngs), relu

    def __call__(self, x):
        x = self.norm(self.conv(x))
        return nnx.relu(x) if self.relu else x


class Bottleneck(nnx.Module):
    def __init__(self, conv, n_in, width, n_out, *, stride, rngs):
        self.narrow = ConvNorm(conv, n_in, width, rngs=rngs)
        self.grouped = ConvNorm(conv, width, width, 3, stride=stride, groups=32, rngs=rngs)
        self.widen = ConvNorm(conv, width, n_out, relu=False, rngs=rngs)
        same = n_in == n_out and stride == 1
        self.shortcut = nnx.data(None) if same else ConvNorm(conv, n_in, n_out, stride=stride, relu=False, rngs=rngs)

    def __call__(self, x):
        y = self.widen(self.grouped(self.narrow(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNeXt50(nnx.Module):
    """ResNeXt-50 (32x4d): Xie et al. 2017, https://arxiv.org/abs/1611.05431."""

    STAGES = ((128, 256, 3, 1), (256, 512, 4, 2), (512, 1024, 6, 2), (1024, 2048, 3, 2))  # width, channels, repeats, stride

    def __init__(self, conv, *, classes=1000, rngs):
        self.stem = ConvNorm(conv, 3, 64, 7, stride=2, rngs=rngs)
        self.blocks, n_in = nnx.List(), 64
        for width, channels, repeats, stride in self.STAGES:
            for i in range(repeats):
                self.blocks.append(Bottleneck(conv, n_in, width, channels, stride=1 if i else stride, rngs=rngs))
                n_in = channels
        self.head = nnx.Linear(n_in, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(self.stem(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class ConvNeXtBlock(nnx.Module):
    def __init__(self, conv, channels, *, rngs):
        self.depthwise = conv(channels, channels, 7, padding=3, groups=channels, bias=True, rngs=rngs)
        self.norm = nnx.LayerNorm(channels, epsilon=1e-6, rngs=rngs)
        self.widen, self.narrow = (nnx.Linear(channels * a, channels * b, rngs=rngs) for a, b in ((1, 4), (4, 1)))
        self.layer_scale = nnx.Param(jnp.full(channels, 1e-6))

    def __call__(self, x):
        y = nnx.gelu(self.widen(self.norm(self.depthwise(x))), approximate=False)
        return x + self.layer_scale[...] * self.narrow(y)


class Downsample(nnx.Module):
    def __init__(self, conv, n_in, n_out, *, rngs):
        self.norm = nnx.LayerNorm(n_in, epsilon=1e-6, rngs=rngs)
        self.conv = conv(n_in, n_out, 2, stride=2, bias=True, rngs=rngs)

    def __call__(self, x):
        return self.conv(self.norm(x))


class ConvNeXtT(nnx.Module):
    """ConvNeXt-T: Liu et al. 2022, https://arxiv.org/abs/2201.03545."""

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
        return self.head(self.norm(x.mean((1, 2))))


# What torchvision's documentation counts.
PARAMETERS = {"resnext50_32x4d": 25_028_904, "convnext_t": 28_589_128}
NETWORKS = {"resnext50_32x4d": ResNeXt50, "convnext_t": ConvNeXtT}
