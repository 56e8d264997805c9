"""PyTorch's side: one role of one convolution, in either memory format.

PyTorch pads both ends of an axis alike. An axis that is padded otherwise is given to it in the form it likes best, prepared
outside the timed call: mirrored, where the surplus at the end then fits a symmetric padding; or padded alike, with the outputs
that nobody asked for cut off (for a gradient: filled with zeros beforehand). It computes the same numbers and is not charged
for a copy that its own users would not make.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import torch

from benchmarks.measuring.target import Target, rotating
from benchmarks.measuring.work import Prepared, timed
from benchmarks.peers.base import Problem
from gconv.geometry import Geometry

FORMATS = {1: torch.channels_last, 2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Symmetric:
    """How one axis is padded: `padding` at both ends, of the mirrored axis if `mirror`, `extra` outputs too many."""

    padding: int
    mirror: bool
    extra: int


def symmetric(g: Geometry) -> tuple[Symmetric, ...]:
    """The symmetric form of every axis with the fewest outputs too many."""
    axes = []
    for n, out, (lo, _), e, s in zip(g.spatial, g.output, g.padding, g.effective_window, g.strides, strict=True):
        high = (out - 1) * s + e - n - lo  # the padding at the end that a window reaches
        options = []
        for mirror, padding in ((False, lo), (True, high)):
            outputs = (n + 2 * padding - e) // s + 1
            if padding >= 0 and outputs >= out:
                options.append(Symmetric(padding, mirror, outputs - out))
        if not options:
            raise ValueError(f"PyTorch cannot pad input {n}, output {out}, window {e}, stride {s}, padding {(lo, high)}.")
        axes.append(min(options, key=lambda option: (option.extra, option.mirror)))
    return tuple(axes)


def prepare(problem: Problem, layout: str, threads: int, compile: bool = False) -> Prepared:
    """The problem's role, eagerly or through `torch.compile`."""
    g, role = problem.case.geometry, problem.role
    dtype = getattr(torch, problem.dtype)
    axes = symmetric(g)
    lifted = layout == "channels_last" and g.rank == 1  # torch has no such format for one axis: a second one of length 1
    ones = (1,) if lifted else ()
    spatial = range(2, 2 + g.rank)
    mirrored = tuple(2 + i for i, axis in enumerate(axes) if axis.mirror)

    def to_torch(name: str) -> torch.Tensor:
        array = problem.arrays[name]
        order = (g.rank + 1, g.rank, *range(g.rank)) if name == "w" else (0, g.rank + 1, *range(1, g.rank + 1))
        moved = torch.from_numpy(np.ascontiguousarray(array.transpose(order))).flip(mirrored)
        if name == "y":
            for i, axis in zip(spatial, axes, strict=True):
                shape = list(moved.shape)
                shape[i] = axis.extra
                moved = torch.cat((moved, torch.zeros(shape)), dim=i)
        if lifted:
            moved = moved.unsqueeze(2)
        memory = FORMATS[g.rank] if layout == "channels_last" else torch.contiguous_format
        return moved.to(dtype).contiguous(memory_format=memory)

    def from_torch(result: torch.Tensor) -> np.ndarray:
        if lifted:
            result = result.squeeze(2)
        if role == "y":
            result = result[(..., *(slice(n) for n in g.output))]
        order = (*spatial, 1, 0) if role == "w" else (0, *spatial, 1)
        return result.flip(mirrored).permute(order).float().numpy()

    torch.set_num_threads(threads)
    padding = (*(0 for _ in ones), *(axis.padding for axis in axes))
    strides, dilation = (*ones, *g.strides), (*ones, *g.dilation)
    if role == "y":
        conv, operands = (torch.conv1d, torch.conv2d, torch.conv3d)[len(strides) - 1], "xw"
        function = lambda x, w: conv(x, w, None, strides, padding, dilation, g.groups)
    else:
        operands = "xwy"  # the backward pass takes all three, whichever gradient is wanted
        mask, wanted = (role == "x", role == "w", False), "xw".index(role)
        options = (None, strides, padding, dilation, False, [0] * len(strides), g.groups, mask)
        function = lambda x, w, y: torch.ops.aten.convolution_backward(y, x, w, *options)[wanted]
    return prepared(function, [to_torch(name) for name in operands], from_torch, problem.target, compile=compile)


def prepared(
    function: Callable, operands: Sequence, to_numpy: Callable, target: Target, *, inference: bool = True, compile: bool = False
) -> Prepared:
    """`function` of tensors on the target; `to_numpy` turns what it computed, in the processor's memory, into the result."""
    if target.platform == "cuda":
        torch.backends.cudnn.benchmark = True  # the best algorithm is searched for, as XLA does when it compiles
        torch.backends.cudnn.allow_tf32 = jax.config.jax_default_matmul_precision is None  # the default of both libraries
    own = [tensor.to(target.platform) for tensor in operands]
    count = target.copies(sum(tensor.nbytes for tensor in own))
    copies = [own, *([tensor.clone() for tensor in own] for _ in range(count - 1))]  # clones keep the memory format
    if compile:
        torch.compiler.reset()  # each problem is a program of its own; after eight of the same function PyTorch would give up
        function = torch.compile(function, fullgraph=True, dynamic=False)
    call = rotating(function, copies)

    def run():
        with torch.inference_mode(inference):
            return call()

    def result():
        out = run()
        return to_numpy([leaf.detach().cpu() for leaf in out] if isinstance(out, list | tuple) else out.detach().cpu())

    seconds = timed(result)[1] if compile else 0.0
    return Prepared(run, result, seconds, clock=target.torch)
