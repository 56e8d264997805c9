"""JAX's side: lax, Flax's layer, and gconv, each compiled beforehand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring.target import CPU, Target, rotating
from benchmarks.measuring.work import Prepared, timed
from benchmarks.peers.base import Problem
from gconv import backends, roles

SPATIAL = ("", "W", "HW", "DHW")


def compiled(function: Callable, *operands, target: Target = CPU) -> tuple[Callable[[], Any], float]:
    """A JAX function as a compiled program bound to its operands, and how long tracing and compiling took."""
    operands = jax.block_until_ready(jax.tree.map(jnp.asarray, operands))
    program, seconds = timed(lambda: jax.jit(function).lower(*operands).compile())
    count = target.copies(sum(leaf.nbytes for leaf in jax.tree.leaves(operands)))
    copies = [operands, *(jax.tree.map(jnp.copy, operands) for _ in range(count - 1))]
    return rotating(program, jax.block_until_ready(copies)), seconds


def prepared(problem: Problem, function: Callable) -> Prepared:
    """`function` of the role's two operands, compiled."""
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
    return prepared(problem, _role_of(problem, conv))


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

    return prepared(problem, _role_of(problem, conv))


def ours(name: str | None, problem: Problem):
    """An implementation of gconv, or its automatic choice."""
    g, dtype = problem.case.geometry, jnp.dtype(problem.dtype)
    if name is not None and (reason := backends.TABLE[name].why_not(problem.role, g, dtype, problem.target.platform)):
        return reason
    bind = partial(roles.bind, problem.role, geometry=g, dtype=dtype, precision=None, implementation=name)
    first, second = roles.OPERANDS[problem.role]
    return prepared(problem, lambda a, b: bind({first: a, second: b}))
