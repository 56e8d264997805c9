"""What a whole NNX model computes, layer by layer, read off its jaxpr: nothing runs, and no compiler is asked.

XLA's own count knows no kernel of another library: `cost_analysis` says -1, and `flax.nnx.tabulate(compute_flops=True)` repeats
it.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from gconv import backends, roles
from gconv.acceleration.equation import read
from gconv.acceleration.lowering import equation_of, is_taken
from gconv.dtypes import wider
from gconv.fusion import epilogue

SCOPE = "gconv:"  # before the number of a layer, in the names of what it traces
ELSEWHERE = "(elsewhere)"


@dataclass(frozen=True)
class Layer:
    """One layer of a model, or what is computed outside of all layers.

    Attributes:
      path: of the layer in the model.
      kind: the name of its class.
      implementations: what its convolutions take, in order; "XLA" of matrix products.
      flops: multiplications plus additions of its convolutions and matrix products, padding counted as if it were data.
      bytes: of the operands and results of these, each touched once.
      parameters: how many numbers the layer itself holds as `nnx.Param`.
    """

    path: str
    kind: str
    implementations: tuple[str, ...]
    flops: int
    bytes: int
    parameters: int


@dataclass(frozen=True)
class ModelExplanation:
    """What `gconv.explain` found of a model; `print` shows the table, and indexing by a path gives its `Layer`.

    Attributes:
      layers: those that have parameters, or compute a convolution or a matrix product, in the order of the model.
      platform: for which the implementations were chosen.
    """

    layers: tuple[Layer, ...]
    platform: str

    def __getitem__(self, path: str) -> Layer:
        return next(layer for layer in self.layers if layer.path == path)

    @property
    def flops(self) -> int:
        """Of one call: all convolutions and matrix products."""
        return sum(layer.flops for layer in self.layers)

    @property
    def bytes(self) -> int:
        """That these read and write, each operand and result once."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Of the model; one that layers share counts once."""
        return sum(layer.parameters for layer in self.layers)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "kind", "by", "FLOPs", "bytes", "parameters")]
        for one in self.layers:
            by = ", ".join(dict.fromkeys(one.implementations))
            rows.append((one.path, one.kind, by, *map(_number, (one.flops, one.bytes, one.parameters))))
        total = (_number(n) for n in (self.flops, self.bytes, self.parameters))
        rows.append(("total", f"on {self.platform}", "", *total))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _number(n) -> str:
    return f"{n:,}" if isinstance(n, int) else str(n)  # of a symbolic size


def explain_model(model, *inputs, platform: str, **options) -> ModelExplanation:
    """See `gconv.explain`. Arrays among the inputs are abstract; everything else is handed to the model as it is."""
    from flax import nnx

    graph, state = nnx.split(model)
    paths, kinds, parameters, seen = [], [], [], set()
    for path, module in nnx.iter_modules(model):
        paths.append(".".join(map(str, path)) or "(the model itself)")
        kinds.append(type(module).__name__)
        own = [v for v in jax.tree.leaves(vars(module), is_leaf=_is_leaf) if isinstance(v, nnx.Param) and id(v) not in seen]
        seen |= {id(v) for v in own}
        parameters.append(sum(math.prod(a.shape) for v in own for a in jax.tree.leaves(v.get_value())))
    leaves, structure = jax.tree.flatten((inputs, options))
    abstract = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def call(state, arrays):
        given = [*leaves]
        for i, array in zip(abstract, arrays, strict=True):
            given[i] = array
        inputs, options = jax.tree.unflatten(structure, given)
        return _numbered(nnx.merge(graph, state))(*inputs, **options)

    found: dict[int | None, list] = {}
    for number, *cost in _costs(jax.make_jaxpr(call)(state, [leaves[i] for i in abstract]).jaxpr, "", 1, platform):
        found.setdefault(number, []).append(cost)
    layers = []
    numbered = [*enumerate(zip(paths, kinds, parameters, strict=True)), (None, (ELSEWHERE, "", 0))]
    for number, (name, kind, count) in numbered:
        costs = found.get(number, [])
        if costs or count:
            by, flops, moved = ([cost[i] for cost in costs] for i in range(3))
            layers.append(Layer(name, kind, tuple(by), sum(flops), sum(moved), count))
    return ModelExplanation(tuple(layers), platform)


