"""A program in which convolutions take in what follows them: which do, and how it then runs.

Matrix products like those of `nnx.Linear` are among the convolutions here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Literal, jaxprs_in_params

from gconv.dtypes import accumulator
from gconv.fusion import cascade, epilogue
from gconv.fusion.chain import Chain, changed, changed_back, follow
from gconv.fusion.channels import Read
from gconv.fusion.convolutions import Convolution, convolution, describe, is_convolution, is_matrix_product
from gconv.fusion.gate import Gate, gate_of
from gconv.fusion.pooling import pool, summed
from gconv.fusion.program import Atom, Node, Program, Value, fixed_by, typeof, values
from gconv.fusion.report import Fused

# What repeats programs of its own or chooses among them; it stays what it is, and its programs are rewritten.
AROUND = ("scan", "while", "cond", "jit", "pjit")


@dataclass(frozen=True, slots=True)
class Plan:
    """A convolution and the chain that it takes in.

    Attributes:
      node: the convolution.
      inputs: its operands, the kernel last.
      gate: the product that it forms itself, or None.
      needed: the values that it reads.
    """

    node: Node
    convolution: Convolution
    inputs: tuple[Atom, ...]
    chain: Chain
    gate: Gate | None
    needed: frozenset[Value]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All that it computes."""
        return (*([self.gate.node] if self.gate else []), self.node, *self.chain.nodes)

    @property
    def hidden(self) -> frozenset[Value]:
        """The values that are then not computed any more."""
        return frozenset(v for node in self.nodes for v in node.outputs) - {self.chain.value}

    @property
    def place(self) -> int:
        """Where it runs: in the place of its last node, where all that it reads has been computed."""
        return max(node.place for node in self.nodes)

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names, as in a report."""
        scales = any(name in ("mul", "div", "neg", "rsub") for name, _ in self.chain.affine)
        shifts = any(name in ("add", "sub", "rsub") for name, _ in self.chain.affine)
        given = {"gate": self.gate, "scale": scales, "shift": shifts, "residual": self.chain.residual is not None}
        activation = self.chain.activation
        return (*(name for name, is_there in given.items() if is_there), *([activation.name] if activation else []))


class Rewritten:
    """A program with its plans.

    Attributes:
      rows: of the report, one for each convolution, also of inner programs.
      sums: how many sums over pixels follow these convolutions, also in inner programs.
      cascades: how many groups of convolutions run row by row, likewise.
      is_changed: whether any convolution takes anything in.
    """

    def __init__(self, program: Program, fixed: Iterable[Value] = ()):
        """`fixed`: those of the program's inputs that are the same whenever it runs, once it is compiled."""
        self.program = program
        self._fixed = fixed_by(program, fixed)
        self._plans: dict[int, Plan] = {}  # by the place where they run
        self._alone: list[Plan] = []  # of convolutions that take in nothing
        self._left_out: set[Node] = set()
        self._inner: dict[Node, dict[str, Any]] = {}  # changed parameters
        self.sums = self.cascades = 0
        rows: dict[int, list[Fused]] = {}
        # From the last to the first: of two convolutions that are added, the one that is computed later takes in the sum.
        for node in reversed(program.nodes):
            if is_convolution(node):
                rows[node.place] = [self._row(node)]
            elif node.name in AROUND:
                rows[node.place] = self._rewrite_inner(node)
            else:
                rows[node.place] = _untouched(jaxprs_in_params(node.params), f"inside a {node.name}")
        self.rows = [row for place in sorted(rows) for row in rows[place]]
        # Of what XLA computes it can form the sum on the way.
        finished = {plan.chain.value for plan in self._plans.values()}
        self._summed = {node: x for node in program.nodes if (x := summed(node)) in finished and x is not None}
        self.sums += len(self._summed)
        self._cascades = {group[-1].place: group for group in _cascades([*self._plans.values(), *self._alone])}
        self.cascades += len(self._cascades)
        self._passed_on = {plan.place for group in self._cascades.values() for plan in group[:-1]}

    @property
    def is_changed(self) -> bool:
        return bool(self._plans or self._inner or self._cascades)

    def run(self, *arrays) -> list[Array]:
        """The results, given the constants of the program and its arguments."""
        env: dict[Value, Any] = {**self.program.constants, **dict(zip(self.program.inputs, arrays, strict=True))}
        read = lambda atom: atom.val if isinstance(atom, Literal) else env[atom]
        for node in self.program.nodes:
            if group := self._cascades.get(node.place):
                env[group[-1].chain.value] = _run_cascade(group, read, self._is_frozen)
            elif node.place in self._passed_on:
                continue
            elif plan := self._plans.get(node.place):
                env[plan.chain.value] = _run(plan, read, frozen=self._is_frozen(plan.inputs))
            elif node in self._summed:
                env[node.outputs[0]] = pool(env[self._summed[node]])
            elif node not in self._left_out:
                results = node.bind([read(a) for a in node.inputs], self._inner.get(node))
                env.update(zip(node.outputs, results, strict=True))
        return [read(a) for a in self.program.outputs]

    def _is_frozen(self, operands: Sequence[Atom]) -> bool:
        """Whether a kernel, the last of a convolution's operands, is the same whenever the program runs."""
        return self._fixed.issuperset(values(operands[1:2]))

    def _row(self, node: Node) -> Fused:
        conv = convolution(node, self._is_frozen(node.inputs))
        if isinstance(conv, str):
            return _said(node, (), conv)
        if not node.outputs[0].readers and not node.outputs[0].is_result:
            return _said(node, (), "its result is not used")
        chains, reason = follow(node, conv)
        nothing, gate = Chain(node.outputs[0], conv.axis), gate_of(conv)
        with_gate = [(chain, gate) for chain in reversed([nothing, *chains])] if gate else []
        for candidate in [*with_gate, *((chain, None) for chain in reversed(chains))]:
            plan = _plan(node, conv, *candidate)
            if self._fits(plan):
                self._plans[plan.place] = plan
                self._left_out.update(plan.nodes)
                return _said(node, plan.parts, reason)
            reason = "what follows it is taken in by another convolution"
        self._alone.append(_plan(node, conv, nothing, None))
        return _said(node, (), reason)

    def _fits(self, plan: Plan) -> bool:
        """Whether no plan leaves out what another one reads."""
        plans = [*self._plans.values(), plan]
        hidden, needed = ({v for p in plans for v in getattr(p, name)} for name in ("hidden", "needed"))
        return not hidden & needed

    def _rewrite_inner(self, node: Node) -> list[Fused]:
        """Rewrites the programs of a loop, a condition or a jit, as long as their types stay what they are."""
        rows: list[Fused] = []
        for name, value in node.params.items():
            several = isinstance(value, (tuple, list))
            programs = value if several else (value,)
            if not programs or not all(isinstance(p, ClosedJaxpr) for p in programs):
                continue
            written = [Rewritten(Program(p)) for p in programs]
            after = [_retraced(p, w) if w.is_changed else p for p, w in zip(programs, written, strict=True)]
            if any(p is None for p in after):
                rows += _untouched(programs, f"inside a {node.name} whose types would not stay")
                continue
            rows += [row for w in written for row in w.rows]
            self.sums += sum(w.sums for w in written)
            self.cascades += sum(w.cascades for w in written)
            if any(w.is_changed for w in written):
                self._inner.setdefault(node, dict(node.params))[name] = tuple(after) if several else after[0]
        return rows


