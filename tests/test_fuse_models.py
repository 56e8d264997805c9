"""`gconv.fuse` of models of every library, with statistics that are not those of a fresh model."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, linen, nnx
from foreign import normal
from test_fuse import close, epilogues

import gconv
from benchmarks.programs import networks
from gconv import native

GATE, SCALE, SHIFT, RESIDUAL = "gate", "scale", "shift", "residual"


def images(*shape):
    return jnp.asarray(normal(7, *(shape or (2, 12, 12, 3))), jnp.float32)


def moved(tree, seed=0):
    """A tree in which vectors, biases and statistics among them, are random numbers around 1."""
    draw = np.random.default_rng(seed)
    other = lambda a: jnp.asarray(draw.uniform(0.5, 1.5, a.shape), a.dtype)
    vector = lambda a: getattr(a, "ndim", 0) == 1 and jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: other(a) if vector(a) else a, tree)


def parts(fused, is_matrix=False) -> Counter:
    return Counter(row.parts for row in fused.report.convolutions if row.is_matrix == is_matrix)


def same(function, *args, expected: dict, products: dict | None = None, tolerance=2e-5):
    """Unfused and fused agree. Convolutions and products, in the report as in the program, take in what is expected."""
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(lambda *args: function(*args))(*args), tolerance)
    products = products or {}
    if native.load()[0] is None:  # without kernels all matrix products stay XLA's
        products = {(): sum(products.values())} if products else {}
    assert (parts(fused), parts(fused, True)) == (expected, products), fused.report
    assert len(epilogues(fused, *args)) == sum(n for given, n in (*expected.items(), *products.items()) if given)
    return fused


# --- NNX -------------------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    """Two convolutions, norms, an activation, dropout and a residual."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), feature_group_count=4, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.other = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.silu(self.norm(self.first(x)))
        return self.dropout(nnx.relu(self.other(self.second(x)) + x))


BLOCK = {(SCALE, SHIFT, "silu"): 1, (SCALE, SHIFT, RESIDUAL, "relu"): 1}


def nnx_block():
    model = Block(nnx.Rngs(0))
    nnx.update(model, moved(nnx.state(model)))
    model.eval()
    return model


def test_an_nnx_model():
    model = nnx_block()
    fused = same(model, images(), expected=BLOCK)
    model.norm.bias[...] += 1  # arrays of a model are arguments, so that what changes is seen
    close(fused(images()), model(images()), 2e-5)
    closure = lambda x: model(x)
    same(closure, images(), expected=BLOCK)


def test_nnx_split_and_merged_and_in_its_jit():
    model = nnx_block()
    graph, state = nnx.split(model)
    same(lambda state, x: nnx.merge(graph, state)(x), state, images(), expected=BLOCK)
    expected = model(images())
    close(nnx.jit(gconv.fuse(lambda model, x: model(x)))(model, images()), expected, 2e-5)
    around = gconv.fuse(nnx.jit(lambda model, x: model(x)))
    close(around(model, images()), expected, 2e-5)
    assert parts(around) == BLOCK


def test_an_nnx_model_in_training_is_refused_and_not_wrong():
    model = nnx_block()
    fused = gconv.fuse(model)
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    model.train()
    with pytest.raises(ValueError, match=r"in place.*model.eval\(\)"):
        fused(images())
    graph, state = nnx.split(model)
    with pytest.raises(errors.TraceContextError):
        gconv.fuse(lambda x: model(x))(images())
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat)))

    def step(state, x):
        model = nnx.merge(graph, state)
        return model(x), nnx.state(model)

    fused = gconv.fuse(step)
    got, expected = fused(state, images()), jax.jit(step)(state, images())
    close(got[0], expected[0], 1e-4)
    statistics = lambda step: jax.tree.leaves(nnx.filter_state(step[1], nnx.BatchStat))
    close(statistics(got), statistics(expected), 1e-4)
    assert len(statistics(got)) == 4
    assert parts(fused) == {(SHIFT,): 1, (): 1}


@pytest.mark.parametrize("layer", ("nnx.Conv", "gconv"))
def test_layers_of_gconv_and_flax_after_surgery(layer):
    rngs = nnx.Rngs(0)
    conv = networks.CONVS[layer](3, 8, 3, padding=1, bias=True, rngs=rngs)
    model = nnx.Sequential(conv, gconv.nnx.BatchNorm(8, activation="relu", use_running_average=True, rngs=rngs))
    nnx.update(model, moved(nnx.state(model)))
    if layer == "nnx.Conv":
        gconv.accelerate(model)
    fused = gconv.fuse(model)
    close(fused(images()), model(images()), 2e-5)
    (row,) = fused.report.convolutions
    assert row.parts[-1] == "relu" and SCALE in row.parts, row


