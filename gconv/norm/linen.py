"""`flax.linen.BatchNorm` that trains by `gconv.batch_norm`, with an activation."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gconv.norm.function import activation_of
from gconv.norm.layer import trained, why_not
from gconv.typing import Activation

__all__ = ["BatchNorm"]


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` with kernels for training, and with an activation that costs no pass of its own.

    Everything else is Flax's: fields, parameters, the collection "batch_stats" and checkpoints, which interchange. Results,
    gradients and statistics are equal to rounding. The variance is the more precise of Flax's two, whatever
    `use_fast_variance` says.

    >>> import jax, jax.numpy as jnp, gconv
    >>> norm = gconv.linen.BatchNorm(use_running_average=False, activation="relu")
    >>> x = jnp.arange(24.0).reshape(2, 3, 4)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, changed = norm.apply(variables, x, mutable=["batch_stats"])
    >>> y.shape, float(y.min()), [round(m, 2) for m in changed["batch_stats"]["mean"].tolist()]
    ((2, 3, 4), 0.0, [0.1, 0.11, 0.12, 0.13])

    Args:
      activation: None, a name of `jax.nn`'s such as "relu", or a function; see `gconv.batch_norm`.

    All other fields are those of `flax.linen.BatchNorm`. Flax itself computes what the kernels do not: with running averages,
    another `axis` than the last, a `mask`, `axis_index_groups`, `force_float32_reductions=False`, or complex numbers.

    Raises:
      ValueError: when it is called, for an activation that is none.
    """

    activation: Activation | None = None

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes the input, as `flax.linen.BatchNorm` does.

        Args:
          x: the input.
          use_running_average: whether to use the running statistics; None takes the field's.
          mask: of the positions that count; Flax computes it.

        Returns:
          The normalized input, through the activation.
        """
        function, _ = activation_of(self.activation)
        running = self.use_running_average if use_running_average is None else use_running_average
        reason = why_not(x, self.axis, self.axis_index_groups)
        # While it is initialized Flax makes the variables, which are the same.
        if running is not False or mask is not None or reason or not self.force_float32_reductions or self.is_initializing():
            y = super().__call__(x, use_running_average, mask=mask)
            return function(y) if function else y
        nn.merge_param("use_running_average", self.use_running_average, use_running_average)  # its error where both are given
        channels = (jnp.shape(x)[-1],)
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels, jnp.float32))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(channels, jnp.float32))
        scale = self.param("scale", self.scale_init, channels, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, channels, self.param_dtype) if self.use_bias else None
        y, *found = trained(x, scale, bias, self.epsilon, self.dtype, self.activation, self.axis_name)
        for variable, value in zip((mean, var), found, strict=True):
            variable.value = self.momentum * variable.value + (1 - self.momentum) * value
        return y
