"""Models of other libraries, unchanged and as a user would write them: a step of each, by lax and with gconv installed.

Haiku's and Keras' come with these libraries. The others are of kinds that the networks beside this file leave out: a U-Net
with transposed convolutions in Linen, a Conformer's convolutions in Equinox, patches by `conv_general_dilated_patches`.
"""

import importlib.util
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax


def _gradient(apply: Callable) -> Callable:
    return jax.jit(jax.value_and_grad(lambda params, *inputs: (apply(params, *inputs) ** 2).mean()))


def haiku_mobilenet(batch: int, size: int):
    import haiku as hk

    net = hk.transform_with_state(lambda x: hk.nets.MobileNetV1(num_classes=100)(x, is_training=True))
    x = jnp.ones((batch, size, size, 3))
    params, state = net.init(jax.random.key(0), x)
    return _gradient(lambda params, x: net.apply(params, state, None, x)[0]), (params, x)


def haiku_resnet(batch: int, size: int):
    import haiku as hk

    net = hk.transform_with_state(lambda x: hk.nets.ResNet18(num_classes=100)(x, is_training=True))
    x = jnp.ones((batch, size, size, 3))
    params, state = net.init(jax.random.key(0), x)
    return _gradient(lambda params, x: net.apply(params, state, None, x)[0]), (params, x)


def keras_mobilenet(batch: int, size: int):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    model = keras.applications.MobileNetV2(input_shape=(size, size, 3), weights=None, classes=100)
    trainable, others = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
    x = jnp.ones((batch, size, size, 3))
    apply = lambda trainable, x: model.stateless_call(trainable, others, x, training=True)[0]
    return _gradient(apply), (trainable, x)


class UNet(nn.Module):
    """Three levels down and up, with transposed convolutions."""

    @nn.compact
    def __call__(self, x):
        kept = []
        for width in (16, 32, 64):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            kept.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(128, (3, 3))(x))
        for width in (64, 32, 16):
            x = nn.ConvTranspose(width, (2, 2), strides=(2, 2))(x)
            x = nn.relu(nn.Conv(width, (3, 3))(jnp.concatenate([x, kept.pop()], -1)))
        return nn.Conv(2, (1, 1))(x)


def linen_unet(batch: int, size: int):
    x = jnp.ones((batch, size, size, 3))
    return _gradient(UNet().apply), (UNet().init(jax.random.key(0), x), x)


def equinox_conformer(batch: int, size: int):
    """The convolutions of a Conformer's block (Gulati et al. 2020): 1 x 1, a gate, 31 taps depthwise, 1 x 1."""
    import equinox as eqx

    keys, width = jax.random.split(jax.random.key(0), 3), 144
    layers = (
        eqx.nn.Conv1d(width, 2 * width, 1, key=keys[0]),
        eqx.nn.Conv1d(width, width, 31, padding="SAME", groups=width, key=keys[1]),
        eqx.nn.Conv1d(width, width, 1, key=keys[2]),
    )
    params, static = eqx.partition(layers, eqx.is_array)

    def apply(params, x):
        widen, depthwise, narrow = eqx.combine(params, static)
        return jax.vmap(lambda x: narrow(jax.nn.silu(depthwise(jax.nn.glu(widen(x), axis=0)))))(x)

    return _gradient(apply), (params, jnp.ones((batch, width, 2 * size)))


def patches(batch: int, size: int):
    """Overlapping patches and a projection of them."""

    def apply(weights, x):
        found = lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return found @ weights

    return _gradient(apply), (jnp.ones((72, 16)), jnp.ones((batch, size, size, 8)))


MODELS = {
    "Haiku, MobileNetV1": (haiku_mobilenet, "haiku"),
    "Haiku, ResNet-18": (haiku_resnet, "haiku"),
    "Keras, MobileNetV2": (keras_mobilenet, "keras"),
    "Linen, a U-Net": (linen_unet, "flax"),
    "Equinox, a Conformer's convolutions": (equinox_conformer, "equinox"),
    "lax, patches": (patches, "jax"),
}


def available() -> dict[str, Callable]:
    return {name: make for name, (make, library) in MODELS.items() if importlib.util.find_spec(library)}


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
