"""What `kernel_init` and `bias_init` may be, as functions that give the initial values."""

import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from gconv import initializers
from gconv.arrays import check_kind
from gconv.layers.config import Config
from gconv.layout import bias_from_per_group, kernel_from_per_group
from gconv.mistakes import torch_order
from gconv.options import did_you_mean, quoted


def kernel_initializer(init, config: Config, in_features: int) -> Callable:
    """`kernel_init` in any of its forms as a function `(key, shape, dtype)`, checked against the layer."""
    shape, (groups, _) = config.kernel_shape(in_features), config.split(in_features)
    per_group = (*shape[:-1], shape[-1] // groups, groups)
    if not _is_array(init):
        return _initializer("kernel_init", init, initializers.KERNEL, groups, config.transposed)
    value = kernel_from_per_group(init) if tuple(init.shape) == per_group else init
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


# What other libraries call the schemes, in lower case without underscores, and what comes near them -> ours.
ALIASES = {
    **dict.fromkeys(("xavier", "xavieruniform", "glorotuniform", "glorotnormal", "xaviernormal"), "glorot"),
    **dict.fromkeys(("kaiming", "kaimingnormal", "kaiminguniform", "henormal", "heuniform", "msra"), "he"),
    **dict.fromkeys(("normal", "narrownormal", "gaussian", "randomnormal", "truncatednormal"), "narrow-normal"),
    **dict.fromkeys(("zero", "constant", "none"), "zeros"),
    "one": "ones",
}
FORMS = "a function (key, shape, dtype) or an array"


def _initializer(name: str, init, named: Mapping[str, Callable], groups: int, transposed: bool = False) -> Callable:
    if isinstance(init, str):
        init = _named(name, init, named)
    if not callable(init):
        raise TypeError(
            f"`{name}` must be a name, {FORMS}, got {init!r} of type {type(init).__name__}. Values that work: "
            f"{quoted(named)}, jax.nn.initializers.lecun_normal(), numpy.asarray(...)."
        )
    if isinstance(init, initializers.PerGroup):
        return init.within(groups, transposed)
    _refuse_what_takes_other_arguments(name, init)

    def checked(key, shape, dtype):
        value = init(key, shape, dtype)
        if callable(value) and not hasattr(value, "shape"):
            raise TypeError(f"`{name}` returned a function: call it first, as in jax.nn.initializers.he_normal().")
        if getattr(value, "shape", shape) != tuple(shape):
            raise ValueError(f"`{name}` must return an array of shape {tuple(shape)}, got {value.shape}.")
        return value

    return checked


def _named(name: str, init: str, named: Mapping[str, Callable]) -> Callable:
    if init.lower() in named:
        return named[init.lower()]()
    near = did_you_mean(init.replace("_", "").replace(" ", ""), named, {k: v for k, v in ALIASES.items() if v in named})
    if init.lower() in initializers.KERNEL:
        near = f' "{init.lower()}" needs the fans of a kernel, which a bias has not. A value that works: "zeros".'
    raise ValueError(f"`{name}` must be one of {quoted(named)}, {FORMS}, got {init!r}.{near}")


def _refuse_what_takes_other_arguments(name: str, init: Callable) -> None:
    """A function that makes an initializer, and was not called; a function of MATLAB's size; another function."""
    written = getattr(init, "__name__", type(init).__name__)
    if any(init is factory for factory in (*initializers.KERNEL.values(), initializers.from_size)):
        call = "from_size(function)" if init is initializers.from_size else f"{written}()"
        raise TypeError(f"`{name}` is a function that makes an initializer: call it. What works: gconv.initializers.{call}.")
    if getattr(jax.nn.initializers, written, None) is init and written not in ("zeros", "ones"):
        works = f"What works: jax.nn.initializers.{written}(...)."
        raise TypeError(f"`{name}` is a function that makes an initializer: call it. {works}")
    try:
        signature = inspect.signature(init)
    except (TypeError, ValueError):  # of a function that does not tell
        return
    try:
        signature.bind(None, None, None)
        return
    except TypeError:
        pass
    works = "What works: a function (key, shape, dtype)."
    if len(signature.parameters) == 1:
        works = f"Of a function of MATLAB's size: {name}=gconv.initializers.from_size({_writable(written)})."
    elif not signature.parameters:
        works = f"Perhaps it makes an initializer: {_writable(written)}()."
    raise TypeError(f"`{name}` must be a function (key, shape, dtype), got {written}{signature}. {works}")


def _writable(written: str) -> str:
    return written if written.isidentifier() else "function"


def _constant(name: str, value, shape: tuple, expected: str, given: tuple) -> Callable:
    check_kind(name, value)
    if tuple(value.shape) != shape:
        torch = name == "kernel_init" and tuple(given) == (*shape[:-3:-1], *shape[:-2])
        works = f" PyTorch's layout converts: {name}.transpose({torch_order(len(shape))})." if torch else ""
        raise ValueError(f"`{name}` as an array must have shape {expected}; got {tuple(given)}.{works}")
    # A copy: the layer's parameter may be donated or updated, the caller's array must not notice.
    return lambda key, shape, dtype: jnp.array(value, dtype, copy=True)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "ndim")