EXPECTED = {
    "mobilenet_v2": {(SCALE, SHIFT, "relu6"): 35, (SCALE, SHIFT, RESIDUAL): 10, (SCALE, SHIFT): 7},
    "efficientnet_b0": {
        (SCALE, SHIFT, "silu"): 33,
        (SHIFT, "silu"): 16,
        (SHIFT, "sigmoid"): 16,
        (GATE, SCALE, SHIFT, RESIDUAL): 6,
        (GATE, SCALE, SHIFT): 5,
        (SCALE, SHIFT, RESIDUAL): 3,  # the last stages have a single pixel
        (SCALE, SHIFT): 2,
    },
    "resnext50_32x4d": {(SCALE, SHIFT, "relu"): 33, (SCALE, SHIFT, RESIDUAL, "relu"): 16, (SCALE, SHIFT): 4},
    "convnext_t": {(SHIFT,): 22},
    "regnetx_400mf": {(SCALE, SHIFT, "relu"): 45, (SCALE, SHIFT, RESIDUAL, "relu"): 22, (SCALE, SHIFT): 4},
    "mamba": {(SHIFT, "silu"): 1},
}
# In images of 32 x 32 the products of ConvNeXt's first two stages have enough rows, and no network's head has.
PRODUCTS = dict.fromkeys(EXPECTED, {(): 1}) | {
    "convnext_t": {(SHIFT, "gelu_exact"): 6, (SCALE, SHIFT, RESIDUAL): 6, (): 25},
    "mamba": {(): 2},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_networks(name, lenient):
    """What is taken in, of a program that is only traced. `test_benchmark_models` compares the numbers."""
    model = nnx.eval_shape(lambda: networks.NETWORKS[name](networks.flax_layer, rngs=nnx.Rngs(0)))
    model.eval()
    graph, state = nnx.split(model)
    fused = gconv.fuse(lambda state, x: nnx.merge(graph, state)(x))
    x = jax.ShapeDtypeStruct(networks.input_shape(name, 2, 32), "float32")
    count = len(epilogues(fused, state, x))
    products = PRODUCTS[name] if native.load()[1] is None else {(): sum(PRODUCTS[name].values())}
    assert (parts(fused), parts(fused, True)) == (EXPECTED[name], products), fused.report
    assert count == sum(n for given, n in (*EXPECTED[name].items(), *products.items()) if given)


# --- Linen, Haiku, Equinox, Keras ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_linen(dtype, lenient):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            options = {"dtype": dtype, "param_dtype": "float32"}
            y = linen.Conv(8, (3, 3), **options)(x)
            y = linen.gelu(linen.BatchNorm(use_running_average=True, **options)(y))
            z = linen.Conv(8, (3, 3), feature_group_count=8, **options)(y)
            z = linen.hard_swish(linen.BatchNorm(use_running_average=True, **options)(z)) + y
            z = linen.ConvTranspose(4, (2, 2), strides=(2, 2), **options)(z)
            return linen.leaky_relu(z, 0.25)

    variables = moved(Net().init(jax.random.key(0), images()))
    expected = {(SCALE, SHIFT, "gelu"): 1, (SCALE, SHIFT, "hard_silu"): 1, (SHIFT, "leaky_relu"): 1}
    same(Net().apply, variables, images(), expected=expected, tolerance=2e-5 if dtype == "float32" else 5e-2)


def test_haiku(lenient):
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed: pip install dm-haiku")

    def net(x, training):
        y = hk.Conv2D(8, 3)(x)
        y = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(y, training))
        z = hk.BatchNorm(True, True, 0.9)(hk.DepthwiseConv2D(1, 3)(y), training)
        return jax.nn.relu(y + z)

    model = hk.without_apply_rng(hk.transform_with_state(net))
    params, state = model.init(jax.random.key(0), images(), True)
    params, state = moved(params, 1), moved_state(state)
    expected = {(SCALE, SHIFT, "relu"): 1, (SCALE, SHIFT, RESIDUAL, "relu"): 1}
    same(lambda p, s, x: model.apply(p, s, x, False), params, state, images(), expected=expected)
    same(lambda p, s, x: model.apply(p, s, x, True), params, state, images(), expected={(SHIFT,): 2}, tolerance=1e-4)