def _said(node: Node, parts: tuple[str, ...], reason: str) -> Fused:
    return Fused(describe(node), parts, reason, is_matrix_product(node))


def _untouched(programs: Iterable, reason: str) -> list[Fused]:
    """The rows of the convolutions of programs that stay as they are."""
    rows = []
    for program in programs:
        for equation in getattr(program, "jaxpr", program).eqns:
            node = Node(equation, equation.invars)
            if is_convolution(node):
                rows.append(_said(node, (), reason))
            rows += _untouched(jaxprs_in_params(equation.params), reason)
    return rows


def _plan(node: Node, conv: Convolution, chain: Chain, gate: Gate | None) -> Plan:
    inputs = (gate.source, *conv.inputs[1:]) if gate else conv.inputs
    read: list[Atom] = [*inputs, *conv.parts.values()]
    read += [gate.factors] if gate else []
    read += [v for _, found in chain.affine if found is not None for v in found.values]
    read += [chain.residual] if chain.residual is not None else []
    return Plan(node, conv, inputs, chain, gate, frozenset(values(read)))


def _retraced(closed: ClosedJaxpr, written: Rewritten) -> ClosedJaxpr | None:
    """An inner program with its plans, or None where its arguments are no arrays or its results would be of other types."""
    avals = closed.in_avals
    if not all(isinstance(aval, ShapedArray) for aval in avals):
        return None
    traced = jax.make_jaxpr(partial(written.run, *closed.consts))(*avals)
    same = traced.in_avals == closed.in_avals and traced.out_avals == closed.out_avals and traced.effects == closed.effects
    return traced if same else None


# --- how a plan runs --------------------------------------------------------------------------------------------------


def _run(plan: Plan, read: Read, *, frozen: bool) -> Array:
    conv, chain = plan.convolution, plan.chain
    value = epilogue.bind(
        conv.role,
        conv.operands(*map(read, plan.inputs)),
        geometry=conv.geometry,
        dtype=conv.dtype,
        precision=conv.precision,
        implementation=conv.implementation,
        matrix=conv.matrix,
        frozen=frozen,
        activation=chain.activation or conv.activation,
        **_parts(plan, read),
    )
    return changed(conv.result(value), chain.layouts)


# --- plans whose results follow each other ----------------------------------------------------------------------------


