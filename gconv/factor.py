"""The pair of factors that a parameter may carry."""

from dataclasses import dataclass

import jax


@jax.tree_util.register_static
@dataclass(frozen=True)
class Factor:
    """How a parameter takes part in training, relative to the global settings. None: not said here.

    Attributes:
      learn_rate: times the global learning rate; 0 freezes the parameter.
      l2: times the global L2 regularization; 0 exempts the parameter.
    """

    learn_rate: float | None = None
    l2: float | None = None
