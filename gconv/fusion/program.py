"""A traced function as a graph, in which what follows a convolution can be seen: calls are written out where they stand."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

# The calls that are written out, and the parameter that holds what they call. Forward these compute just that: derivatives and
# what is kept for them are not asked of this graph but of the function as it was traced.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


class Value:
    """One array of a program.

    Attributes:
      node: what computes it, or None for arguments and constants.
      readers: the nodes that read it, one that reads it twice twice.
      is_result: whether the program returns it.
    """

    __slots__ = ("aval", "is_result", "node", "readers")

    def __init__(self, aval: Any, node: "Node | None" = None):
        self.aval, self.node = aval, node
        self.readers: list[Node] = []
        self.is_result = False


Atom = Value | Literal


def typeof(atom: Atom) -> Any:
    """Shape and type."""
    return atom.aval


class Node:
    """One equation of a program.

    Attributes:
      place: where it stands among the nodes; what it reads stands before.
    """

    __slots__ = ("equation", "inputs", "outputs", "place")

    def __init__(self, equation: JaxprEqn, inputs: Sequence[Atom]):
        self.equation, self.inputs, self.place = equation, list(inputs), -1
        self.outputs = [Value(v.aval, self) for v in equation.outvars]

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.equation.params

    def bind(self, inputs: Sequence, params: dict[str, Any] | None = None) -> Sequence:
        """What the equation computes of these arrays, in the context and under the names that it was traced in."""
        found: Any = self.equation.primitive.get_bind_params(self.params if params is None else params)
        functions, options = found if isinstance(found, tuple) else ((), found)
        with jax.named_scope(str(self.equation.source_info.name_stack)), self.equation.ctx.manager:
            results = self.equation.primitive.bind(*functions, *inputs, **options)
        return results if self.equation.primitive.multiple_results else [results]


class Program:
    """The graph of a closed jaxpr, without what nothing depends on.

    Attributes:
      inputs: the values of the jaxpr's constants, then of its arguments.
      constants: the values of the constants of calls that were written out, and their arrays.
    """

    def __init__(self, closed: ClosedJaxpr, results: int | None = None):
        self.constants: dict[Value, Any] = {}
        self.nodes: list[Node] = []
        jaxpr = closed.jaxpr
        self.inputs = [Value(v.aval) for v in (*jaxpr.constvars, *jaxpr.invars)]
        outputs = self._read(jaxpr, self.inputs)
        self.outputs, self.others = outputs[:results], outputs[len(outputs) if results is None else results :]
        self._keep_what_is_needed()

    def _read(self, jaxpr, inputs: Sequence[Atom]) -> list[Atom]:
        seen: dict[Any, Atom] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
        find = lambda v: v if isinstance(v, Literal) else seen[v]
        for equation in jaxpr.eqns:
            operands = [find(v) for v in equation.invars]
            inner = _called(equation)
            if inner is None:
                self.nodes.append(Node(equation, operands))
                results: Sequence[Atom] = self.nodes[-1].outputs
            else:
                constants = [Value(v.aval) for v in inner.jaxpr.constvars]
                self.constants.update(zip(constants, inner.consts, strict=True))
                results = self._read(inner.jaxpr, [*constants, *operands])
            seen.update(zip(equation.outvars, results, strict=True))
        return [find(v) for v in jaxpr.outvars]

    def _keep_what_is_needed(self) -> None:
        needed = {v for v in self.outputs if isinstance(v, Value)}
        for value in needed:
            value.is_result = True
        kept = []
        for node in reversed(self.nodes):
            if node.equation.effects or needed.intersection(node.outputs):
                kept.append(node)
                needed.update(values(node.inputs))
        self.nodes = kept[::-1]
        for place, node in enumerate(self.nodes):
            node.place = place
            for value in values(node.inputs):
                value.readers.append(node)


def fixed_by(program: Program, inputs: Iterable[Value]) -> set[Value]:
    """These values and all others that nothing else enters: with these fixed, so are they."""
    fixed = {value for value, array in program.constants.items() if not isinstance(array, jax.core.Tracer)} | set(inputs)
    for node in program.nodes:
        if not node.equation.effects and fixed.issuperset(values(node.inputs)):
            fixed.update(node.outputs)
    return fixed


def values(atoms: Sequence[Atom]) -> Iterator[Value]:
    """Those that are not literals."""
    return (a for a in atoms if isinstance(a, Value))


def scalar(atom: Atom) -> Any:
    """The number that an atom is known to be everywhere, in its own type, or None."""
    if isinstance(atom, Literal):
        number: Any = np.asarray(atom.val)
    else:
        passed_on = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "pvary", "pcast")
        number = scalar(atom.node.inputs[0]) if atom.node is not None and atom.node.name in passed_on else None
    if number is None or number.shape:
        return None
    return np.asarray(number).astype(typeof(atom).dtype)[()]


def _called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """What an equation calls, where it is nothing but a call."""
    params = equation.params
    parameter = CALLS.get(equation.primitive.name)
    if parameter not in params or equation.ctx.compute_type is not None or not _is_plain(params):
        return None
    inner = params[parameter]
    inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
    return inner if len(inner.jaxpr.invars) == len(equation.invars) else None


def _is_plain(params: dict[str, Any]) -> bool:
    """Whether a jit asks for nothing: no sharding, layout, mesh or option of the compiler's."""
    given = (*params.get("in_shardings", ()), *params.get("out_shardings", ()))
    if any(type(s).__name__ != "UnspecifiedValue" for s in given):
        return False
    layouts = (*params.get("in_layouts", ()), *params.get("out_layouts", ()))
    if params.get("compiler_options_kvs") or any(layout is not None for layout in layouts):
        return False
    mesh = params.get("ctx_mesh")
    return mesh is None or mesh.empty or getattr(mesh, "abstract_mesh", mesh) == jax.sharding.get_abstract_mesh()
