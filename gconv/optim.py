"""Learn-rate and L2 factors per parameter, as layers declare them, in any optax chain.

    g <- g + (l2 * l2_factor) * w                      add_l2
    u <- u * learn_rate_factor                         scale_by_learn_rate_factors

>>> import optax, gconv
>>> from flax import nnx
>>> layer = gconv.nnx.GroupedConv(4, 3, 1, "channel-wise", kernel_learn_rate_factor=0.5, rngs=nnx.Rngs(0))
>>> factors = gconv.optim.factors(layer)
>>> print(factors)
bias    learn_rate=1  l2=0
kernel  learn_rate=0.5  l2=1
>>> tx = optax.chain(
...     gconv.optim.add_l2(1e-4, factors), optax.sgd(0.01, momentum=0.9), gconv.optim.scale_by_learn_rate_factors(factors)
... )
>>> optimizer = nnx.Optimizer(layer, tx, wrt=nnx.Param)

Semantics: MATLAB's WeightLearnRateFactor, BiasLearnRateFactor, WeightL2Factor, BiasL2Factor; a learn-rate factor of 0 freezes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gconv.factor import Factor as Factor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """The factors of a tree of parameters: two trees of numbers with that tree's structure, for `jax.tree.map`.

    Attributes:
      learn_rate: times the global learning rate.
      l2: times the global L2 regularization.
    """

    learn_rate: Any
    l2: Any

    def __str__(self) -> str:
        rows = zip(_by_path(self.learn_rate), _by_path(self.l2).values(), strict=True)
        rates = _by_path(self.learn_rate)
        width = max(map(len, rates), default=0)
        return "\n".join(f"{path:<{width}}  learn_rate={rates[path]}  l2={l2}" for path, l2 in rows)


def default_factor(path: str) -> Factor:
    """What a parameter counts that declares nothing: learn rate 1; L2 1, but 0 for biases, as MATLAB's layers have it."""
    name = path.rsplit("/", 1)[-1]
    return Factor(1, 0 if name in ("b", "bias") or name.endswith("_bias") else 1)


def factors(tree: Any, *, default: Factor | Callable[[str], Factor] = default_factor) -> Factors:
    """The factors of all parameters, as their layers declare them.

    Args:
      tree: an NNX module; an NNX state, whose `nnx.Param` count; Linen's variables, `{"params": ..., "factors": ...}`; or any
        tree of arrays, whose parameters declare nothing.
      default: what a parameter counts that declares nothing: a `Factor`, or a function of its path, such as "encoder/0/bias".
        A parameter that declares only one of the two takes the other from here.

    Returns:
      `Factors`, whose trees have the structure of the parameters that an optimizer sees: for NNX the state of `nnx.Param` with
      numbers in place of the variables, for Linen that of `variables["params"]`.
    """
    declared: Callable[[str, Any], Mapping] = lambda path, leaf: {}
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree, nnx.Param)
    if isinstance(tree, nnx.State):
        tree = nnx.filter_state(tree, nnx.Param) if _has_variables(tree) else tree
        declared = lambda path, leaf: leaf.get_metadata() if isinstance(leaf, nnx.Variable) else {}
    elif isinstance(tree, Mapping) and isinstance(tree.get("params"), Mapping):
        collection = _by_path(tree.get("factors", {}), is_leaf=lambda leaf: isinstance(leaf, Factor))
        tree = tree["params"]
        declared = lambda path, leaf: _metadata(collection.get(path))

    def both(key_path, leaf) -> tuple:
        path = _name(key_path)
        fallback = default if isinstance(default, Factor) else default(path)
        given = declared(path, leaf)
        return given.get("learn_rate_factor", fallback.learn_rate), given.get("l2_factor", fallback.l2)

    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    learn_rate, l2 = zip(*(both(*pair) for pair in pairs), strict=True) if pairs else ((), ())
    return Factors(jax.tree.unflatten(structure, learn_rate), jax.tree.unflatten(structure, l2))


def scale_by_learn_rate_factors(factors: Factors) -> optax.GradientTransformation:
    """Multiplies every update by its parameter's learn-rate factor; put it last in the chain.

    A factor of 0 gives an update of exactly 0, also where the update is not finite.

    Raises:
      ValueError: at `update`, naming the first path that differs, if the tree is not that of the factors.
    """

    def scale(update, factor):
        if _is_number(factor) and factor == 0:
            return jnp.zeros_like(update)
        return (update * factor).astype(update.dtype)

    def update_fn(updates, state, params=None):
        del params
        return _map(scale, factors.learn_rate, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def add_l2(l2: float | jax.Array, factors: Factors) -> optax.GradientTransformation:
    """Adds `(l2 * l2_factor) * parameter` to every gradient; put it first, so that it passes through the solver as in MATLAB.

    This is the gradient of `l2 / 2 * sum(l2_factor * parameter**2)`: coupled regularization, not AdamW's decoupled decay.
    """

    def add(gradient, factor, parameter):
        if _is_number(factor) and factor == 0:
            return gradient
        return (gradient + (l2 * factor) * parameter).astype(gradient.dtype)

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("`params` must be given to `update`: add_l2 adds a multiple of the parameters to the gradients.")
        return _map(add, factors.l2, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def frozen(factors: Factors) -> Any:
    """A mask for `optax.masked`: True where the learn-rate factor is 0."""
    return jax.tree.map(lambda factor: factor == 0, factors.learn_rate)


def decayed(factors: Factors) -> Any:
    """A mask for `optax.masked`, or `optax.adamw(mask=...)`: True where the L2 factor is not 0."""
    return jax.tree.map(lambda factor: factor != 0, factors.l2)


# ---------------------------------------------------------------------------------------------------------------------


def _map(function: Callable, factors: Any, tree: Any, *rest: Any) -> Any:
    """`function(leaf, factor, *others)` over a tree that has the factors' paths; its containers may differ."""
    by_path = _by_path(factors)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)
    paths = [_name(key_path) for key_path, _ in leaves]
    for path in paths:
        if path not in by_path:
            raise ValueError(f"the tree has a parameter {path!r} that the factors do not have: {', '.join(by_path) or 'none'}.")
    if missing := [path for path in by_path if path not in paths]:
        raise ValueError(f"the factors have a parameter {missing[0]!r} that the tree does not have: {', '.join(paths)}.")
    others = [jax.tree.leaves(other, is_leaf=_is_masked) for other in rest]
    results = [
        leaf if _is_masked(leaf) else function(leaf, by_path[path], *other)
        for path, (_, leaf), *other in zip(paths, leaves, *others, strict=True)
    ]
    return jax.tree.unflatten(structure, results)


def _by_path(tree: Any, is_leaf: Callable | None = None) -> dict[str, Any]:
    return {_name(key_path): leaf for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]}


def _name(key_path: tuple) -> str:
    """A path as "encoder/0/kernel". A variable and its value, a box and what it holds, have one name."""
    if key_path and key_path[-1] == jax.tree_util.GetAttrKey("value"):
        key_path = key_path[:-1]
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _metadata(factor: Factor | None) -> dict[str, float]:
    return {} if factor is None else {"learn_rate_factor": factor.learn_rate, "l2_factor": factor.l2}


def _has_variables(tree: Any) -> bool:
    return any(map(_is_variable, jax.tree.leaves(tree, is_leaf=_is_variable)))


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