def _is_leaf(value) -> bool:
    """Not what is inside a variable, nor another module: that has a row of its own."""
    from flax import nnx

    return isinstance(value, (nnx.Variable, nnx.Module))


def _numbered(model):
    """The model, whose layers trace under their numbers: each gets a subclass of its class, which `nnx.split` takes along."""
    from flax import nnx

    for number, (_, module) in enumerate(nnx.iter_modules(model)):
        cls = type(module)
        if callable(module):
            make: Any = type(cls)  # the metaclass
            module.__class__ = make(cls.__name__, (cls,), {"__call__": _within_scope(number, cls.__call__)})
    return model


def _within_scope(number: int, call):
    @functools.wraps(call)
    def inside(self, *arguments, **options):
        with jax.named_scope(f"{SCOPE}{number}:"):
            return call(self, *arguments, **options)

    return inside


# --- reading a jaxpr ---------------------------------------------------------------------------------------------------


def _costs(jaxpr, outside: str, times: int, platform: str) -> Iterator[tuple[int | None, str, int, int]]:
    """`(number of the layer, implementation, FLOPs, bytes)` of every convolution and matrix product."""
    for eqn in jaxpr.eqns:
        names = f"{outside}/{eqn.source_info.name_stack}"
        cost = _cost(eqn, platform)
        if cost is not None:
            by, flops = cost
            moved = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars))
            layer = re.findall(rf"{SCOPE}(\d+):", names)
            yield (int(layer[-1]) if layer else None), by, times * flops, times * moved
            continue
        inner = [list(_costs(j, names, times * _times(eqn), platform)) for j in _jaxprs(eqn)]
        if eqn.primitive.name == "cond":  # one of the branches: the longest
            inner = [max(inner, key=lambda costs: sum(cost[2] for cost in costs))]
        for costs in inner:
            yield from costs


def _times(eqn) -> int:
    """How often what is inside runs: a scan's length, every device of a shard_map. Of a while loop nobody knows: once."""
    if eqn.primitive.name == "shard_map":
        return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])
    return eqn.params["length"] if eqn.primitive.name == "scan" else 1


def _jaxprs(eqn) -> list:
    """The programs inside an equation, each once: of a derivative rule only what it is a rule for."""
    found = []
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                found.append(one)
    return found


def _cost(eqn, platform: str) -> tuple[str, int] | None:
    name, params = eqn.primitive.name, eqn.params
    avals = [v.aval for v in eqn.invars]
    own = params.get("role") if eqn.primitive is epilogue.PRIMITIVE else None
    role = own or next((r for r, p in roles.PRIMITIVES.items() if p is eqn.primitive), None)
    if role is not None:
        g, batch = params["geometry"], avals[0].shape[0]
        problem = (g, _operand(avals[:2]), platform, batch)
        if params.get("matrix"):
            reason = backends.reason_against_matrix("fused matrix", *problem, frozen=params["frozen"])
            by = "XLA" if reason else "native"
        else:
            by = backends.choose(role, *problem, params["implementation"])
        return by, 2 * backends.products(g, batch)
    if eqn.primitive is lax.conv_general_dilated_p:
        equation = equation_of(avals, params)
        reading = read(equation)
        summed = equation.rhs_shape[params["dimension_numbers"].rhs_spec[1]]
        window = [equation.rhs_shape[i] for i in params["dimension_numbers"].rhs_spec[2:]]
        flops = 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(window) * summed
        if isinstance(reading, str) or not is_taken(eqn.ctx.xla_metadata):
            return "lax", flops
        return backends.choose(reading.role, reading.geometry, _operand(avals), platform, reading.batch), flops
    if name == "dot_general":
        contracted, _ = params["dimension_numbers"]
        return "XLA", 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(avals[0].shape[i] for i in contracted[0])
    return None


def _operand(avals):
    return wider(*(aval.dtype for aval in avals))
