"""From layers to a tree of factors."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen, nnx
from flax.core.meta import AxisMetadata
from optax import MaskedNode

from gconv.naming import translating
from gconv.optim.factor import DEFAULTS, Factor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """The factors of a tree of parameters: two trees of numbers with that tree's structure, for `jax.tree.map`.

    `print` shows a table of every parameter.

    Attributes:
      learn_rate: times the global learning rate.
      l2: times the global L2 regularization.
    """

    learn_rate: Any
    l2: Any

    def __repr__(self) -> str:
        return f"Factors of {len(by_path(self.learn_rate))} parameters: print shows them"

    def __str__(self) -> str:
        rates, l2 = by_path(self.learn_rate), by_path(self.l2)
        width = max(map(len, rates), default=0)
        return "\n".join(f"{path:<{width}}  learn_rate={rate}  l2={l2[path]}" for path, rate in rates.items())


def default_factor(path: str) -> Factor:
    """What a parameter counts that declares nothing: learn rate 1; L2 1, but 0 for biases, as MATLAB's layers have it."""
    name = path.rsplit("/", 1)[-1]
    return DEFAULTS["bias" if name in ("b", "bias") or name.endswith("_bias") else "kernel"]


@translating
def factors(
    tree: Any,
    *,
    rules: Mapping[str, Factor] | None = None,
    default: Factor | Callable[[str], Factor] = default_factor,
) -> Factors:
    """The factors of all parameters: what their layers declare, then what rules say of their paths.

    Args:
      tree: an NNX module; an NNX state, whose `nnx.Param` count; Linen's variables, `{"params": ..., "factors": ...}`; or any
        tree of arrays (Haiku's parameters, an Equinox module filtered to arrays), whose parameters declare nothing. What
        crossed Flax's bridge declares as before: of `nnx.bridge.ToNNX` give the module or its whole state, for a state of
        `nnx.Param` alone holds arrays that say nothing; of `nnx.bridge.ToLinen` the variables or the parameters as `init`
        returned them, before `flax.linen.unbox`.
      rules: path patterns and their factors, such as `{"encoder/**/bias": Factor(learn_rate=2, l2=0)}`. `*` stands for any text
        within one part of a path, `**` for any number of parts. Later rules win; a factor of None is left as it was.
      default: what a parameter counts that declares nothing: a `Factor`, or a function of its path, such as "encoder/0/bias".
        A parameter that declares only one of the two takes the other from here.

    Returns:
      `Factors`, whose trees have the structure of the parameters that an optimizer sees: for NNX the state of `nnx.Param` with
      numbers in place of the variables, for Linen that of `variables["params"]`.

    Raises:
      ValueError: for a pattern that matches no parameter, with the paths that come near it; for a factor that is negative or
        not finite; for Linen factors that a checkpoint did not keep.
    """
    _check_tree(tree)
    if rules is not None and not isinstance(rules, Mapping):
        raise TypeError(
            f"`rules` must be a mapping of patterns to factors, got {type(rules).__name__}. A value that works: "
            '{"**/bias": gconv.optim.Factor(learn_rate=2, l2=0)}.'
        )
    tree, declared = _parameters(tree)
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    paths = [path_name(key_path) for key_path, _ in pairs]
    found = []
    for path, (_, leaf) in zip(paths, pairs, strict=True):
        base = default(path) if callable(default) else default
        _check_factor("default", base)
        found.append(_merged(_merged(Factor(1, 1), base), declared(path, leaf)))
    for pattern, factor in (rules or {}).items():
        _check_factor(f"rules[{pattern!r}]", factor)
        matches = [i for i, path in enumerate(paths) if _expression(pattern).fullmatch(path)]
        if not matches:
            near = difflib.get_close_matches(pattern.replace("*", ""), paths, n=4, cutoff=0.3) or paths[:4]
            raise ValueError(f"`rules`: the pattern {pattern!r} matches no parameter. Paths that come near: {', '.join(near)}.")
        for i in matches:
            found[i] = _merged(found[i], factor)
    return _as_trees(structure, found)


def frozen(factors: Factors) -> Any:
    """A mask for `optax.masked`: True where the learn-rate factor is 0."""
    check_factors("factors", factors)
    return jax.tree.map(lambda factor: factor == 0, factors.learn_rate)


