"""`gconv.fuse`: the same function for inference, in which convolutions and matrix products finish their own results."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from gconv.fusion import arguments
from gconv.fusion.arguments import Rest
from gconv.fusion.program import Program
from gconv.fusion.report import Fusion
from gconv.fusion.rewrite import Rewritten

F = TypeVar("F", bound=Callable[..., Any])


def fuse(function: F, *, frozen: bool = False) -> F:
    """The same function of the same arguments, for inference: convolutions take in what follows them in the network.

    The function is traced, and wherever the result of a convolution, of lax's or of gconv's, only goes through per-channel
    factors and sums (a bias; batch norm with known statistics), the sum with a residual and an activation, all this becomes
    part of the convolution::

        fuse(function)(*arguments) == function(*arguments)      # to rounding

    A matrix product `x @ matrix` in float32 or half precision, as of `nnx.Linear`, counts as a convolution whose window is one
    pixel. On CPU it takes in what follows it where gconv's kernels are then faster than XLA; otherwise it stays XLA's product.

    >>> import gconv, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> conv = nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs)
    >>> model = nnx.Sequential(conv, nnx.BatchNorm(16, rngs=rngs), nnx.relu)
    >>> model.eval()
    >>> fast = gconv.fuse(model)
    >>> fast(jnp.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    >>> print(fast.report)
    1 of 1 convolutions take in what follows them
      y  window (3, 3), 16 groups of 1 -> 1 channels  scale, shift, relu

    It works for any library, and nothing is guessed from names: an operand is per channel if it is a broadcast along the other
    axes, and an activation is one if its operations are those of a known one, number by number. What cannot be proved stays as
    it was: a result with two readers, layer norm, batch norm in training, dropout. A pointwise convolution also takes in the
    product with the gate of squeeze-and-excite before it.

    Args:
      function: a function of arrays and of pytrees of arrays: a function of `jax.jit`, a method such as Linen's `apply`, or a
        callable pytree, as the models of NNX and Equinox are, whose arrays are arguments then. Arrays that a function closes
        over are constants, as in `jax.jit`: later changes of them are not seen.
      frozen: whether the arrays of a callable pytree are constants as well, with the values that they have now. Scale and
        shift of each batch norm are then computed once, when the function is compiled, each kernel is packed once, in the first
        call, and a call does not collect the model's arrays. Later changes of the model are not seen, and each compiled program
        holds a copy of its arrays, and a second one of the kernels as they are packed.

    Returns:
      A function, which is compiled once for each shape and type of its arrays, as by `jax.jit`, and for each value of what is
      no array, such as `train=False`. May be called inside and outside of `jit`, `vmap`, `scan`, `shard_map` and so on. Its
      attribute `report` says what became of each convolution and matrix product when the function was last traced. Its
      derivatives, of any order, are those of `function`, in which nothing is fused.

    Raises:
      TypeError: for what is no function; when called, for an argument that is neither an array nor hashable.
      ValueError: for `frozen=True` with a function that holds no arrays; when called, if the function changes its arguments in
        place, as an NNX batch norm in training does, and does not return what it stores there.
    """
    if isinstance(function, type) or not callable(function):
        kind = f"the class {function.__name__}" if isinstance(function, type) else type(function).__name__
        raise TypeError(f"`function` must be a function of arrays, got {kind}. What works: a model, its `apply` or `__call__`.")
    return _Fused(function, _Frozen(function) if frozen else None)  # type: ignore[return-value]


class _Fused:
    """What `fuse` returns."""

    def __init__(self, function: Callable, frozen: "_Frozen | None"):
        functools.update_wrapper(self, function, updated=())
        self._function, self._frozen = function, frozen
        self.report = Fusion(refused="it has not been called yet")

        def run(rest: Rest, *arrays):
            return self._run(rest, arrays)

        run.__name__ = run.__qualname__ = getattr(function, "__name__", type(function).__name__)
        self._compiled = jax.jit(run, static_argnums=0)

    def __call__(self, *args, **kwargs):
        function = self._frozen or (self._function if _is_tree(self._function) else _Hidden(self._function))
        arrays, rest = arguments.apart((function, args, kwargs))
        return self._compiled(rest, *arrays)

    def __get__(self, instance, owner=None):
        return self if instance is None else types.MethodType(self, instance)

    def _run(self, rest: Rest, arrays):
        frozen: tuple = ()
        if self._frozen is not None:
            frozen = self._frozen.arrays
            rest, arrays = self._frozen.thawed(rest, arrays)
        traced = _trace(rest, arrays)
        operands = (*traced.closed.consts, *arrays)
        program = Program(traced.closed, traced.results)
        constants = (*traced.closed.consts, *frozen)  # they come first
        fixed = [value for value, a in zip(program.inputs, constants, strict=False) if not isinstance(a, jax.core.Tracer)]
        _check_unchanged(program, traced)
        refused = _why_not(traced.closed)
        rewritten = None if refused else Rewritten(program, fixed)
        self.report = Fusion(refused=refused)
        if rewritten is not None:
            self.report = Fusion(tuple(rewritten.rows), cascades=rewritten.cascades, sums=rewritten.sums)
        if rewritten is None or not rewritten.is_changed:
            return traced.tree.unflatten(traced.original(*operands))
        # Derivatives are the function's own: a relu that is written as a maximum has another one at 0 than `jax.nn.relu`.
        finished = jax.custom_jvp(lambda *operands: tuple(rewritten.run(*operands)))
        finished.defjvp(lambda primals, tangents: jax.jvp(traced.original, primals, tangents))
        return traced.tree.unflatten(finished(*operands))


def _is_tree(function: Callable) -> bool:
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(function))


class _Frozen:
    """A callable pytree with the arrays that it has at one moment, as a leaf that is equal to itself only."""

    def __init__(self, function: Callable):
        arrays, self._rest = arguments.apart((function if _is_tree(function) else _Hidden(function), (), {}))
        if not arrays:
            raise ValueError(
                "`frozen=True` needs a function that holds arrays, as a model of NNX or Equinox does. What works for others: a "
                "function that closes over them, as in gconv.fuse(lambda x: net.apply(variables, x))."
            )
        # A copy of what can be changed in place.
        self.arrays = tuple(a if isinstance(a, jax.Array) else jnp.array(a) for a in arrays)

    def thawed(self, rest: Rest, arrays: Sequence) -> tuple[Rest, tuple]:
        """A call of this as a call of the pytree itself."""
        tree = jax.tree_util.treedef_tuple((self._rest.tree.children()[0], *rest.tree.children()[1:]))
        return Rest(tree, (*self._rest.leaves, *rest.leaves[1:])), (*self.arrays, *arrays)


class _Hidden:
    """A function that is no pytree, as a leaf that is equal to itself only."""

    def __init__(self, function: Callable):
        self.function = function

    def __eq__(self, other) -> bool:
        return isinstance(other, _Hidden) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class _Traced(NamedTuple):
    """A call as a jaxpr of the constants and of the call's arrays.

    Attributes:
      closed: its results are those of the function, and behind them the arrays of the call as they are when it is done.
      results, tree: how many results the function has, and their tree.
      names: of the call's arrays.
    """

    closed: ClosedJaxpr
    results: int
    tree: Any
    names: list[str]

    def original(self, *operands) -> tuple:
        """The function as it is."""
        constants = len(self.closed.consts)
        run = jaxpr_as_fun(ClosedJaxpr(self.closed.jaxpr, operands[:constants]))
        return tuple(run(*operands[constants:])[: self.results])


def _trace(rest: Rest, arrays) -> _Traced:
    found: list[Any] = []

    def flat(*arrays):
        call = rest.together(arrays)
        names = [name for name, leaf in zip(arguments.names(call), rest.leaves, strict=True) if leaf is arguments.DYNAMIC]
        function, args, kwargs = call
        results, tree = jax.tree.flatten(function(*args, **kwargs))
        try:
            after, rest_after = arguments.apart(call)
        except ValueError:  # an Equinox state that has been replaced by a new one may not be looked at any more
            after, rest_after = list(arrays), rest
        if rest_after != rest:
            _refuse("an argument's structure")
        found[:] = [len(results), tree, names]
        return [*results, *after]

    closed = jax.make_jaxpr(flat)(*arrays)
    return _Traced(closed, *found)


def _check_unchanged(program: Program, traced: _Traced) -> None:
    """Nothing that the function stores in its arguments may get lost: it is one of the results, or an error."""
    before = program.inputs[len(traced.closed.consts) :]
    for name, value, after in zip(traced.names, before, program.others, strict=True):
        if value is not after and not any(after is result for result in program.outputs):
            _refuse(name)


def _refuse(name: str) -> None:
    raise ValueError(
        f"The function changes {name} in place, which a compiled function cannot do. Is it a batch norm in training, or "
        "dropout that draws? fuse is for inference: call model.eval() first, or let the function return what changes."
    )


def _why_not(closed: ClosedJaxpr) -> str | None:
    """Why a program must run as it is, or None: what it does besides computing must be allowed in a custom derivative."""
    if not closed.effects:
        return None
    from jax._src.effects import custom_derivatives_allowed_effects as allowed  # shown nowhere else

    kinds = {kind.__name__ for effect in closed.effects for kind in type(effect).__mro__}
    others = [type(e).__name__ for e in allowed.filter_not_in(closed.effects)]
    if "RefEffect" in kinds:
        return "it reads or writes references"
    return f"it has side effects ({', '.join(others)})" if others else None
