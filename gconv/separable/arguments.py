"""The arguments of a separable convolution as those of the layers that it is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gconv import options


class Parts(NamedTuple):
    """Keyword arguments of the two convolutions, and of the norm after each, which is None where there is none."""

    depthwise: dict[str, Any]
    pointwise: dict[str, Any]
    norms: tuple[dict[str, Any] | None, dict[str, Any] | None]


def parts(
    kernel_size,
    out_features,
    *,
    depth_multiplier,
    strides,
    padding,
    dilation,
    padding_value,
    norm,
    activation,
    use_bias,
    depthwise_options,
    pointwise_options,
    norm_options,
    **common,
) -> Parts:
    """What the layers of a separable convolution are made with, or an error that names the argument.

    Where a norm follows a convolution, the activation is the norm's. A bias that `use_bias=None` leaves open is there unless
    the next layer makes it useless: a norm subtracts it, and a convolution without an activation before it adds its own.
    """
    norms, activations = _of_both("norm", norm), _of_both("activation", activation)
    for one in norms:
        if one not in (None, "batch"):
            raise ValueError(f'`norm` must be None or "batch", or a pair of these, got {one!r}.')
    needed = (norms[0] is None and activations[0] is not None, norms[1] is None)
    biases = [n if given is None else given for n, given in zip(needed, _of_both("use_bias", use_bias), strict=True)]
    own = [None if n else a for n, a in zip(norms, activations, strict=True)]
    given = {"depthwise": depthwise_options, "pointwise": pointwise_options, "norm": norm_options}
    for name, value in given.items():
        if not isinstance(value, Mapping | None):
            raise TypeError(f"`{name}_options` must map names of arguments to values, got {type(value).__name__}.")
    depthwise = dict(
        kernel_size=kernel_size,
        filters_per_group=options.integer("depth_multiplier", depth_multiplier, 1),
        groups=options.CHANNEL_WISE,
        strides=strides,
        padding=padding,
        dilation=dilation,
        padding_value=padding_value,
    )
    pointwise = dict(
        kernel_size=(1,) * len(options.window_of(kernel_size)),
        filters_per_group=options.integer("out_features", out_features, 1),
        groups=1,
    )
    both = zip((depthwise, pointwise), own, biases, (depthwise_options, pointwise_options), strict=True)
    made = [one | common | {"activation": a, "use_bias": b} | dict(more or {}) for one, a, b, more in both]
    types = {name: common[name] for name in ("dtype", "param_dtype")}
    first, second = (types | {"activation": a} | dict(norm_options or {}) for a in activations)
    return Parts(made[0], made[1], (first if norms[0] else None, second if norms[1] else None))


def _of_both(name: str, value) -> Sequence[Any]:
    """What a user gives for both convolutions, or as a pair: after the channel-wise one, after the pointwise one."""
    if not isinstance(value, (tuple, list)):
        return (value, value)
    if len(value) != 2:
        raise ValueError(
            f"`{name}` must be one value for both convolutions or a pair (channel-wise, pointwise), got {len(value)} values. A "
            f"value that works: (None, {value[-1] if value else None!r})."
        )
    return value
