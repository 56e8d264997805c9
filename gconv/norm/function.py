"""`batch_norm`: statistics, normalization, residual and activation in the fewest passes over memory."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec, auto_axes, use_abstract_mesh
from jax.typing import ArrayLike

from gconv.arrays import as_array
from gconv.dtypes import accumulator
from gconv.fusion import activations
from gconv.mesh.sharding import equally_varying
from gconv.naming import translating
from gconv.norm.plain import along
from gconv.norm.primitives import bind
from gconv.typing import Activation

AxisName = str | Sequence[str] | None
RELU = activations.Activation("relu")


@overload
def batch_norm(
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    mean: None = None,
    var: None = None,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> tuple[Array, Array, Array]: ...


@overload
def batch_norm(
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    mean: ArrayLike,
    var: ArrayLike,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array: ...


@translating
def batch_norm(
    x,
    scale,
    bias,
    *,
    mean=None,
    var=None,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    residual=None,
    axis_name: AxisName = None,
):
    """Batch norm over all axes but the last, with the residual sum and the activation that follow it.

    Equivalent to::

        mean, var = x.mean(all axes but the last), x.var(all axes but the last)      # unless both are given
        y = activation((x - mean) / sqrt(var + epsilon) * scale + bias + residual)

    In training, where it computes the statistics itself, it returns them too. In inference they are given, and y is all:

    >>> import jax.numpy as jnp, gconv
    >>> x, scale, bias = jnp.arange(24.0).reshape(2, 4, 3), jnp.ones(3), jnp.zeros(3)
    >>> y, mean, var = gconv.batch_norm(x, scale, bias, activation="relu")
    >>> y.shape, mean.tolist()
    ((2, 4, 3), [10.5, 11.5, 12.5])
    >>> z = gconv.batch_norm(x, scale, bias, mean=mean, var=var, activation="relu")
    >>> bool(jnp.allclose(y, z, atol=1e-5))
    True

    On CPU, training runs kernels of gconv's: x is read twice and y written once, the gradient reads x and y's cotangent twice
    and writes x's once. Nothing as large as x is kept for it but x and the residual. Given statistics are a few operations of
    each number, which XLA fuses with their neighbours. So are all activations but relu in training.

    Args:
      x: `(*batch, C)` with any number of batch axes; any floating dtype. Half precision is computed in float32.
      scale: `(C,)` or None for ones, in any floating dtype.
      bias: `(C,)` or None for zeros, in any floating dtype.
      mean: `(C,)`, the mean to subtract, or None to compute it. Goes together with `var`.
      var: `(C,)`, the variance to divide by (that of all samples, not of all but one), or None to compute it.
      epsilon: added to the variance.
      activation: None, a name of `jax.nn`'s such as "relu", or a function of an array.
      residual: an array of the shape and dtype of `x` that is added before the activation, or None.
      axis_name: the name or names of mapped axes (`shard_map`, `vmap`, `pmap`) over which the statistics are taken, too. It
        takes one all-reduce.

    Returns:
      `(y, mean, var)`, or `y` alone where `mean` and `var` are given. `y` has the shape and dtype of `x`; `mean` and `var` are
      `(C,)` in float32, or float64 where `x` is.

    Raises:
      ValueError, TypeError: naming the argument, its numbers and a value that works.

    Differentiable to any order in both modes, also in the statistics. Large means cost no digits of the variance. With kernels
    the results have the same bits on any number of threads. On a mesh place the arrays and `jit`: XLA splits the operation.
    """
    x = as_array("x", x)
    activate, relu = activation_of(activation)
    optional = {"scale": scale, "bias": bias, "mean": mean, "var": var, "residual": residual}
    given = {name: as_array(name, a) for name, a in optional.items() if a is not None}
    _check(x, given, axis_name)
    wide = accumulator(x.dtype)
    of_channels = {name: a.astype(wide) for name, a in given.items() if name != "residual"}
    scale = of_channels.get("scale", jnp.ones(x.shape[-1:], wide))
    bias = of_channels.get("bias", jnp.zeros(x.shape[-1:], wide))
    if "mean" in given:
        y = _with_statistics(x, scale, bias, of_channels["mean"], of_channels["var"], given.get("residual"), epsilon)
        return activate(y) if activate else y
    options = _Options(float(epsilon), relu, axis_name if axis_name is None or isinstance(axis_name, str) else tuple(axis_name))
    y, mean, var = _in_auto_axes(partial(_normalized, options), x, scale, bias, given.get("residual"))
    return activate(y) if activate and not relu else y, mean, var


def _with_statistics(x, scale, bias, mean, var, residual, epsilon):
    y = (x.astype(mean.dtype) - along(mean, x)) * along(scale * lax.rsqrt(var + epsilon), x) + along(bias, x)
    return (y if residual is None else y + residual.astype(y.dtype)).astype(x.dtype)


# --- training --------------------------------------------------------------------------------------------------------


class _Options(NamedTuple):
    epsilon: float
    relu: bool
    axis_name: str | tuple[str, ...] | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalized(options: _Options, x, scale, bias, residual):
    """`(y, mean, var)` of arrays whose types fit."""
    return _forward(options, x, scale, bias, residual)[0]


@_normalized.defjvp
def _tangents(options: _Options, primals, tangents):
    x, scale, bias, residual = primals
    dx, dscale, dbias, dresidual = tangents
    (y, mean, var), local, operands = _forward(options, *primals)
    relu = options.relu
    large = [dx, dresidual] if relu and residual is not None else [dx]
    read = operands[: 1 + len(large)]  # the residual only where a mask depends on it
    part, sums = bind("inner", *read, *_varying(operands[0], *large)[1:], relu=relu)
    # The statistics of this device, and those of all of them.
    rows = x.size // x.shape[-1]
    dlocal = jnp.stack([sums[0], 2 * (sums[1] + (mean - local[0]) * sums[0])]) / rows
    _, (dmean, dvar) = jax.jvp(partial(_combined, options.axis_name), (local,), (dlocal,))
    factor, dfactor = jax.jvp(partial(_factor, options.epsilon), (scale, var), (dscale, dvar))
    terms = _varying(operands[0], jnp.stack([dbias - factor * dmean, dfactor]))[1]
    dy = bind("outer", *read, part, terms, relu=relu)
    if residual is not None and not relu:
        dy = dy + dresidual
    return (y, mean, var), (dy, dmean, dvar)


def _forward(options: _Options, x, scale, bias, residual):
    """The results, this device's own statistics, and the operands of the passes."""
    local = bind("moments", x)
    mean, var = _combined(options.axis_name, local)
    factors = jnp.stack([mean, _factor(options.epsilon, scale, var), bias])
    operands = _varying(x, factors, *(() if residual is None else (residual,)))
    return (bind("apply", *operands, relu=options.relu), mean, var), local, operands


