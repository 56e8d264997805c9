"""`gconv.fuse(model, frozen=True)`: the model's arrays are constants of the compiled program."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Barrier

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from foreign import normal
from jax.experimental.serialize_executable import deserialize_and_load, serialize

import gconv
from gconv import native
from gconv.backends.native import kernels, y
from gconv.fusion import arguments
from gconv.geometry import geometry

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


# --- kernels that are packed once --------------------------------------------------------------------------------------------

needs_kernels = pytest.mark.skipif(native.load()[0] is None, reason=str(native.load()[1]))


def packed_once(text: str) -> tuple[int, int]:
    """How many convolutions of a compiled program pack their kernel once, and how many at each call."""
    return tuple(text.count(f'custom_call_target="{target}"') for target in (native.FROZEN_TARGET, native.TARGET))


def conv_relu(x, kernel, groups=2, **options):
    return jax.nn.relu(gconv.grouped_conv(x, kernel, groups=groups, padding="same", **options))


@needs_kernels
def test_kernels_are_packed_once_if_nothing_but_constants_enters_them():
    x, kernel = images(), jnp.asarray(normal(1, 3, 3, C // 2, C), "float32")
    once = (
        (gconv.fuse(trained(), frozen=True), x),
        (gconv.fuse(lambda x: conv_relu(x, kernel)), x),
        (gconv.fuse(lambda x: conv_relu(x, jnp.flip(kernel, 0) * jnp.exp(kernel))), x),
        (gconv.fuse(lambda x: conv_relu(x.astype("bfloat16"), kernel.astype("bfloat16"))), x),
    )
    for fused, *args in once:
        assert packed_once(compiled(fused, *args)) == (1, 0)
    always = (
        (gconv.fuse(trained()), x),
        (gconv.fuse(conv_relu), x, kernel),
        (gconv.fuse(lambda x: conv_relu(x, kernel * x[0, 0, 0, 0])), x),
        (gconv.fuse(lambda s, x: conv_relu(x, kernel * s)), jnp.float32(2), x),
    )
    for fused, *args in always:
        assert packed_once(compiled(fused, *args)) == (0, 1)
    # To whoever compiles it, this kernel is an argument.
    inner = jax.jit(lambda kernel, x: gconv.fuse(lambda x: conv_relu(x, kernel))(x))
    assert packed_once(inner.lower(kernel, x).compile().as_text()) == (0, 1)


NETWORKS = {  # kernel's shape, groups, options
    "matrix": ((1, 1, C, 40), 1, {}),
    "winograd or wide": ((3, 3, 16, 32), 1, {}),
    "strides": ((3, 3, 16, 48), 1, {"strides": 2}),
    "rows": ((5, 5, 3, 24), 1, {}),
    "narrow": ((3, 3, 2, 12), 4, {}),
    "depthwise": ((3, 3, 1, 20), 20, {}),
}


@needs_kernels
@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", NETWORKS)
def test_every_call_gives_what_the_function_gives(name, dtype, transposed):
    shape, groups, options = NETWORKS[name]
    kernel = jnp.asarray(normal(1, *shape) / np.prod(shape[:3]) ** 0.5, dtype)
    channels = shape[-1] if transposed else shape[2] * groups
    function = gconv.grouped_conv_transpose if transposed else gconv.grouped_conv
    options = {"groups": groups, "padding": "same", "implementation": "native", **options}
    block = lambda x: jax.nn.relu(function(x, kernel, **options) + 1)
    fused = gconv.fuse(block)
    allowed = {"float32": 2e-5, "bfloat16": 3e-2}[dtype]
    for seed in (2, 3):
        x = jnp.asarray(normal(seed, 2, 9, 10, channels), dtype)
        got = fused(x)
        np.testing.assert_allclose(*(np.asarray(a, "float64") for a in (got, block(x))), rtol=allowed, atol=allowed)
        np.testing.assert_array_equal(got, fused(x))
    assert packed_once(compiled(fused, x)) == (1, 0)


@needs_kernels
def test_who_calls_first_at_the_same_time_gets_the_same():
    """JAX lets a program's first call finish before others begin: it does not reach the kernel, which takes long to pack."""
    kernel, x = (jnp.asarray(normal(i, *shape), "float32") for i, shape in ((1, (3, 3, 256, 512)), (2, (1, 8, 8, 256))))
    together = Barrier(4)

    def call(program):
        together.wait()
        return program(True, x)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            fused = gconv.fuse(lambda x: conv_relu(x, kernel, groups=1))
            none = lambda x: jnp.zeros((1, 8, 8, 512))
            program = jax.jit(lambda go, x, f=fused, none=none: jax.lax.cond(go, f, none, x)).lower(True, x).compile()
            assert packed_once(program.as_text()) == (1, 0)
            assert not program(False, x).any()
            first = list(pool.map(call, [program] * 4))
            for result in first:
                np.testing.assert_array_equal(result, program(True, x))
            np.testing.assert_allclose(first[0], conv_relu(x, kernel, groups=1), rtol=1e-4, atol=1e-2)


@needs_kernels
def test_a_program_that_was_stored_packs_when_it_is_loaded():
    kernel, x = jnp.asarray(normal(1, 3, 3, C // 2, C), "float32"), images()
    program = jax.jit(gconv.fuse(lambda x: conv_relu(x, kernel))).lower(x).compile()
    assert packed_once(program.as_text()) == (1, 0)
    loaded = deserialize_and_load(*serialize(program), execution_devices=jax.devices()[:1])
    for n in (1, 2):
        np.testing.assert_array_equal(loaded(n * x), program(n * x))


@needs_kernels
@pytest.mark.parametrize("frozen", (True, False))
def test_a_kernel_that_was_said_not_to_change_and_does_is_packed_again(frozen):
    """As where a program that was traced with constants is evaluated with others."""
    x = jnp.asarray(normal(0, 1, 9, 9, 16), "float32")
    _, facts = geometry(x.shape, (3, 3, 16, 16), padding="same")
    for name, reason in kernels("y", facts, "float32", 1).items():
        if reason is None:
            run = jax.jit(partial(y, geometry=facts, dtype="float32", precision=None, forced=name, frozen=frozen))
            for seed in (1, 2, 1, 3):
                kernel = jnp.asarray(normal(seed, 3, 3, 16, 16), "float32")
                np.testing.assert_allclose(run(x, kernel), gconv.grouped_conv(x, kernel, padding="same"), atol=1e-4)


def test_outside_jit_models_of_one_shape_have_their_own_kernels():
    x, models = images(), [trained() for _ in range(2)]
    models[1].conv.kernel[...] = models[1].conv.kernel[...] * 2 + 1
    with jax.disable_jit():
        for model in (*models, models[0]):
            close(gconv.fuse(model, frozen=True)(x), model(x))
