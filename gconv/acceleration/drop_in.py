"""`jax.lax.conv_general_dilated` by another name, for code that cannot be rewritten: same arguments, same results."""

from collections.abc import Sequence

from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from gconv import backends
from gconv.acceleration.lowering import DROP_IN, register
from gconv.arrays import check_kind

# As it was when gconv was imported, so that gconv may be put in its place: `jax.lax.conv_general_dilated = gconv....`.
_LAX = lax.conv_general_dilated


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvDimensionNumbers | tuple[str, str, str] | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
    *,
    implementation: str | None = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, computed by gconv where that is faster.

    The same function of the same arguments, for code and libraries that call lax or accept a replacement for it::

        jax.lax.conv_general_dilated(*arguments) == gconv.conv_general_dilated(*arguments)  # to rounding

    >>> import jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> layer = nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=nnx.Rngs(0),
    ...                  conv_general_dilated=gconv.conv_general_dilated)
    >>> layer(jnp.ones((8, 16, 16, 32))).shape
    (8, 16, 16, 32)
    >>> x, kernel = jnp.ones((8, 6, 32)), jnp.ones((12, 2, 5))
    >>> gconv.conv_general_dilated(x, kernel, (2,), "SAME", feature_group_count=3).shape
    (8, 12, 16)

    It binds lax's own primitive, and says of that one equation and of its derivatives what `gconv.install` says of all: see
    there for what is taken, and when. lax checks every call: wrong arguments raise its errors, but for lists and tensors of
    other libraries, which get a sentence that says what to do.

    Results are lax's to rounding. On CPU windows of 3 x 3 may be computed by Winograd's algorithm, whose rounding errors are as
    large as those of plain sums but relative to the largest products of a window; `precision="highest"` asks for plain sums.
    On CPU the result is right also where lax's own is not, because XLA reads outside the buffer at some negative paddings
    (openxla/xla issue 48713). On CUDA bfloat16 in 1-D, which lax cannot compile there (jax issue 37922), is computed in
    float32.

    Args:
      lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation: as in `jax.lax.conv_general_dilated`.
      dimension_numbers, feature_group_count, batch_group_count: as there.
      precision, preferred_element_type, out_sharding: as there.
      implementation: None to let gconv choose, which always works, or a name of `gconv.implementations()`, which runs, also in
        the derivatives, or raises with the reason when the call is lowered.

    Returns:
      An array of the shape, dtype and (on a mesh with explicit axes) sharding that lax gives it.

    Raises:
      ValueError, TypeError: lax's own; and a ValueError for an `implementation` that cannot run the call.

    Differentiable to any order in both modes. Unlike lax's, kernel gradients of groups are right also on a mesh with an axis
    that shards nothing. Source: https://docs.jax.dev/en/latest/_autosummary/jax.lax.conv_general_dilated.html
    """
    backends.check_name(implementation)
    for name, operand in (("lhs", lhs), ("rhs", rhs)):
        check_kind(name, operand)
    register()
    with set_xla_metadata(**{DROP_IN: str(implementation)}):
        return _LAX(
            lhs,
            rhs,
            window_strides=window_strides,
            padding=padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
        )
