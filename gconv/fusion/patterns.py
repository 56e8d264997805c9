"""Activations found by what they compute: the part of a program that is equal, operation by operation, to a known spelling."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from gconv.fusion.activations import SLOPE, Activation
from gconv.fusion.program import Atom, Node, Program, Value, scalar, values
from gconv.fusion.spellings import spellings

COMMUTATIVE = ("add", "add_any", "mul", "max", "min")
# What an operation on arrays of known shapes and types says of them again.
SAID_AGAIN = ("sharding", "out_sharding", "weak_type", "shape")

Bound = dict[Value, Any]  # a pattern's values -> the program's; the slope -> its number


class Found(NamedTuple):
    """An activation of a value: what it is, its result, and all nodes in between."""

    activation: Activation
    result: Value
    nodes: frozenset[Node]


class Pattern(NamedTuple):
    """A spelling as a graph of its own: the nodes that depend on `value`, of which the last is the result."""

    name: str
    value: Value
    slope: Value | None
    nodes: tuple[Node, ...]


def find(value: Value) -> Found | None:
    """The longest activation that takes all of a value's readers, or None."""
    if str(value.aval.dtype) not in ("float16", "bfloat16", "float32", "float64"):
        return None
    return next((found for pattern in patterns(value.aval.dtype) if (found := _match(pattern, value))), None)


@functools.lru_cache(maxsize=16)
def patterns(dtype) -> tuple[Pattern, ...]:
    """All spellings in a type, the longest first."""
    x, slope = jax.ShapeDtypeStruct((2, 3), dtype), jax.ShapeDtypeStruct((), dtype)
    found: dict[str, Pattern] = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for name, function in spellings():
            traced = jax.make_jaxpr(function)(*((x, slope) if name == "leaky_relu" else (x,)))
            program = Program(traced)
            first, *rest = program.inputs
            pattern = Pattern(name, first, rest[0] if rest else None, tuple(_dependents(program, first)))
            found.setdefault(f"{name} {traced}", pattern)
    return tuple(sorted(found.values(), key=lambda p: -len(p.nodes)))


def _dependents(program: Program, value: Value) -> Iterator[Node]:
    known = {value}
    for node in program.nodes:
        if known.intersection(values(node.inputs)):
            known.update(node.outputs)
            yield node


def _match(pattern: Pattern, value: Value) -> Found | None:
    for bound, nodes in _matches(pattern, 0, {pattern.value: value}, ()):
        result = bound[pattern.nodes[-1].outputs[0]]
        inner = [value, *(node.outputs[0] for node in nodes if node.outputs[0] is not result)]
        if result.aval.dtype == value.aval.dtype and all({*v.readers} <= {*nodes} and not v.is_result for v in inner):
            slope = SLOPE if pattern.slope is None else float(bound[pattern.slope])
            return Found(Activation(pattern.name, slope), result, frozenset(nodes))
    return None


def _matches(pattern: Pattern, at: int, bound: Bound, nodes: tuple[Node, ...]) -> Iterator[tuple[Bound, tuple[Node, ...]]]:
    """Every way to find the pattern's nodes from `at` on, given what its values are bound to."""
    if at == len(pattern.nodes):
        yield bound, nodes
        return
    wanted = pattern.nodes[at]
    anchor = next(v for v in values(wanted.inputs) if isinstance(bound.get(v), Value))
    for node in dict.fromkeys(bound[anchor].readers):
        if node in nodes or node.name != wanted.name or not _same_options(node, wanted):
            continue
        for inputs in (node.inputs, node.inputs[::-1]) if node.name in COMMUTATIVE else (node.inputs,):
            more = _unified(pattern, wanted.inputs, inputs, bound)
            if more is not None:
                yield from _matches(pattern, at + 1, more | {wanted.outputs[0]: node.outputs[0]}, (*nodes, node))


def _same_options(node: Node, other: Node) -> bool:
    ours, theirs = ({k: v for k, v in n.params.items() if k not in SAID_AGAIN} for n in (node, other))
    return ours == theirs and len(node.inputs) == len(other.inputs) and node.equation.ctx.compute_type is None


def _unified(pattern: Pattern, wanted: list[Atom], inputs: list[Atom], bound: Bound) -> Bound | None:
    """The bindings, and the slope's if it is met here, if these operands are those of the pattern; otherwise None."""
    more = dict(bound)
    for theirs, ours in zip(wanted, inputs, strict=True):
        if isinstance(theirs, Value) and isinstance(more.get(theirs), Value):
            if more[theirs] is not ours:
                return None
            continue
        number = scalar(ours)
        if number is None:
            return None
        if theirs is pattern.slope:
            if more.setdefault(pattern.slope, number) != number:
                return None
        elif not _same_number(scalar(theirs), number):
            return None
    return more


def _same_number(a: Any, b: Any) -> bool:
    return a is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()
