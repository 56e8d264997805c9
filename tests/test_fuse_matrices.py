"""`gconv.fuse` of matrix products, which take in what follows them as convolutions do, or stay XLA's own."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from foreign import normal
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from process import printed_on_any_threads
from test_fuse import TRANSFORMED, close, epilogues, equations, with_a_jvp, with_a_vjp

import gconv
from gconv import native
from gconv.backends import choice
from gconv.backends.problem import Problem
from gconv.fusion import epilogue
from gconv.geometry import geometry

built = pytest.mark.skipif(native.load()[1] is not None, reason=f"native: {native.load()[1]}")
TOLERANCE = 2e-6  # of the largest result: float32 against float64


def array(seed: int, *shape, dtype="float32"):
    return jnp.asarray(normal(seed, *shape), dtype)


def gelu(v):
    return v / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def gelu_exact(v):
    return v / 2 * np.vectorize(math.erfc, [float])(-v / math.sqrt(2))


# JAX's functions, and their definitions in NumPy.
ACTIVATIONS = {
    None: (lambda y: y, lambda v: v),
    "relu": (jax.nn.relu, lambda v: np.maximum(v, 0)),
    "gelu": (jax.nn.gelu, gelu),
    "gelu_exact": (partial(jax.nn.gelu, approximate=False), gelu_exact),
}
# Of x, and how many filters: every rank; parts of vectors and of tiles.
SHAPES = [((37, 24), 33), ((3, 11, 30), 50), ((2, 7, 5, 65), 17), ((2, 2, 3, 5, 96), 40), ((2, 1, 2, 2, 3, 5, 31), 19)]


def block(x, w, b, v, c, gamma):
    """The second half of a block of ConvNeXt."""
    return x + gamma * (jax.nn.gelu(x @ w + b, approximate=False) @ v + c)


PARTS = [("shift", "gelu_exact"), ("scale", "shift", "residual")]


def arguments(*shape):
    """Of `block`: an image of `shape`, and all weights in the rank in which they meet it."""
    channels, along = shape[-1], (1,) * (len(shape) - 1)
    widened, narrowed = (array(2, *along, 4 * channels), array(4, *along, channels))
    w, v = array(1, channels, 4 * channels) / channels**0.5, array(3, 4 * channels, channels) / channels**0.5
    return array(0, *shape), w, widened, v, narrowed, array(5, *along, channels)


def rows(fused) -> list:
    """Of the report, those of matrix products."""
    return [row for row in fused.report.convolutions if row.is_matrix]


def lowered(function, *args, **options) -> str:
    return jax.jit(function).lower(*args, **options).as_text()


def by_kernels(text: str) -> int:
    """How many calls of kernels a lowered program holds."""
    return text.count("stablehlo.custom_call @gconv_grouped_conv")


def is_xlas(text: str) -> bool:
    """Whether a lowered program computes both products of `block` by XLA's operation."""
    return text.count("stablehlo.dot_general") == 2 and "stablehlo.convolution" not in text and not by_kernels(text)


def left(function, *args) -> list[str]:
    """The reasons why a function's matrix products take in nothing; it is the same program."""
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(function)(*args), 0)
    assert not epilogues(fused, *args) and not any(row.parts for row in fused.report.convolutions), fused.report
    return [row.reason for row in rows(fused)]


