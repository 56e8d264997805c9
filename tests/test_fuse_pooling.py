"""Sums over the pixels of an image that follow a convolution: which have a kernel, what they compute, and what stays XLA's."""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from foreign import normal
from jax import lax
from process import printed_on_any_threads
from test_fuse import SPECS, TRANSFORMED, check_exported, check_on_four_devices, close

import gconv
from gconv import native
from gconv.norm import kernels, primitives

built = pytest.mark.skipif(native.load()[1] is not None, reason=f"native: {native.load()[1]}")
TOLERANCE = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 1e-6, "float16": 1e-6}  # of a sum in float32, of its numbers' size


def array(seed: int, *shape, dtype="float32"):
    return jnp.asarray(normal(seed, *shape), dtype)


def depthwise(x, w):
    spatial = "DHW"[5 - x.ndim :]
    names = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    strides = (1,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=names, feature_group_count=x.shape[-1])


def pooled(x, w, *, by=jnp.mean, axes=None, keepdims=False):
    """A convolution, relu, and what global pooling makes of it."""
    return by(jax.nn.relu(depthwise(x, w)), axis=axes or tuple(range(1, x.ndim - 1)), keepdims=keepdims)


def operands(*shape, dtype="float32"):
    return array(0, *shape, dtype=dtype), array(1, *(3,) * (len(shape) - 2), 1, shape[-1], dtype=dtype)


def calls(function, *args) -> int:
    """How many calls of the kernel a lowered program holds."""
    return jax.jit(function).lower(*args).as_text().count(f"custom_call @{native.NORM_TARGET}")


# Every rank; more pixels than one partial sum takes; channels that are a part of a vector, whole vectors, blocks and a rest.
SHAPES = [
    (2, 1700, 12),
    (1, 9, 8, 515),
    (3, 41, 29, 5),
    (1, 130, 127, 1),
    (2, 7, 7, 400),
    (5, 23, 19, 17),
    (1, 5, 7, 11, 48),
    (1, 1, 33, 1100),
]


@built
@pytest.mark.parametrize("shape", SHAPES)
def test_against_numpy(shape):
    x, w = operands(*shape)
    rank = len(shape) - 2
    options = dict(groups=shape[-1], strides=(1,) * rank, pads=[(1, 1)] * rank, dilation=(1,) * rank)
    fused = gconv.fuse(pooled)
    expected = np.maximum(oracle.conv(x, w, **options), 0).mean(tuple(range(1, rank + 1)))
    np.testing.assert_allclose(fused(x, w), expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    assert fused.report.sums == 1 and calls(fused, x, w) == 1


@built
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_in_every_type(shape, dtype, x64):
    x = array(3, *shape, dtype=dtype)
    found = jax.jit(kernels.totals)(x)
    wide = np.asarray(x, np.float64)
    assert found.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    scale = np.abs(wide).sum(tuple(range(1, x.ndim - 1)))
    assert (np.abs(np.asarray(found, np.float64) - wide.sum(tuple(range(1, x.ndim - 1)))) <= TOLERANCE[dtype] * scale).all()


@built
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision_is_summed_as_it_is(dtype):
    args = operands(2, 20, 20, 24, dtype=dtype)
    fused = gconv.fuse(pooled)
    close(fused(*args), jax.jit(pooled)(*args), 1e-2)
    assert fused.report.sums == 1
    text = jax.jit(fused).lower(*args).as_text()
    (call,) = [line for line in text.splitlines() if f"custom_call @{native.NORM_TARGET}" in line]
    assert f"tensor<2x20x20x24x{'bf16' if dtype == 'bfloat16' else 'f16'}>" in call


@built
def test_an_infinity_and_a_nan_stay_in_their_image_and_channel():
    x, w = (np.array(a) for a in operands(3, 29, 31, 9))
    w[...] = np.abs(w)
    expected = np.asarray(pooled(x, w))
    x[0, 11, 13, 2], x[2, 28, 30, 8] = np.inf, np.nan
    found = np.asarray(gconv.fuse(pooled)(x, w))
    assert np.isposinf(found[0, 2]) and np.isnan(found[2, 8])
    kept = np.isfinite(found)
    assert kept.sum() == found.size - 2
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "shape"),
    (
        ({"by": jnp.sum}, (2, 20, 20, 24)),
        ({"keepdims": True}, (2, 20, 20, 24)),
        ({"axes": (-2, -3)}, (2, 20, 20, 24)),
    ),
    ids=range(3),
)
def test_spellings(options, shape):
    args, function = operands(*shape), partial(pooled, **options)
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(function)(*args), 2e-5)
    assert fused.report.sums == 1


