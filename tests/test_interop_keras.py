"""Keras' convolutions and gconv's layers, both ways, on the same inputs: values and gradients, on Keras' JAX backend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from foreign import assert_same, normal, ours

import gconv
from gconv import interop

SIZES = (9, 8, 7)


LAYERS = [
    ("Conv1D", (6, 3), dict(padding="causal", dilation_rate=2, groups=2)),
    ("Conv2D", (6, (4, 3)), dict(padding="same", strides=(2, 3), groups=2)),
    ("Conv2D", (4, 3), dict(dilation_rate=(2, 1), use_bias=False)),
    ("Conv3D", (4, (2, 3, 2)), dict(padding="same", strides=(1, 2, 1), groups=2)),
    ("DepthwiseConv2D", ((3, 4),), dict(padding="same", strides=2, depth_multiplier=3)),
    ("Conv1DTranspose", (6, 3), dict(strides=3, padding="same", output_padding=2)),
    ("Conv2DTranspose", (6, (2, 3)), dict(strides=(3, 2), padding="valid")),
    ("Conv2DTranspose", (6, (4, 3)), dict(strides=(2, 2), padding="same", use_bias=False)),
    ("Conv2DTranspose", (6, (4, 3)), dict(strides=(3, 2), padding="same", output_padding=(1, 0))),
    ("Conv3DTranspose", (2, (2, 3, 1)), dict(strides=(2, 1, 2), padding="valid", output_padding=(1, 0, 1))),
]


def built(keras, kind, arguments, options, channels=4):
    layer = getattr(keras.layers, kind)(*arguments, **options, bias_initializer="random_normal")
    layer.build((None, *(8,) * layer.rank, channels))
    return layer


def theirs(layer, x) -> tuple[dict, list]:
    """y and the gradient of x; and those of the weights as Keras keeps them."""
    weights = [w.value for w in layer.trainable_variables]

    @jax.jit
    def run(weights, x):
        y, vjp = jax.vjp(lambda w, x: layer.stateless_call(w, layer.non_trainable_variables, x)[0], weights, x)
        return y, *vjp(jnp.ones_like(y))

    y, gradients, dx = run(weights, jnp.asarray(x, jnp.float32))
    return {"y": y, "x": dx}, gradients


def run(layer, x) -> np.ndarray:
    return np.asarray(jax.jit(lambda x: layer.stateless_call(layer.trainable_variables, [], x)[0])(jnp.asarray(x, jnp.float32)))


@pytest.mark.parametrize("kind, arguments, options", LAYERS, ids=[f"{k}-{i}" for i, (k, *_) in enumerate(LAYERS)])
def test_layers(keras, kind, arguments, options):
    layer = built(keras, kind, arguments, options)
    x = normal(0, 2, *SIZES[: layer.rank], 4)
    found = interop.from_keras(layer)
    expected, gradients = theirs(layer, x)
    assert [w.shape for w in layer.trainable_variables] == [g.shape for g in gradients]
    as_parameters = built(keras, kind, arguments, options)
    as_parameters.set_weights(gradients)
    gradients = interop.from_keras(as_parameters)
    expected |= {"w": gradients.kernel} | ({} if gradients.bias is None else {"b": gradients.bias})
    assert_same(ours(found, x), expected)

    back = interop.to_keras(found)
    conv = next(c for c in (back, *getattr(back, "layers", ())) if type(c).__name__ == kind)
    for a, b in zip(conv.trainable_variables, layer.trainable_variables, strict=True):
        np.testing.assert_array_equal(a.value, b.value)
    np.testing.assert_allclose(run(back, x), expected["y"], atol=1e-5)


@pytest.mark.parametrize("kind, options", [("SeparableConv1D", dict(dilation_rate=2)), ("SeparableConv2D", dict(strides=2))])
def test_separable(keras, kind, options):
    layer = built(keras, kind, (6, 3), dict(depth_multiplier=2, **{"padding": "same", **options}))
    x = np.float32(normal(0, 2, *SIZES[: layer.rank], 4))
    depthwise, pointwise = interop.from_keras(layer)
    (expected, gradients), has = theirs(layer, x), (depthwise.kernel, pointwise.kernel, pointwise.bias)

    def both(parameters, x):
        first = interop.Convolution(parameters[0], None, depthwise.config)
        return interop.Convolution(parameters[1], parameters[2], pointwise.config)(first(x))

    y, vjp = jax.vjp(both, has, x)
    ours, dx = vjp(jnp.ones_like(y))
    shaped = [ours[0].reshape(*depthwise.config.window, 4, 2), *ours[1:]]
    got = dict(zip("yxdpb", (y, dx, *shaped), strict=True))
    assert_same(got, expected | dict(zip("dpb", gradients, strict=True)))

    back = interop.to_keras((depthwise, pointwise))
    np.testing.assert_allclose(run(back, x), expected["y"], atol=1e-5)


OURS = [
    ("GroupedConv", (6, 3, 4, 2), dict(strides=2, padding=1)),
    ("GroupedConv", (4, (3,), 2, 4), dict(padding="causal", dilation=2)),
    ("GroupedConvTranspose", (4, (3, 2), 4, 1), dict(strides=(2, 3), padding=[1, 0, 0, 1])),
]


@pytest.mark.parametrize("kind, arguments, options", OURS, ids=[f"{k}-{i}" for i, (k, *_) in enumerate(OURS)])
def test_our_layers_in_keras(keras, kind, arguments, options):
    layer = getattr(gconv.nnx, kind)(*arguments, **options, bias_init="narrow-normal", rngs=nnx.Rngs(0))
    x = np.float32(normal(3, 2, *SIZES[: len(layer.kernel_size)], layer.in_features))
    back = interop.to_keras(layer)
    assert isinstance(back, keras.Sequential)
    np.testing.assert_allclose(run(back, x), layer(x), atol=1e-5)


POLICIES = ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16"]
KINDS = [
    ("Conv2D", (6, 3), dict(padding="same", groups=2)),
    ("DepthwiseConv1D", (3,), dict(padding="same", strides=2)),
    ("Conv2DTranspose", (6, (2, 3)), dict(strides=2, padding="same")),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind, arguments, options", KINDS, ids=[kind for kind, *_ in KINDS])
def test_the_policy_is_dtype_and_param_dtype(keras, kind, arguments, options, policy):
    layer = built(keras, kind, arguments, options | {"dtype": policy})
    x = np.float32(normal(0, 2, *SIZES[: layer.rank], 4))
    found, expected = interop.from_keras(layer), np.asarray(layer(x))  # only `__call__` casts the input by the policy
    assert found.config.dtype == layer.compute_dtype == expected.dtype
    assert found.kernel.dtype == layer.variable_dtype
    made, back = found.to_nnx(), interop.to_keras(found)
    assert (made.dtype, made.param_dtype) == (layer.compute_dtype, layer.variable_dtype)
    for y in (found(x), made(x), np.asarray(back(x))):
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(np.float32(y), np.float32(expected), rtol=3e-2, atol=3e-2)
    conv = next(c for c in (back, *getattr(back, "layers", ())) if type(c).__name__ == kind)
    assert conv.dtype_policy.name == policy
    again = interop.from_keras(conv)
    assert (again.config.dtype, again.kernel.dtype) == (found.config.dtype, found.kernel.dtype)


def test_our_dtype_in_keras(keras):
    x = np.float32(normal(0, 2, 9, 8, 4))
    options = dict(strides=2, padding=[1, 0, 2, 1], dtype=jnp.bfloat16)
    for kind in ("GroupedConv", "GroupedConvTranspose"):
        layer = getattr(gconv.nnx, kind)(4, 3, 4, 1, **options, rngs=nnx.Rngs(0))
        y = np.asarray(interop.to_keras(layer)(x))  # a Sequential, whose padding or cropping keeps the type
        assert y.dtype == layer(x).dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(y), np.float32(layer(x)), rtol=3e-2, atol=3e-2)
    separable = built(keras, "SeparableConv2D", (6, 3), dict(dtype="mixed_bfloat16"))
    assert [found.config.dtype for found in interop.from_keras(separable)] == [jnp.bfloat16] * 2
    assert interop.to_keras(interop.from_keras(separable)).dtype_policy.name == "mixed_bfloat16"
    odd = gconv.nnx.GroupedConv(4, 3, 4, 2, param_dtype=jnp.bfloat16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no policy for `dtype`=float32 with parameters of bfloat16.*work: bfloat16"):
        interop.to_keras(odd)


def test_what_is_wrong_is_named(keras):
    one = np.ones((3, 3, 1, 1))
    wrong = {
        "of keras.layers, got Dense": lambda: interop.from_keras(keras.layers.Dense(3)),
        "no parameters yet": lambda: interop.from_keras(keras.layers.Conv2D(3, 3)),
        "the activation 'softmax'": lambda: interop.from_keras(built(keras, "Conv2D", (3, 3), dict(activation="softmax"))),
        "Keras has no activation sin": lambda: interop.to_keras(interop.from_arrays(one, activation=jnp.sin)),
        "without a bias and an activation": lambda: interop.to_keras(
            (interop.from_arrays(one, activation="relu"), interop.from_arrays(one[:1, :1]))
        ),
        "no `padding_value`='circular'": lambda: interop.to_keras(
            interop.from_arrays(one, padding=1, padding_value="circular")
        ),
        "no strides and dilation together": lambda: interop.to_keras(interop.from_arrays(one, strides=2, dilation=2)),
        "have no groups, the layer has 2": lambda: interop.to_keras(
            interop.from_arrays(np.ones((3, 1, 2)), groups=2, transposed=True)
        ),
        "a SeparableConv is": lambda: interop.to_keras((interop.from_arrays(one, np.ones(1)), interop.from_arrays(one))),
        "spatial=": lambda: interop.to_keras(interop.from_arrays(one, strides=2, padding="same_lower")),
    }
    for message, call in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    relu = built(keras, "Conv2D", (3, 3), dict(activation="relu"))
    assert interop.from_keras(relu, ignore_activation=True).config.activation is None


THEIRS = [
    *("relu", "relu6", "leaky_relu", "sigmoid", "silu", "swish", "hard_sigmoid", "hard_silu", "tanh", "gelu"),
    *("elu", "selu", "celu", "softplus", "softsign", "mish"),
]


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("kind", ("Conv2D", "SeparableConv2D", "DepthwiseConv2D", "Conv2DTranspose"))
def test_activations(keras, kind, name):
    arguments = (3,) if kind == "DepthwiseConv2D" else (6, 3)
    layer = built(keras, kind, arguments, dict(activation=name))
    x = np.float32(normal(0, 2, *SIZES[:2], 4))
    found = interop.from_keras(layer)
    y = found[1](found[0](x)) if kind == "SeparableConv2D" else found(x)
    np.testing.assert_allclose(y, run(layer, x), rtol=1e-4, atol=1e-5)
    back = interop.to_keras(found)
    np.testing.assert_allclose(run(back, x), run(layer, x), rtol=1e-4, atol=1e-5)


def test_activations_with_options(keras):
    x = np.float32(normal(0, 2, 9, 8, 4))
    by_tanh = functools.partial(keras.activations.gelu, approximate=True)
    for theirs, name in (
        (by_tanh, "gelu"),
        (functools.partial(keras.activations.leaky_relu, negative_slope=0.4), None),
        (keras.layers.LeakyReLU(negative_slope=0.3), None),
    ):
        layer = built(keras, "Conv2D", (6, 3), dict(activation=theirs))
        found = interop.from_keras(layer)
        assert name is None or found.config.activation == name
        for again in (found(x), run(interop.to_keras(found), x)):
            np.testing.assert_allclose(again, run(layer, x), rtol=1e-4, atol=1e-5)
