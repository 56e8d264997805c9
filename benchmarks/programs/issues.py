"""The programs of users' issues, with the convolution left open: as the issue calls it, by gconv's drop-in, and by PyTorch.

    jax 13800       12 stacked depthwise layers, NCW, batch 32: forward, and gradient of the mean absolute error in the weights
    jax 23713       one depthwise layer of nnx.Conv with a bias, 124 x 124 x 256; the window is the 3 x 3 that its author meant
                    (`kernel_size=3` of nnx.Conv is a window of a 1-D convolution)
    jax 26266       depthwise in 1-D, batch 32, 1024 steps, with growing dilation; 7 taps and 64 channels are ours
    jax 23783       depthwise transposed in 1-D; batch, channels, length and taps are those of 13800, by the same author, and
                    stride 2 is ours: its own code lies in a notebook
    pytorch 192902  depthwise in 1-D over 16,384 tokens of 12,288 channels, window 4, no padding: forward, and both gradients
    pytorch 157334  one depthwise layer, batch 128, 124 x 124 x 256

Sizes are the issues' own. Where memory is too small for them, batch or length is divided: `scaled` says by how much. To compare
results only, `divide` makes everything small.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gconv
from benchmarks.measuring import machine
from benchmarks.measuring.target import CPU, Target
from benchmarks.measuring.work import Prepared
from benchmarks.peers.jax import compiled

CONVS = {"gconv": gconv.conv_general_dilated, "lax": jax.lax.conv_general_dilated}


@dataclass(frozen=True)
class Program:
    """One program: how each peer prepares it, and by how much its size was divided."""

    name: str
    url: str
    peers: Mapping[str, Callable[[], Prepared]] = field(repr=False)
    scaled: int = 1


def programs(dtype: str, *, divide: int | None = None, target: Target = CPU):
    """All of them, one after another, so that only one is in memory; `divide` overrules how much sizes are divided by."""
    for run in (jax_13800, jax_13800_gradient, jax_23713, *dilations(), jax_23783, pytorch_192902, pytorch_192902_gradients,
                pytorch_157334):  # fmt: skip
        yield lambda run=run: run(dtype, divide, target=target)


# --- the programs ----------------------------------------------------------------------------------------------------


def jax_13800(dtype: str, divide: int | None, *, gradient: bool = False, target: Target = CPU) -> Program:
    scaled = divide or _divisor(28 * 32 * 512 * 1024 * 4, 32, target)
    shape, layers = (max(1, 32 // scaled), 512, 1024), 12 if divide is None else 2
    x, y, *weights = _random(dtype, shape, shape, *[(1, 512, 5)] * layers)

    def model(conv, params, x):
        for w in params:
            x = conv(x, w, (1,), "SAME", dimension_numbers=("NCW", "IOW", "NCW"), feature_group_count=512)
        return x

    def loss(conv, params, x, y):
        return jnp.abs(model(conv, params, x) - y).mean()

    def torch_program():
        import torch

        def forward(x, y, *weights):
            del y
            for w in weights:
                x = torch.nn.functional.conv1d(x, w, padding="same", groups=512)
            return x

        def backward(x, y, *weights):
            for w in weights:
                w.grad = None
                w.requires_grad_(True)
            (forward(x, y, *weights) - y).abs().mean().backward()
            return [w.grad.transpose(0, 1) for w in weights]

        operands = (x, y, *(w.transpose(1, 0, 2) for w in weights))
        return _run_torch(target, backward if gradient else forward, *operands, inference=not gradient)

    by_jax = {
        name: partial(_run_jax, target, jax.grad(partial(loss, conv)) if gradient else partial(model, conv),
                      weights, *((x, y) if gradient else (x,)))
        for name, conv in CONVS.items()
    }  # fmt: skip
    what = "gradient" if gradient else "forward"
    return Program(f"jax 13800, {what}", _JAX + "13800", by_jax | _with_torch(torch_program), scaled)


jax_13800_gradient = partial(jax_13800, gradient=True)


def jax_23713(dtype: str, divide: int | None, *, target: Target = CPU) -> Program:
    return _one_layer("jax 23713, forward", _JAX + "23713", 1, dtype, divide, target)


def pytorch_157334(dtype: str, divide: int | None, *, target: Target = CPU) -> Program:
    return _one_layer("pytorch 157334, forward", _PYTORCH + "157334", 128, dtype, divide, target)


def _one_layer(name: str, url: str, batch: int, dtype: str, divide: int | None, target: Target) -> Program:
    """`nnx.Conv(256, 256, (3, 3), padding=1, feature_group_count=256)` on `batch` images of 124 x 124."""
    scaled = divide or _divisor(8 * batch * 124 * 124 * 256 * 4, batch, target)
    count, size = max(1, batch // scaled), 124 if divide is None else max(8, 124 // divide)
    x, kernel, bias = _random(dtype, (count, size, size, 256), (3, 3, 1, 256), (256,))

    def model(conv, kernel, bias, x):
        layer = nnx.eval_shape(
            lambda: nnx.Conv(256, 256, (3, 3), padding=1, feature_group_count=256, conv_general_dilated=conv,
                             dtype=dtype, rngs=nnx.Rngs(0))
        )  # fmt: skip
        layer.kernel.set_value(kernel)
        layer.bias.set_value(bias)
        return layer(x)

    def torch_program(channels_last):
        import torch

        memory = torch.channels_last if channels_last else torch.contiguous_format
        operands = (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), bias)
        run = lambda x, w, b: torch.nn.functional.conv2d(x, w, b, padding=1, groups=256)
        return _run_torch(target, run, *operands, to_numpy=lambda out: out.permute(0, 2, 3, 1), memory=memory)

    by_jax = {key: partial(_run_jax, target, partial(model, conv), kernel, bias, x) for key, conv in CONVS.items()}
    by_torch = _with_torch(partial(torch_program, False)) | _with_torch(partial(torch_program, True), "PyTorch channels_last")
    return Program(name, url, by_jax | by_torch, scaled)


def dilations() -> list[Callable]:
    return [partial(jax_26266, dilation=d) for d in (1, 2, 4, 8, 16, 32)]


def jax_26266(dtype: str, divide: int | None, *, dilation: int, target: Target = CPU) -> Program:
    scaled = divide or 1
    x, kernel = _random(dtype, (max(1, 32 // scaled), 1024, 64), (7, 1, 64))

    def model(conv, x, kernel):
        numbers = ("NWC", "WIO", "NWC")
        return conv(x, kernel, (1,), "SAME", rhs_dilation=(dilation,), dimension_numbers=numbers, feature_group_count=64)

    def torch_program():
        import torch

        run = lambda x, w: torch.nn.functional.conv1d(x, w, padding="same", dilation=dilation, groups=64)
        operands = (x.transpose(0, 2, 1), kernel.transpose(2, 1, 0))
        return _run_torch(target, run, *operands, to_numpy=lambda out: out.transpose(1, 2))

    by_jax = {name: partial(_run_jax, target, partial(model, conv), x, kernel) for name, conv in CONVS.items()}
    return Program(f"jax 26266, dilation {dilation}", _JAX + "26266", by_jax | _with_torch(torch_program), scaled)


def jax_23783(dtype: str, divide: int | None, *, target: Target = CPU) -> Program:
    scaled = divide or _divisor(8 * 32 * 512 * 2048 * 4, 32, target)
    x, kernel = _random(dtype, (max(1, 32 // scaled), 512, 1024), (512, 1, 5))

    def model(conv, x, kernel):
        numbers = ("NCW", "OIW", "NCW")
        padding = [(4, 4)]  # the whole transpose, which PyTorch calls padding=0
        return conv(x, kernel, (1,), padding, lhs_dilation=(2,), dimension_numbers=numbers, feature_group_count=512)

    def torch_program():
        import torch

        run = lambda x, w: torch.nn.functional.conv_transpose1d(x, w, stride=2, groups=512)
        return _run_torch(target, run, x, kernel[..., ::-1])  # lax reads what PyTorch writes: the window is flipped

    by_jax = {name: partial(_run_jax, target, partial(model, conv), x, kernel) for name, conv in CONVS.items()}
    return Program("jax 23783, transposed", _JAX + "23783", by_jax | _with_torch(torch_program), scaled)


def pytorch_192902(dtype: str, divide: int | None, *, gradients: bool = False, target: Target = CPU) -> Program:
    channels = 3 * 32 * 128 if divide is None else 3 * 32
    scaled = divide or _divisor(8 * 16_384 * channels * 4, 16, target)
    tokens = 16_384 // scaled
    x, kernel, y = _random(dtype, (1, tokens, channels), (4, 1, channels), (1, tokens - 3, channels))

    def model(conv, x, kernel):
        return conv(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=channels)

    def both(conv, x, kernel, y):
        return jax.vjp(partial(model, conv), x, kernel)[1](y)

    def torch_program():
        import torch

        operands = (x.transpose(0, 2, 1), kernel.transpose(2, 1, 0))
        if not gradients:
            run = lambda x, w: torch.nn.functional.conv1d(x, w, groups=channels)
            return _run_torch(target, run, *operands, to_numpy=lambda out: out.transpose(1, 2))
        backward = torch.ops.aten.convolution_backward
        run = lambda x, w, y: backward(y, x, w, None, (1,), (0,), (1,), False, (0,), channels, (True, True, False))[:2]
        to_numpy = lambda out: [out[0].transpose(1, 2), out[1].permute(2, 1, 0)]
        return _run_torch(target, run, *operands, y.transpose(0, 2, 1), to_numpy=to_numpy)

    by_jax = {
        name: partial(_run_jax, target, partial(both if gradients else model, conv), x, kernel, *((y,) if gradients else ()))
        for name, conv in CONVS.items()
    }
    what = "gradients" if gradients else "forward"
    return Program(f"pytorch 192902, {what}", _PYTORCH + "192902", by_jax | _with_torch(torch_program), scaled)


pytorch_192902_gradients = partial(pytorch_192902, gradients=True)
_JAX, _PYTORCH = "https://github.com/jax-ml/jax/issues/", "https://github.com/pytorch/pytorch/issues/"


# --- what they share -------------------------------------------------------------------------------------------------


def _divisor(needed: int, most: int, target: Target) -> int:
    """The least power of two by which a batch or length of `most` is divided so that `needed` bytes fit a quarter of memory."""
    memory, scaled = target.memory(), 1
    while needed / scaled > memory / 4 and scaled < most:
        scaled *= 2
    return scaled


def _random(dtype: str, *shapes) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32).astype(jnp.dtype(dtype)) for shape in shapes]


def _run_jax(target: Target, function: Callable, *operands) -> Prepared:
    run, seconds = compiled(function, *operands, target=target)
    result = lambda: [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(run())]
    return Prepared(run, result, seconds, clock=target.jax)


def _run_torch(
    target: Target, function: Callable, *operands, to_numpy=lambda out: out, inference=True, memory=None
) -> Prepared:
    import torch

    from benchmarks.peers import torch as peer

    torch.set_num_threads(machine.cores())

    def tensor(array: np.ndarray):
        contiguous = torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)))
        own = contiguous.to(getattr(torch, array.dtype.name))
        return own.contiguous(memory_format=memory) if memory and own.ndim == 4 else own

    def result(out):
        out = to_numpy(out)
        return [leaf.float().numpy() for leaf in (out if isinstance(out, list | tuple) else [out])]

    return peer.prepared(function, [tensor(a) for a in operands], result, target, inference=inference)


def _with_torch(prepare: Callable, name: str = "PyTorch contiguous") -> dict[str, Callable]:
    return {name: prepare} if importlib.util.find_spec("torch") else {}