def decayed(factors: Factors) -> Any:
    """A mask for `optax.masked`, or `optax.adamw(mask=...)`: True where the L2 factor is not 0."""
    check_factors("factors", factors)
    return jax.tree.map(lambda factor: factor != 0, factors.l2)


# --- for the transforms ----------------------------------------------------------------------------------------------


def check_factors(name: str, value: Any) -> None:
    """A TypeError that says how `Factors` are made, unless `value` is them."""
    if isinstance(value, Factors):
        return
    given = f"the function {value.__name__}" if inspect.isroutine(value) else f"{type(value).__name__}"
    if isinstance(value, Factor):
        works = 'One factor for all parameters: gconv.optim.factors(model, rules={"**": ...}).'
    else:
        works = "What works: gconv.optim.factors(model)."
    raise TypeError(f"`{name}` must be gconv.optim.Factors, got {given}. {works}")


def map_by_path(function: Callable, factors: Any, tree: Any, *rest: Any) -> Any:
    """`function(leaf, factor, *others)` over a tree that has the factors' paths; its containers may differ."""
    factor_of = by_path(factors)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_masked)
    paths = [path_name(key_path) for key_path, _ in leaves]
    known = set(paths)
    for path in paths:
        if path not in factor_of:
            raise ValueError(
                f"the tree has a parameter {path!r} that the factors do not have: {', '.join(factor_of) or 'none'}."
            )
    if missing := [path for path in factor_of if path not in known]:
        raise ValueError(f"the factors have a parameter {missing[0]!r} that the tree does not have: {', '.join(paths)}.")
    others = [jax.tree.leaves(other, is_leaf=is_masked) for other in rest]
    results = [
        leaf if is_masked(leaf) else function(leaf, factor_of[path], *other)
        for path, (_, leaf), *other in zip(paths, leaves, *others, strict=True)
    ]
    return jax.tree.unflatten(structure, results)


def by_path(tree: Any, is_leaf: Callable | None = None) -> dict[str, Any]:
    return {path_name(key_path): leaf for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]}


def path_name(key_path: tuple) -> str:
    """A path as "encoder/0/kernel". A variable and its value, a box and what it holds, have one name."""
    if key_path and key_path[-1] == jax.tree_util.GetAttrKey("value"):
        key_path = key_path[:-1]
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def is_masked(leaf: Any) -> bool:
    """What `optax.masked` puts in the place of a parameter that it hides."""
    return isinstance(leaf, MaskedNode)


def declared_factors_of(tree: Any) -> dict[str, Factor]:
    """What the variables in a tree declare themselves, by path."""
    parameters, declared = _parameters(tree)
    return {path: declared(path, leaf) for path, leaf in by_path(parameters, is_leaf=_carries_metadata).items()}


