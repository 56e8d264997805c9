"""What would run of one operation, and what it costs, without running anything."""

import inspect
import math
import sys
import textwrap
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gconv import backends, op, roles
from gconv.arrays import check_array
from gconv.backends import native
from gconv.dtypes import wider
from gconv.explanation.model import ModelExplanation, explain_model
from gconv.geometry import Geometry, geometry
from gconv.naming import translating, unexpected
from gconv.options import did_you_mean, parse_padding_value
from gconv.typing import Groups, Implementation, Padding, PaddingValue, PerAxis, Platform, Precision


def platform_here() -> str:
    """The platform that a program is lowered for by default on this machine, by JAX's lowering names."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


ALIASES = {**dict.fromkeys(("gpu", "nvidia", "h100", "a100"), "cuda"), **dict.fromkeys(("amd", "hip"), "rocm")}


def _known(platform: str | None) -> str:
    if platform is not None and platform not in roles.PLATFORMS:
        known = ", ".join(map(repr, roles.PLATFORMS))
        near = did_you_mean(platform, roles.PLATFORMS, ALIASES) if isinstance(platform, str) else ""
        raise ValueError(f"`platform` must be one of {known} or None, got {platform!r}.{near or ' None is this machine.'}")
    return platform or platform_here()


@translating
def implementations(platform: Platform | None = None) -> dict[Implementation, str | None]:
    """The names that `implementation=` takes, best first, each with the reason why it cannot run here, or None.

    >>> import gconv
    >>> gconv.implementations("cuda")
    {'native': "its kernels run on CPU, not on 'cuda'", 'xla': None, 'lax': None}

    Args:
      platform: "cpu", "cuda", "rocm" or "tpu"; by default this machine's.
    """
    smallest = Geometry((1,), (1,), (1,), ((0, 0),), (1,), 1, 1, 1)
    where = _known(platform)
    kind = jnp.dtype("float32")
    return {cast(Implementation, name): module.why_not("y", smallest, kind, where) for name, module in backends.TABLE.items()}


@dataclass(frozen=True)
class Role:
    """One role of one convolution.

    Attributes:
      role: "y" (the convolution), "x" (the input gradient) or "w" (the kernel gradient).
      implementation: the name of what would run.
      why: the sentence of the rule that takes it.
      reasons: for each implementation that would not, why.
      flops: multiplications plus additions, padding counted as if it were data.
      bytes: of both operands and the result, each touched once: the least that can move.
      scratch: bytes that the compiled program holds besides, or None where this machine cannot compile for the platform.
      plan: of "native", the kernel and its sizes; else None.
    """

    role: str
    implementation: str
    why: str
    reasons: dict[str, str]
    flops: int
    bytes: int
    scratch: int | None
    plan: native.Plan | None = None


@dataclass(frozen=True)
class Explanation:
    """What `gconv.explain` found; `print` shows it, and indexing by a role ("y", "x", "w") gives its `Role`."""

    geometry: Geometry
    platform: str
    roles: tuple[Role, ...]

    def __getitem__(self, role: str) -> Role:
        return next(r for r in self.roles if r.role == role)

    def __str__(self) -> str:
        g = self.geometry
        lines = [
            f"{g.groups} groups of {g.channels} -> {g.filters} channels, window {g.window}, input {g.spatial}, "
            f"output {g.output}, on {self.platform}"
        ]
        for r in self.roles:
            scratch = "scratch not known here" if r.scratch is None else f"{r.scratch:,} bytes of scratch"
            lines.append(f"{r.role}: {r.implementation:<6} {r.flops:,} FLOPs, {r.bytes:,} bytes, {scratch}")
            details = [f"{r.implementation}: {r.why}", *([str(r.plan)] if r.plan else [])]
            details += [f"not {name}: {reason}" for name, reason in r.reasons.items()]
            for text in details:
                lines += textwrap.wrap(text, 100, initial_indent="   ", subsequent_indent="      ", break_on_hyphens=False)
        return "\n".join(lines)


def explain(
    x: Any,
    *inputs: Any,
    groups: Groups | None = None,
    strides: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    padding_value: PaddingValue = 0,
    implementation: Implementation | None = None,
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
    platform: Platform | None = None,
    **call: Any,
) -> Explanation | ModelExplanation:
    """Which implementation each role of `grouped_conv` takes and why, and its FLOPs, bytes and scratch; or those of a model.

    >>> import jax, gconv
    >>> x = jax.ShapeDtypeStruct((8, 56, 56, 96), "float32")
    >>> kernel = jax.ShapeDtypeStruct((7, 7, 1, 96), "float32")
    >>> found = gconv.explain(x, kernel, padding="same", platform="cpu")
    >>> found["y"].flops, found["y"].bytes
    (236027904, 19286400)

    `explain(model, *inputs)` of an NNX model is a table of its layers: what computes them, their FLOPs, bytes and parameters.

    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(
    ...     gconv.nnx.GroupedConv(96, 7, 1, 96, rngs=rngs), nnx.Linear(96, 4, rngs=rngs)
    ... )
    >>> table = gconv.explain(model, x)
    >>> table.flops, table.parameters
    (203520000, 5188)

    Args:
      x, inputs: `x, kernel`, arrays or `jax.ShapeDtypeStruct`s, of which no data is read; or a `flax.nnx.Module` and what it is
        called with, keyword arguments included.
      platform: "cpu", "cuda", "rocm" or "tpu"; by default this machine's.
      groups, strides, padding, dilation, padding_value, implementation, precision, preferred_element_type: as in
        `gconv.grouped_conv`.

    Raises:
      ValueError, TypeError: where `grouped_conv` would raise, also for a named implementation that cannot run a role.
    """
    where = _known(platform)
    if (flax := sys.modules.get("flax")) and isinstance(x, flax.nnx.Module):
        told = (groups, strides, padding, dilation, padding_value, implementation, precision, preferred_element_type)
        if told != (None, 1, 0, 1, 0, None, None, None):
            raise TypeError(
                "explain(model, *inputs) takes the model's own arguments and `platform`; its layers know their options."
            )
        return explain_model(x, *inputs, platform=where, **call)
    if reason := _no_operand(x):
        raise TypeError(f"explain() takes `x, kernel`, or an NNX model and its inputs, got {reason}")
    if call:
        raise TypeError(unexpected("explain", inspect.signature(explain).parameters.values(), (x, *inputs), call))
    if len(inputs) != 1:
        given = f"{type(x).__name__} and {len(inputs)}"
        raise TypeError(
            f"explain() takes `x, kernel`, or an NNX model and its inputs, got {given}. What works: "
            "gconv.explain(x, kernel, padding=0)."
        )
    (kernel,) = inputs
    for name, a in (("x", x), ("kernel", kernel)):
        check_array(name, a)
    batch_axes, geom = geometry(x.shape, kernel.shape, groups=groups, strides=strides, padding=padding, dilation=dilation)
    batch = math.prod(batch_axes)
    if parse_padding_value(padding_value) != 0:  # added to x before the convolution
        geom = geom.unpadded([n + lo + hi for n, (lo, hi) in zip(geom.spatial, geom.padding, strict=True)])
    dtype = jnp.result_type(x.dtype, kernel.dtype)
    precision = op.precision_in_force(precision)
    result = op.result_dtype(dtype, precision, preferred_element_type)
    of = {
        "x": jax.ShapeDtypeStruct(geom.x_shape(batch), dtype),
        "w": jax.ShapeDtypeStruct(geom.kernel_shape, dtype),
        "y": jax.ShapeDtypeStruct(geom.y_shape(batch), result),
    }
    flops = 2 * math.prod(of["y"].shape) * math.prod(geom.window) * geom.channels
    moved = sum(s.size * s.dtype.itemsize for s in of.values())

    def one(role: str) -> Role:
        operand = wider(*(of[name].dtype for name in roles.OPERANDS[role]))
        problem = (role, geom, operand, where, batch)
        chosen = backends.choose(*problem, implementation)
        others = [name for name in backends.TABLE if name != chosen]
        if implementation is None:
            why = backends.reason_for(chosen, *problem)
            reasons = {name: backends.reason_against(name, *problem) or f"{chosen} comes before it" for name in others}
        else:
            why = "it was named"
            reasons = dict.fromkeys(others, f"implementation={implementation!r} was named")
        scratch, plan = None, None
        if where == platform_here():
            if chosen == "native" and batch:
                plan = native.plan(role, geom, operand, batch, precision)
            options = dict(geometry=geom, dtype=of[role].dtype, precision=precision, implementation=chosen)
            run = jax.jit(lambda a, b: roles.bind(role, dict(zip(roles.OPERANDS[role], (a, b), strict=True)), **options))
            memory = run.lower(*(of[name] for name in roles.OPERANDS[role])).compile().memory_analysis()
            scratch = None if memory is None else memory.temp_size_in_bytes
        return Role(role, chosen, why, reasons, flops, moved, scratch, plan)

    return Explanation(geom, where, tuple(one(role) for role in roles.OPERANDS))


def _no_operand(x) -> str | None:
    """What is no array and no model, and what to give instead; None of what may be an array."""
    flax = sys.modules.get("flax")
    if flax and isinstance(x, flax.linen.Module):
        return (
            f"the Linen module {type(x).__name__}. As an NNX model: gconv.explain(flax.nnx.bridge.lazy_init("
            "flax.nnx.bridge.ToNNX(module, rngs=flax.nnx.Rngs(0)), x), x). Its convolution alone: gconv.explain(x, kernel)."
        )
    if isinstance(x, type):
        return f"the class {x.__name__}. An instance of it would work: gconv.explain({x.__name__}(...), x)."
    if callable(x) and not hasattr(x, "shape"):
        return f"the function {getattr(x, '__name__', type(x).__name__)}. jax.make_jaxpr shows what a function computes."
    return None
