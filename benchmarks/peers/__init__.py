"""Who solves the problems, each the way its own users would get the best from it: one function per peer.

    base     what a peer takes and answers
    jax      lax, Flax's nnx.Conv, and gconv: its choice and each of its implementations
    torch    PyTorch, in either memory format
    kernels  gconv's kernels one by one, for `python -m benchmarks.tune`
    builds   other builds of gconv's kernels, for `python -m benchmarks.compare`
    onnx     the runtimes that read ONNX: ONNX Runtime and OpenVINO

Nothing but the call itself is timed: operands lie in the peer's own memory and layout, threads are as many as
`machine.cores()`, and results stay in the peer's layout. `PEERS` is the list.
"""

import importlib.util
from functools import partial

from benchmarks.measuring import machine
from benchmarks.peers.base import Peer, Problem
from benchmarks.peers.jax import flax_conv, lax, ours
from gconv import backends


def pytorch(layout: str, problem: Problem, *, compile: bool = False):
    """`conv2d` in inference mode, and `convolution_backward` for one gradient alone, in the named memory format."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    from benchmarks.peers import torch

    return torch.prepare(problem, layout, machine.cores(), compile)


def onnxruntime(problem: Problem):
    """One Conv or ConvTranspose node with a constant kernel, input and output bound to preallocated memory."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    from benchmarks.peers import onnx

    return onnx.onnxruntime(problem, machine.cores())


def openvino(problem: Problem):
    """The same node through OpenVINO's CPU plugin, latency mode."""
    for package in ("onnx", "openvino"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    from benchmarks.peers import onnx

    return onnx.openvino(problem, machine.cores())


PEERS: dict[str, Peer] = {
    "gconv": partial(ours, None),
    **{f"gconv {name}": partial(ours, name) for name in backends.TABLE},
    "lax": lax,
    "nnx.Conv": flax_conv,
    "PyTorch contiguous": partial(pytorch, "contiguous"),
    "PyTorch channels_last": partial(pytorch, "channels_last"),
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
}

# On a GPU: those that have a side there, and PyTorch's compiler, which may do better than the library.
GPU_PEERS: dict[str, Peer] = {
    **{name: peer for name, peer in PEERS.items() if name.startswith(("gconv", "lax", "PyTorch"))},
    "PyTorch contiguous compiled": partial(pytorch, "contiguous", compile=True),
    "PyTorch channels_last compiled": partial(pytorch, "channels_last", compile=True),
}


def of(platform: str) -> dict[str, Peer]:
    """Who is measured on a platform, by name."""
    return GPU_PEERS if platform == "cuda" else PEERS