@pytest.mark.parametrize(
    ("options", "shape"),
    (
        ({"axes": (0, 1, 2)}, (2, 20, 20, 24)),
        ({"axes": (1,)}, (2, 20, 20, 24)),
        ({"axes": (1, 2, 3)}, (2, 20, 20, 24)),
        ({"axes": (2, 3)}, (2, 20, 20, 24)),
        ({"by": jnp.max}, (2, 20, 20, 24)),
        ({"by": jnp.var}, (2, 20, 20, 24)),
        ({}, (1, 8, 8, 16)),  # few numbers
        ({}, (0, 20, 20, 24)),
    ),
    ids=range(8),
)
def test_what_stays_xlas(options, shape):
    args, function = operands(*shape), partial(pooled, **options)
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(function)(*args), 2e-5)
    assert calls(fused, *args) == (options.get("by") is jnp.var) == fused.report.sums  # a variance begins with a mean


def test_what_no_convolution_has_finished_is_xlas():
    """XLA forms the sum of what it computes itself on the way."""
    args = operands(2, 20, 20, 24)
    for by in (lambda x, w: jnp.sin(depthwise(x, w)), lambda x, w: x):
        function = lambda x, w, by=by: by(x, w).mean((1, 2))
        fused = gconv.fuse(function)
        close(fused(*args), jax.jit(function)(*args), 2e-5)
        assert fused.report.sums == 0 and not calls(fused, *args)


def test_sums_in_another_type_than_the_kernels(x64):
    wider = lambda x, w: jax.nn.relu(depthwise(x, w)).astype("float64").sum((1, 2))
    narrow = lambda x, w: lax.reduce_sum_p.bind(jax.nn.relu(depthwise(x, w)), axes=(1, 2), out_sharding=None)
    for function, dtype in ((wider, "float32"), (narrow, "bfloat16")):
        args = operands(2, 20, 20, 24, dtype=dtype)
        fused = gconv.fuse(function)
        close(fused(*args), jax.jit(function)(*args), 1e-6 if dtype == "float32" else 1e-1)
        assert fused.report.sums == 0 and not calls(fused, *args)


def test_channels_that_are_not_last():
    def function(x, w):
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=24)
        return jax.nn.relu(y).mean((2, 3))

    args = array(0, 2, 24, 20, 20), array(1, 24, 1, 3, 3)
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(function)(*args), 2e-5)
    assert fused.report.sums == 0


def test_squeeze_and_excite_and_its_report():
    def excite(x, w, v):
        y = jax.nn.silu(depthwise(x, w))
        return y * jax.nn.sigmoid(jax.nn.relu(y.mean((1, 2), keepdims=True) @ v) @ v.T)

    args = (*operands(2, 17, 19, 40), array(2, 40, 10))
    fused = gconv.fuse(excite)
    close(fused(*args), jax.jit(excite)(*args), 2e-5)
    assert str(fused.report).splitlines()[1] == "sums over the pixels of an image: 1"


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name):
    transform, several = TRANSFORMED[name]
    function = lambda x, w, _: pooled(x, w)
    x, w = operands(*((3, 2, 20, 20, 24) if several else (2, 20, 20, 24)))
    args = x, array(1, 3, 3, 1, 24), jnp.ones(3)
    close(transform(gconv.fuse(function))(*args), transform(function)(*args), 1e-4)


def test_in_a_loop():
    x, w = operands(2, 20, 20, 24)
    step = lambda w: lambda h, _: (h / (1 + pooled(h, w, keepdims=True)), pooled(h, w))
    function = lambda x, w: lax.scan(step(w), x, None, length=3)
    fused = gconv.fuse(function)
    close(fused(x, w), jax.jit(function)(x, w), 2e-5)
    assert fused.report.sums == 2


