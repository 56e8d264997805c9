"""The functions that users call: arguments -> geometry -> role.

Everything numerical happens in the primitives of `gconv.roles`; here arguments are checked, promoted and padded.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import conv_general_dilated
from jax.typing import ArrayLike, DTypeLike

from gconv import backends
from gconv.arrays import check_array
from gconv.fusion import activations, epilogue
from gconv.geometry import Geometry, check_bias, geometry, transposed_geometry
from gconv.mesh import sharding
from gconv.mistakes import other_layout
from gconv.naming import translating
from gconv.options import check_fill_of_dilated, parse_padding_value, per_axis
from gconv.padding import dilated, padded
from gconv.typing import Activation, Groups, Implementation, Padding, PaddingValue, PerAxis, Precision

_CONFIG: Any = jax.config  # its options are attributes that not every version of its types knows


@translating
def grouped_conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    groups: Groups | None = None,
    strides: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    input_dilation: PerAxis = 1,
    padding_value: PaddingValue = 0,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    implementation: Implementation | None = None,
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Grouped convolution, channels last.

    Equivalent to, for each group g (J channels in, K filters out)::

        y[..., g*K:(g+1)*K] = conv(x[..., g*J:(g+1)*J], kernel[..., g*K:(g+1)*K])

    where `conv` is the usual cross-correlation of deep learning, `y[n] = sum_k x[n * stride + k * dilation - low] kernel[k]`.
    What follows it in a network is computed with it: `activation(y + bias + residual)`.

    >>> import jax.numpy as jnp, gconv
    >>> x = jnp.ones((8, 32, 32, 6))
    >>> gconv.grouped_conv(x, jnp.ones((3, 3, 2, 12)), groups=3, padding="same").shape
    (8, 32, 32, 12)
    >>> gconv.grouped_conv(x, jnp.ones((3, 3, 1, 6)), groups="channel-wise", strides=2).shape
    (8, 15, 15, 6)

    Args:
      x: `(*batch, *spatial, C_in)`; any number of batch axes, also none; 1, 2 or 3 spatial axes, as many as the kernel has.
        Any floating, complex or integer dtype. `x`, `kernel`, `bias` and `residual` are promoted to a common one.
      kernel: `(*window, C_in / groups, C_out)`, output channel `group * filters_per_group + filter`: the layout of Flax's
        `Conv`. MATLAB's per-group layout converts with `gconv.interop.kernel_from_matlab`.
      bias: `(C_out,)` or None.
      groups: a positive integer that divides both channel counts, `"channel-wise"` (one group per channel), or None to
        read it off the shapes.
      strides: one integer, or one per spatial axis.
      padding: how many samples to add: `p`, one number per axis (MATLAB's `[a b]`), `(low, high)` pairs per axis, a flat list
        of low and high per axis in turn (MATLAB's `[t b l r]` in 2-D, `[left right]` in 1-D), `"same"` (output size
        `ceil(input / stride)`, surplus at the end), `"same_lower"` (surplus at the start), `"valid"`, or `"causal"` (1-D).
      dilation: the distance between the samples that a window reads; one integer, or one per spatial axis.
      input_dilation: the distance at which the samples of `x` are set apart, with zeros between them (lax's `lhs_dilation`);
        one integer, or one per spatial axis. The padding is that of the dilated input. A `padding_value` that repeats samples
        must be added to `x` before.
      padding_value: what to add: a number, or `"symmetric-include-edge"`, `"symmetric-exclude-edge"`, `"replicate"`,
        `"circular"` (NumPy's modes `symmetric`, `reflect`, `edge`, `wrap`; amounts larger than the input repeat as there).
      activation: what the result goes through: None, a name of `jax.nn`'s such as `"relu"`, or a function of an array. On CPU
        the kernels apply `relu`, `relu6`, `leaky_relu`, `sigmoid`, `silu`, `hard_sigmoid`, `hard_silu`, `tanh` and `gelu`
        (`"gelu"` and `jax.nn.gelu` by tanh, `"gelu_exact"` by erf), by name or as the function of `jax.nn`, while they hold
        the results. Half precision goes through them in float32. Every other function is applied to the result.
      residual: an array of the result's shape that is added before the activation, or None.
      implementation: None to let gconv choose for each platform when the program is lowered, or a name of
        `gconv.implementations()`, which runs or raises with the reason.
      precision: as in `jax.lax.conv_general_dilated`; also for the gradients. None takes the `jax.default_matmul_precision` in
        force at the call. It reaches every convolution and matrix product, whichever implementation runs: NVIDIA GPUs multiply
        float32 in TF32 by default and in full with "highest", TPUs in bfloat16. Sums of shifted products, which have neither,
        and the kernels on CPU multiply in the operands' type, half precision in float32: never less than asked for. By default
        the kernels on CPU take windows of 3 x 3 by Winograd's algorithm (arxiv.org/abs/1509.09308) where that is faster: its
        rounding errors are as large as those of plain sums, but relative to the largest products of a window, also where a
        small or zero weight meets a large sample. By default they also multiply bfloat16 by AVX512-BF16, where that gains
        (on AMD's processors), which takes numbers below the smallest normal one (1.2e-38) for zeros. "high" and "highest" do
        neither.
      preferred_element_type: dtype of the result (and of the accumulation), as in `jax.lax.conv_general_dilated`.

    Returns:
      `(*batch, *output, C_out)` with `output = (spatial + low + high - (window - 1) * dilation - 1) // stride + 1`, where a
      dilated input counts `(spatial - 1) * input_dilation + 1`.

    Raises:
      ValueError, TypeError: naming the argument, its numbers and a value that works.

    Differentiable to any order in both modes, and with vmap, scan, remat and the rest; kernel gradients of float16 and
    bfloat16 accumulate in float32. Semantics of padding and groups: MATLAB's `groupedConvolution2dLayer`.
    """
    backends.check_name(implementation)
    arrays = _as_arrays(x=x, kernel=kernel, bias=bias, residual=residual)
    finish = activations.parse(activation)
    fill = parse_padding_value(padding_value)
    options: dict[str, Any] = dict(strides=strides, padding=padding, dilation=dilation, input_dilation=input_dilation)
    batch, geom = _checked("x", partial(geometry, groups=groups, **options), *_shapes(arrays))
    factors = per_axis("input_dilation", input_dilation, geom.rank)
    check_fill_of_dilated(fill, factors)
    if bias is not None:
        check_bias(arrays[2].shape, geom.out_channels, geom.groups)
    shape = (*batch, *geom.output, geom.out_channels)
    _check_epilogue(arrays, shape, activation, finish)

    def run(x, kernel, bias, residual):
        x = x.reshape(math.prod(batch), *x.shape[len(batch) :])
        x, rest, zeros = padded(x, geom, fill, factors)
        role, operands, rest = dilated(x, kernel, rest, zeros)
        return _run(role, operands, rest, shape, bias, residual, finish, **how)

    how = dict(implementation=implementation, precision=precision, preferred=preferred_element_type)
    return _applied(finish, sharding.in_auto_axes(run, shape, geom.groups, len(batch), *arrays))