# --- what is taken in -------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("with_residual", (True, False))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape, filters", SHAPES)
def test_against_numpy(shape, filters, activation, with_residual):
    function, definition = ACTIVATIONS[activation]
    along = (1,) * (len(shape) - 1)
    x, w = array(0, *shape), array(1, shape[-1], filters) / shape[-1] ** 0.5
    b, gamma = array(2, *along, filters), array(3, *along, filters)
    r = array(4, *shape[:-1], filters)
    layer = lambda x, w, b, gamma, r: function((x @ w + b) * gamma + r if with_residual else (x @ w + b) * gamma)
    fused = gconv.fuse(layer)
    got = fused(x, w, b, gamma, r)
    wide = [np.asarray(a, np.float64) for a in (x, w, b, gamma, r)]
    expected = np.zeros((*shape[:-1], filters))
    for pixel in np.ndindex(*shape[:-1]):
        for k in range(filters):
            expected[*pixel, k] = sum(wide[0][*pixel, j] * wide[1][j, k] for j in range(shape[-1]))
    expected = (expected + wide[2]) * wide[3]
    expected = definition(expected + wide[4] if with_residual else expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    parts = ("scale", "shift", *(["residual"] if with_residual else []), *([activation] if activation else []))
    assert [row.parts for row in fused.report.convolutions] == [parts]
    text = lowered(fused, x, w, b, gamma, r)
    assert by_kernels(text) == 1 and "stablehlo.dot_general" not in text


@built
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_in_its_row(activation):
    function, _ = ACTIVATIONS[activation]
    x, w, b = array(0, 40, 33), array(1, 33, 20), array(2, 1, 20)
    x = x.at[3, 5].set(jnp.nan).at[7, 2].set(jnp.inf).at[9, 4].set(-jnp.inf)
    layer = lambda x, w, b: function(x @ w + b)
    fused = gconv.fuse(layer)
    got, expected = np.asarray(fused(x, w, b)), np.asarray(layer(x, w, b))
    assert rows(fused)[0].parts == ("shift", *([activation] if activation else []))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)  # NaN and infinities at the same places
    assert np.isfinite(np.delete(got, (3, 7, 9), 0)).all() and np.isnan(got[3]).all()


@built
def test_a_block_in_the_words_of_the_report():
    args = arguments(2, 7, 5, 16)
    fused = gconv.fuse(lambda *args: jnp.sin(block(*args) @ args[1]))
    close(fused(*args), jnp.sin(block(*args) @ args[1]), 1e-5)
    assert str(fused.report).splitlines() == [
        "2 of 3 matrix products take in what follows them",
        "  y  matrix, 16 -> 64 channels  shift, gelu_exact",
        "  y  matrix, 64 -> 16 channels  scale, shift, residual",
        "  y  matrix, 16 -> 64 channels  nothing: followed by sin",
    ]
    both = gconv.fuse(lambda x, k, w: jax.nn.relu(gconv.grouped_conv(x, k) @ w))
    both(array(0, 2, 7, 5, 16), array(1, 3, 3, 1, 16), array(2, 16, 16))
    assert str(both.report).startswith("0 of 1 convolutions and 1 of 1 matrix products take in what follows them\n")