def _factor(epsilon, scale, var):
    return scale * lax.rsqrt(var + epsilon)


def _combined(axis_name, local):
    """Mean and variance over all devices, in one all-reduce: each puts its own in a place of its own.

    The sum of squares that one all-reduce of two numbers could carry would lose the digits that a large mean takes.
    """
    if axis_name is None:
        return local[0], local[1]
    devices, own = lax.axis_size(axis_name), lax.axis_index(axis_name)
    place = (jnp.arange(devices, dtype=own.dtype) == own).reshape(devices, 1, 1)
    spread = jnp.broadcast_to(local[None], (devices, *local.shape))
    means, variances = jnp.moveaxis(lax.psum(jnp.where(place, spread, jnp.zeros_like(spread)), axis_name), 1, 0)
    mean = means.mean(0)
    return mean, (variances + jnp.square(means - mean[None])).mean(0)


# --- meshes ----------------------------------------------------------------------------------------------------------


def _varying(*arrays) -> list[Array]:
    return [*equally_varying(dict(enumerate(arrays))).values()]


def _in_auto_axes(run, x, *operands):
    """`run(x, *operands)`, also on a mesh with explicit axes: y is sharded as x, the statistics as its channels."""
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return run(x, *operands)
    spec = (*sharding.spec, *(None,) * (x.ndim - len(sharding.spec)))
    channels = PartitionSpec(spec[-1])
    mesh = sharding.mesh
    with use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)):
        return auto_axes(run, out_sharding=(PartitionSpec(*spec), channels, channels))(x, *operands)


# --- what a user may write -------------------------------------------------------------------------------------------


def activation_of(activation: Any) -> tuple[activations.Function | None, bool]:
    """The function, and whether it is relu, which the kernels know."""
    found = activations.parse(activation)
    return found, found == RELU


def _check(x: Array, given: dict[str, Array], axis_name) -> None:
    for name, a in {"x": x, **given}.items():
        if not jnp.issubdtype(a.dtype, np.floating):
            raise TypeError(f"`{name}` must be floating, got {a.dtype}. {name}.astype('float32') would work.")
    if not x.ndim:
        raise ValueError("`x` must have shape (*batch, channels), got (). A shape that works: (8, 16, 16, 4).")
    channels = x.shape[-1:]
    for name in ("scale", "bias", "mean", "var"):
        if name in given and given[name].shape != channels:
            raise ValueError(
                f"`{name}` must have one entry for each channel, of which x.shape={x.shape} has {channels[0]}, got shape "
                f"{given[name].shape}. A shape that works: {channels}."
            )
    if ("mean" in given) != ("var" in given):
        one, other = ("mean", "var") if "mean" in given else ("var", "mean")
        raise ValueError(f"`mean` and `var` go together: got `{one}` without `{other}`. Give both, or none to compute them.")
    if "mean" in given and axis_name is not None:
        raise ValueError(f"`axis_name`={axis_name!r} is where statistics are computed over, but `mean` and `var` are given.")
    residual = given.get("residual")
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"`residual` must be like `x`, {x.dtype.name} {x.shape}, got {residual.dtype.name} {residual.shape}. "
            f"Values that work: jnp.broadcast_to(residual, x.shape).astype(x.dtype)."
        )
