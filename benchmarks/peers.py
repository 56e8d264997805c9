"""Who solves the problems, each the way its own users would get the best from it: one function per peer.

A peer takes a `Problem` and answers with `Prepared` work (a compiled program, an open session), or with a sentence that says
why it cannot. Nothing but the call itself is timed: operands lie in the peer's own memory and layout, threads are as many as
`machine.cores()`, and results stay in the peer's layout. `PEERS` is the list.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import machine
from benchmarks.cases import Case
from benchmarks.measure import WALL, Clock
from benchmarks.target import CPU, Target, rotating
from gconv import backends, roles

SPATIAL = ("", "W", "HW", "DHW")


@dataclass(frozen=True)
class Problem:
    """One role of one case; `arrays` are float32, channels last."""

    case: Case
    role: str
    dtype: str
    arrays: dict[str, np.ndarray]
    target: Target = CPU


@dataclass(frozen=True)
class Prepared:
    """`run` does the work once; `result` does too and gives what it computed as float32, channels last."""

    run: Callable[[], Any]
    result: Callable[[], Any]
    compile: float = 0.0  # seconds that tracing and compiling, or opening a session, took
    keep: Any = None  # what must outlive the calls
    clock: Clock = WALL


Peer = Callable[[Problem], Prepared | str]


def timed(function: Callable, *args) -> tuple[Any, float]:
    """The result of a call and its seconds."""
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start


def compiled(function: Callable, *operands, target: Target = CPU) -> tuple[Callable[[], Any], float]:
    """A JAX function as a compiled program bound to its operands, and how long tracing and compiling took."""
    operands = jax.block_until_ready(jax.tree.map(jnp.asarray, operands))
    program, seconds = timed(lambda: jax.jit(function).lower(*operands).compile())
    count = target.copies(sum(leaf.nbytes for leaf in jax.tree.leaves(operands)))
    copies = [operands, *(jax.tree.map(jnp.copy, operands) for _ in range(count - 1))]
    return rotating(program, jax.block_until_ready(copies)), seconds


# --- JAX -------------------------------------------------------------------------------------------------------------


def _jax(problem: Problem, function: Callable) -> Prepared:
    """`function` of the role's two operands."""
    operands = [jnp.asarray(problem.arrays[name], problem.dtype) for name in roles.OPERANDS[problem.role]]
    run, seconds = compiled(function, *operands, target=problem.target)
    return Prepared(run, lambda: np.asarray(run(), np.float32), seconds, clock=problem.target.jax)


def _role_of(problem: Problem, conv: Callable) -> Callable:
    """Role "x" or "w" of `conv(x, w)` as JAX's own derivative; its other operand is zeros, which do not enter."""
    x, w = (jnp.zeros(problem.case.shapes[name], problem.dtype) for name in "xw")
    return {
        "y": conv,
        "x": lambda y, w: jax.linear_transpose(lambda x: conv(x, w), x)(y)[0],
        "w": lambda x, y: jax.linear_transpose(lambda w: conv(x, w), w)(y)[0],
    }[problem.role]


def lax(problem: Problem):
    """`lax.conv_general_dilated` and its own transposes."""
    g = problem.case.geometry
    s = SPATIAL[g.rank]
    conv = partial(
        jax.lax.conv_general_dilated,
        window_strides=g.strides,
        padding=g.padding,
        rhs_dilation=g.dilation,
        dimension_numbers=(f"N{s}C", f"{s}IO", f"N{s}C"),
        feature_group_count=g.groups,
    )
    return _jax(problem, _role_of(problem, conv))


def flax_conv(problem: Problem):
    """`nnx.Conv`."""
    g = problem.case.geometry
    model = nnx.eval_shape(
        lambda: nnx.Conv(
            g.in_channels,
            g.out_channels,
            g.window,
            g.strides,
            padding=g.padding,
            kernel_dilation=g.dilation,
            feature_group_count=g.groups,
            use_bias=False,
            dtype=problem.dtype,
            param_dtype=problem.dtype,
            rngs=nnx.Rngs(0),
        )
    )
    graph, state = nnx.split(model)  # outside the compiled function, as Flax advises

    def conv(x, w):
        filled = jax.tree.map(lambda _: w, state)  # one leaf: the kernel
        return nnx.merge(graph, filled)(x)

    return _jax(problem, _role_of(problem, conv))


def ours(name: str | None, problem: Problem):
    """An implementation of gconv, or its automatic choice."""
    g, dtype = problem.case.geometry, jnp.dtype(problem.dtype)
    if name is not None and (reason := backends.TABLE[name].why_not(problem.role, g, dtype, problem.target.platform)):
        return reason
    bind = partial(roles.bind, problem.role, geometry=g, dtype=dtype, precision=None, implementation=name)
    first, second = roles.OPERANDS[problem.role]
    return _jax(problem, lambda a, b: bind({first: a, second: b}))


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch(layout: str, problem: Problem, *, compile: bool = False):
    """`conv2d` in inference mode, and `convolution_backward` for one gradient alone, in the named memory format."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    from benchmarks import peer_torch

    return peer_torch.prepare(problem, layout, machine.cores(), compile)


# --- runtimes for inference ------------------------------------------------------------------------------------------


def onnxruntime(problem: Problem):
    """One Conv or ConvTranspose node with a constant kernel, input and output bound to preallocated memory."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    from benchmarks import peer_onnx

    return peer_onnx.onnxruntime(problem, machine.cores())


def openvino(problem: Problem):
    """The same node through OpenVINO's CPU plugin, latency mode."""
    for package in ("onnx", "openvino"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    from benchmarks import peer_onnx

    return peer_onnx.openvino(problem, machine.cores())


PEERS: dict[str, Peer] = {
    "gconv": partial(ours, None),
    **{f"gconv {name}": partial(ours, name) for name in backends.TABLE},
    "lax": lax,
    "nnx.Conv": flax_conv,
    "PyTorch contiguous": partial(torch, "contiguous"),
    "PyTorch channels_last": partial(torch, "channels_last"),
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
}

# On a GPU: those that have a side there, and PyTorch's compiler, which may do better than the library.
GPU_PEERS: dict[str, Peer] = {
    **{name: peer for name, peer in PEERS.items() if name.startswith(("gconv", "lax", "PyTorch"))},
    "PyTorch contiguous compiled": partial(torch, "contiguous", compile=True),
    "PyTorch channels_last compiled": partial(torch, "channels_last", compile=True),
}


def of(platform: str) -> dict[str, Peer]:
    """Who is measured on a platform, by name."""
    return GPU_PEERS if platform == "cuda" else PEERS
