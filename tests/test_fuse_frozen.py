"""`gconv.fuse(model, frozen=True)`: the model's arrays are constants of the compiled program."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from foreign import normal

import gconv
from gconv.fusion import arguments

C = 8


class Block(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(C, C, (3, 3), feature_group_count=2, rngs=rngs)
        self.norm = nnx.BatchNorm(C, rngs=rngs)

    def __call__(self, x, twice=False):
        x = nnx.relu(self.norm(self.conv(x)))
        return self(x) if twice else x


def trained() -> Block:
    """With statistics that are not those of a new norm."""
    model = Block()
    model.norm.mean[...], model.norm.var[...] = jnp.linspace(-1, 1, C), jnp.linspace(0.5, 2, C)
    model.eval()
    return model


def images(n=2):
    return jnp.asarray(normal(0, n, 6, 5, C), "float32")


def compiled(fused, *args) -> str:
    """What a call runs."""
    arrays, rest = arguments.apart((fused._frozen or fused._function, args, {}))
    return fused._compiled.lower(rest, *arrays).compile().as_text()


def close(got, expected):
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=2e-5)


def test_a_call_hands_over_no_arrays_of_the_model_and_computes_nothing_of_a_norm():
    model = trained()
    frozen, others = gconv.fuse(model, frozen=True), gconv.fuse(model)
    entries = [compiled(f, images()).split("ENTRY")[1] for f in (frozen, others)]
    assert [text.count(" parameter(") for text in entries] == [1, 7]
    assert ["rsqrt" in compiled(f, images()) for f in (frozen, others)] == [False, True]


@pytest.mark.parametrize("call", (lambda f, x: f(x), lambda f, x: f(x, twice=True), lambda f, x: jax.jit(f)(x)))
def test_the_results_and_the_report_are_those_of_the_model(call):
    model = trained()
    frozen = gconv.fuse(model, frozen=True)
    for n in (1, 3):
        close(call(frozen, images(n)), call(model, images(n)))
    assert {row.parts for row in frozen.report.convolutions} == {("scale", "shift", "relu")}


def test_later_changes_of_the_model_are_not_seen():
    model = trained()
    frozen, before = gconv.fuse(model, frozen=True), model(images())
    model.conv.kernel[...] = jnp.zeros_like(model.conv.kernel[...])
    for n in (2, 1):  # compiled after the change, both
        close(frozen(images())[:n], before[:n])
    assert not np.allclose(np.asarray(gconv.fuse(model)(images())), np.asarray(before))


@jax.tree_util.register_pytree_node_class
@dataclass
class Scaled:
    """Arrays of NumPy's and a number."""

    kernel: np.ndarray
    factor: float

    def __call__(self, x):
        return jax.nn.relu(gconv.grouped_conv(x, self.kernel, padding="same") * self.factor)

    def tree_flatten(self):
        return (self.kernel, self.factor), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_arrays_that_change_in_place_are_copied():
    model = Scaled(np.array(normal(1, 3, 3, C, C), "float32"), 0.5)
    expected = model(images())
    frozen = gconv.fuse(model, frozen=True)
    model.kernel[:] = 0
    close(frozen(images()), expected)


def test_numbers_stay_of_no_type():
    frozen = gconv.fuse(Scaled(np.zeros((3, 3, C, C), jnp.bfloat16), 0.5), frozen=True)
    assert frozen(images().astype("bfloat16")).dtype == jnp.bfloat16


def test_transformations():
    model = trained()
    frozen, x = gconv.fuse(model, frozen=True), images()
    close(jax.vmap(frozen)(x[:, None]), jax.vmap(model)(x[:, None]))
    gradients = [jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (frozen, model)]
    close(*gradients)
    close(jax.lax.scan(lambda c, x: (c, frozen(x[None])), 0, x)[1][:, 0], model(x))
    exported = jax.export.deserialize(jax.export.export(jax.jit(frozen))(x).serialize())
    close(exported.call(x), model(x))


def test_a_norm_in_training_is_an_error_that_names_what_changes():
    model = trained()
    model.train()
    with pytest.raises(ValueError, match=r"changes function.*norm.*in place"):
        gconv.fuse(model, frozen=True)(images())


def test_what_holds_no_arrays_is_an_error_that_says_what_works():
    variables = (net := linen.Conv(C, (3, 3))).init(jax.random.key(0), images())
    for function in (net.apply, lambda x: x, partial(jnp.add, 1), jax.tree_util.Partial(jnp.sin)):
        with pytest.raises(ValueError, match=r"closes over them, as in gconv.fuse\(lambda x: net.apply\(variables, x\)\)"):
            gconv.fuse(function, frozen=True)
    close(gconv.fuse(lambda x: net.apply(variables, x))(images()), net.apply(variables, images()))
