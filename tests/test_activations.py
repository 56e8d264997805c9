"""The activation of a layer: in both Flax APIs, in what is printed, and in other libraries."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from foreign import normal

import gconv
from gconv import interop
from gconv.fusion import activations
from gconv.typing import ActivationName

X = np.float32(normal(0, 2, 7, 6, 6))
STEEP = partial(jax.nn.leaky_relu, negative_slope=0.3)


def layer(kind="GroupedConv", **options):
    return getattr(gconv.nnx, kind)(6, 3, 4, 2, bias_init="narrow-normal", rngs=nnx.Rngs(0), **options)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ("relu", jax.nn.gelu, STEEP, "mish", jnp.sin))
@pytest.mark.parametrize("kind", ("GroupedConv", "GroupedConvTranspose"))
def test_a_layer_ends_with_its_activation(kind, activation):
    function = activations.parse(activation)
    expected = function(layer(kind)(X))
    made = layer(kind, activation=activation)
    close(made(X), expected)
    plain = layer(kind)
    plain.activation = activation
    close(plain(X), expected)
    plain.activation = None
    close(plain(X), layer(kind)(X))
    module = getattr(gconv.linen, kind)(3, 4, 2, activation=activation)
    close(module.apply({"params": {"kernel": made.kernel[...], "bias": made.bias[...]}}, X), expected)
    assert hash(module) == hash(module.clone())


def test_a_causal_layer():
    conv = gconv.nnx.GroupedConv(6, (4,), 1, "channel-wise", padding="causal", activation="silu", rngs=nnx.Rngs(0))
    y, _ = gconv.causal_conv1d(X[0], conv.kernel[...], conv.bias[...], activation="silu")
    close(conv(X[0]), y)


def test_gradients_and_graph():
    made = layer(activation="silu")
    graph, state = nnx.split(made)
    loss = lambda state, f: (f(nnx.merge(graph, state)(X)) ** 2).sum()
    got = jax.grad(lambda s: loss(s, lambda y: y))(state)
    plain_graph, _ = nnx.split(layer())
    expected = jax.grad(lambda s: (jax.nn.silu(nnx.merge(plain_graph, s)(X)) ** 2).sum())(state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(b).max())


def test_what_is_printed():
    made = layer(activation=jax.nn.relu)
    assert made.activation == "relu" and "activation='relu'" in repr(made.config)
    assert "Activation: 'relu'" in str(made) and "Activation" not in str(layer())
    assert "Activation: leaky_relu(slope=0.3)" in gconv.describe(gconv.linen.GroupedConv(3, 4, 2, activation=STEEP))
    assert layer(activation="swish").activation == layer(activation=jax.nn.silu).activation == "silu"
    assert "activation=sin" in repr(layer(activation=jnp.sin).config)
    assert repr(gconv.linen.GroupedConv(3, 4, 2, activation="relu")).endswith("activation='relu')")
    for activation in ("relu", STEEP, jnp.sin):
        again = gconv.nnx.GroupedConv(6, **layer(activation=activation).config.told(), rngs=nnx.Rngs(0))
        assert again.config.told() == layer(activation=activation).config.told()


def test_every_name_that_type_checkers_know_works_and_no_other():
    names = {*activations.FUNCTIONS, *activations.ALIASES, *activations.OTHERS}
    assert {*ActivationName.__args__} == names
    for name in names:
        assert callable(activations.parse(name))


def test_what_is_wrong_is_named():
    for make in (layer, lambda **o: gconv.linen.GroupedConv(3, 4, 2, **o)):
        with pytest.raises(ValueError, match='Did you mean "relu"'):
            make(activation="rely")
        with pytest.raises(TypeError, match="a function without parameters, got PReLU.*nnx.Sequential"):
            make(activation=nnx.PReLU())
    made = layer()
    with pytest.raises(ValueError, match="`activation` must be None, a name or a function"):
        made.activation = 3


# --- other libraries -------------------------------------------------------------------------------------------------


def test_a_convolution_keeps_it():
    found = interop.from_gconv(layer(activation=STEEP))
    close(found(X), layer(activation=STEEP)(X))
    close(found.to_nnx()(X), found(X))
    module, variables = found.to_linen()
    close(module.apply(variables, X), found(X))
    assert interop.from_arrays(np.ones((3, 3, 4)), groups=1, activation="relu").config.activation == "relu"


WITHOUT = {
    "Flax": interop.to_flax,
    "PyTorch": interop.to_torch,
    "Equinox": interop.to_equinox,
    "Haiku": interop.to_haiku,
    "ONNX": interop.to_onnx,
    "MATLAB": interop.to_matlab,
}
NEEDS = {"PyTorch": "torch", "Equinox": "equinox", "ONNX": "onnx"}


@pytest.mark.parametrize("library", WITHOUT)
def test_libraries_whose_convolutions_have_none(library):
    if library in NEEDS:
        pytest.importorskip(NEEDS[library])
    with pytest.raises(ValueError, match=f"{library} has no `activation`.*'relu'.*layer.activation = None"):
        WITHOUT[library](layer(activation="relu"))


def test_flax_linen_modules_that_wrap_it():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return gconv.linen.GroupedConv(3, 4, 2, activation="gelu", name="conv")(x)

    variables = Block().init(jax.random.key(0), X)
    plain = gconv.linen.GroupedConv(3, 4, 2)
    close(Block().apply(variables, X), jax.nn.gelu(plain.apply({"params": variables["params"]["conv"]}, X)))
