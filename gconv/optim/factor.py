"""The pair of factors that a parameter may carry."""

import math
from dataclasses import dataclass
from typing import Any

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

    def __post_init__(self):
        for field in ("learn_rate", "l2"):
            if (value := getattr(self, field)) is not None:
                object.__setattr__(self, field, checked(field, value))


def checked(name: str, value) -> float:
    """A factor as a Python number, or an error that names it."""
    number: Any = value.item() if getattr(value, "ndim", None) == 0 and not isinstance(value, jax.core.Tracer) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
        raise ValueError(
            f"`{name}` must be a finite number of at least 0, got {value!r}. Values that work: 1, or 0 to freeze or to exempt."
        )
    return number


def learn_rate_and_l2(name: str, learn_rate_factor, l2_factor) -> dict[str, float]:
    """The factors of a parameter as its metadata."""
    return {
        "learn_rate_factor": checked(f"{name}_learn_rate_factor", learn_rate_factor),
        "l2_factor": checked(f"{name}_l2_factor", l2_factor),
    }


# What a parameter counts that declares nothing: MATLAB's layers regularize weights and not biases.
DEFAULTS = {"kernel": Factor(1, 1), "bias": Factor(1, 0)}
