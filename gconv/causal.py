"""Causal depthwise convolution over time, for sequence models that train on whole sequences and decode step by step."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gconv import backends
from gconv.arrays import as_array
from gconv.dtypes import accumulator
from gconv.fusion import activations, epilogue
from gconv.naming import translating
from gconv.op import grouped_conv
from gconv.options import did_you_mean
from gconv.typing import Implementation, Precision

SILU = activations.Activation("silu")
SILU_NAMES = (SILU.name, *(other for other, name in activations.ALIASES.items() if name == SILU.name))


@translating
def causal_conv1d(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    state: ArrayLike | None = None,
    activation: Literal["silu", "swish"] | None = None,
    segment_ids: ArrayLike | None = None,
    implementation: Implementation | None = None,
    precision: Precision = None,
) -> tuple[Array, Array]:
    """Causal depthwise convolution over time: each output reads its own input and the `window - 1` before it.

    Equivalent to, with `before = state` or zeros::

        inputs = concatenate([before, x], axis=-2)
        sums[..., t, c] = sum(inputs[..., t + k, c] * kernel[k, 0, c] for k in range(window))
        y = activation(sums + bias)
        new_state = inputs[..., time:, :]               # the latest window - 1 inputs

    A sequence at once, in chunks of any length that pass the state on, and one sample at a time give the same numbers:

    >>> import jax, jax.numpy as jnp, gconv
    >>> x, kernel = jnp.arange(24.0).reshape(1, 8, 3), jnp.ones((4, 1, 3))
    >>> y, state = gconv.causal_conv1d(x, kernel)
    >>> y.shape, state.shape
    ((1, 8, 3), (1, 3, 3))
    >>> def decode(state, sample):
    ...     y, state = gconv.causal_conv1d(sample, kernel, state=state)
    ...     return state, y
    >>> last, steps = jax.lax.scan(decode, jnp.zeros((1, 3, 3)), jnp.moveaxis(x, 1, 0)[:, :, None])
    >>> bool((jnp.moveaxis(steps[:, :, 0], 0, 1) == y).all() and (last == state).all())
    True

    Args:
      x: `(*batch, time, C)`; any number of batch axes, also none, and any length, also shorter than the window.
      kernel: `(window, 1, C)`; `kernel[-1]` meets the present sample. `x`, `kernel` and `bias` are promoted to a common dtype.
      bias: `(C,)` or None.
      state: `(*batch, window - 1, C)`, the inputs before `x`, in its dtype: a `new_state`, or None for zeros (a new sequence).
      activation: None, `"silu"` (`y * sigmoid(y)`), or its other name `"swish"`.
      segment_ids: `(*batch, time)` integers, for several sequences packed in one row. Neighbours of the same id form a
        segment, and no output reads another segment's inputs, not even a NaN. The state belongs to the segment of the first
        sample: where `x` begins a new one, give zeros. `new_state` belongs to the segment of the last sample and holds
        zeros in the place of what came before it.
      implementation: None, or a name of `gconv.implementations()`, which runs or raises with the reason. With `segment_ids`
        the sum over the window is written out for XLA, and no name applies.
      precision: as in `jax.lax.conv_general_dilated`; also for the gradients. With `segment_ids` all products are exact.

    Returns:
      `y (*batch, time, C)` and `new_state (*batch, window - 1, C)`, the latter in the dtype of `x`.

    Raises:
      ValueError, TypeError: naming the argument, its numbers and a value that works.

    Differentiable, also through the state. Source: the ONNX operator CausalConvWithState (channels first there), whose results
    these are; Mamba and Gated DeltaNet use it with a window of 4.
    """
    backends.check_name(implementation)
    x, kernel = as_array("x", x), as_array("kernel", kernel)
    optional = {"bias": bias, "state": state, "segment_ids": segment_ids}
    bias, state, segment_ids = (None if a is None else as_array(name, a) for name, a in optional.items())
    dtype = jnp.result_type(x, kernel) if bias is None else jnp.result_type(x, kernel, bias)
    _check_arrays(x, kernel, bias, state, segment_ids)
    _check_options(activation, dtype, implementation, segment_ids)
    window, time = kernel.shape[0], x.shape[-2]
    before = [(0, 0)] * (x.ndim - 2) + [(window - 1, 0), (0, 0)]
    inputs = jnp.pad(x, before) if state is None else jnp.concatenate([state, x], axis=-2)
    new_state = inputs[..., time:, :]
    silu = None if activation is None else SILU
    if time == 0:
        y = x.astype(dtype)
    elif segment_ids is not None:
        first = jnp.broadcast_to(segment_ids[..., :1], (*x.shape[:-2], window - 1))
        ids = jnp.concatenate([first, segment_ids], axis=-1)
        y = epilogue.finish(_sum_within_segments(inputs, ids, kernel, bias, dtype), {}, silu)
        new_state = jnp.where(_in_last_segment(ids[..., time - 1 :])[..., 1:, None], new_state, 0)
    else:  # a convolution pads zeros itself
        source = x if state is None else inputs
        options: dict[str, Any] = dict(activation=silu, implementation=implementation, precision=precision)
        y = grouped_conv(source, kernel, bias, groups="channel-wise", padding="causal" if state is None else 0, **options)
    return y, new_state


def _sum_within_segments(inputs: Array, ids: Array, kernel: Array, bias: Array | None, dtype) -> Array:
    """The convolution as one fused sum of shifted products, over the taps whose samples are of the same segment.

    From the present sample backwards, a tap counts while all samples up to it have the same id.
    """
    wide = accumulator(dtype)
    window = kernel.shape[0]
    time = inputs.shape[-2] - window + 1
    inputs, kernel = inputs.astype(wide), kernel.astype(wide)
    weights = kernel.reshape(window, *(1,) * (inputs.ndim - 1), kernel.shape[-1])
    same = jnp.ones((*ids.shape[:-1], time), bool)
    total = inputs[..., window - 1 :, :] * weights[-1]
    for k in reversed(range(window - 1)):
        same &= ids[..., k : k + time] == ids[..., k + 1 : k + 1 + time]
        # Before the product, so that the NaN of another segment is in no gradient either.
        total += jnp.where(same[..., None], inputs[..., k : k + time, :], 0) * weights[k]
    # With as many axes as the sum: JAX can be told to refuse fewer (numpy_rank_promotion).
    return (total if bias is None else total + bias.astype(wide).reshape((1,) * (total.ndim - 1) + bias.shape)).astype(dtype)


def _in_last_segment(ids: Array) -> Array:
    """Where all samples from here to the end have the same id."""
    return lax.cummin((ids == ids[..., -1:]).astype(jnp.int8), axis=ids.ndim - 1, reverse=True) == 1


def _check_arrays(x, kernel, bias, state, segment_ids) -> None:
    if x.ndim < 2:
        raise ValueError(f"`x` must have shape (*batch, time, channels), got {x.shape}. A shape that works: (1, 16, 8).")
    *batch, time, channels = x.shape
    window = kernel.shape[0] if kernel.ndim else 0
    if kernel.ndim != 3 or window < 1 or kernel.shape[1:] != (1, channels):
        raise ValueError(
            f"`kernel` must have shape (window, 1, channels): x.shape={x.shape} has {channels} channels, got kernel.shape="
            f"{kernel.shape}. A shape that works: {(window or 4, 1, channels)}."
        )
    shapes = {
        "bias": (bias, (channels,), "one entry per channel"),
        "state": (state, (*batch, window - 1, channels), f"the {window - 1} inputs before `x`"),
        "segment_ids": (segment_ids, (*batch, time), "one integer per sample"),
    }
    for name, (array, shape, meaning) in shapes.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"`{name}` must have {meaning}: got shape {array.shape} with x.shape={x.shape}, kernel.shape={kernel.shape}. "
                f"A shape that works: {shape}."
            )
    if state is not None and state.dtype != x.dtype:
        raise TypeError(
            f"`state` must have the dtype of `x`, whose inputs it holds: got {state.dtype} and {x.dtype}. "
            f"state.astype({x.dtype.name!r}) would work."
        )
    if segment_ids is not None and not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise TypeError(f"`segment_ids` must be integers, got {segment_ids.dtype}. segment_ids.astype('int32') would work.")


def _check_options(activation, dtype, implementation, segment_ids) -> None:
    if activation not in (None, *SILU_NAMES):
        near = did_you_mean(activation, SILU_NAMES) if isinstance(activation, str) else ""
        works = near or f" Apply another one to the result: {_another(activation)}."
        raise ValueError(f'`activation` must be None, "silu" or "swish", got {activation!r}.{works}')
    if activation is not None and not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"`activation`={activation!r} needs a floating dtype, got {dtype}. x.astype('float32') would work.")
    if implementation is not None and segment_ids is not None:
        raise ValueError(
            f"implementation={implementation!r} cannot run with `segment_ids`, whose sum is written out for XLA. "
            "implementation=None always works."
        )


def _another(activation) -> str:
    """An activation that is not fused, as one would write it."""
    name = activation.lower() if isinstance(activation, str) else getattr(activation, "__name__", "")
    return f"jax.nn.{name}(y)" if hasattr(jax.nn, name) and name else "jax.nn.relu(y)"
