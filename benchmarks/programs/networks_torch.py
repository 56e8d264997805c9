"""The networks of `networks` in PyTorch, channels first, with the same names of layers."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.programs import networks


class ConvNorm(nn.Module):
    def __init__(self, n_in, n_out, window=1, *, stride=1, groups=1, activation=F.relu):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, window, stride, (window - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(n_out)
        self.activation = activation

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x, inplace=True)


def mean_over_image(x):
    return x.mean((2, 3))


class InvertedResidual(nn.Module):
    def __init__(self, n_in, n_out, *, stride, expansion):
        super().__init__()
        hidden = n_in * expansion
        self.residual = stride == 1 and n_in == n_out
        self.layers = nn.ModuleList()
        if expansion != 1:
            self.layers.append(ConvNorm(n_in, hidden, activation=F.relu6))
        self.layers.append(ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, activation=F.relu6))
        self.layers.append(ConvNorm(hidden, n_out, activation=None))

    def forward(self, x):
        out = x
        for layer in self.layers:
            out = layer(out)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    def __init__(self, *, classes=1000):
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2, activation=F.relu6)
        self.blocks, width = nn.ModuleList(), 32
        for expansion, channels, repeats, stride in networks.MobileNetV2.STAGES:
            for i in range(repeats):
                self.blocks.append(InvertedResidual(width, channels, stride=stride if i == 0 else 1, expansion=expansion))
                width = channels
        self.last = ConvNorm(width, 1280, activation=F.relu6)
        self.head = nn.Linear(1280, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(mean_over_image(self.last(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        scale = x.mean((2, 3), keepdim=True)
        return x * self.expand(F.silu(self.reduce(scale))).sigmoid()


class MBConv(nn.Module):
    def __init__(self, n_in, n_out, window, *, stride, expansion):
        super().__init__()
        hidden = n_in * expansion
        self.residual = stride == 1 and n_in == n_out
        self.layers = nn.ModuleList()
        if expansion != 1:
            self.layers.append(ConvNorm(n_in, hidden, activation=F.silu))
        self.layers.append(ConvNorm(hidden, hidden, window, stride=stride, groups=hidden, activation=F.silu))
        self.layers.append(SqueezeExcite(hidden, max(1, n_in // 4)))
        self.layers.append(ConvNorm(hidden, n_out, activation=None))

    forward = InvertedResidual.forward


class EfficientNetB0(nn.Module):
    STAGES = networks.EfficientNetB0.STAGES

    def __init__(self, *, classes=1000):
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2, activation=F.silu)
        self.blocks, width = nn.ModuleList(), 32
        for expansion, window, channels, repeats, stride in self.STAGES:
            for i in range(repeats):
                options = {"stride": stride if i == 0 else 1, "expansion": expansion}
                self.blocks.append(MBConv(width, channels, window, **options))
                width = channels
        self.last = ConvNorm(width, 1280, activation=F.silu)
        self.head = nn.Linear(1280, classes)

    forward = MobileNetV2.forward


class Bottleneck(nn.Module):
    def __init__(self, n_in, width, n_out, *, stride, groups):
        super().__init__()
        self.reduce = ConvNorm(n_in, width)
        self.grouped = ConvNorm(width, width, 3, stride=stride, groups=groups)
        self.expand = ConvNorm(width, n_out, activation=None)
        self.project = None
        if stride != 1 or n_in != n_out:
            self.project = ConvNorm(n_in, n_out, stride=stride, activation=None)

    def forward(self, x):
        shortcut = x if self.project is None else self.project(x)
        return F.relu(shortcut + self.expand(self.grouped(self.reduce(x))), inplace=True)


class ResNeXt50(nn.Module):
    def __init__(self, *, classes=1000):
        super().__init__()
        self.stem = ConvNorm(3, 64, 7, stride=2)
        self.blocks, n_in = nn.ModuleList(), 64
        for width, channels, repeats, stride in networks.ResNeXt50.STAGES:
            for i in range(repeats):
                self.blocks.append(Bottleneck(n_in, width, channels, stride=stride if i == 0 else 1, groups=32))
                n_in = channels
        self.head = nn.Linear(n_in, classes)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(mean_over_image(x))


class RegNetX400MF(nn.Module):
    def __init__(self, *, classes=1000):
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2)
        self.blocks, n_in = nn.ModuleList(), 32
        for channels, repeats in networks.RegNetX400MF.STAGES:
            for i in range(repeats):
                self.blocks.append(Bottleneck(n_in, channels, channels, stride=2 if i == 0 else 1, groups=channels // 16))
                n_in = channels
        self.head = nn.Linear(n_in, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(mean_over_image(x))


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.layer_scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x):
        out = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.layer_scale * self.narrow(F.gelu(self.widen(self.norm(out))))
        return x + out.permute(0, 3, 1, 2)


def norm_of_channels(norm, x):
    """Layer norm over the channels of `(batch, channels, height, width)`."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.norm = nn.LayerNorm(n_in, eps=1e-6)
        self.conv = nn.Conv2d(n_in, n_out, 2, 2)

    def forward(self, x):
        return self.conv(norm_of_channels(self.norm, x))


