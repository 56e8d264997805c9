"""MATLAB's solvers against NumPy loops written from its equations, in float64; and where optax's differ."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gconv
from gconv.optim import Factor, adam, factors, piecewise, rmsprop, sgdm, training_options

STEPS, DROP_AT = 60, 30
# One parameter per combination of factors; shapes differ so that the norms do.
PARAMETERS = {
    f"rate{rate}_l2_{decay}": (rate, decay, (2 + i, 3))
    for i, (rate, decay) in enumerate(itertools.product((0, 0.5, 1, 2), (0, 1, 3)))
}
L2 = 1e-2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """For what is optax's own: its Adam, MultiSteps and inject_hyperparams mix integers with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def gradient(w, step):
    return np.cos(3 * w + 0.1 * step) + 0.5 * w


def rate_at(step):
    return 0.02 if step < DROP_AT else 0.002


def clipped(gradients, method, threshold):
    if method is None:
        return gradients
    if method == "absolute-value":
        return {k: np.clip(g, -threshold, threshold) for k, g in gradients.items()}
    if method == "l2norm":
        return {k: g * min(1, threshold / np.sqrt((g**2).sum())) for k, g in gradients.items()}
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    return {k: g * min(1, threshold / norm) for k, g in gradients.items()}


def numpy_loop(solver, params, method, threshold):
    w = {k: v.copy() for k, v in params.items()}
    m, v = ({k: np.zeros_like(p) for k, p in w.items()} for _ in range(2))
    for step in range(STEPS):
        moving = [k for k in w if PARAMETERS[k][0] != 0]
        g = clipped({k: gradient(w[k], step) + L2 * PARAMETERS[k][1] * w[k] for k in moving}, method, threshold)
        t = step + 1
        for k in moving:
            rate = rate_at(step) * PARAMETERS[k][0]
            if solver == "sgdm":
                v[k] = 0.9 * v[k] - rate * g[k]
                w[k] = w[k] + v[k]
            elif solver == "rmsprop":
                v[k] = 0.9 * v[k] + 0.1 * g[k] ** 2
                w[k] = w[k] - rate * g[k] / (np.sqrt(v[k]) + 1e-8)
            else:
                m[k] = 0.9 * m[k] + (1 - 0.9) * g[k]
                v[k] = 0.999 * v[k] + (1 - 0.999) * g[k] ** 2
                w[k] = w[k] - rate * (np.sqrt(1 - 0.999**t) / (1 - 0.9**t)) * m[k] / (np.sqrt(v[k]) + 1e-8)
    return w


def start():
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=shape) for k, (_, _, shape) in PARAMETERS.items()}