def default_factors(tree: Any) -> Factors:
    """The defaults for a tree as an optimizer sees it, whatever kind of variable it holds."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    found = [default_factor(path_name(key_path)) for key_path, _ in pairs]
    return _as_trees(structure, found)


# ---------------------------------------------------------------------------------------------------------------------


def _parameters(tree: Any) -> tuple[Any, Callable[[str, Any], Factor]]:
    """The tree of the parameters, and what each declares as a function of its path and leaf."""
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree)
    if isinstance(tree, Mapping) and isinstance(tree.get("params"), Mapping):
        tree, beside = tree["params"], _factors_beside(tree.get("factors", {}), tree["params"], whole=True)
    else:
        beside = _factors_beside(tree, tree)
    if isinstance(tree, nnx.State):
        parameters = nnx.filter_state(tree, nnx.Param)
        # A state without any nnx.Param is one of somebody's own kind of variable, or of pure arrays.
        tree = parameters if jax.tree.leaves(parameters) else nnx.filter_state(tree, lambda path, leaf: not _is_factor(leaf))
    boxes = by_path(tree, is_leaf=_carries_metadata)

    def declared(path: str, leaf: Any) -> Factor:
        return _merged(beside.get(path, Factor()), _declared_by_metadata(path, boxes.get(path, leaf)))

    return tree, declared


def _factors_beside(collection: Any, parameters: Any, *, whole: bool = False) -> dict[str, Factor]:
    """What Linen's layers declare beside their parameters, under the name `<parameter>_factor`, by the parameters' paths.

    Args:
      collection: Linen's "factors", as it was made or as a checkpoint gave it back; or a tree in which it is mixed with the
        parameters, as `nnx.bridge.ToNNX` leaves it.
      whole: whether nothing else may be in it.
    """

    def is_entry(leaf):
        return _is_factor(leaf) or whole and (leaf is None or isinstance(leaf, Mapping) and {*leaf} == {"learn_rate", "l2"})

    known, found = by_path(parameters), {}
    for name, entry in by_path(collection, is_leaf=lambda leaf: is_entry(leaf) or _is_variable(leaf)).items():
        path = name.removesuffix("_factor")
        if not whole and not is_entry(entry):
            continue
        if path not in known or not is_entry(entry) or entry is None:
            raise ValueError(
                f'the collection "factors" holds {entry!r} for {path!r}, which is no factor of a parameter. A checkpoint keeps '
                "factors when it is restored with a target: the variables that `init` returns."
            )
        entry = entry.get_value() if _is_variable(entry) else entry
        found[path] = entry if isinstance(entry, Factor) else Factor(entry["learn_rate"], entry["l2"])
    return found


def _declared_by_metadata(path: str, leaf: Any) -> Factor:
    """By the metadata of an `nnx.Variable`, or of the box in which `nnx.bridge.ToLinen` keeps it."""
    metadata = leaf.get_metadata() if _is_variable(leaf) else getattr(leaf, "metadata", {}) if _is_box(leaf) else {}
    try:
        return Factor(metadata.get("learn_rate_factor"), metadata.get("l2_factor"))
    except ValueError as error:
        raise ValueError(f"the metadata of {path!r}: {error}") from None


def _check_tree(tree: Any) -> None:
    """A tree that can hold no parameters is a mistake: a class, a function, a Linen module, an optimizer's name."""
    if isinstance(tree, nnx.Module) or hasattr(tree, "shape"):
        return
    if isinstance(tree, linen.Module):
        raise TypeError("`tree`: a Linen module keeps no parameters. What works: gconv.optim.factors(module.init(key, x)).")
    if tree is None or isinstance(tree, (type, str, bytes, Factors)) or inspect.isroutine(tree):
        given = tree.__name__ if isinstance(tree, type) or inspect.isroutine(tree) else type(tree).__name__
        raise TypeError(f"`tree` must be an NNX model or a tree of parameters, got {given}. What works: factors(model).")


def _check_factor(name: str, value: Any) -> None:
    if not isinstance(value, Factor):
        number = isinstance(value, (int, float)) and value >= 0
        works = f"Factor(learn_rate={value})" if number else "Factor(learn_rate=2, l2=0)"
        raise TypeError(f"`{name}` must be a Factor, got {value!r}. A value that works: {works}.")


def _as_trees(structure: Any, found: list[Factor]) -> Factors:
    learn_rate, l2 = ([getattr(f, kind) for f in found] for kind in ("learn_rate", "l2"))
    return Factors(jax.tree.unflatten(structure, learn_rate), jax.tree.unflatten(structure, l2))


def _merged(first: Factor, second: Factor) -> Factor:
    """Two factors, of which the second wins where it says something."""
    pairs = ((first.learn_rate, second.learn_rate), (first.l2, second.l2))
    return Factor(*(a if b is None else b for a, b in pairs))


def _expression(pattern: str) -> re.Pattern:
    """`**` as any number of whole parts of a path, `*` as any text without a slash."""
    parts = []
    for part in pattern.split("/"):
        one = "".join("[^/]*" if c == "*" else re.escape(c) for c in part)
        parts.append("(?:[^/]+/)*" if part == "**" else f"{one}/")
    return re.compile("".join(parts).removesuffix("/") if parts[-1] != "(?:[^/]+/)*" else "".join(parts[:-1]) + ".*")


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, AxisMetadata)


def _carries_metadata(leaf: Any) -> bool:
    return _is_variable(leaf) or _is_box(leaf)


def _is_factor(leaf: Any) -> bool:
    """A factor, or the variable as which one crosses the bridge from Linen."""
    return isinstance(leaf.get_value() if _is_variable(leaf) else leaf, Factor)
