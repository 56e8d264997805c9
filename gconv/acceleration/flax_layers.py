"""Flax's layer that calls lax itself, and so cannot be handed another function: the same layer inside `accelerated`."""

from flax import nnx

from gconv.acceleration.install import accelerated


class ConvTranspose(nnx.ConvTranspose):
    """`flax.nnx.ConvTranspose`, whose convolution is computed by gconv. Nothing else differs, not even the name."""

    __call__ = accelerated(nnx.ConvTranspose.__call__)