class ConvNeXtT(nn.Module):
    def __init__(self, *, classes=1000):
        super().__init__()
        n_in = networks.ConvNeXtT.STAGES[0][0]
        self.stem = nn.Conv2d(3, n_in, 4, 4)
        self.stem_norm = nn.LayerNorm(n_in, eps=1e-6)
        self.blocks = nn.ModuleList()
        for channels, repeats in networks.ConvNeXtT.STAGES:
            if channels != n_in:
                self.blocks.append(Downsample(n_in, channels))
                n_in = channels
            self.blocks.extend(ConvNeXtBlock(channels) for _ in range(repeats))
        self.norm = nn.LayerNorm(n_in, eps=1e-6)
        self.head = nn.Linear(n_in, classes)

    def forward(self, x):
        x = norm_of_channels(self.stem_norm, self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(mean_over_image(x)))


class Mamba(nn.Module):
    def __init__(self, *, features=256):
        super().__init__()
        self.head, self.state = networks.Mamba.HEAD, networks.Mamba.STATE
        inner, heads, mixed = 2 * features, 2 * features // self.head, 2 * features + 2 * self.state
        self.project = nn.Linear(features, inner + mixed + heads, bias=False)
        self.conv = nn.Conv1d(mixed, mixed, 4, padding=3, groups=mixed)  # its first outputs are the causal ones
        self.decay = nn.Parameter(torch.log(torch.arange(1.0, heads + 1)))
        self.step_bias = nn.Parameter(torch.zeros(heads))
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out = nn.Linear(inner, features, bias=False)

    def forward(self, x):
        heads, steps = len(self.decay), x.shape[1]
        inner = heads * self.head
        gate, mixed, step = self.project(x).split([inner, inner + 2 * self.state, heads], -1)
        mixed = F.silu(self.conv(mixed.transpose(1, 2))[..., :steps].transpose(1, 2))
        values, keys, queries = mixed.split([inner, self.state, self.state], -1)
        values = values.unflatten(-1, (heads, self.head))
        step = F.softplus(step + self.step_bias)
        total = torch.cumsum(-torch.exp(self.decay) * step, 1).transpose(1, 2)
        before = torch.ones(steps, steps, dtype=torch.bool).tril()
        apart = total[..., :, None] - total[..., None, :]
        weights = apart.masked_fill(~before, -torch.inf).exp()
        scores = torch.einsum("btn,bsn->bts", queries, keys)[:, None] * weights
        mixed = torch.einsum("bhts,bshp->bthp", scores, values * step[..., None]) + self.skip[:, None] * values
        return self.out(self.norm(mixed.flatten(-2) * F.silu(gate)))


NETWORKS = {
    "mobilenet_v2": MobileNetV2,
    "efficientnet_b0": EfficientNetB0,
    "resnext50_32x4d": ResNeXt50,
    "convnext_t": ConvNeXtT,
    "regnetx_400mf": RegNetX400MF,
    "mamba": Mamba,
}


class Small(EfficientNetB0):
    STAGES = networks.Small.STAGES


ALL = NETWORKS | {"small": Small}