def moved_state(state):
    """Statistics of Haiku have the shape (1, 1, 1, C)."""
    draw = np.random.default_rng(5)
    return jax.tree.map(lambda a: jnp.asarray(draw.uniform(0.5, 1.5, a.shape), a.dtype) if a.ndim == 4 else a, state)


def test_haiku_resnet(lenient):
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed: pip install dm-haiku")
    model = hk.without_apply_rng(hk.transform_with_state(lambda x: hk.nets.ResNet18(10)(x, is_training=False)))
    warm = hk.without_apply_rng(hk.transform_with_state(lambda x: hk.nets.ResNet18(10)(x, is_training=True)))
    params, state = warm.init(jax.random.key(0), images(2, 32, 32, 3))
    state, x = moved_state(state), images(2, 32, 32, 3)
    expected = {(SCALE, SHIFT, "relu"): 9, (SCALE, SHIFT, RESIDUAL, "relu"): 8, (SCALE, SHIFT): 3}
    same(lambda p, s, x: model.apply(p, s, x)[0], params, state, x, expected=expected, products={(): 1}, tolerance=5e-6)


def test_equinox(lenient):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install equinox")

    class Net(eqx.Module):
        first: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        second: eqx.nn.ConvTranspose2d
        activation: object

        def __init__(self, key):
            keys = jax.random.split(key)
            self.first = eqx.nn.Conv2d(4, 8, 3, padding=1, groups=4, key=keys[0])
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
            self.second = eqx.nn.ConvTranspose2d(8, 4, 2, stride=2, key=keys[1])
            self.activation = jax.nn.relu

        def __call__(self, x, state):
            y, state = self.norm(self.first(x), state)
            return self.activation(self.second(self.activation(y))), state

    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    x = images(2, 4, 6, 6)
    batched = lambda model, state, x: jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
    _, state = eqx.filter_jit(batched)(model, state, x)  # statistics
    model = eqx.nn.inference_mode(moved_model(eqx, model))
    expected = eqx.filter_jit(batched)(model, state, x)[0]
    run = lambda model, state, x: batched(model, state, x)[0]
    fused = gconv.fuse(run)
    for call in (fused, eqx.filter_jit(fused)):
        close(call(model, state, x), expected, 2e-5)
    assert parts(fused) == {(SCALE, SHIFT, "relu"): 1, (SHIFT, "relu"): 1}, fused.report
    training = eqx.nn.inference_mode(model, False)
    got, after = gconv.fuse(batched)(training, state, x)
    wanted, other = eqx.filter_jit(batched)(training, state, x)
    close(got, wanted, 1e-4)
    close(jax.tree.leaves(after), jax.tree.leaves(other), 1e-4)
    alone = eqx.nn.Conv2d(4, 8, 3, key=jax.random.key(1))
    close(gconv.fuse(alone)(x[0]), alone(x[0]), 2e-5)


def moved_model(eqx, model):
    params, static = eqx.partition(model, eqx.is_array)
    return eqx.combine(moved(params), static)


def test_keras(keras, lenient):
    layers = keras.layers
    given = keras.Input((12, 12, 3))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(given)))
    z = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y))
    z = layers.LeakyReLU()(layers.Add()([y, z]))
    z = layers.Conv2DTranspose(4, 3, strides=2, activation="gelu")(layers.Dropout(0.5)(z))
    model = keras.Model(given, z)
    trainable, others = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
    args = (moved(trainable, 1), moved(others, 2), images())
    expected = {(SCALE, SHIFT, "relu6"): 1, (SCALE, SHIFT, RESIDUAL, "leaky_relu"): 1, (SHIFT, "gelu_exact"): 1}
    same(lambda t, o, x: model.stateless_call(t, o, x, training=False)[0], *args, expected=expected)


@pytest.mark.parametrize("fused_first", (True, False))
def test_after_install_the_same(fused_first):
    model = nnx_block()
    expected = model(images())
    fused = gconv.fuse(model)
    if fused_first:
        fused(images())
    gconv.install()
    try:
        close(fused(images()), expected, 2e-5)
        assert parts(fused) == BLOCK
    finally:
        gconv.uninstall()