@built
@pytest.mark.parametrize("frozen", (True, False))
def test_layers_of_nnx(frozen):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.widen, self.narrow = nnx.Linear(12, 48, rngs=rngs), nnx.Linear(48, 12, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return x + self.narrow(nnx.gelu(self.widen(x)))

    model = Block(nnx.Rngs(0))
    model.widen.bias[...] = array(1, 48)
    fused = gconv.fuse(model, frozen=frozen)
    close(fused(array(0, 3, 20, 12)), model(array(0, 3, 20, 12)), 1e-5)
    assert [row.parts for row in fused.report.convolutions] == [("shift", "gelu"), ("residual",)]


@built
def test_layers_of_linen(lenient):
    model = linen.Sequential([linen.Dense(48), linen.gelu, linen.Dense(12), linen.silu])
    x = array(0, 3, 20, 12)
    variables = model.init(jax.random.key(0), x)
    fused = gconv.fuse(model.apply)
    close(fused(variables, x), model.apply(variables, x), 1e-5)
    assert [row.parts for row in fused.report.convolutions] == [("shift", "gelu"), ("shift", "silu")]


@built
def test_what_explain_says_of_a_fused_layer():
    class Layer(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(array(1, 16, 24))

        def __call__(self, x):
            return gconv.fuse(lambda x, w: jax.nn.relu(x @ w))(x, self.kernel[...])

    found = {p: gconv.explain(Layer(), array(0, 40, 16), platform=p)["(the model itself)"] for p in ("cpu", "cuda")}
    assert {platform: layer.implementations for platform, layer in found.items()} == {"cpu": ("native",), "cuda": ("XLA",)}
    assert found["cpu"].flops == 2 * 40 * 16 * 24


MATRICES = {
    "an argument": lambda x, w: x @ w,
    "computed": lambda x, w: x @ (w + w.mean()),
    "transposed": lambda x, w: x @ w.T.T,
    "a constant": lambda x, w: x @ array(1, 16, 16),
    "einsum": lambda x, w: jnp.einsum("nhwc,ck->nhwk", x, w),
    "an axis of the batch more": lambda x, w: (x[None] @ w)[0],
    "the same twice": lambda x, w: jnp.tanh(x @ w) @ w,
    "in a jit": lambda x, w: jax.jit(jnp.matmul)(x, w),
}


@built
@pytest.mark.parametrize("name", MATRICES)
def test_whatever_the_matrix_is(name):
    function = lambda x, w: jax.nn.relu(MATRICES[name](x, w) * 2)
    args = array(0, 2, 7, 5, 16), array(1, 16, 16)
    fused = gconv.fuse(function)
    close(fused(*args), function(*args), 1e-5)
    assert rows(fused)[-1].parts == ("scale", "relu")
    assert by_kernels(lowered(fused, *args)) == len(rows(fused))


@built
def test_loops_and_conditions():
    layer = lambda x, w: jax.nn.relu(x @ w)
    x, ws = array(0, 40, 16), array(1, 3, 16, 16) / 4
    scanned = lambda x, ws: lax.scan(lambda x, w: (layer(x, w), None), x, ws)[0]
    fused = gconv.fuse(scanned)
    close(fused(x, ws), scanned(x, ws), 1e-5)
    assert [row.parts for row in rows(fused)] == [("relu",)] and by_kernels(lowered(fused, x, ws)) == 1


# --- what stays as it is ----------------------------------------------------------------------------------------------


@built
def test_other_readers_and_what_nothing_follows():
    x, w = array(0, 40, 16), array(1, 16, 24)
    assert left(lambda x, w: (y := x @ w, jax.nn.relu(y)), x, w) == ["its result is a result of the function"]
    assert left(lambda x, w: jax.nn.relu(y := x @ w).mean() + y.sum(), x, w) == ["its result has 2 readers"]
    assert left(lambda x, w: x @ w, x, w) == ["its result is a result of the function"]
    assert left(lambda x, w: jax.nn.softmax(x @ w), x, w) == ["its result has 2 readers"]


def test_other_products_are_none_of_its_business():
    x, w = array(0, 3, 40, 16), array(1, 16, 24)
    contracted = lambda a, b, axes, batch=((), ()): lax.dot_general(a, b, (axes, batch))
    assert left(lambda x, w: jax.nn.relu(contracted(x, w.T, ((2,), (1,)))), x, w) == []  # the second axis of the matrix
    assert left(lambda x, w: jax.nn.relu(contracted(w, x, ((0,), (2,)))), x, w) == []  # channels first
    assert left(lambda x, w: jax.nn.relu(contracted(x, x, ((2,), (2,)), ((0,), (0,)))), x, w) == []  # a batch of matrices
    assert left(lambda x, w: jax.nn.relu(contracted(x, x[0].T, ((1, 2), (1, 0)))), x, w) == []  # two axes
    assert left(lambda x, w: jax.nn.relu(contracted(x, w.reshape(16, 4, 6), ((2,), (0,)))), x, w) == []  # no matrix
    assert left(lambda x, w: jax.nn.relu(x[0, 0] @ w), x, w) == []  # a vector


@built
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision(dtype):
    x, w, b = array(0, 3, 50, 30, dtype=dtype), array(1, 30, 24, dtype=dtype), array(2, 1, 1, 24, dtype=dtype)
    layer = lambda x, w, b: jax.nn.gelu(x @ w + b)
    fused = gconv.fuse(layer)
    got = fused(x, w, b)
    x, w, b = (np.asarray(a, np.float64) for a in (x, w, b))
    want = gelu(np.asarray(jnp.asarray(x @ w, dtype), np.float64) + b)  # a sum is rounded before it is finished in float32
    assert got.dtype == dtype and [row.parts for row in rows(fused)] == [("shift", "gelu")]
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=float(jnp.finfo(dtype).eps), atol=1e-4)


@built
def test_other_types(x64):
    x, w = array(0, 400, 16, dtype="float64"), array(1, 16, 24, dtype="float64")
    reason = "matrix products were measured in float32 and half precision, not in float64"
    assert left(lambda x, w: jax.nn.relu(x @ w), x, w) == [reason]


@built
def test_types_that_differ_and_integers():
    x, w = array(0, 40, 16, dtype="bfloat16"), array(1, 16, 24, dtype="bfloat16")
    wider = lambda x, w: jax.nn.relu(jnp.matmul(x, w, preferred_element_type="float32"))
    assert left(wider, x, w) == ["bfloat16 times bfloat16 in float32"]
    mixed = lambda x, w: jax.nn.relu(lax.dot_general(x, w, (((1,), (0,)), ((), ()))))
    assert left(mixed, x.astype("float32"), w) == ["float32 times bfloat16 in float32"]
    assert left(lambda x, w: x @ w + 1, x.astype("int32"), w.astype("int32")) == ["results in int32"]


@built
@pytest.mark.parametrize(
    "rows, sources, results, dtype",
    (
        (15, 64, 64, "float32"),
        (127, 64, 64, "bfloat16"),
        (40, 64, 7, "float32"),
        (40, 3300, 16, "float32"),
        (0, 64, 64, "float32"),
        (40, 0, 64, "float32"),
        (40, 64, 0, "float32"),
    ),
)
def test_what_the_rows_of_the_choice_leave(rows, sources, results, dtype):
    x, w = array(0, rows, sources, dtype=dtype), array(1, sources, results, dtype=dtype)
    problem = Problem("y", geometry((1, 40, 8), (1, 8, 8))[1], jnp.dtype(dtype), "cpu", 1)
    problem = replace(problem, g=replace(problem.g, spatial=(rows,), channels=sources, filters=results))
    row = choice.decide("fused matrix", problem)
    assert not row.takes and left(lambda x, w: jax.nn.relu(x @ w), x, w) == [row.say(problem)]


@built
@pytest.mark.parametrize("rows", (1, 3, 15))
def test_few_rows_of_a_large_matrix_that_is_a_constant(rows):
    x, w, b = array(0, rows, 1000), array(1, 1000, 530) / 1000**0.5, array(2, 1, 530)
    layer = lambda x, w, b: jax.nn.relu(x @ w + b)
    fused = gconv.fuse(lambda x: layer(x, w, b))
    expected = np.maximum(np.float64(x) @ np.float64(w) + np.float64(b), 0)
    for _ in range(2):  # to pack, and packed
        np.testing.assert_allclose(fused(x), expected, rtol=0, atol=TOLERANCE * expected.max())
    assert f"stablehlo.custom_call @{native.FROZEN_TARGET}" in lowered(fused, x)
    assert left(layer, x, w, b) and left(lambda x: layer(x, w[:, :520], b[:, :520]), x)  # an argument; smaller


def test_without_kernels(monkeypatch, tmp_path):
    args = arguments(2, 7, 5, 16)
    native.load.cache_clear()
    try:
        monkeypatch.setattr(native, "__path__", [str(tmp_path)])
        assert [reason.split(":")[:2] for reason in left(block, *args)] == [["native", " it was not built"]] * 2
    finally:
        native.load.cache_clear()


@built
def test_on_another_platform_it_is_xlas_product(monkeypatch):
    args = arguments(2, 7, 5, 16)
    traced = jax.jit(gconv.fuse(block)).trace(*args)
    assert by_kernels(traced.lower(lowering_platforms=("cpu",)).as_text()) == 2
    for platform in ("cuda", "tpu"):
        assert is_xlas(traced.lower(lowering_platforms=(platform,)).as_text())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert left(block, *args) == ["native: its kernels run on CPU, not on 'gpu'"] * 2


# --- options ----------------------------------------------------------------------------------------------------------

HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


@built
@pytest.mark.parametrize("given, kept", ((None, None), ("highest", HIGHEST), (lax.DotAlgorithmPreset.F32_F32_F32,) * 2))
def test_the_precision_is_kept(given, kept):
    x, w = array(0, 40, 16), array(1, 16, 24)
    function = lambda x, w: jax.nn.relu(jnp.matmul(x, w, precision=given))
    fused = gconv.fuse(function)
    close(fused(x, w), function(x, w), 1e-5)
    (params,) = epilogues(fused, x, w)
    assert params["precision"] == kept
    by_lax = jax.make_jaxpr(gconv.interop.as_lax(gconv.fuse(function)))(x, w)
    (dot,) = [e for e in equations(by_lax.jaxpr) if e.primitive is lax.dot_general_p and e.outvars[0].aval.ndim == 3]
    assert dot.params["precision"] == kept and dot.params["preferred_element_type"] == jnp.float32


@built
def test_the_precision_in_force_is_kept():
    x, w = array(0, 40, 16), array(1, 16, 24)
    with jax.default_matmul_precision("highest"):
        (params,) = epilogues(gconv.fuse(lambda x, w: jax.nn.relu(x @ w)), x, w)
    assert params["precision"] == HIGHEST


# --- transformations --------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name):
    transform, several = TRANSFORMED[name]
    x, w, b, v, c, gamma = arguments(2, 7, 5, 16)
    function = lambda x, ws, rest: block(x, ws[0], rest[0], ws[1], *rest[1:])
    args = (array(7, 3, *x.shape) if several else x), (w, v), (b, c, gamma)
    close(transform(gconv.fuse(function))(*args), transform(function)(*args), 1e-5)


@built
def test_mapped_images_and_mapped_weights():
    x, *weights = arguments(2, 7, 5, 16)
    fused, images = gconv.fuse(block), array(7, 3, 2, 7, 5, 16)
    mapped = lambda f: jax.vmap(f, in_axes=(0, *[None] * 5))
    assert by_kernels(lowered(mapped(fused), images, *weights)) == 2
    many = [jnp.stack([a, 2 * a]) for a in weights]
    for axes in ((None, 0, 0, 0, 0, 0), (None, None, 0, None, None, None), (None, None, None, None, None, 0)):
        given = [x, *(both if axis == 0 else one for both, one, axis in zip(many, weights, axes[1:], strict=True))]
        close(jax.vmap(fused, in_axes=axes)(*given), jax.vmap(block, in_axes=axes)(*given), 1e-5)


@built
def test_without_jit_and_with_checks():
    args = arguments(2, 7, 5, 16)
    with jax.disable_jit():
        close(gconv.fuse(block)(*args), block(*args), 1e-5)
    with jax.debug_nans(True), jax.check_tracer_leaks(True):
        close(gconv.fuse(block)(*args), block(*args), 1e-5)


@built
def test_numbers_of_no_type_of_their_own():
    x, w, function = jnp.full((40, 16), 0.5), jnp.full((16, 24), 2.0), lambda x, w: jax.nn.relu(x @ w)
    assert left(function, x, w) == ["its type gives way to others, as a number's does"]
    for args in ((x, array(1, 16, 24)), (array(0, 40, 16), w)):
        fused = gconv.fuse(function)
        close(fused(*args), function(*args), 1e-5)
        assert rows(fused)[0].parts == ("relu",)


@built
@pytest.mark.parametrize("ruled", (with_a_vjp, with_a_jvp))
def test_derivatives_are_the_functions_own(ruled):
    straight = ruled(jax.nn.relu)
    function = lambda x, w: (straight(x @ w) ** 2).sum()
    args = array(0, 40, 16), array(1, 16, 24)
    fused = gconv.fuse(function)
    close(jax.grad(fused, (0, 1))(*args), jax.grad(function, (0, 1))(*args), 1e-5)
    assert rows(fused)[0].parts == ("relu",)


def test_the_primitive_is_a_product_in_every_transformation():
    x, w, b = array(0, 1, 40, 16), array(1, 1, 16, 24), array(2, 24)
    g = geometry(x.shape, w.shape, groups=1)[1]
    facts = dict(geometry=g, dtype="float32", precision=None, implementation=None, matrix=True)
    bound = lambda x, w, b: epilogue.bind("y", {"x": x, "w": w}, shift=b, **facts)
    plain = lambda x, w, b: x @ w[0] + b.reshape(1, 1, -1)
    close(*(jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), (0, 1, 2))(x, w, b) for f in (bound, plain)), 1e-5)
    close(*(jax.jvp(f, (x, w, b), (w.sum() * x, w, b))[1] for f in (bound, plain)), 1e-5)
    close(*(jax.vmap(f, (None, 0, None))(x, jnp.stack([w, -w]), b) for f in (bound, plain)), 1e-5)
    close(jax.linear_transpose(lambda x: bound(x, w, 0 * b), x)(plain(x, w, b))[0], plain(x, w, b) @ w[0].T, 1e-5)
    names = [e.primitive.name for e in equations(jax.make_jaxpr(jax.grad(lambda *a: bound(*a).sum()))(x, w, b).jaxpr)]
    assert "dot_general" in names and not any("conv_" in name for name in names)
    close(epilogue.bind("y", {"x": x, "w": w}, **facts), x @ w[0], 1e-6)


