"""Linear layers after `gconv.accelerate`: matrix products as convolutions whose window is one pixel, or XLA's own."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from foreign import normal
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gconv
from gconv import native
from gconv.acceleration.linear import dot_general

built = pytest.mark.skipif(native.load()[1] is not None, reason=f"native: {native.load()[1]}")
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2, "float16": 2e-3}  # of the largest number, against float64

# Of x and the matrix, and how many axes are summed over: every rank, parts of vectors, several axes of features.
SHAPES = (
    ((131, 24), (24, 33), 1),
    ((3, 47, 30), (30, 50), 1),
    ((2, 7, 11, 65), (65, 17), 1),
    ((2, 2, 3, 13, 40), (40, 40), 1),
    ((2, 1, 2, 2, 5, 7, 31), (31, 19), 1),
    ((2, 70, 4, 6), (4, 6, 3, 8), 2),
    ((140, 9), (9, 2, 5), 1),
)


def numbers_of(shape, matrix, count):
    """The dimension numbers with which layers sum over `count` axes."""
    return (tuple(range(len(shape) - count, len(shape))), tuple(range(count))), ((), ())


def array(seed, *shape, dtype="float32"):
    return jnp.asarray(normal(seed, *shape), dtype)


def convolutions(function, *args) -> int:
    return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")


def close(got, want, dtype):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * np.abs(want).max())


@built
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape, matrix, count", SHAPES)
def test_products_and_gradients_are_those_of_float64(shape, matrix, count, dtype):
    x, w = array(0, *shape, dtype=dtype), array(1, *matrix, dtype=dtype)
    g = array(2, *shape[:-count], *matrix[count:], dtype=dtype)
    product = lambda x, w: dot_general(x, w, numbers_of(shape, matrix, count))
    assert convolutions(product, x, w) == 1

    @jax.jit
    def all_three(x, w, g):
        y, pullback = jax.vjp(product, x, w)
        return y, *pullback(g)

    of_x, of_w, of_g = (np.asarray(a, np.float64) for a in (x, w, g))
    rows, sums = int(np.prod(shape[:-count])), int(np.prod(matrix[:count]))
    of_x, of_w, of_g = of_x.reshape(rows, sums), of_w.reshape(sums, -1), of_g.reshape(rows, -1)
    want = (of_x @ of_w).reshape(g.shape), (of_g @ of_w.T).reshape(shape), (of_x.T @ of_g).reshape(matrix)
    for got, expected in zip(all_three(x, w, g), want, strict=True):
        assert got.dtype == dtype
        close(got, expected, dtype)


LEFT = {
    "few rows": (lambda: (array(0, 100, 24), array(1, 24, 33)), {}),
    "few columns": (lambda: (array(0, 200, 24), array(1, 24, 7)), {}),
    "a large matrix in float32": (lambda: (array(0, 200, 300), array(1, 300, 300)), {}),
    "integers": (lambda: (array(0, 200, 24, dtype="int32"), array(1, 24, 33, dtype="int32")), {}),
    "another result": (
        lambda: (array(0, 200, 24, dtype="bfloat16"), array(1, 24, 33, dtype="bfloat16")),
        {"preferred_element_type": jnp.float32},
    ),
    "two types": (lambda: (array(0, 200, 24, dtype="bfloat16"), array(1, 24, 33)), {}),
    "no channels": (lambda: (array(0, 200, 0), array(1, 0, 33)), {}),
    "no rows": (lambda: (array(0, 0, 24), array(1, 24, 33)), {}),
    "a vector": (lambda: (array(0, 24), array(1, 24, 33)), {}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_stays_a_matrix_product(name):
    make, options = LEFT[name]
    x, w = make()
    numbers = numbers_of(x.shape, w.shape, 1)
    ours, theirs = (partial(f, dimension_numbers=numbers, **options) for f in (dot_general, lax.dot_general))
    assert convolutions(ours, x, w) == 0
    got, want = ours(x, w), theirs(x, w)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "numbers",
    [
        (((0,), (0,)), ((), ())),
        (((1,), (1,)), ((), ())),
        (((1,), (1,)), ((0,), (0,))),
        (((1,), (0,)), ((0,), (1,))),
        (((), ()), ((), ())),
    ],
    ids=("first axis", "transposed", "batched", "batched, the last axis and the first", "outer"),
)
def test_other_sums_stay_matrix_products(numbers):
    x, w = (array(i, 130, 130, dtype="bfloat16") for i in (0, 1))
    product = lambda f: jax.jit(lambda x, w: f(x, w, numbers))
    assert convolutions(product(dot_general), x, w) == 0
    np.testing.assert_array_equal(product(dot_general)(x, w), product(lax.dot_general)(x, w))


# --- layers ----------------------------------------------------------------------------------------------------------


class Mixer(nnx.Module):
    """A linear layer in half precision, an attention, and a head of few rows."""

    def __init__(self, rngs, dtype="bfloat16"):
        self.first = nnx.Linear(12, 16, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, 16, decode=False, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(16, 10, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(nnx.relu(self.first(x))).mean(1))


def both(dtype="bfloat16"):
    theirs, ours = Mixer(nnx.Rngs(0), dtype), Mixer(nnx.Rngs(0), dtype)
    return theirs, ours, gconv.accelerate(ours)


@pytest.mark.usefixtures("lenient")
def test_layers_are_changed_in_place_and_say_so():
    theirs, ours, done = both()
    assert str(done).startswith("6 of 6 linear layers take gconv's path")
    assert done.changed["first"] == "Linear, 12 -> 16 features" and len(done.linears) == 6
    assert done.changed["attention/out"] == "LinearGeneral, (2, 8) -> (16,) features"
    again = gconv.accelerate(ours)
    assert not again.changed and again.unchanged["first"] == "computes by gconv already"
    x = array(3, 3, 50, 12)
    close(ours(x), theirs(x), "bfloat16")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(ours), nnx.state(theirs))


def test_what_has_a_function_of_its_own_is_left():
    class Doubled(nnx.Linear):
        def __call__(self, inputs):
            return 2 * super().__call__(inputs)

    own = partial(lax.dot_general)
    layers = [
        nnx.Linear(8, 8, dot_general=own, rngs=nnx.Rngs(0)),
        nnx.LinearGeneral(8, 8, dot_general_cls=lambda: own, rngs=nnx.Rngs(0)),
        Doubled(8, 8, rngs=nnx.Rngs(0)),
    ]
    done = gconv.accelerate(nnx.Sequential(*layers))
    assert done.unchanged["layers/0"].startswith("has a dot_general of its own: functools.partial")
    assert done.unchanged["layers/1"].startswith("has a dot_general_cls of its own: <function")
    assert done.uncertain == {"layers/2": "Doubled, 8 -> 8 features"}
    x = array(0, 200, 8)
    np.testing.assert_allclose(layers[2](x), 2 * (x @ layers[2].kernel[...]), atol=1e-5)
    assert convolutions(layers[2], x) == (native.load()[1] is None)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))  # of float16 JAX has no attention on CPU
def test_a_step_is_the_same(dtype):
    """Forward and all gradients; in half precision both are rounded at their own places."""
    x = array(3, 3, 50, 12)
    loss = lambda model, x: (model(x).astype(jnp.float32) ** 2).sum()
    got, want = (nnx.jit(nnx.value_and_grad(loss))(model, x) for model in both(dtype)[:2][::-1])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = max(np.abs(b).max(), 1e-2 * float(want[0]))
        np.testing.assert_allclose(a, b, rtol=0, atol=(1e-5 if dtype == "float32" else 0.05) * scale)


# --- modes -----------------------------------------------------------------------------------------------------------

PLAIN = numbers_of((200, 24), (24, 40), 1)
TRANSFORMED = {
    "vmap": lambda f: jax.vmap(f, (0, None)),
    "vmap of both": jax.vmap,
    "jvp": lambda f: lambda x, w: jax.jvp(f, (x, w), (w.sum() * x, w))[1],
    "second order": lambda f: jax.grad(lambda x, w: jax.grad(lambda x, w: jnp.sin(f(x, w)).sum(), 1)(x, w).sum()),
    "remat": lambda f: jax.grad(jax.checkpoint(lambda x, w: jnp.sin(f(x, w)).sum())),
    "scan": lambda f: lambda x, w: lax.scan(lambda c, x: (c, f(x, w)), 0, x)[1],
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name):
    batched = name in ("vmap", "vmap of both", "scan")
    x = array(0, *((3,) if batched else ()), 200, 24)
    w = array(1, *((3,) if name == "vmap of both" else ()), 24, 40)
    run = lambda product: jax.jit(TRANSFORMED[name](lambda x, w: product(x, w, PLAIN)))(x, w)
    want = run(lax.dot_general)
    np.testing.assert_allclose(run(dot_general), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_exported_it_holds_operations_of_xla_only():
    x, w = jax.ShapeDtypeStruct((200, 24), "bfloat16"), jax.ShapeDtypeStruct((24, 40), "bfloat16")
    product = jax.jit(lambda x, w: dot_general(x, w, PLAIN))
    exported = jax.export.export(product, platforms=("cpu", "cuda"))(x, w)
    assert "custom_call" not in exported.mlir_module()
    x, w = array(0, 200, 24, dtype="bfloat16"), array(1, 24, 40, dtype="bfloat16")
    close(jax.export.deserialize(exported.serialize()).call(x, w), product(x, w), "bfloat16")
    (rows,) = jax.export.symbolic_shape("rows")
    exported = jax.export.export(product)(jax.ShapeDtypeStruct((rows, 24), "bfloat16"), w)
    close(exported.call(x, w), product(x, w), "bfloat16")


@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit))
@pytest.mark.parametrize("spec", [("data", None), (None, "model"), ("data", "model")])
def test_on_four_devices(kind, spec):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2, devices=jax.devices()[:4])
    x, w = array(0, 4, 50, 24), array(1, 24, 40)
    put = lambda a, *names: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*names)))
    inputs = put(x, spec[0], None, None), put(w, None, spec[1])
    loss = lambda f: jax.jit(jax.value_and_grad(lambda x, w: (f(x, w, numbers_of(x.shape, w.shape, 1)) ** 2).sum(), (0, 1)))
    with jax.set_mesh(mesh):
        got = loss(dot_general)(*inputs)
    want = loss(lax.dot_general)(x, w)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("switch", [jax.disable_jit, lambda: jax.debug_nans(True), jax.checking_leaks])
def test_switches_of_jax(switch):
    x, w = array(0, 200, 24), array(1, 24, 40)
    with switch():
        got = jax.grad(lambda x, w: dot_general(x, w, PLAIN).sum(), 1)(x, w)
    np.testing.assert_allclose(got, np.broadcast_to(np.asarray(x, np.float64).sum(0)[:, None], w.shape), atol=1e-4)


def test_without_kernels_it_stays_a_matrix_product(monkeypatch):
    monkeypatch.setattr("gconv.backends.native.why_not", lambda *_: "there are none")
    x, w = array(0, 200, 24), array(1, 24, 40)
    assert convolutions(lambda x, w: dot_general(x, w, PLAIN), x, w) == 0
    np.testing.assert_array_equal(dot_general(x, w, PLAIN), lax.dot_general(x, w, PLAIN))


def test_asked_of_a_gpu_it_stays_a_matrix_product(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    x, w = array(0, 200, 24, dtype="bfloat16"), array(1, 24, 40, dtype="bfloat16")
    assert convolutions(lambda x, w: dot_general(x, w, PLAIN), x, w) == 0