@translating
def grouped_conv_transpose(
    y: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    groups: Groups,
    strides: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    output_padding: PerAxis = 0,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    implementation: Implementation | None = None,
    precision: Precision = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Transposed grouped convolution, channels last: the exact adjoint of `grouped_conv`.

    With the same `kernel` and options, for every `x` of the result's shape::

        vdot(grouped_conv(x, kernel), y) == vdot(x, grouped_conv_transpose(y, kernel))

    so `kernel`, `groups`, `strides`, `padding` and `dilation` are those of the convolution that is transposed, `y` has its
    output channels and the result its input channels. This is PyTorch's convention (`ConvTranspose2d`), also for the sizes.

    >>> import jax.numpy as jnp, gconv
    >>> y, kernel = jnp.ones((8, 16, 16, 12)), jnp.ones((3, 3, 2, 12))
    >>> gconv.grouped_conv_transpose(y, kernel, groups=3, strides=2, padding=1, output_padding=1).shape
    (8, 32, 32, 6)

    Args:
      y: `(*batch, *spatial, C_out)`.
      kernel: `(*window, C_in / groups, C_out)`, as in `grouped_conv`.
      bias: `(C_in,)` or None.
      groups: a positive integer, or `"channel-wise"` (one group per channel of `y`); the shapes do not tell it.
      padding: what the transposed convolution was padded with: it makes the result smaller. `"same"` and `"same_lower"`
        make the result `spatial * strides` long.
      output_padding: surplus at the end, to choose among the sizes that a strided convolution maps to the same one; smaller
        than the stride or the dilation.
      residual: an array of the result's shape that is added before the activation, or None.
      strides, dilation, activation, implementation, precision, preferred_element_type: as in `grouped_conv`.

    Returns:
      `(*batch, *size, C_in)`, `size = (spatial - 1) * stride - low - high + (window - 1) * dilation + 1 + output_padding`.
    """
    backends.check_name(implementation)
    arrays = _as_arrays(y=y, kernel=kernel, bias=bias, residual=residual)
    finish = activations.parse(activation)
    options: dict[str, Any] = dict(strides=strides, padding=padding, dilation=dilation, output_padding=output_padding)
    batch, geom = _checked("y", partial(transposed_geometry, groups=groups, **options), *_shapes(arrays))
    if bias is not None:
        check_bias(arrays[2].shape, geom.in_channels, geom.groups)
    shape = (*batch, *geom.spatial, geom.in_channels)
    _check_epilogue(arrays, shape, activation, finish)

    def run(y, kernel, bias, residual):
        y = y.reshape(math.prod(batch), *y.shape[len(batch) :])
        return _run("x", {"y": y, "w": kernel}, geom, shape, bias, residual, finish, **how)

    how = dict(implementation=implementation, precision=precision, preferred=preferred_element_type)
    return _applied(finish, sharding.in_auto_axes(run, shape, geom.groups, len(batch), *arrays))


def _run(role, operands, geom, shape, bias, residual, finish, *, implementation, precision, preferred):
    """The role and what follows it, but for a function that the epilogue does not know; `shape` is the result's.

    A bias alone is left to XLA, which adds it in the pass of whatever the program does next: with the bias in the kernels and
    relu after it, results larger than the caches took up to 1.4 times as long (32 x 56 x 56 x 64, depthwise, 2 threads).
    """
    precision = precision_in_force(precision)
    dtype = result_dtype(operands["w"].dtype, precision, preferred)
    options = dict(geometry=geom, dtype=dtype, precision=precision, implementation=implementation)
    batch = len(shape) - geom.rank - 1
    rest = None if residual is None else residual.reshape(math.prod(shape[:batch]), *shape[batch:])
    known = finish if isinstance(finish, activations.Activation) else None
    if known is None and (rest is None or finish is not None):
        result = epilogue.bind(role, operands, **options)
        result = epilogue.finish(result, epilogue.typed({"shift": bias, "residual": rest}, dtype), None)
    else:
        result = epilogue.bind(role, operands, shift=bias, residual=rest, activation=known, **options)
    return result.reshape(shape)


def _applied(finish: activations.Function | None, result: Array) -> Array:
    """The result through an activation that the epilogue does not know."""
    return result if finish is None or isinstance(finish, activations.Activation) else finish(result)


def _shapes(arrays: list) -> list[tuple]:
    return [a.shape for a in arrays[:2]]


def _checked(name: str, facts: Callable, shape: tuple, kernel: tuple) -> tuple[tuple, Geometry]:
    """The batch axes and the geometry; an error also says where the arrays would fit in another library's layout."""
    try:
        return facts(shape, kernel)
    except ValueError as error:
        raise type(error)(f"{error}{other_layout(facts, name, shape, kernel)}") from None


def _as_arrays(**arguments) -> list:
    """The arguments as JAX arrays of a common dtype; None stays None."""
    for name, a in arguments.items():
        if isinstance(a, (int, str)) and name == "bias":
            raise TypeError(f"`bias` must be an array or None, got {a!r}. Options have names: groups={a!r}.")
        if not (a is None and name in ("bias", "residual")):
            check_array(name, a)
    arrays = [None if a is None else jnp.asarray(a) for a in arguments.values()]
    dtype = jnp.result_type(*(a for a in arrays if a is not None))
    return [None if a is None else a.astype(dtype) for a in arrays]


def _check_epilogue(arrays: list, shape: tuple, activation, finish) -> None:
    """That the residual has the result's shape, and that an activation of the kernels' meets a type that it is made for."""
    dtype, residual = arrays[0].dtype, arrays[3]
    if residual is not None and residual.shape != shape:
        raise ValueError(
            f"`residual` must have the result's shape, {shape}, got {residual.shape}. What works, where it broadcasts: "
            f"jnp.broadcast_to(residual, {shape})."
        )
    floating = jnp.issubdtype(dtype, jnp.inexact)
    if not floating and isinstance(finish, activations.Activation) and finish.name != "relu":
        raise TypeError(f"`activation`={activation!r} needs a floating dtype, got {dtype}. x.astype('float32') would work.")


def result_dtype(dtype, precision, preferred):
    """The dtype of the result by lax's own rule, asked of lax itself, which also refuses what it does not know."""
    try:
        return _ask_lax(dtype, precision, preferred, _CONFIG.jax_enable_x64)
    except TypeError as error:
        if preferred is None:
            raise
        raise TypeError(
            f"`preferred_element_type`={jnp.dtype(preferred)} cannot hold the sums of {jnp.dtype(dtype)} operands: {error} "
            f"A value that works: {jnp.dtype(dtype).name!r}."
        ) from None


@lru_cache(maxsize=256)
def _ask_lax(dtype, precision, preferred, x64: bool):
    del x64  # only tells one answer from another
    one = jax.ShapeDtypeStruct((1, 1, 1), dtype)
    conv = partial(conv_general_dilated, window_strides=(1,), padding="VALID", precision=precision)
    return jax.eval_shape(partial(conv, preferred_element_type=preferred), one, one).dtype


def precision_in_force(precision):
    """Asked now: a surrounding `jax.default_matmul_precision` may be gone when the program is lowered."""
    if precision is None:
        return _CONFIG.jax_default_matmul_precision
    return tuple(precision) if isinstance(precision, list) else precision