@built
def test_the_rows_of_the_choice_are_asked_again_when_a_program_is_lowered():
    for images, calls in ((1, 0), (2, 1)):
        x, w, b = array(0, images, 15, 16), array(1, 1, 16, 24), array(2, 24)
        g = geometry(x.shape, w.shape, groups=1)[1]
        facts = dict(geometry=g, dtype="float32", precision=None, implementation=None, matrix=True)
        text = lowered(lambda x, w, b, facts=facts: epilogue.bind("y", {"x": x, "w": w}, shift=b, **facts), x, w, b)
        assert (by_kernels(text), text.count("stablehlo.dot_general")) == (calls, 1 - calls)


@built
def test_exported_programs_hold_xlas_product():
    args = arguments(2, 7, 5, 16)
    exported = jax.export.export(jax.jit(gconv.fuse(block)))(*args)
    assert is_xlas(exported.mlir_module()) and "custom_call" not in exported.mlir_module()
    close(jax.export.deserialize(exported.serialize()).call(*args), block(*args), 1e-5)


def test_sizes_that_are_not_known():
    x, *weights = arguments(2, 7, 5, 16)
    for names in ("n, 7, 5, 16", "2, h, w, 16", "2, 7, w, 16"):
        fused = gconv.fuse(block)
        like = jax.ShapeDtypeStruct(jax.export.symbolic_shape(names), x.dtype)
        exported = jax.export.export(jax.jit(fused))(like, *weights)
        close(exported.call(x, *weights), block(x, *weights), 1e-5)
        assert [row.reason for row in rows(fused)] == ["its sizes are not known"] * 2


