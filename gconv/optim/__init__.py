"""Learn-rate and L2 factors per parameter, as layers declare them, in any optax chain; and MATLAB's solvers.

    g <- g + (l2 * l2_factor) * w                      add_l2
    u <- u * learn_rate_factor                         scale_by_learn_rate_factors

>>> import optax, gconv
>>> from flax import nnx
>>> layer = gconv.nnx.GroupedConv(
...     4, 3, 1, "channel-wise", kernel_learn_rate_factor=0.5, rngs=nnx.Rngs(0)
... )
>>> factors = gconv.optim.factors(layer, rules={"**/bias": gconv.optim.Factor(learn_rate=2)})
>>> print(factors)
bias    learn_rate=2  l2=0
kernel  learn_rate=0.5  l2=1
>>> tx = optax.chain(
...     gconv.optim.add_l2(1e-4, factors),
...     optax.sgd(0.01, momentum=0.9),
...     gconv.optim.scale_by_learn_rate_factors(factors),
... )
>>> optimizer = nnx.Optimizer(layer, tx, wrt=nnx.Param)
>>> matlabs = nnx.Optimizer(layer, gconv.optim.sgdm(0.01, factors=factors), wrt=nnx.Param)

Semantics: MATLAB's WeightLearnRateFactor, BiasLearnRateFactor, WeightL2Factor, BiasL2Factor; a learn-rate factor of 0 freezes.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from gconv.optim.factor import Factor as Factor

# The layers and `gconv.interop` need `Factor` alone: what loads optax and Flax is loaded when it is first used.
_LAZY = {
    "solvers": ("adam", "piecewise", "rmsprop", "sgdm", "training_options"),
    "transforms": (
        "add_decoupled_l2",
        "add_l2",
        "clip_by_parameter_norm",
        "freeze_zero_factors",
        "regularized_loss",
        "scale_by_learn_rate_factors",
    ),
    "tree": ("Factors", "decayed", "default_factor", "factors", "frozen"),
}

if TYPE_CHECKING:
    from gconv.optim.solvers import adam as adam
    from gconv.optim.solvers import piecewise as piecewise
    from gconv.optim.solvers import rmsprop as rmsprop
    from gconv.optim.solvers import sgdm as sgdm
    from gconv.optim.solvers import training_options as training_options
    from gconv.optim.transforms import add_decoupled_l2 as add_decoupled_l2
    from gconv.optim.transforms import add_l2 as add_l2
    from gconv.optim.transforms import clip_by_parameter_norm as clip_by_parameter_norm
    from gconv.optim.transforms import freeze_zero_factors as freeze_zero_factors
    from gconv.optim.transforms import regularized_loss as regularized_loss
    from gconv.optim.transforms import scale_by_learn_rate_factors as scale_by_learn_rate_factors
    from gconv.optim.tree import Factors as Factors
    from gconv.optim.tree import decayed as decayed
    from gconv.optim.tree import default_factor as default_factor
    from gconv.optim.tree import factors as factors
    from gconv.optim.tree import frozen as frozen


__all__ = [
    "Factor",
    "Factors",
    "adam",
    "add_decoupled_l2",
    "add_l2",
    "clip_by_parameter_norm",
    "decayed",
    "default_factor",
    "factors",
    "freeze_zero_factors",
    "frozen",
    "piecewise",
    "regularized_loss",
    "rmsprop",
    "scale_by_learn_rate_factors",
    "sgdm",
    "training_options",
]


if not TYPE_CHECKING:  # which would make every name one of gconv's

    def __getattr__(name: str):
        for module, names in _LAZY.items():
            if name in names:
                return getattr(importlib.import_module(f"gconv.optim.{module}"), name)
        raise AttributeError(f"module 'gconv.optim' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted(__all__)