def run(tx, params):
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)

    @jax.jit
    def step(params, state, i):
        grads = jax.tree.map(lambda w: jnp.cos(3 * w + 0.1 * i) + 0.5 * w, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(STEPS):
        params, state = step(params, state, i)
    return params


def declared(params):
    return factors(params, default=lambda path: Factor(*PARAMETERS[path][:2]))


@pytest.mark.parametrize("method, threshold", [(None, None), ("l2norm", 1.0), ("global-l2norm", 2.0), ("absolute-value", 0.4)])
@pytest.mark.parametrize("solver", [sgdm, rmsprop, adam])
def test_sixty_steps_with_a_drop_of_the_rate(solver, method, threshold):
    params = start()
    schedule = piecewise(0.02, steps_per_epoch=3, drop_factor=0.1, drop_period=10)
    options = {} if method is None else dict(gradient_threshold=threshold, gradient_threshold_method=method)
    ours = run(solver(schedule, l2=L2, factors=declared(params), **options), params)
    expected = numpy_loop(solver.__name__, params, method, threshold)
    for path, (rate, _, _) in PARAMETERS.items():
        np.testing.assert_allclose(ours[path], expected[path], rtol=1e-12, atol=1e-12, err_msg=path)
        assert np.array_equal(ours[path], params[path]) == (rate == 0)


@pytest.mark.parametrize("solver, moments", [(sgdm, 1), (rmsprop, 1), (adam, 2)])
def test_frozen_parameters_have_no_state(solver, moments):
    params = jax.tree.map(jnp.asarray, start())
    state = solver(0.1, factors=declared(params)).init(params)
    trained = sum(p.size for k, p in params.items() if PARAMETERS[k][0] != 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == moments * trained


def updates_of(tx, gradients):
    params = {"w": jnp.full(3, 0.5)}
    state, result = tx.init(params), []
    for g in gradients:
        updates, state = tx.update({"w": jnp.asarray(g)}, state, params)
        result.append(np.asarray(updates["w"]))
    return np.stack(result)


GRADIENTS = np.random.default_rng(1).normal(size=(6, 3))
DROPPING = lambda count: 0.1 * 0.1 ** (count // 3)


def test_sgdm_agrees_with_optax_until_the_rate_drops():
    ours, theirs = updates_of(sgdm(DROPPING, l2=0), GRADIENTS), updates_of(optax.sgd(DROPPING, momentum=0.9), GRADIENTS)
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=1e-12)
    # Then MATLAB's velocity still carries the old rate, ten times optax's.
    assert np.linalg.norm(ours[3]) > 3 * np.linalg.norm(theirs[3])


def test_rmsprop_differs_from_optax_in_the_place_of_epsilon():
    options, g = dict(decay=0.9, eps=0.1), GRADIENTS[0]
    ours = updates_of(rmsprop(0.01, l2=0, decay=0.9, epsilon=0.1), GRADIENTS)
    np.testing.assert_allclose(ours, updates_of(optax.rmsprop(0.01, eps_in_sqrt=False, **options), GRADIENTS), rtol=1e-12)
    by_default = updates_of(optax.rmsprop(0.01, **options), GRADIENTS)
    np.testing.assert_allclose(ours[0], -0.01 * g / (np.sqrt(0.1 * g**2) + 0.1), rtol=1e-12)
    np.testing.assert_allclose(by_default[0], -0.01 * g / np.sqrt(0.1 * g**2 + 0.1), rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_adam_differs_from_optax_by_the_correction_of_epsilon():
    tiny = GRADIENTS * 1e-8  # so that epsilon matters
    ours, theirs = updates_of(adam(0.01, l2=0), tiny), updates_of(optax.adam(0.01), tiny)
    assert np.abs(ours[0] / theirs[0]).max() < 0.5
    factor = 1 / np.sqrt(1 - 0.999)  # 31.6: epsilon beside the uncorrected root of the first step
    first = updates_of(optax.adam(0.01, eps=1e-8 * factor), tiny)[0]
    np.testing.assert_allclose(ours[0], first, rtol=1e-12)
    np.testing.assert_allclose(
        updates_of(adam(0.01, l2=0, epsilon=0), GRADIENTS), updates_of(optax.adam(0.01, eps=0), GRADIENTS)
    )


def test_options_by_matlabs_names():
    params = start()
    by_name = training_options(
        "sgdm",
        initial_learn_rate=0.02,
        learn_rate_schedule="piecewise",
        learn_rate_drop_period=10,
        learn_rate_drop_factor=0.1,
        steps_per_epoch=3,
        l2_regularization=L2,
        gradient_threshold=1.0,
        gradient_threshold_method="l2norm",
        momentum=0.9,
        factors=declared(params),
    )
    ours, expected = run(by_name, params), numpy_loop("sgdm", params, "l2norm", 1.0)
    for path in PARAMETERS:
        np.testing.assert_allclose(ours[path], expected[path], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, rate", [("sgdm", 0.01), ("rmsprop", 0.001), ("adam", 0.001)])
def test_defaults_are_matlabs(name, rate):
    params = {"w": jnp.full(3, 0.5)}
    explicit = {"sgdm": sgdm, "rmsprop": rmsprop, "adam": adam}[name](rate, l2=1e-4)
    for tx in (training_options(name), training_options(name, gradient_threshold=float("inf"))):
        ours, _ = tx.update({"w": jnp.ones(3)}, tx.init(params), params)
        theirs, _ = explicit.update({"w": jnp.ones(3)}, explicit.init(params), params)
        np.testing.assert_array_equal(ours["w"], theirs["w"])


def test_wrong_options_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'learning_rate' is no option of 'adam'.*nearest: 'initial_learn_rate'"):
        training_options("adam", learning_rate=0.1)
    with pytest.raises(ValueError, match="'momentum' is no option of 'adam'"):
        training_options("adam", momentum=0.9)
    with pytest.raises(ValueError, match="`solver` must be one of"):
        training_options("lbfgs")
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        training_options("sgdm", learn_rate_schedule="piecewise")
    with pytest.raises(ValueError, match='learn_rate_drop_factor has no effect without learn_rate_schedule="piecewise"'):
        training_options("adam", learn_rate_drop_factor=0.5)
    with pytest.raises(ValueError, match="`gradient_threshold_method` must be one of"):
        sgdm(0.1, gradient_threshold_method="norm")
    with pytest.raises(ValueError, match="`gradient_threshold` must be positive"):
        sgdm(0.1, gradient_threshold=0)


@pytest.mark.usefixtures("standard_promotion")
def test_inside_nnx_optimizer_multisteps_and_hyperparameters():
    layer = gconv.nnx.GroupedConv(4, 3, 1, "channel-wise", kernel_learn_rate_factor=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="'kernel' declares.*factors=gconv.optim.factors"):
        nnx.Optimizer(layer, sgdm(0.1), wrt=nnx.Param)
    f = factors(layer)
    tx = optax.MultiSteps(
        optax.inject_hyperparams(adam, static_args="factors")(learning_rate=0.1, factors=f), every_k_schedule=2
    )
    optimizer = nnx.Optimizer(layer, tx, wrt=nnx.Param)
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    for moved in (False, True):
        optimizer.update(layer, nnx.grad(lambda m: m(jnp.ones((1, 5, 5, 4), jnp.float32)).sum())(layer))
        assert np.array_equal(layer.bias[...], bias) != moved
        np.testing.assert_array_equal(layer.kernel[...], kernel)


@pytest.mark.parametrize("solver", [sgdm, rmsprop, adam])
def test_what_crossed_the_bridge_is_refused_without_factors(solver):
    x = jnp.ones((1, 5, 5, 4), jnp.float32)
    declares = dict(kernel_learn_rate_factor=0)
    linen = nnx.bridge.ToLinen(gconv.nnx.GroupedConv, args=(4, 3, 1, 4), kwargs=declares).init(jax.random.key(0), x)
    bridged = nnx.bridge.ToNNX(gconv.linen.GroupedConv(3, 1, 4, **declares), rngs=nnx.Rngs(0)).lazy_init(x)
    for tree in (linen, linen["params"], nnx.state(bridged)):
        with pytest.raises(ValueError, match="'kernel' declares.*factors=gconv.optim.factors"):
            solver(0.1).init(tree)
    # Defaults need no factors, wherever they come from.
    plain = nnx.bridge.ToLinen(gconv.nnx.GroupedConv, args=(4, 3, 1, 4)).init(jax.random.key(0), x)["params"]
    tx = solver(0.1)
    updates, _ = tx.update(plain, tx.init(plain), plain)
    assert all(leaf.any() for leaf in jax.tree.leaves(updates)[1:])


def test_state_survives_orbax(tmp_path):
    import orbax.checkpoint as ocp

    params = jax.tree.map(jnp.asarray, start())
    tx = adam(0.1, factors=declared(params))
    updates, state = tx.update(params, tx.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("solver", [sgdm, rmsprop, adam])
def test_parameters_may_be_tuples_and_variables_of_any_kind(solver):
    params = [(jnp.ones((3, 3)), jnp.ones(3)), (jnp.ones(2), (jnp.ones(1),))]
    tx = solver(0.1, l2=0)
    updates, _ = tx.update(params, tx.init(params), params)
    flat = {"a": params[0][0], "b": params[0][1], "c": params[1][0], "d": params[1][1][0]}
    expected, _ = tx.update(flat, tx.init(flat), flat)
    for ours, theirs in zip(jax.tree.leaves(updates), expected.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    class Mine(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __init__(self):
            self.w = Mine(jnp.ones(3))

    model = Model()
    optimizer = nnx.Optimizer(model, tx, wrt=Mine)
    optimizer.update(model, nnx.grad(lambda m: (m.w[...] ** 2).sum(), argnums=nnx.DiffState(0, Mine))(model))
    assert (model.w[...] < 1).all()


def test_the_threshold_may_be_an_injected_hyperparameter():
    params = {"w": jnp.full(4, 3.0)}
    tx = optax.inject_hyperparams(sgdm)(learning_rate=0.1, gradient_threshold=1.0, l2=0.0)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
