"""`SeparableConv` in both Flax APIs: against loops in NumPy, its parts, its training, and Keras both ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from flax import nnx
from foreign import normal

import gconv
from gconv import interop

X = np.float32(normal(0, 3, 9, 8, 4))


def block(**options):
    return gconv.nnx.SeparableConv(4, (3, 2), 6, padding="same", rngs=nnx.Rngs(0), **options)


def relu(v):
    return np.maximum(v, 0)


def normalized(y):
    """By its own statistics: over all axes but the last."""
    axes = tuple(range(y.ndim - 1))
    return (y - y.mean(axes)) / np.sqrt(y.var(axes) + 1e-5)


def by_loops(layer, x, *, strides=(1, 1), norm=(False, False), activation=(None, None)):
    padding = oracle.pairs("same", x.shape[1:-1], (3, 2), strides, (1, 1))
    first = dict(groups=4, strides=strides, pads=padding, dilation=(1, 1))
    second = dict(groups=1, strides=(1, 1), pads=((0, 0), (0, 0)), dilation=(1, 1))
    y = x
    convolutions = (layer.depthwise, first), (layer.pointwise, second)
    for (conv, facts), is_normed, function in zip(convolutions, norm, activation, strict=True):
        y = oracle.conv(y, conv.kernel[...], None if conv.bias is None else conv.bias[...], **facts)
        y = normalized(y) if is_normed else y
        y = y if function is None else function(y)
    return y


@pytest.mark.parametrize("multiplier", (1, 3))
@pytest.mark.parametrize("strides", (1, (2, 3)))
def test_two_convolutions(strides, multiplier):
    layer = block(strides=strides, depth_multiplier=multiplier)
    assert layer.depthwise.kernel.shape == (3, 2, 1, 4 * multiplier)
    assert layer.pointwise.kernel.shape == (1, 1, 4 * multiplier, 6)
    both = (strides,) * 2 if isinstance(strides, int) else strides
    np.testing.assert_allclose(layer(X), by_loops(layer, X, strides=both), rtol=1e-4, atol=1e-5)


NORMED = {
    "none": (None, (False, False)),
    "both": ("batch", (True, True)),
    "first": (("batch", None), (True, False)),
    "last": ((None, "batch"), (False, True)),
}
ACTIVE = {
    "none": (None, (None, None)),
    "both": ("relu", (relu, relu)),
    "last": ((None, jnp.tanh), (None, np.tanh)),
    "first": (("relu", None), (relu, None)),
}


@pytest.mark.parametrize("active", ACTIVE)
@pytest.mark.parametrize("normed", NORMED)
def test_norms_and_activations_stand_where_they_are_asked_for(normed, active):
    norm, norms = NORMED[normed]
    activation, functions = ACTIVE[active]
    layer = block(norm=norm, activation=activation)
    expected = by_loops(layer, X, norm=norms, activation=functions)
    np.testing.assert_allclose(layer(X), expected, rtol=1e-3, atol=1e-4)
    module = gconv.linen.SeparableConv((3, 2), 6, padding="same", norm=norm, activation=activation)
    variables = module.init(jax.random.key(0), X, use_running_average=False)
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, params), "the same names in both"
    y, _ = module.apply(variables | {"params": params}, X, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_biases_are_where_nothing_makes_them_useless():
    def biases(**options):
        layer = block(**options)
        return layer.depthwise.bias is not None, layer.pointwise.bias is not None

    assert biases() == (False, True)
    assert biases(activation="relu") == (True, True)
    assert biases(activation="relu", norm="batch") == (False, False)
    assert biases(norm=("batch", None)) == (False, True)
    assert biases(norm="batch", use_bias=True) == (True, True)
    assert biases(use_bias=(None, False)) == (False, False)


def test_running_statistics():
    layer = block(norm="batch", activation="relu", norm_options={"momentum": 0.0})
    layer(X)
    expected = by_loops(layer, X, norm=(True, True), activation=(relu, relu))
    layer.eval()
    n = X.size // X.shape[-1]
    assert n > 100
    np.testing.assert_allclose(layer(X), expected, rtol=1e-2, atol=1e-3)
    layer.train()
    np.testing.assert_allclose(layer(X, use_running_average=True), layer(X), rtol=1e-2, atol=1e-3)


def test_factors_specs_and_training():
    layer = block(norm="batch", activation="relu", use_bias=True, pointwise_options={"bias_learn_rate_factor": 0})
    factors = gconv.optim.factors(layer)
    chain = optax.chain(optax.sgd(0.1), gconv.optim.scale_by_learn_rate_factors(factors))
    optimizer = nnx.Optimizer(layer, chain, wrt=nnx.Param)
    layer.pointwise.bias[...] = jnp.arange(6.0)
    before = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    target = np.float32(normal(1, 3, 9, 8, 6))

    @nnx.jit
    def step(layer, optimizer):
        loss, gradients = nnx.value_and_grad(lambda layer: ((layer(X) - target) ** 2).mean())(layer)
        optimizer.update(layer, gradients)
        return loss

    losses = [float(step(layer, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    after = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    np.testing.assert_array_equal(after["pointwise"]["bias"], before["pointwise"]["bias"])
    assert not np.array_equal(after["depthwise"]["kernel"], before["depthwise"]["kernel"])
    mesh = jax.sharding.AbstractMesh((2,), ("groups",))
    assert gconv.natural_specs(layer.depthwise, mesh, data=None).kernel[-1] == "groups"
    assert "NumGroups: 4" in gconv.describe(layer.depthwise)
    rows = gconv.explain(layer, X)
    assert rows["depthwise"].flops and rows["pointwise"].flops


def test_1d_and_a_causal_one():
    layer = gconv.nnx.SeparableConv(4, (5,), 6, padding="causal", activation=(None, "silu"), rngs=nnx.Rngs(0))
    x = X[:, 0]
    later = x.copy()
    later[:, 5:] += 1
    assert layer(x).shape == (3, 8, 6)
    np.testing.assert_array_equal(layer(later)[:, :5], layer(x)[:, :5])


WRONG = {
    "norm": ({"norm": "layer"}, ValueError, "`norm` must be None or \"batch\", or a pair of these, got 'layer'"),
    "three": ({"activation": ("relu",) * 3}, ValueError, r"`activation` .*got 3 values. A value that works: \(None, 'relu'\)"),
    "misspelt": ({"activation": "rely"}, ValueError, 'Did you mean "relu"'),
    "options": ({"depthwise_options": 3}, TypeError, "`depthwise_options` must map names of arguments to values, got int"),
    "multiplier": ({"depth_multiplier": 0}, ValueError, "`depth_multiplier` must be at least 1"),
    "argument": ({"stride": 2}, TypeError, "`SeparableConv` has no argument `stride`: here it is `strides`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    wrong, error, message = WRONG[name]
    for make in (functools.partial(gconv.nnx.SeparableConv, 4, rngs=nnx.Rngs(0)), gconv.linen.SeparableConv):
        with pytest.raises(error, match=message):
            make(kernel_size=3, out_features=6, **wrong)


# --- Keras -----------------------------------------------------------------------------------------------------------


KINDS = [
    ("SeparableConv1D", dict(dilation_rate=2, depth_multiplier=2)),
    ("SeparableConv2D", dict(strides=2, activation="gelu")),
    ("SeparableConv2D", dict(depth_multiplier=3, use_bias=False)),
]


@pytest.mark.parametrize("kind, options", KINDS, ids=[f"{k}-{i}" for i, (k, _) in enumerate(KINDS)])
def test_keras_both_ways(keras, kind, options):
    theirs = getattr(keras.layers, kind)(6, 3, padding="same", bias_initializer="random_normal", **options)
    x = X if kind.endswith("2D") else X[:, 0]
    expected = np.asarray(theirs(x))
    found = interop.from_keras(theirs)
    layer = found.to_nnx()
    module, variables = found.to_linen()
    assert isinstance(layer, gconv.nnx.SeparableConv) and isinstance(module, gconv.linen.SeparableConv)
    np.testing.assert_array_equal(layer.pointwise.kernel[...], theirs.pointwise_kernel)
    for y in (found(x), layer(x), module.apply(variables, x)):
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for one in (found, layer, (module, variables), (found.depthwise, found.pointwise)):
        back = interop.to_keras(one)
        assert type(back).__name__ == kind
        np.testing.assert_allclose(back(x), expected, rtol=1e-4, atol=1e-5)


def test_keras_has_no_norms_inside(keras):
    module = gconv.linen.SeparableConv((3, 2), 6, norm="batch")
    variables = module.init(jax.random.key(0), X, use_running_average=False)
    for one in (block(norm="batch"), (module, variables)):
        with pytest.raises(ValueError, match="norm=None would work"):
            interop.to_keras(one)
    with pytest.raises(ValueError, match="without a bias and an activation"):
        interop.to_keras(block(activation="relu", use_bias=(False, True)))