def test_without_jit_and_with_checks():
    args = operands(2, 20, 20, 24)
    expected = pooled(*args)
    with jax.disable_jit():
        close(gconv.fuse(pooled)(*args), expected, 2e-5)
    with jax.debug_nans(True), jax.check_tracer_leaks(True):
        close(gconv.fuse(pooled)(*args), expected, 2e-5)


def test_an_exported_program_holds_xlas_operations_only():
    check_exported(pooled, *operands(2, 20, 20, 24))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_on_four_devices(spec):
    check_on_four_devices(pooled, spec, *operands(8, 20, 20, 24))


def test_without_kernels(monkeypatch):
    args = operands(2, 21, 20, 24)
    if native.load()[0] is not None:
        assert calls(gconv.fuse(pooled), *args) == 1
    monkeypatch.setattr(kernels, "why_not", lambda *_: "there are none")
    fused = gconv.fuse(pooled)
    close(fused(*args), pooled(*args), 2e-5)
    assert not calls(fused, *args)


PROGRAM = """
import hashlib, json, jax, numpy as np
from gconv.norm import kernels
hashes = []
for i, shape in enumerate(((1, 112, 113, 32), (8, 7, 7, 1280), (3, 300, 7), (1, 5000, 1))):
    x = np.random.default_rng(i).standard_normal(shape).astype(np.float32)
    hashes.append(hashlib.sha256(np.asarray(jax.jit(kernels.totals)(x)).tobytes()).hexdigest())
print(json.dumps(hashes))
"""


@built
def test_the_bits_depend_on_no_number_of_threads():
    one = printed_on_any_threads(PROGRAM)
    x = np.random.default_rng(0).standard_normal((1, 112, 113, 32)).astype(np.float32)
    assert hashlib.sha256(np.asarray(jax.jit(kernels.totals)(x)).tobytes()).hexdigest() == one[0]


# --- the door --------------------------------------------------------------------------------------------------------


def call(*, x=(2, 3, 4, 5), result=(2, 5), size=160, dtype="float32", **options):
    native.register_kernels()
    results = (jax.ShapeDtypeStruct(result, "float32"), jax.ShapeDtypeStruct((size,), jnp.uint8))
    good = {"pass": np.int64(kernels.PASSES.index("totals")), "relu": False, "residual": False, "partitions": np.int64(2)}
    return jax.ffi.ffi_call(native.NORM_TARGET, results)(jnp.ones(x, dtype), **(good | options))[0]


@built
def test_a_well_formed_call_runs():
    np.testing.assert_array_equal(call(), np.full((2, 5), 12.0))
    np.testing.assert_array_equal(call(partitions=np.int64(1), size=80), np.full((2, 5), 12.0))


@built
@pytest.mark.parametrize(
    ("wrong", "message"),
    (
        ({"x": (6, 5)}, "three axes or more"),
        ({"x": (2, 0, 4, 5)}, "must not be empty"),
        ({"x": (3, 3, 4, 5)}, "does not fit"),
        ({"x": (2, 3, 4, 6)}, "does not fit"),
        ({"result": (2, 5, 1)}, "does not fit"),
        ({"dtype": "int32"}, "elements must be"),
        ({"size": 159}, "scratch is too small"),
        ({"partitions": np.int64(0)}, "partitions must lie"),
        ({"residual": True}, "no residual"),
    ),
)
def test_a_malformed_call_is_an_error(wrong, message):
    with pytest.raises((ValueError, RuntimeError), match=f"gconv: .*{message}"):
        jax.block_until_ready(call(**wrong))


def test_derivatives_of_the_primitive():
    """Outside of `fuse`, whose derivatives are those of the function."""
    x = array(0, 2, 20, 20, 24)
    ours = lambda x: (primitives.bind("totals", x) ** 2).sum()
    plain = lambda x: (x.sum((1, 2)) ** 2).sum()
    close(jax.jit(jax.grad(ours))(x), jax.grad(plain)(x), 2e-5)
    close(jax.jvp(jax.grad(ours), (x,), (x,))[1], jax.jvp(jax.grad(plain), (x,), (x,))[1], 2e-5)
