"""`flax.nnx.BatchNorm` that trains by `gconv.batch_norm`, with an activation."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gconv.norm.function import activation_of
from gconv.norm.layer import trained, why_not
from gconv.typing import Activation

__all__ = ["BatchNorm"]


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` with kernels for training, and with an activation that costs no pass of its own.

    Everything else is Flax's: arguments, parameters, running statistics and checkpoints, which interchange. Results, gradients
    and statistics are equal to rounding. The variance is the more precise of Flax's two, whatever `use_fast_variance` says.

    >>> import jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> norm = gconv.nnx.BatchNorm(4, activation="relu", rngs=nnx.Rngs(0))
    >>> y = norm(jnp.arange(24.0).reshape(2, 3, 4))
    >>> y.shape, float(y.min()), [round(m, 2) for m in norm.mean[...].tolist()]
    ((2, 3, 4), 0.0, [0.1, 0.11, 0.12, 0.13])

    Args:
      num_features: channels of the input.
      activation: None, a name of `jax.nn`'s such as "relu", or a function; see `gconv.batch_norm`. May be set later.
      options: all other arguments of `flax.nnx.BatchNorm`.

    Flax itself computes what the kernels do not: with running averages, another `axis` than the last, a `mask`,
    `axis_index_groups`, or complex numbers.

    Raises:
      ValueError: for an activation that is none.
    """

    activation: Activation | None = None

    def __init__(self, num_features: int, *, activation: Activation | None = None, rngs: nnx.Rngs, **options: Any):
        super().__init__(num_features, rngs=rngs, **options)
        activation_of(activation)
        self.activation = activation

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes the input, as `flax.nnx.BatchNorm` does.

        Args:
          x: the input, whose last axis has `num_features` entries.
          use_running_average: whether to use the running statistics; None takes the constructor's or the mode's.
          mask: of the positions that count; Flax computes it.

        Returns:
          The normalized input, through the activation.
        """
        return self._normalize(self.activation, x, use_running_average, mask)

    def with_relu(self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes the input and takes relu of it, whatever the layer's own activation."""
        return self._normalize("relu", x, use_running_average, mask)

    def _normalize(
        self, activation: Activation | None, x: Any, use_running_average: bool | None, mask: jax.Array | None
    ) -> jax.Array:
        running = self.use_running_average if use_running_average is None else use_running_average
        if running is not False or mask is not None or why_not(x, self.axis, self.axis_index_groups):
            function, _ = activation_of(activation)
            y = super().__call__(x, use_running_average, mask=mask)
            return function(y) if function else y
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        promoted = self.promote_dtype((x, self.mean[...], self.var[...], scale, bias), dtype=self.dtype)
        x, _, _, scale, bias = promoted
        y, mean, var = trained(x, scale, bias, self.epsilon, self.dtype, activation, self.axis_name)
        # As in Flax: where variables are references, an update is no part of what is differentiated.
        references = any(getattr(v, "_can_update", False) for v in (self.mean, self.var))
        keep = jax.lax.stop_gradient if references else jnp.asarray
        self.mean[...] = keep(self.momentum * self.mean[...] + (1 - self.momentum) * mean)
        self.var[...] = keep(self.momentum * self.var[...] + (1 - self.momentum) * var)
        return y
