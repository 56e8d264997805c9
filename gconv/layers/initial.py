"""What `kernel_init` and `bias_init` may be, as functions that give the initial values."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from gconv import initializers
from gconv.layers.config import Config
from gconv.layout import bias_from_per_group, kernel_from_per_group


def kernel_initializer(init, config: Config, in_features: int) -> Callable:
    """`kernel_init` in any of its forms as a function `(key, shape, dtype)`, checked against the layer."""
    shape, (groups, _) = config.kernel_shape(in_features), config.split(in_features)
    per_group = (*shape[:-1], shape[-1] // groups, groups)
    if not _is_array(init):
        return _initializer("kernel_init", init, initializers.KERNEL, groups, config.transposed)
    value = kernel_from_per_group(init) if init.shape == per_group else init
    return _constant("kernel_init", value, shape, f"{shape}, or per group {per_group}", init.shape)


def bias_initializer(init, config: Config, in_features: int) -> Callable:
    """`bias_init` in any of its forms as a function `(key, shape, dtype)`, checked against the layer."""
    groups, filters = config.split(in_features)[0], config.filters_per_group
    ones = (1,) * len(config.window)
    if _is_array(init):
        is_per_group = init.ndim > 1 and init.shape in ((filters, groups), (*ones, filters, groups))
        value = bias_from_per_group(init) if is_per_group else init
        shape = (groups * filters,)
        return _constant("bias_init", value, shape, f"{shape}, or per group {(*ones, filters, groups)}", init.shape)
    function = _initializer("bias_init", init, initializers.BIAS, groups)
    if not isinstance(function, initializers.PerGroup):
        return function
    # A scheme speaks MATLAB's size (1, 1, filters, groups): a kernel whose window and channels are 1.
    return lambda key, shape, dtype: function(key, (*ones[1:], 1, *shape), dtype).reshape(shape)


def _initializer(name: str, init, named: Mapping[str, Callable], groups: int, transposed: bool = False) -> Callable:
    if isinstance(init, str):
        if init.lower() not in named:
            known = ", ".join(f'"{n}"' for n in named)
            raise ValueError(f"`{name}` must be one of {known}, a function (key, shape, dtype) or an array, got {init!r}.")
        init = named[init.lower()]()
    if not callable(init):
        raise TypeError(
            f"`{name}` must be a name, a function (key, shape, dtype) or an array, got {init!r} of type {type(init).__name__}."
        )
    if isinstance(init, initializers.PerGroup):
        return init.within(groups, transposed)

    def checked(key, shape, dtype):
        value = init(key, shape, dtype)
        if callable(value) and not hasattr(value, "shape"):
            raise TypeError(f"`{name}` returned a function: call it first, as in jax.nn.initializers.he_normal().")
        if getattr(value, "shape", shape) != tuple(shape):
            raise ValueError(f"`{name}` must return an array of shape {tuple(shape)}, got {value.shape}.")
        return value

    return checked


def _constant(name: str, value, shape: tuple, expected: str, given: tuple) -> Callable:
    if tuple(value.shape) != shape:
        raise ValueError(f"`{name}` as an array must have shape {expected}; got {tuple(given)}.")
    # A copy: the layer's parameter may be donated or updated, the caller's array must not notice.
    return lambda key, shape, dtype: jnp.array(value, dtype, copy=True)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "ndim")
