"""What the two layers share: when the function can do what Flax's layer does, and in which types."""

import jax.numpy as jnp
from jax import Array

from gconv.dtypes import wider
from gconv.norm.function import AxisName, batch_norm
from gconv.typing import Activation


def why_not(x, axis, axis_index_groups) -> str | None:
    """Why Flax's own layer must train this input, or None."""
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    if axes not in ((-1,), (jnp.ndim(x) - 1,)):
        return f"axis={axis}: gconv has the last only"
    if axis_index_groups is not None:
        return "axis_index_groups"
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating) or not jnp.ndim(x):
        return f"{jnp.result_type(x)} of shape {jnp.shape(x)}"
    return None


def trained(
    x, scale, bias, epsilon: float, dtype, activation: Activation | None, axis_name: AxisName
) -> tuple[Array, Array, Array]:
    """`batch_norm` in Flax's types: y in `dtype` or what x and the parameters promote to, statistics in that or float32."""
    x = jnp.asarray(x)
    of_y = jnp.dtype(dtype) if dtype is not None else jnp.result_type(x, *(p for p in (scale, bias) if p is not None))
    of_statistics = wider(x.dtype if dtype is None else dtype, jnp.float32)
    work = x.astype(wider(x.dtype, of_y))
    y, mean, var = batch_norm(work, scale, bias, epsilon=epsilon, activation=activation, axis_name=axis_name)
    return y.astype(of_y), mean.astype(of_statistics), var.astype(of_statistics)
