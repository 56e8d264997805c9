"""MATLAB's solvers with their exact update: gradient -> L2 -> threshold -> solver.

They differ from optax's of the same name: `sgdm` has the learning rate inside the velocity, `adam` has epsilon beside the root
that is not corrected for its bias, `rmsprop` has epsilon outside the root. Source: MATLAB's documentation of `trainingOptions`.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gconv.naming import normalized, translating
from gconv.optim.transforms import add_l2, check_number, clip_by_parameter_norm, freeze_zero_factors, mixing_types
from gconv.optim.tree import Factors, check_factors, declared_factors_of, default_factor, default_factors, map_by_path
from gconv.options import did_you_mean
from gconv.typing import GradientThresholdMethod, Schedule, Solver

THRESHOLDS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "l2norm": clip_by_parameter_norm,
    "global-l2norm": optax.clip_by_global_norm,
    "absolute-value": optax.clip,
}


@dataclass
class _Step:
    """What one parameter's step gives. No pytree, so that it is a leaf, also among parameters that are tuples."""

    update: jax.Array
    moments: tuple[jax.Array, ...]


class SolverState(NamedTuple):
    """The steps done, and one tree of the parameters' structure per moment."""

    step: jax.Array
    moments: tuple[Any, ...]


@translating
def sgdm(
    learning_rate: float | Schedule = 0.01,
    *,
    momentum: float = 0.9,
    l2: float = 1e-4,
    factors: Factors | None = None,
    gradient_threshold: float | None = None,
    gradient_threshold_method: GradientThresholdMethod = "l2norm",
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum.

        v <- momentum * v - (learning_rate * learn_rate_factor) * g;    w <- w + v

    After a drop of the rate the old velocity keeps the old rate; `optax.sgd` rescales it.

    Args:
      learning_rate: a number or an optax schedule of the step.
      l2: MATLAB's L2Regularization, added to the gradient as `(l2 * l2_factor) * w`.
      factors: from `gconv.optim.factors`; None: learn rate 1 everywhere, L2 1 except for biases, and an error where the
        parameters themselves declare something else. Linen's are plain arrays, also behind `nnx.bridge.ToNNX`, and declare
        nothing: give the factors. A parameter whose learn-rate factor is 0 does not move and has no state.
      gradient_threshold: None, or what `gradient_threshold_method` clips to: `"l2norm"` the norm of each parameter,
        `"global-l2norm"` the norm of all that train, `"absolute-value"` each element.
    """

    def step(g, rate, count, v):
        v = momentum * v - rate * g
        return _Step(v, (v,))

    return _solver(step, 1, learning_rate, l2, factors, gradient_threshold, gradient_threshold_method)


@translating
def rmsprop(
    learning_rate: float | Schedule = 0.001,
    *,
    decay: float = 0.9,
    epsilon: float = 1e-8,
    l2: float = 1e-4,
    factors: Factors | None = None,
    gradient_threshold: float | None = None,
    gradient_threshold_method: GradientThresholdMethod = "l2norm",
) -> optax.GradientTransformation:
    """RMSProp.

        v <- decay * v + (1 - decay) * g^2;    w <- w - (learning_rate * learn_rate_factor) * g / (sqrt(v) + epsilon)

    The arguments are those of `sgdm`; `decay` is MATLAB's SquaredGradientDecayFactor.
    """

    def step(g, rate, count, v):
        v = decay * v + (1 - decay) * _squared(g)
        return _Step(-rate * g / (jnp.sqrt(v) + epsilon), (v,))

    return _solver(step, 1, learning_rate, l2, factors, gradient_threshold, gradient_threshold_method)


@translating
def adam(
    learning_rate: float | Schedule = 0.001,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    l2: float = 1e-4,
    factors: Factors | None = None,
    gradient_threshold: float | None = None,
    gradient_threshold_method: GradientThresholdMethod = "l2norm",
) -> optax.GradientTransformation:
    """Adam with epsilon beside the uncorrected root.

        m <- b1 * m + (1 - b1) * g;    v <- b2 * v + (1 - b2) * g^2
        w <- w - (learning_rate * learn_rate_factor) * (sqrt(1 - b2^t) / (1 - b1^t)) * m / (sqrt(v) + epsilon)

    The arguments are those of `sgdm`; `b1`, `b2` are MATLAB's GradientDecayFactor and SquaredGradientDecayFactor.
    """

    def step(g, rate, count, m, v):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * _squared(g)
        t = (count + 1).astype(jnp.promote_types(g.dtype, jnp.float32))
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        return _Step(-rate * correction * m / (jnp.sqrt(v) + epsilon), (m, v))

    return _solver(step, 2, learning_rate, l2, factors, gradient_threshold, gradient_threshold_method)


@translating
def piecewise(initial_learn_rate: float, *, steps_per_epoch: int, drop_factor: float = 0.1, drop_period: int = 10) -> Schedule:
    """MATLAB's schedule `'piecewise'`: times `drop_factor` every `drop_period` epochs. An optax schedule of the step."""
    if steps_per_epoch < 1 or drop_period < 1:
        raise ValueError(
            f"`steps_per_epoch` and `drop_period` must be at least 1, got {steps_per_epoch} and {drop_period}. "
            "Values that work: the batches of an epoch, and 10."
        )
    return mixing_types(lambda count: initial_learn_rate * drop_factor ** (count // (steps_per_epoch * drop_period)))


_COMMON = {
    "initial_learn_rate": "learning_rate",
    "l2_regularization": "l2",
    "gradient_threshold": "gradient_threshold",
    "gradient_threshold_method": "gradient_threshold_method",
}
_SOLVERS: dict[str, tuple[Callable, float, dict[str, str]]] = {
    "sgdm": (sgdm, 0.01, {"momentum": "momentum"}),
    "rmsprop": (rmsprop, 0.001, {"squared_gradient_decay_factor": "decay", "epsilon": "epsilon"}),
    "adam": (adam, 0.001, {"gradient_decay_factor": "b1", "squared_gradient_decay_factor": "b2", "epsilon": "epsilon"}),
}
_SCHEDULE = ("learn_rate_schedule", "learn_rate_drop_factor", "learn_rate_drop_period")


def training_options(
    solver: Solver, *, factors: Factors | None = None, steps_per_epoch: int | None = None, **options: Any
) -> optax.GradientTransformation:
    """A solver from the option names of MATLAB's `trainingOptions`, in snake case.

    >>> tx = training_options(
    ...     "adam", initial_learn_rate=1e-3, l2_regularization=1e-4, gradient_threshold=1.0
    ... )

    Args:
      solver: "sgdm", "rmsprop" or "adam".
      factors: as in `sgdm`.
      steps_per_epoch: the batches of an epoch; needed by `learn_rate_schedule="piecewise"`, which counts epochs.
      options: `initial_learn_rate`, `learn_rate_schedule` ("none" or "piecewise"), `learn_rate_drop_factor`,
        `learn_rate_drop_period`, `l2_regularization`, `gradient_threshold` (also infinite), `gradient_threshold_method`, and
        per solver `momentum`, `gradient_decay_factor`, `squared_gradient_decay_factor`, `epsilon`. Defaults are MATLAB's.

    Raises:
      ValueError, TypeError: for an unknown name, with the nearest one; for a name of `trainingOptions` that belongs to the
        training loop, with what to write there.
    """
    if solver not in _SOLVERS:
        near = did_you_mean(solver, _SOLVERS, _SOLVER_ALIASES) if isinstance(solver, str) else ""
        others = "" if near else " Other solvers are optax's, with gconv.optim.add_l2 and scale_by_learn_rate_factors around."
        raise ValueError(f"`solver` must be one of {', '.join(map(repr, _SOLVERS))}, got {solver!r}.{near}{others}")
    make, rate, own = _SOLVERS[solver]
    names = _COMMON | own
    for name, value in options.items():
        if name not in names and name not in _SCHEDULE:
            raise ValueError(_no_option(solver, name, value, [*names, *_SCHEDULE, "factors", "steps_per_epoch"]))
    rate = options.pop("initial_learn_rate", rate)
    schedule = options.pop("learn_rate_schedule", "none")
    drops = {name.removeprefix("learn_rate_"): options.pop(name) for name in _SCHEDULE[1:] if name in options}
    if schedule == "none" and drops:
        given = ", ".join(f"learn_rate_{name}" for name in drops)
        raise ValueError(f'{given} has no effect without learn_rate_schedule="piecewise".')
    if schedule not in ("none", "piecewise"):
        near = did_you_mean(schedule, ("none", "piecewise"), {"constant": "none", "step": "piecewise"})
        others = near or ' Others are optax\'s: gconv.optim.adam(optax.cosine_decay_schedule(...)).'
        raise ValueError(f'`learn_rate_schedule` must be "none" or "piecewise", got {schedule!r}.{others}')
    if schedule == "piecewise" and steps_per_epoch is None:
        raise ValueError('`steps_per_epoch` must be given with learn_rate_schedule="piecewise", which counts epochs.')
    learning_rate = piecewise(rate, steps_per_epoch=steps_per_epoch or 1, **drops) if schedule == "piecewise" else rate
    return make(learning_rate, factors=factors, **{names[name]: value for name, value in options.items()})


_METHOD_ALIASES = {
    **dict.fromkeys(("norm", "l2", "l2_norm"), "l2norm"),
    **dict.fromkeys(("global", "global_l2norm", "global-norm", "globall2norm"), "global-l2norm"),
    **dict.fromkeys(("value", "absolute_value", "clip"), "absolute-value"),
}
_SOLVER_ALIASES = {**dict.fromkeys(("sgd", "momentum", "gd"), "sgdm"), "adamw": "adam", "rms": "rmsprop"}
# Names of `trainingOptions` that belong to the loop -> what to write there.
_OF_THE_LOOP = {
    "maxepochs": "for epoch in range({value}): ...",
    "minibatchsize": "take batches of {value} images from the data",
    "shuffle": "order = jax.random.permutation(key, images) at the start of every epoch",
    **dict.fromkeys(("plots", "verbose", "verbosefrequency", "metrics"), "print or plot what the loop computes"),
    **dict.fromkeys(("validationdata", "validationfrequency", "validationpatience"), "evaluate in the loop, and stop it"),
    **dict.fromkeys(("outputfcn", "objectivemetricname"), "call it in the loop"),
    **dict.fromkeys(("executionenvironment", "acceleration", "preprocessingenvironment"), "jax.default_device says where"),
    **dict.fromkeys(("workerload", "dispatchinbackground"), "gconv.natural_specs splits a model over devices"),
    **dict.fromkeys(("checkpointpath", "checkpointfrequency", "checkpointfrequencyunit"), "save in the loop, as by orbax"),
    **dict.fromkeys(("outputnetwork",), "keep the best model in the loop"),
    **dict.fromkeys(("batchnormalizationstatistics", "resetinputnormalization"), "flax.nnx.BatchNorm has the statistics"),
    **dict.fromkeys(("sequencelength", "sequencepaddingvalue", "sequencepaddingdirection"), "pad the data to one length"),
    **dict.fromkeys(("inputdataformats", "targetdataformats"), "arrays are (batch, *spatial, channels)"),
}


def _no_option(solver: str, name: str, value, known: list[str]) -> str:
    plain = normalized(name)
    if plain in _OF_THE_LOOP:
        here = _OF_THE_LOOP[plain].format(value=value if isinstance(value, int) else "n")
        return (
            f"`{name}` belongs to the training loop, which is yours here: {here}. "
            f"docs/guides/matlab-training-loop.md shows one. Options of the solver: {', '.join(known)}."
        )
    near = next((k for k in known if normalized(k) == plain), None)
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
    others = [s for s, (_, _, own) in _SOLVERS.items() if name in own]
    of_others = f" It is one of {' and '.join(map(repr, others))}." if others else ""
    return f"{name!r} is no option of {solver!r}.{of_others} The nearest: {near!r}. All: {', '.join(known)}."


# ---------------------------------------------------------------------------------------------------------------------


def _solver(step, moments: int, learning_rate, l2, factors: Factors | None, threshold, method: str):
    """`step(g, rate, count, *moments) -> (update, new moments)` for one parameter as the transformation of a tree."""
    if factors is not None:
        check_factors("factors", factors)
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate, 0.01)
    check_number("l2", l2, 1e-4)
    if method not in THRESHOLDS:
        near = did_you_mean(method, THRESHOLDS, _METHOD_ALIASES) if isinstance(method, str) else ""
        works = near or " A value that works: 'l2norm'."
        known = ", ".join(map(repr, THRESHOLDS))
        raise ValueError(f"`gradient_threshold_method` must be one of {known}, got {method!r}.{works}")
    if threshold is not None:
        check_number("gradient_threshold", threshold, 1.0)
    if isinstance(threshold, (int, float)) and not threshold > 0:
        raise ValueError(f"`gradient_threshold` must be positive or None, got {threshold}. A value that works: 1.0.")
    known_number = isinstance(threshold, (int, float))  # and not a traced hyperparameter
    clip = [] if threshold is None or known_number and threshold == math.inf else [THRESHOLDS[method](threshold)]

    def whole(tree) -> optax.GradientTransformation:
        known = default_factors(tree) if factors is None else factors
        solve = optax.chain(add_l2(l2, known), *clip, _per_parameter(step, moments, learning_rate, known))
        return freeze_zero_factors(solve, known)

    def init(params):
        if factors is None:
            _refuse_declared(params)
        return whole(params).init(params)

    @mixing_types
    def update(updates, state, params=None):
        return whole(updates).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _per_parameter(step, moments: int, learning_rate, factors: Factors) -> optax.GradientTransformation:
    def init(params):
        zeros = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(moments))
        return SolverState(jnp.zeros((), jnp.int32), zeros)

    def update(updates, state, params=None):
        del params
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        results = map_by_path(
            lambda g, factor, *m: step(g, rate * factor, state.step, *m), factors.learn_rate, updates, *state.moments
        )
        new = jax.tree.map(lambda g, r: r.update.astype(g.dtype), updates, results)
        kept = tuple(
            jax.tree.map(lambda r, old, i=i: r.moments[i].astype(old.dtype), results, m) for i, m in enumerate(state.moments)
        )
        return new, SolverState(optax.safe_increment(state.step), kept)

    return optax.GradientTransformation(init, update)


def _squared(g: jax.Array) -> jax.Array:
    return jnp.real(g * jnp.conj(g)) if jnp.iscomplexobj(g) else g * g


def _refuse_declared(params) -> None:
    """Factors that a model declares must not be lost because nobody passed them on."""
    for path, declared in declared_factors_of(params).items():
        expected = default_factor(path)
        if declared.learn_rate not in (None, expected.learn_rate) or declared.l2 not in (None, expected.l2):
            raise ValueError(f"the parameter {path!r} declares {declared}: pass factors=gconv.optim.factors(model).")
