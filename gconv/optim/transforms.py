"""The factors as optax transformations."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from gconv.naming import translating
from gconv.optim.tree import Factors, by_path, check_factors, is_masked, map_by_path

F = TypeVar("F", bound=Callable[..., Any])


def mixing_types(function: F) -> F:
    """`function` under JAX's standard promotion, also where the caller has `jax.numpy_dtype_promotion("strict")`.

    Rates, factors and counts are of other types than the parameters that they meet, and on purpose.
    """

    @functools.wraps(function)
    def run(*arguments, **options):
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments, **options)

    return run  # type: ignore[return-value]


@translating
def scale_by_learn_rate_factors(factors: Factors) -> optax.GradientTransformation:
    """Multiplies every update by its parameter's learn-rate factor; put it last in the chain.

    A factor of 0 gives an update of exactly 0, also where the update is not finite. The solver's moments of that parameter
    still move; `freeze_zero_factors` spares them.

    Raises:
      ValueError: at `update`, naming the first path that differs, if the tree is not that of the factors.
    """

    check_factors("factors", factors)

    def scale(update, factor):
        if _is_zero(factor):
            return jnp.zeros_like(update)
        return (update * factor).astype(update.dtype)

    @mixing_types
    def update_fn(updates, state, params=None):
        del params
        return map_by_path(scale, factors.learn_rate, updates), state

    return optax.GradientTransformation(_stateless, update_fn)


@translating
def add_l2(l2: float | jax.Array, factors: Factors) -> optax.GradientTransformation:
    """Adds `(l2 * l2_factor) * parameter` to every gradient; put it first, so that it passes through the solver as in MATLAB.

    This is the gradient of `l2 / 2 * sum(l2_factor * parameter**2)`: coupled regularization. See `add_decoupled_l2`.

    Raises:
      ValueError: at `update`, naming the first path that differs, if the tree is not that of the factors; without `params`.
    """

    _check_l2(l2, factors, "add_l2(1e-4, factors)")

    def add(update, factor, parameter):
        if _is_zero(factor):
            return update
        return (update + (l2 * factor) * parameter).astype(update.dtype)

    @mixing_types
    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("`params` must be given to `update`: a multiple of the parameters is added.")
        return map_by_path(add, factors.l2, updates, params), state

    return optax.GradientTransformation(_stateless, update_fn)


@translating
def add_decoupled_l2(l2: float | jax.Array, factors: Factors) -> optax.GradientTransformation:
    """Decoupled weight decay with factors, as AdamW has it (Loshchilov & Hutter 2019).

    The sum is that of `add_l2`; its place makes the difference: after the solver's scaling and before the learning rate, as in
    `optax.chain(optax.scale_by_adam(), add_decoupled_l2(0.01, factors), optax.scale_by_learning_rate(1e-3))`.
    """
    _check_l2(l2, factors, "add_decoupled_l2(0.01, factors)")
    return add_l2(l2, factors)


@translating
def clip_by_parameter_norm(threshold: float | jax.Array) -> optax.GradientTransformation:
    """Scales the gradient of each parameter whose own L2 norm exceeds the threshold down to it: MATLAB's `'l2norm'`.

    `optax.clip_by_global_norm` takes the norm of all parameters together, `optax.clip` acts on each element.
    """

    check_number("threshold", threshold, 1.0)

    def clip(update):
        # The norm of a half-precision gradient is taken in float32: its squares would overflow.
        norm = jnp.linalg.norm(update.astype(jnp.promote_types(update.dtype, jnp.float32)).ravel())
        # Not a multiplication by 1 below the threshold: that would turn a gradient of infinities into NaN.
        return jnp.where(norm > threshold, update * (threshold / norm), update).astype(update.dtype)

    @mixing_types
    def update_fn(updates, state, params=None):
        del params
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(_stateless, update_fn)


@translating
def freeze_zero_factors(inner: optax.GradientTransformation, factors: Factors) -> optax.GradientTransformationExtraArgs:
    """`inner` for the parameters whose learn-rate factor is not 0; the others have updates of 0 and no state at all.

    The factors must be numbers, not traced values: what is frozen decides the structure of the state.
    """

    if isinstance(inner, Factors):
        raise TypeError("`inner` must be an optax transformation, got Factors: freeze_zero_factors(inner, factors) works.")
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        given = type(inner).__name__
        raise TypeError(f"`inner` must be an optax transformation, got {given}. One that works: optax.adam(1e-3).")
    check_factors("factors", factors)

    def trains(tree):
        return map_by_path(lambda leaf, factor: factor != 0, factors.learn_rate, tree)

    def rests(tree):
        return jax.tree.map(lambda trained: not trained, trains(tree))

    return optax.chain(optax.masked(inner, trains), optax.masked(optax.set_to_zero(), rests))


@translating
@mixing_types
def regularized_loss(loss: jax.Array, params: Any, l2: float | jax.Array, factors: Factors) -> jax.Array:
    """The loss that MATLAB reports: `loss + l2 / 2 * sum(l2_factor * parameter**2)`.

    Args:
      loss: the mean loss of the batch, a scalar.
      params: the parameters, with the paths of the factors.
      l2: MATLAB's L2Regularization.
      factors: of the parameters.
    """
    _check_l2(l2, factors, "regularized_loss(loss, params, 1e-4, factors)")
    terms = map_by_path(
        lambda p, factor: factor * jnp.sum(_squared(p.astype(jnp.promote_types(p.dtype, jnp.float32)))), factors.l2, params
    )
    return loss + l2 / 2 * sum(term for term in by_path(terms, is_masked).values())


def check_number(name: str, value, works: float) -> None:
    """A TypeError unless `value` is a number, or an array or traced value of none or any axes."""
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or hasattr(value, "dtype")):
        raise TypeError(f"`{name}` must be a number, got {value!r}. A value that works: {works}.")


def _check_l2(l2, factors, works: str) -> None:
    if isinstance(l2, Factors):
        raise TypeError(f"`l2` must be a number, got Factors: the number comes before them. What works: {works}.")
    check_number("l2", l2, 1e-4)
    check_factors("factors", factors)


def _squared(p) -> jax.Array:
    return jnp.real(p * jnp.conj(p))


def _stateless(params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def _is_zero(factor) -> bool:
    return isinstance(factor, (int, float)) and factor == 0