@built
@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit))
def test_on_a_mesh_it_is_xlas_product(kind):
    _, *weights = arguments(8, 7, 5, 16)
    x = array(7, 8, 7, 5, 16)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    fused = gconv.fuse(block)
    got = fused(placed, *weights)
    close(np.asarray(got), np.asarray(block(x, *weights)), 1e-5)
    assert got.sharding.shard_shape(got.shape) == (2, 7, 5, 16)
    assert is_xlas(lowered(fused, placed, *weights))
    compiled = jax.jit(fused).lower(placed, *weights).compile().as_text()
    assert not any(name in compiled for name in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))
    if kind == AxisType.Explicit:
        assert [row.reason for row in rows(fused)] == ["on a mesh with explicit axes"] * 2


@built
@pytest.mark.parametrize("checked", (True, False))
def test_inside_and_around_shard_map(checked):
    _, *weights = arguments(8, 7, 5, 16)
    x = array(7, 8, 7, 5, 16)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = dict(in_specs=(PartitionSpec("data"), *[None] * 5), out_specs=PartitionSpec("data"), check_vma=checked)
    mapped = lambda f: jax.jit(jax.shard_map(f, mesh=mesh, **specs))
    fused = gconv.fuse(block)
    close(mapped(fused)(x, *weights), block(x, *weights), 1e-5)
    assert [row.parts for row in rows(fused)] == PARTS
    around = gconv.fuse(mapped(block))
    close(around(x, *weights), block(x, *weights), 1e-5)
    assert [row.reason for row in rows(around)] == ["inside a shard_map"] * 2


FEW_PIXELS = """
import hashlib, json, jax, numpy as np, gconv
rng, hashes = np.random.default_rng(3), []
# Images, size, channels, filters: weights smaller and larger than sources and results, tiles and vectors with a rest.
for n, h, w, c, f in ((1, 13, 15, 160, 176), (1, 7, 7, 192, 1000), (3, 5, 9, 24, 40), (2, 3, 5, 65, 17)):
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((1, 1, c, f)).astype(np.float32)
    constant = jax.numpy.asarray(kernel)
    run = jax.jit(gconv.fuse(lambda x: jax.nn.relu(gconv.grouped_conv(x, constant)))).lower(x).compile()
    assert "gconv_grouped_conv_frozen" in run.as_text()
    run(x)  # packs
    got, expected = np.asarray(run(x)), np.maximum(x.astype(float) @ kernel[0, 0], 0)
    assert abs(got - expected).max() < 2e-6 * expected.max()
    hashes.append(hashlib.sha256(got.tobytes()).hexdigest())
print(json.dumps(hashes))
"""


@built
def test_few_pixels_and_constant_weights_have_the_same_bits_on_any_number_of_threads():
    assert len({*printed_on_any_threads(FEW_PIXELS)}) == 4
