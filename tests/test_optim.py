"""Learn-rate and L2 factors, from the layer to the update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import gconv
from gconv.optim import Factor, add_l2, decayed, factors, frozen, scale_by_learn_rate_factors


class Model(nnx.Module):
    def __init__(self, rngs):
        self.conv = gconv.nnx.GroupedConv(
            4, 3, 1, "channel-wise", kernel_learn_rate_factor=0, bias_learn_rate_factor=2, kernel_l2_factor=0.5, rngs=rngs
        )
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(4, 2, rngs=rngs, kernel_metadata={"learn_rate_factor": 10.0})])

    def __call__(self, x):
        return self.heads[0](self.conv(self.norm(x)).mean((1, 2)))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        conv = gconv.linen.GroupedConv(3, 1, "channel-wise", kernel_learn_rate_factor=0, bias_l2_factor=3, name="conv")
        return nn.Dense(2, name="head")(conv(x).mean((1, 2)))


DECLARED = {
    "conv/bias": (2, 0),
    "conv/kernel": (0, 0.5),
    "heads/0/bias": (1, 0),
    "heads/0/kernel": (10.0, 1),
    "norm/bias": (1, 0),
    "norm/scale": (1, 1),
}


def as_dict(f):
    rows = [row.split() for row in str(f).splitlines()]
    return {path: tuple(float(item.split("=")[1]) for item in items) for path, *items in rows}


def gradients(model, x):
    return nnx.grad(lambda m: (m(x) ** 2).sum())(model)


@pytest.mark.parametrize("view", [lambda m: m, nnx.state, lambda m: nnx.state(m, nnx.Param)], ids=["module", "state", "params"])
def test_factors_of_nnx(view):
    assert as_dict(factors(view(Model(nnx.Rngs(0))))) == DECLARED


def test_factors_of_linen_variables():
    variables = LinenModel().init(jax.random.key(0), jnp.ones((1, 5, 5, 4)))
    expected = {"conv/bias": (1, 3), "conv/kernel": (0, 1), "head/bias": (1, 0), "head/kernel": (1, 1)}
    assert as_dict(factors(variables)) == expected
    jitted = jax.jit(LinenModel().init)(jax.random.key(0), jnp.ones((1, 5, 5, 4)))
    assert as_dict(factors(jitted)) == expected, "factors are static: jit keeps them exact"
    assert jax.tree.structure(factors(variables).l2) == jax.tree.structure(variables["params"])


def test_factors_of_plain_parameters_and_their_defaults():
    params = {"encoder": [{"w": jnp.ones(2), "b": jnp.ones(2)}], "bias": jnp.ones(1)}
    assert as_dict(factors(params)) == {"bias": (1, 0), "encoder/0/b": (1, 0), "encoder/0/w": (1, 1)}
    assert as_dict(factors(params, default=Factor(2, 3)))["bias"] == (2, 3)
    by_path = factors(params, default=lambda path: Factor(0 if path.startswith("encoder") else 1, 1))
    assert as_dict(by_path) == {"bias": (1, 1), "encoder/0/b": (0, 1), "encoder/0/w": (0, 1)}


def test_the_trees_are_ones_that_jax_and_optax_can_use():
    model = Model(nnx.Rngs(0))
    grads = nnx.as_pure(nnx.state(gradients(model, jnp.ones((2, 5, 5, 4))), nnx.Param))
    scaled = jax.tree.map(lambda factor, g: factor * g, factors(model).learn_rate, grads)
    np.testing.assert_array_equal(scaled["heads"][0]["kernel"], 10 * grads["heads"][0]["kernel"])


@pytest.mark.parametrize("solver", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=["sgd", "adam"])
def test_updates_of_nnx_optimizer_against_the_definition(solver):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 4)), jnp.float32)
    model, plain = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    f = factors(model)
    optimizer = nnx.Optimizer(model, optax.chain(add_l2(0.01, f), solver, scale_by_learn_rate_factors(f)), wrt=nnx.Param)
    state = solver.init(nnx.as_pure(nnx.state(plain, nnx.Param)))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, gradients(model, x))

    for _ in range(3):
        step(model, optimizer)
        params = nnx.as_pure(nnx.state(plain, nnx.Param))
        grads = nnx.as_pure(nnx.state(gradients(plain, x), nnx.Param))
        grads = jax.tree.map(lambda g, w, l2: g + 0.01 * l2 * w, grads, params, f.l2)
        updates, state = solver.update(grads, state, params)
        nnx.update(plain, jax.tree.map(lambda w, u, rate: w + rate * u, params, updates, f.learn_rate))
    ours, theirs = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (model, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    untouched = Model(nnx.Rngs(0))
    np.testing.assert_array_equal(model.conv.kernel[...], untouched.conv.kernel[...])
    assert not np.array_equal(model.conv.bias[...], untouched.conv.bias[...])


def test_a_factor_of_zero_freezes_even_where_the_gradient_is_not_finite():
    f = factors({"w": 1.0, "v": 1.0}, default=lambda path: Factor(0 if path == "w" else 1, 0))
    updates, _ = scale_by_learn_rate_factors(f).update({"w": jnp.array([jnp.nan, jnp.inf]), "v": jnp.ones(2)}, ())
    assert updates["w"].tolist() == [0, 0] and updates["v"].tolist() == [1, 1]


def test_masks_for_optax_masked():
    model = Model(nnx.Rngs(0))
    f = factors(model)
    tx = optax.chain(optax.masked(optax.add_decayed_weights(1.0), decayed(f)), optax.masked(optax.set_to_zero(), frozen(f)))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(nnx.state(model, nnx.Param)), params)
    np.testing.assert_array_equal(updates["conv"]["kernel"], 0)
    np.testing.assert_array_equal(updates["heads"][0]["kernel"], params["heads"][0]["kernel"])
    np.testing.assert_array_equal(updates["norm"]["bias"], 0)


def test_transforms_work_inside_optax_masked_and_inject_hyperparams():
    params = {"w": jnp.ones(2), "v": jnp.ones(2)}
    f = factors(params, default=Factor(2, 1))
    tx = optax.masked(scale_by_learn_rate_factors(f), {"w": True, "v": False})
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].tolist() == [2, 2] and updates["v"].tolist() == [1, 1]
    tx = optax.inject_hyperparams(add_l2, static_args="factors")(l2=lambda step: 0.5 * (step + 1), factors=f)
    state = tx.init(params)
    for expected in (1.5, 2.0):
        updates, state = tx.update(params, state, params)
        assert updates["w"].tolist() == [expected] * 2


def test_linen_train_state():
    from flax.training.train_state import TrainState

    model, x = LinenModel(), jnp.ones((2, 5, 5, 4))
    variables = model.init(jax.random.key(0), x)
    f = factors(variables)
    tx = optax.chain(add_l2(1e-2, f), optax.sgd(0.1), scale_by_learn_rate_factors(f))
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    grads = jax.grad(lambda p: (state.apply_fn({"params": p}, x) ** 2).sum())(state.params)
    new = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, grads)
    np.testing.assert_array_equal(new.params["conv"]["kernel"], state.params["conv"]["kernel"])
    expected = state.params["conv"]["bias"] - 0.1 * (grads["conv"]["bias"] + 1e-2 * 3 * state.params["conv"]["bias"])
    np.testing.assert_allclose(new.params["conv"]["bias"], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_are_kept(dtype):
    params = {"w": jnp.ones(3, dtype)}
    f = factors(params, default=Factor(0.3, 0.7))
    for tx in (add_l2(jnp.float32(0.1), f), scale_by_learn_rate_factors(f)):
        updates, _ = jax.jit(tx.update)(params, (), params)
        assert updates["w"].dtype == dtype


def test_a_tree_that_differs_is_named_by_its_first_path():
    f = factors({"a": {"w": jnp.ones(1)}})
    with pytest.raises(ValueError, match="'a/v' that the factors do not have: a/w"):
        scale_by_learn_rate_factors(f).update({"a": {"v": jnp.ones(1), "w": jnp.ones(1)}}, ())
    with pytest.raises(ValueError, match="'a/w' that the tree does not have"):
        scale_by_learn_rate_factors(f).update({"a": {}}, ())
    with pytest.raises(ValueError, match="`params` must be given"):
        add_l2(0.1, f).update({"a": {"w": jnp.ones(1)}}, ())