def _cascades(plans: Iterable[Plan]) -> list[list[Plan]]:
    """Those that run as one: a channel-wise convolution with the one before it, the pointwise one after it, or both.

    Before it may stand a pointwise one, or a network's first. Nothing else reads what lies between them. Nothing was gained of
    wider groups, on 2 threads of a Zen 3: RegNetX took 1.01 of the time with eight images, ResNeXt-50 1.16.
    """
    able = sorted(filter(_may_cascade, plans), key=lambda plan: plan.place)
    source: dict[Atom, Plan] = {plan.convolution.inputs[0]: plan for plan in able}
    result: dict[Atom, Plan] = {plan.chain.value: plan for plan in able}
    found: list[list[Plan]] = []
    taken: set[int] = set()  # places: a pointwise one between two channel-wise ones goes with the first
    for plan in filter(_is_channel_wise, able):
        if plan.place in taken:  # a single channel is pointwise too
            continue
        group = [plan]
        before = result.get(plan.convolution.inputs[0])
        if before and (before.convolution.is_pointwise or _is_of_colours(before)) and _is_only_for(before, plan):
            group.insert(0, before)
        after = source.get(plan.chain.value)
        if after and after.convolution.is_pointwise and _is_only_for(plan, after):
            group.append(after)
        group = [p for p in group if p.place not in taken]
        images = plan.chain.value.aval.shape[0], plan.convolution.dtype
        if len(group) > 1 and cascade.pays([p.convolution.geometry for p in group], *images):
            found.append(group)
            taken.update(p.place for p in group)
    return found


def _may_cascade(plan: Plan) -> bool:
    conv, chain = plan.convolution, plan.chain
    gated = plan.gate or "gate" in conv.parts
    same = conv.in_place and not (chain.layouts or gated) and conv.role == "y" and conv.geometry.rank == 2
    return same and {typeof(a).dtype for a in (*conv.inputs, chain.value)} == {conv.dtype}


def _is_channel_wise(plan: Plan) -> bool:
    g = plan.convolution.geometry
    return g.channels == g.filters == 1


def _is_of_colours(plan: Plan) -> bool:
    g = plan.convolution.geometry
    return g.groups == 1 and g.channels <= 4


def _is_only_for(plan: Plan, next: Plan) -> bool:
    """Whether nothing but `next` reads a result, to which nothing was added."""
    value = plan.chain.value
    added = plan.chain.residual is not None or "residual" in plan.convolution.parts
    return not added and not value.is_result and len(value.readers) == 1 and next.convolution.inputs[0] is value


def _run_cascade(group: list[Plan], read: Read, is_frozen: Callable) -> Array:
    links, operands = [], []
    for plan in group:
        conv = plan.convolution
        parts = epilogue.typed(_parts(plan, read), conv.dtype)
        names = tuple(name for name in epilogue.PARTS if name in parts)
        activation = plan.chain.activation or conv.activation
        frozen = is_frozen(conv.inputs)
        links.append(cascade.Link(conv.geometry, conv.precision, conv.implementation, frozen, names, activation))
        _, *kernel = conv.inputs
        absent = jnp.zeros(typeof(conv.inputs[0]).shape, conv.dtype)  # what lies between is no array
        operands.append([conv.operands(absent, *map(read, kernel))["w"], *(parts[name] for name in names)])
    first = group[0].convolution
    return cascade.bind(first.operands(*map(read, first.inputs))["x"], tuple(links), operands)


def _parts(plan: Plan, read: Read) -> dict[str, Any]:
    conv, chain = plan.convolution, plan.chain
    parts: dict[str, Any] = {name: read(a) for name, a in conv.parts.items()}
    parts["scale"], parts["shift"] = _composed(plan, parts.get("scale"), parts.get("shift"), read)
    if plan.gate:
        parts["gate"] = plan.gate.compute(read)
    if chain.residual is not None:
        parts["residual"] = conv.canonical(changed_back(jnp.asarray(read(chain.residual)), chain.layouts[: chain.residual_at]))
    return parts


def _composed(plan: Plan, scale, shift, read: Read) -> tuple[Any, Any]:
    """All sums and factors as one factor and one sum, `(channels,)` or None each, in the type of sums."""
    g, wide = plan.convolution.geometry, accumulator(plan.convolution.dtype)
    size = g.out_channels if plan.convolution.role == "y" else g.in_channels
    times = lambda a, b: b if a is None else a * b
    for name, found in plan.chain.affine:
        if name in ("neg", "rsub"):
            minus = jnp.full(size, -1, wide)
            scale, shift = times(scale, minus), None if shift is None else -shift
        if found is None:
            continue
        operand = jnp.broadcast_to(found.compute(read).astype(wide), (size,))
        if name in ("add", "add_any", "rsub"):
            shift = operand if shift is None else shift + operand
        elif name == "sub":
            shift = -operand if shift is None else shift - operand
        else:
            factor = 1 / operand if name == "div" else operand
            scale, shift = times(scale, factor), None if shift is None else shift * factor
    return scale, shift
