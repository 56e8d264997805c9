"""Convolutions of lax as programs hold them, forward and in gradients: by lax, and by gconv installed.

From the training steps of the networks, whose every convolution and gradient is an equation of its own; and from a seeded
sample of odd ones: other ranks, layouts, dilations and channel counts, transposed.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.extend import core

import gconv
from benchmarks.measuring.work import Prepared, timed
from benchmarks.programs import networks

ODD = 80
SEED = 0
LARGEST = 2e9  # products of an odd one


@dataclass(frozen=True)
class Case:
    """One equation: the name says where it is from, `bind` computes it."""

    name: str
    lhs: jax.ShapeDtypeStruct
    rhs: jax.ShapeDtypeStruct
    params: tuple

    def bind(self, lhs, rhs):
        return lax.conv_general_dilated_p.bind(lhs, rhs, **dict(self.params))

    def prepared(self) -> tuple[dict[str, Prepared], str]:
        """By lax and by gconv installed; and what gconv chose."""
        rng = np.random.default_rng(0)
        operands = [jnp.asarray(rng.standard_normal(a.shape, np.float32)) for a in (self.lhs, self.rhs)]
        by_lax, slow = timed(lambda: jax.jit(lambda *a: self.bind(*a)).lower(*operands).compile())
        fast = gconv.accelerated(lambda *a: self.bind(*a))
        ours, quick = timed(lambda: jax.jit(fast).lower(*operands).compile())
        chosen = [f"{role} by {name}" for role, name in fast.report.taken] or [*fast.report.left]
        both = {"lax": (by_lax, slow), "installed": (ours, quick)}
        return {
            name: Prepared(lambda run=run: run(*operands), lambda run=run: np.asarray(run(*operands)), seconds)
            for name, (run, seconds) in both.items()
        }, chosen[0]


def of_networks(batch: int = 8, size: int = 224) -> Iterator[Case]:
    """Every different equation of the networks' training steps."""
    seen = set()
    for name in networks.NETWORKS:
        graph, *_ = model = nnx.split(
            nnx.eval_shape(lambda name=name: networks.NETWORKS[name](networks.flax_layer, rngs=nnx.Rngs(0)))
        )
        x = jax.ShapeDtypeStruct(networks.input_shape(name, batch, size), "float32")

        def loss(state, x, graph=graph):
            return (nnx.merge(graph, state)(x) ** 2).sum()

        for eqn in _convolutions(jax.make_jaxpr(jax.grad(loss, allow_int=True))(model[1], x).jaxpr):
            yield from _case(name, eqn, seen)


def dense() -> Iterator[Case]:
    """Windows of 3 x 3 and of one pixel in one group, as ResNet and VGG have them, at batch 1 and 8."""
    seen: set = set()
    for channels, side, window, batch in itertools.product((64, 256, 512), (7, 14, 28), (1, 3), (1, 8)):
        x = jax.ShapeDtypeStruct((batch, side, side, channels), "float32")
        kernel = jax.ShapeDtypeStruct((window, window, channels, channels), "float32")

        def loss(x, kernel):
            numbers = ("NHWC", "HWIO", "NHWC")
            return (lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers) ** 2).sum()

        for eqn in _convolutions(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel).jaxpr):
            yield from _case("dense", eqn, seen)


def odd(count: int = ODD) -> Iterator[Case]:
    """A seeded sample: what no network above holds."""
    rng, seen, found = random.Random(SEED), set(), 0
    while found < count:
        function, *operands = _odd_one(rng)
        try:
            jaxpr = jax.make_jaxpr(jax.grad(lambda *a, f=function: (f(*a) ** 2).sum(), (0, 1)))(*operands).jaxpr
        except (ValueError, TypeError):
            continue  # no legal call
        for eqn in _convolutions(jaxpr):
            for case in _case("odd", eqn, seen):
                found += 1
                yield case


def _odd_one(rng: random.Random) -> tuple[Callable, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    rank = rng.choice((1, 1, 2, 2, 2, 3))
    groups = rng.choice((1, 1, 1, 2, 4, 8, 32))
    channels, filters = (rng.choice((1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)) for _ in range(2))
    if groups > 8:
        channels = filters = rng.choice((1, 1, 2, 4, 8))
    side = {1: (50, 128, 400, 1000, 4000), 2: (7, 8, 14, 16, 28, 32, 56, 64), 3: (4, 8, 12, 16)}[rank]
    sizes = tuple(rng.choice(side) for _ in range(rank))
    window = tuple(rng.choice((1, 1, 2, 3, 3, 3, 4, 5, 7, 9)) for _ in range(rank))
    batch = rng.choice((1, 2, 4, 8, 16, 32))
    strides, dilation = (rng.choice((1, 1, 1, 2, 3)) for _ in range(2))
    spatial = "DHW"[-rank:]
    first = rng.random() < 0.3
    numbers = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}") if first else (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    x = {"N": batch, "C": groups * channels, **dict(zip(spatial, sizes, strict=True))}
    w = {"I": channels, "O": groups * filters, **dict(zip(spatial, window, strict=True))}
    operands = [jax.ShapeDtypeStruct([of[c] for c in spec], "float32") for of, spec in zip((x, w), numbers, strict=False)]
    products = batch * np.prod(sizes) * np.prod(window) * groups * channels * filters
    if products > LARGEST or products < 1e3:
        return _odd_one(rng)
    transposed = rng.random() < 0.25
    options = {"dimension_numbers": numbers, "feature_group_count": groups, "rhs_dilation": (dilation,) * rank}
    if transposed:
        pads = tuple((k - 1 - k // 2, k // 2) for k in window)
        options |= {"lhs_dilation": (strides,) * rank, "padding": pads, "window_strides": (1,) * rank}
    else:
        options |= {"window_strides": (strides,) * rank, "padding": rng.choice(("SAME", "VALID"))}
    return lambda x, w: lax.conv_general_dilated(x, w, **options), *operands


def _convolutions(jaxpr) -> Iterator:
    for eqn in jaxpr.eqns:
        if eqn.primitive is lax.conv_general_dilated_p:
            yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, core.Jaxpr):
                yield from _convolutions(inner)


def _case(origin: str, eqn, seen: set) -> Iterator[Case]:
    lhs, rhs = (jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars)
    params = tuple(sorted(eqn.params.items()))
    if (key := (lhs.shape, rhs.shape, params)) not in seen:
        seen.add(key)
        numbers = eqn.params["dimension_numbers"]
        options = {
            name: value for name, value in eqn.params.items() if name in ("window_strides", "lhs_dilation", "rhs_dilation")
        }
        kept = " ".join(f"{name} {value}" for name, value in options.items() if max(value) > 1)
        groups = f"{eqn.params['feature_group_count']}x{eqn.params['batch_group_count']} groups"
        spec = f"{numbers.lhs_spec[:2]}{numbers.rhs_spec[:2]}".replace(" ", "")
        yield Case(f"{origin} {lhs.shape} * {rhs.shape} {spec} {groups} {kept}".strip(), lhs, rhs, params)
