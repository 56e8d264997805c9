"""What a convolution ends with: scale, shift, residual and activation, in the kernels and composed, against NumPy in float64.

The oracle of the convolution is `oracle`; the functions after it are written out below. Bounds follow from the roundings.
"""

import itertools
import math
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import Case, draw
from jax import P
from jax.experimental.jet import jet
from jax.sharding import AxisType, NamedSharding
from jax.test_util import check_grads
from process import printed_on_any_threads

import gconv
from gconv import backends, native
from gconv.fusion import activations, epilogue
from gconv.geometry import geometry

built = pytest.mark.skipif(native.load()[1] is not None, reason=f"native: {native.load()[1]}")
DTYPES = ("float32", "float64", "bfloat16", "float16")
PARTS = ("scale", "shift", "residual")


def sigmoid(v):
    return np.where(v >= 0, 1 / (1 + np.exp(-abs(v))), np.exp(-abs(v)) / (1 + np.exp(-abs(v))))


def hard_sigmoid(v):
    return np.clip(v + 3, 0, 6) / 6


# Each by its definition; none is steeper than 1.2 anywhere.
EXACT = {
    None: lambda v: v,
    "relu": lambda v: np.where(v > 0, v, 0.0),
    "relu6": lambda v: np.clip(v, 0, 6),
    "leaky_relu": lambda v: np.where(v > 0, v, v / 100),
    "sigmoid": sigmoid,
    "silu": lambda v: v * sigmoid(v),
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": lambda v: v * hard_sigmoid(v),
    "tanh": np.tanh,
    "gelu": lambda v: v / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "gelu_exact": lambda v: v / 2 * np.vectorize(math.erfc, [float])(-v / math.sqrt(2)),
}
STEEPEST = 1.2
# One for each kernel of the library and each way in which its work can end: parts of vectors, of tiles, of rows.
FAMILIES = {
    case.name: case
    for case in (
        Case("depthwise", (2,), (9, 7), (3, 3), 13, 1, 1, padding="same"),
        Case("depthwise-strided", (1,), (8, 9), (5, 3), 40, 1, 1, strides=(2, 3), padding=2),
        Case("two-filters-per-channel", (1,), (5, 6), (3, 3), 11, 1, 2, padding=1),
        Case("winograd", (1,), (7, 9), (3, 3), 2, 17, 33, padding="same"),
        Case("winograd-even", (2,), (6, 8), (3, 3), 1, 32, 32, padding="same"),
        Case("matrix", (2,), (3, 7), (1, 1), 1, 30, 50),
        Case("matrix-strided", (1,), (5, 7), (1, 1), 2, 20, 19, strides=2),
        Case("rows", (1,), (9, 11), (3, 3), 1, 3, 20, strides=2, padding=1),
        Case("wide", (1,), (5, 6), (3, 5), 2, 10, 12, padding="same", dilation=2),
        Case("wide-apart", (1,), (3, 4), (2, 2), 3, 16, 18),
        Case("narrow", (2,), (5, 6), (3, 3), 5, 4, 4, padding="same"),
        Case("narrow-odd", (1,), (6, 5), (2, 3), 6, 3, 5, strides=(1, 2)),
        Case("1-D", (3,), (17,), (4,), 2, 3, 4, strides=3, padding=((2, 1),)),
        Case("3-D", (1,), (3, 4, 5), (2, 3, 2), 2, 4, 6, padding=((1, 0), (1, 1), (0, 0))),
        Case("wider-than-the-image", (1,), (2, 3), (5, 5), 2, 4, 4, padding=3),
    )
}
NARROW = FAMILIES["narrow"]


def facts(case):
    options = {name: value for name, value in case.options.items() if name != "padding_value"}
    return geometry(case.x_shape, case.kernel_shape, **options)[1]


def operands_of(case, role, dtype="float32", seed=0):
    """The role's operands by their names, and one array for each part."""
    rng = np.random.default_rng(seed)
    shapes = {"x": case.x_shape, "w": case.kernel_shape, "y": case.y_shape}
    names = {"y": ("x", "w"), "x": ("y", "w")}[role]
    wide = "float64" if dtype == "float64" else "float32"
    channels = shapes[role][-1:]
    operands = {name: draw(rng, shapes[name], dtype) for name in names}
    return operands, {
        "scale": draw(rng, channels, wide),
        "shift": draw(rng, channels, wide),
        "residual": draw(rng, shapes[role], dtype),
    }


def bound(case, role, dtype="float32", implementation=None, activation=None):
    """The role with its epilogue as a function of operands and parts."""
    finish = activations.parse(activation)
    options = dict(geometry=facts(case), dtype=dtype, precision=None, implementation=implementation, activation=finish)
    return lambda operands, parts: epilogue.bind(role, operands, **options, **parts)


def linear(case, role, operands):
    if role == "y":
        return oracle.conv(operands["x"], operands["w"], **case.facts)
    return oracle.input_gradient(operands["y"], operands["w"], case.x_shape, **case.facts)


def eps(dtype):
    return float(ml_dtypes.finfo(np.dtype(dtype)).eps)


def assert_exact(case, role, got, operands, parts, activation):
    """Within what the roundings of the sum, of each step after it and of the result may come to."""
    got = np.asarray(got)
    stored, summed = eps(got.dtype), min(eps(got.dtype), eps("float32"))
    sizes = linear(case, role, {name: abs(oracle.wide(a)) for name, a in operands.items()})
    wide = {name: oracle.wide(a) for name, a in parts.items()}
    scale, shift, residual = (wide.get(name, default) for name, default in zip(PARTS, (1.0, 0.0, 0.0), strict=True))
    before = scale * linear(case, role, operands) + shift + residual
    expected = EXACT[activation](before)
    assert got.shape == expected.shape
    error = abs(scale) * sizes * (case.terms(role) * summed + 2 * stored)
    error = error + 4 * summed * (abs(scale) * sizes + abs(shift) + abs(residual))
    allowed = STEEPEST * error + 8 * summed * (1 + abs(before)) + 2 * stored * (abs(expected) + error)
    worst = (abs(oracle.wide(got) - expected) - allowed).max(initial=0)
    assert worst <= 0, f"{role} of {case} through {activation} with {[*parts]}: {worst} more than roundings explain"


# --- numbers ---------------------------------------------------------------------------------------------------------


def of_64_bits(dtype):
    return jax.enable_x64(dtype == "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", "yx")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kernel_against_the_oracle(name, role, dtype):
    case = FAMILIES[name]
    operands, parts = operands_of(case, role, dtype)
    names = [*EXACT]
    two = (names[(len(name) + len(dtype)) % len(names)], "relu")
    # The choice leaves small problems to xla, also where there are kernels.
    chosen = (None,) if native.load()[0] is None else (None, "native")
    with of_64_bits(dtype):
        for activation, implementation in itertools.product(two, chosen):
            got = jax.jit(bound(case, role, dtype, implementation, activation))(operands, parts)
            assert got.dtype == dtype
            assert_exact(case, role, got, operands, parts, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", "yx")
@pytest.mark.parametrize("activation", EXACT, ids=str)
def test_every_activation_with_every_part(activation, role, dtype):
    case = FAMILIES["narrow-odd"]
    operands, parts = operands_of(case, role, dtype, seed=1)
    subsets = [some for n in range(4) for some in itertools.combinations(PARTS, n)]
    with of_64_bits(dtype):
        run = jax.jit(lambda o, p: [bound(case, role, dtype, activation=activation)(o, {n: p[n] for n in s}) for s in subsets])
        for some, got in zip(subsets, run(operands, parts), strict=True):
            assert_exact(case, role, got, operands, {n: parts[n] for n in some}, activation)


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("role", "yx")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_kernels_compute_the_whole(name, role, dtype):
    """One custom call, and nothing as large as the result beside it."""
    case = FAMILIES[name]
    operands, parts = operands_of(case, role, dtype)
    with of_64_bits(dtype):
        run = jax.jit(bound(case, role, dtype, implementation="native", activation="silu"))
        text = run.lower(operands, parts).as_text(debug_info=True)
    assert f"gconv_{role}_native" in text and text.count("stablehlo.custom_call @gconv_grouped_conv") == 1
    assert not [word for word in ("add", "multiply", "logistic", "maximum") if f"stablehlo.{word}" in text]


@pytest.mark.parametrize("implementation", backends.TABLE)
def test_every_implementation(implementation):
    if reason := backends.TABLE[implementation].why_not("y", facts(NARROW), jnp.dtype("float32"), "cpu"):
        pytest.skip(f"{implementation}: {reason}")
    for role in "yx":
        operands, parts = operands_of(NARROW, role)
        got = jax.jit(bound(NARROW, role, implementation=implementation, activation="gelu"))(operands, parts)
        assert_exact(NARROW, role, got, operands, parts, "gelu")
        text = jax.jit(bound(NARROW, role, implementation=implementation)).lower(operands, parts).as_text(debug_info=True)
        assert f"gconv_{role}_{implementation}" in text


def test_without_kernels(monkeypatch, tmp_path):
    native.load.cache_clear()
    try:
        monkeypatch.setattr(native, "__path__", [str(tmp_path)])
        operands, parts = operands_of(NARROW, "y", seed=5)
        lowered = jax.jit(bound(NARROW, "y", activation="relu")).lower(operands, parts)
        assert "custom_call @gconv" not in lowered.as_text()
        assert_exact(NARROW, "y", lowered.compile()(operands, parts), operands, parts, "relu")
        with pytest.raises(ValueError, match="'native' cannot run role 'y': it was not built"):
            bound(NARROW, "y", implementation="native", activation="relu")(operands, parts)
    finally:
        native.load.cache_clear()


SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 88.0, -88.0, 1e-30, -1e-30, 3.0, -3.0, 6.0)


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", EXACT, ids=str)
def test_nan_and_infinity_stand_where_the_composition_has_them(activation, dtype):
    """Of the results of one convolution, and of what is added to it."""
    case = FAMILIES["matrix"]
    operands, parts = operands_of(case, "y", dtype, seed=2)
    n = parts["residual"].size
    with np.errstate(over="ignore"):  # the largest are infinite in float16
        special = np.array(SPECIAL).astype(dtype)
    spread = np.resize(special, n).reshape(parts["residual"].shape)
    rows = np.ones_like(operands["x"])
    rows[0, 0, :, 0], rows[1, 0, :, 0] = special[:7], special[7:]
    options = dict(geometry=facts(case), dtype=jnp.dtype(dtype), precision=None, implementation="native")
    with of_64_bits(dtype):
        for x, residual in ((operands["x"], spread), (rows, parts["residual"]), (rows, spread)):
            given = (x, operands["w"], parts["scale"], parts["shift"], residual)
            known = activations.parse(activation)
            composed = jax.jit(partial(epilogue.compose, role="y", parts=PARTS, activation=known, **options))(*given)
            fused = bound(case, "y", dtype, "native", activation)({"x": x, "w": operands["w"]}, parts | {"residual": residual})
            a, b = np.float64(fused), np.float64(composed)
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
            np.testing.assert_array_equal(np.where(np.isinf(a), a, 0), np.where(np.isinf(b), b, 0))


# --- bits ------------------------------------------------------------------------------------------------------------

PROGRAM = """
import hashlib, json, sys
import jax, numpy as np
from gconv import native
from gconv.fusion import activations, epilogue
from gconv.geometry import geometry
jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(7)
hashes = []
for shape, kernel in (((5, 13, 14, 40), (3, 3, 1, 40)), ((3, 14, 15, 34), (3, 3, 17, 50)), ((4, 12, 9, 28), (3, 3, 4, 28)),
                      ((3, 14, 14, 40), (1, 1, 40, 70)), ((2, 20, 21, 3), (3, 3, 3, 33)), ((2, 9, 12, 24), (3, 5, 12, 26))):
    _, g = geometry(shape, kernel, padding="same")
    for dtype in ("float32", "bfloat16", "float64"):
        how = dict(geometry=g, dtype=dtype, precision=None, implementation="native")
        x, w, y = (rng.standard_normal(s).astype(jax.numpy.dtype(dtype)) for s in (shape, kernel, g.y_shape(shape[0])))
        for role, first, result in (("y", {"x": x}, y), ("x", {"y": y}, x)):
            shift = rng.standard_normal(result.shape[-1:])
            for activation in ("silu", "gelu_exact"):
                known = activations.parse(activation)
                run = lambda first, rest: epilogue.bind(
                    role, first | {"w": w}, scale=shift, shift=shift, residual=rest, activation=known, **how)
                whole = np.asarray(run(first, result))
                alone = [np.asarray(run({k: a[i:i + 1] for k, a in first.items()}, result[i:i + 1])) for i in range(len(x))]
                assert np.concatenate(alone).tobytes() == whole.tobytes(), (shape, kernel, dtype, role, activation)
                hashes.append(hashlib.sha256(whole.tobytes()).hexdigest())
print(json.dumps(hashes))
"""


@built
def test_the_same_bits_on_any_number_of_threads_and_alone_as_in_a_batch():
    assert len(printed_on_any_threads(PROGRAM)) == 72


# --- arrays of unusual sizes and types -------------------------------------------------------------------------------


def skip_without(implementation):
    if implementation and backends.TABLE[implementation].why_not("y", facts(NARROW), jnp.dtype("float32"), "cpu"):
        pytest.skip(f"{implementation}: no library")


@pytest.mark.parametrize("implementation", (None, *backends.TABLE))
def test_no_images(implementation):
    skip_without(implementation)
    x, kernel, bias = np.ones((0, 5, 6, 20), "float32"), np.ones((3, 3, 4, 20), "float32"), np.ones(20, "float32")
    run = partial(gconv.grouped_conv, padding=1, activation="silu", residual=x, implementation=implementation)
    for call in (run, jax.jit(run)):
        assert call(x, kernel, bias).shape == (0, 5, 6, 20)
    gradients = jax.grad(lambda *a: run(*a).sum(), (1, 2))(x, kernel, bias)
    assert not any(np.any(g) for g in gradients)


@pytest.mark.parametrize("implementation", (None, *backends.TABLE))
def test_padding_alone_goes_through_the_epilogue(implementation):
    """An axis of size zero: all of the result comes from the padding, which adds nothing, and from what follows."""
    skip_without(implementation)
    x, kernel, bias = np.ones((2, 0, 6, 4), "float32"), np.ones((3, 3, 4, 6), "float32"), np.linspace(-2, 2, 6, dtype="float32")
    residual = draw(np.random.default_rng(0), (2, 2, 6, 6), "float32")
    options = {"padding": ((2, 2), (1, 1)), "activation": "relu", "implementation": implementation}
    y = gconv.grouped_conv(x, kernel, bias, residual=residual, **options)
    np.testing.assert_allclose(y, np.maximum(bias + residual, 0), rtol=1e-6)


def test_batches_of_any_rank():
    rng = np.random.default_rng(0)
    kernel, bias = draw(rng, (3, 2, 6), "float32"), draw(rng, (6,), "float32")
    for batch in ((), (3,), (2, 1, 3)):
        x, residual = draw(rng, (*batch, 7, 4), "float32"), draw(rng, (*batch, 5, 6), "float32")
        y = gconv.grouped_conv(x, kernel, bias, residual=residual, activation="tanh")
        expected = np.tanh(oracle.conv(x, kernel, bias, groups=2, strides=(1,), pads=((0, 0),), dilation=(1,)) + residual)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", ({"padding_value": 1.5}, {"padding_value": "circular"}, {"input_dilation": (2, 1)}), ids=str)
def test_padding_values_and_dilated_inputs(option):
    rng = np.random.default_rng(1)
    x, kernel, bias = (draw(rng, s, "float32") for s in ((2, 6, 5, 4), (3, 3, 2, 6), (6,)))
    conv = partial(gconv.grouped_conv, padding=1, **option)
    plain = conv(x, kernel, bias)
    residual = draw(rng, plain.shape, "float32")
    y = conv(x, kernel, bias, residual=residual, activation="gelu_exact")
    np.testing.assert_allclose(y, EXACT["gelu_exact"](np.float64(plain + residual)), rtol=1e-5, atol=1e-5)


def test_types_are_promoted_together():
    x, kernel, bias = np.ones((1, 5, 4), "bfloat16"), np.ones((3, 2, 6), "bfloat16"), np.ones(6, "bfloat16")
    residual = np.full((1, 3, 6), 0.501, "float32")
    with jax.numpy_dtype_promotion("standard"):
        y = gconv.grouped_conv(x, kernel, bias, residual=residual, activation="relu")
    assert y.dtype == "float32" and np.allclose(y, 7.501, rtol=1e-6)
    y = gconv.grouped_conv(x, kernel, bias, activation="relu", preferred_element_type="float32")
    assert y.dtype == "float32" and np.allclose(y, 7)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in ("bfloat16", "float32"):
            given = [a.astype(dtype) for a in (x, kernel, bias, residual)]
            run = lambda *a: gconv.grouped_conv(*a[:3], residual=a[3], activation="silu").sum()
            assert run(*given).dtype == dtype
            assert [g.dtype for g in jax.grad(run, (0, 1, 2, 3))(*given)] == [jnp.dtype(dtype)] * 4


def test_the_gradient_of_a_bias_in_half_precision_is_summed_in_float32():
    x, kernel = np.zeros((16, 32, 32, 4), "bfloat16"), np.zeros((1, 1, 1, 4), "bfloat16")
    for options in ({}, {"activation": "leaky_relu"}, {"residual": np.ones((16, 32, 32, 4), "bfloat16")}):
        run = lambda b, o=options: gconv.grouped_conv(x, kernel, b, **o).astype("float32").sum()
        gradient = jax.jit(jax.grad(run))(jnp.ones(4, "bfloat16"))
        np.testing.assert_array_equal(np.float32(gradient), 16 * 32 * 32)


def test_integers_and_complex_numbers():
    rng = np.random.default_rng(3)
    x, kernel, bias, residual = (draw(rng, s, "int32") for s in ((1, 6, 4), (3, 2, 6), (6,), (1, 4, 6)))
    expected = oracle.conv(x, kernel, bias, groups=2, strides=(1,), pads=((0, 0),), dilation=(1,)) + residual
    np.testing.assert_array_equal(gconv.grouped_conv(x, kernel, bias, residual=residual), expected)
    y = gconv.grouped_conv(x, kernel, bias, residual=residual, activation="relu")
    assert y.dtype == "int32"
    np.testing.assert_array_equal(y, np.maximum(expected, 0))
    with pytest.raises(TypeError, match=r"`activation`='gelu' needs a floating dtype, got int32\. x.astype\('float32'\)"):
        gconv.grouped_conv(x, kernel, activation="gelu")
    x, kernel, bias, residual = (a.astype("complex64") / 8 for a in (x, kernel, bias, residual))
    z = gconv.grouped_conv(x * (1 + 2j), kernel, bias, residual=residual, activation="tanh")
    assert z.dtype == "complex64"
    exact = oracle.conv(x * (1 + 2j), kernel, bias, groups=2, strides=(1,), pads=((0, 0),), dilation=(1,)) + residual
    np.testing.assert_allclose(z, np.tanh(exact), rtol=1e-4, atol=1e-5)


# --- what a user may write -------------------------------------------------------------------------------------------

X, KERNEL = draw(np.random.default_rng(4), (2, 6, 5, 4), "float32"), draw(np.random.default_rng(5), (3, 3, 2, 6), "float32")
WRITTEN = {
    "relu": jax.nn.relu,
    "swish": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "gelu_tanh": jax.nn.gelu,
    "gelu_erf": partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
    "soft_sign": jax.nn.soft_sign,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_name_and_the_function_that_it_means(name):
    function = WRITTEN[name]
    by_name, by_function = (str(jax.make_jaxpr(partial(gconv.grouped_conv, activation=a))(X, KERNEL)) for a in (name, function))
    assert by_name == by_function
    expected = function(gconv.grouped_conv(X, KERNEL))
    np.testing.assert_allclose(gconv.grouped_conv(X, KERNEL, activation=name), expected, rtol=2e-6, atol=2e-6)


def test_a_bias_alone_and_a_function_of_ones_own_are_left_to_xla():
    """Which puts them into one pass with what follows."""
    bias, residual = np.ones(6, "float32"), np.ones((2, 4, 3, 6), "float32")
    text = lambda **o: str(jax.make_jaxpr(lambda x: gconv.grouped_conv(x, KERNEL, bias, **o))(X))
    for options in ({}, {"activation": jnp.sin}, {"activation": jnp.sin, "residual": residual}):
        assert "grouped_conv_y[" in text(**options) and "epilogue" not in text(**options)
    for options in ({"activation": "relu"}, {"residual": residual}):
        assert "grouped_conv_epilogue[" in text(**options) and " add " not in text(**options)


def test_a_function_of_ones_own_and_a_slope():
    plain = gconv.grouped_conv(X, KERNEL)
    y = gconv.grouped_conv(X, KERNEL, activation=lambda y: y**2)
    np.testing.assert_array_equal(y, plain**2)
    x, kernel = jnp.round(4 * X), jnp.round(4 * KERNEL)  # of whole numbers every program has the same sums
    plain = gconv.grouped_conv(x, kernel)
    y = gconv.grouped_conv(x, kernel, activation=partial(jax.nn.leaky_relu, negative_slope=0.3))
    np.testing.assert_allclose(y, np.where(plain > 0, plain, 0.3 * plain), rtol=1e-6)
    steep = partial(jax.nn.leaky_relu, negative_slope=0.3)
    text = str(jax.make_jaxpr(partial(gconv.grouped_conv, activation=steep))(X, KERNEL))
    assert "slope=0.3" in text and "select_n" not in text


WRONG = {
    "misspelt": ({"activation": "rely"}, ValueError, 'Did you mean "relu"'),
    "number": ({"activation": 3}, ValueError, r"None, a name or a function of an array, got 3\. Names that work: relu, "),
    "residual shape": ({"residual": np.ones((2, 1, 1, 6))}, ValueError, r"`residual` .*\(2, 4, 3, 6\), got \(2, 1, 1, 6\)"),
    "residual list": ({"residual": [1.0]}, TypeError, "`residual`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    wrong, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        gconv.grouped_conv(X, KERNEL, **wrong)


def test_the_transposed_convolution():
    rng = np.random.default_rng(6)
    y, kernel, bias, residual = (draw(rng, s, "float32") for s in ((2, 4, 5, 6), (3, 3, 2, 6), (4,), (2, 8, 10, 4)))
    options = dict(groups=2, strides=2, padding=1, output_padding=1)
    pads = dict(groups=2, strides=(2, 2), pads=((1, 1), (1, 1)), dilation=(1, 1))
    exact = oracle.input_gradient(y, kernel, (2, 8, 10, 4), **pads) + bias + residual
    got = gconv.grouped_conv_transpose(y, kernel, bias, residual=residual, activation="silu", **options)
    np.testing.assert_allclose(got, EXACT["silu"](exact), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"`residual` must have the result's shape, \(2, 8, 10, 4\)"):
        gconv.grouped_conv_transpose(y, kernel, residual=y, **options)


# --- derivatives -----------------------------------------------------------------------------------------------------


def given(dtype="float32", seed=0):
    """x, kernel, scale, shift, residual of a small case."""
    operands, parts = operands_of(SMALL, "y", dtype, seed)
    return (*operands.values(), *parts.values())


SMALL = Case("small", (2,), (4, 3), (2, 3), 2, 2, 3, padding="same")


def whole(activation, implementation=None, dtype="float32"):
    run = bound(SMALL, "y", dtype, implementation, activation)
    return lambda x, w, scale, shift, residual: run({"x": x, "w": w}, {"scale": scale, "shift": shift, "residual": residual})


def plain(activation):
    """The same without a primitive of gconv's."""
    function = activations.parse(activation) or (lambda y: y)
    conv = partial(gconv.interop.as_lax(gconv.grouped_conv), **SMALL.options)

    def run(x, w, scale, shift, residual):
        along = lambda a: a.reshape(1, 1, 1, -1)
        return function(along(scale) * conv(x, w) + along(shift) + residual)

    return run


def close(got, expected, terms=256):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert abs(a - b).max(initial=0) <= terms * np.finfo(a.dtype).eps * max(abs(b).max(initial=0), 1)


@pytest.mark.parametrize("activation", (None, "silu", "gelu", "sigmoid"), ids=str)
@pytest.mark.parametrize("argument", range(5), ids=("x", "w", *PARTS))
def test_derivatives_to_order_two(argument, activation, x64):
    values = given("float64")
    run = whole(activation, dtype="float64")
    of_one = lambda a: run(*values[:argument], a, *values[argument + 1 :])
    check_grads(of_one, (values[argument],), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", EXACT, ids=str)
def test_derivatives_of_all_arguments_are_those_of_the_parts(activation):
    values, tangents = given(), given(seed=1)
    ct = draw(np.random.default_rng(9), SMALL.y_shape, "float32")
    ours, theirs = whole(activation), plain(activation)
    close(jax.jit(ours)(*values), theirs(*values))
    for transform in (
        lambda f: jax.vjp(f, *values)[1](ct),
        lambda f: jax.jvp(f, values, tangents),
        lambda f: jax.linearize(f, *values)[1](*tangents),
        lambda f: jax.jvp(jax.grad(lambda *a: (f(*a) * ct).sum(), range(5)), values, tangents),
    ):
        close(transform(ours), transform(theirs))
    close(jax.jacfwd(ours, (2, 3))(*values), jax.jacrev(theirs, (2, 3))(*values))


def test_what_is_linear_is_transposed():
    x, w, scale, shift, residual = given()
    ct = draw(np.random.default_rng(9), SMALL.y_shape, "float32")
    of_three = lambda f: lambda x, shift, residual: f(x, w, scale, shift, residual)
    transposed = jax.linear_transpose(of_three(whole(None)), x, shift, residual)(ct)
    close(transposed, jax.linear_transpose(of_three(plain(None)), x, shift, residual)(ct))


def test_jet():
    values = given()
    series = tuple((draw(np.random.default_rng(i), a.shape, "float32") / 8,) * 2 for i, a in enumerate(values))
    close(jet(whole("tanh"), values, series), jet(plain("tanh"), values, series))


def test_scan_and_remat():
    case = Case("square", (2,), (6,), (3,), 2, 2, 2, padding="same")
    x, kernel, _, _ = case.arrays()
    kernels = jnp.stack([kernel, kernel / 2, -kernel])
    step = lambda x, k: gconv.grouped_conv(x, k, jnp.ones(4), residual=x, activation="silu", **case.options)
    apart = lambda x, k: jax.nn.silu(gconv.grouped_conv(x, k, **case.options) + 1 + x)
    expected = jax.value_and_grad(lambda x, ks: apart(apart(apart(x, ks[0]), ks[1]), ks[2]).sum(), (0, 1))(x, kernels)
    for wrapped in (step, jax.checkpoint(step), jax.checkpoint(step, policy=gconv.convolutions_saveable)):
        loss = lambda x, ks, f=wrapped: jax.lax.scan(lambda x, k: (f(x, k), None), x, ks)[0].sum()
        close(jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernels), expected)


def test_a_policy_that_saves_convolutions_finds_those_with_an_epilogue():
    x, kernel, *_ = SMALL.arrays()
    block = lambda x, k: jnp.sin(gconv.grouped_conv(x, k, jnp.ones(6), activation="silu", **SMALL.options)).sum()

    def convolutions(policy):
        return str(jax.make_jaxpr(jax.grad(jax.checkpoint(block, policy=policy), (0, 1)))(x, kernel)).count("grouped_conv_y[")

    assert convolutions(jax.checkpoint_policies.nothing_saveable) == 2
    assert convolutions(gconv.convolutions_saveable) == 1


# --- vmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [m for m in itertools.product((0, None), repeat=5) if 0 in m], ids=str)
def test_vmap_over_any_of_the_operands(mapped):
    many = [given(seed=i) for i in range(3)]
    stacked = [np.stack(a) if axis == 0 else a[0] for a, axis in zip(zip(*many, strict=True), mapped, strict=True)]
    run = whole("silu")
    got = jax.jit(jax.vmap(run, mapped))(*stacked)
    picked = [[a[i] if axis == 0 else a for a, axis in zip(stacked, mapped, strict=True)] for i in range(3)]
    close(got, np.stack([plain("silu")(*p) for p in picked]))
    for size in (0, 1):
        some = [a[:size] if axis == 0 else a for a, axis in zip(stacked, mapped, strict=True)]
        close(jax.vmap(run, mapped)(*some), got[:size])


@built
def test_mapped_images_are_more_images():
    x, w, scale, shift, residual = given()
    run = jax.jit(jax.vmap(whole("relu", "native"), (1, None, None, None, 2), 3))
    given_anew = np.stack([x, 2 * x], 1), w, scale, shift, np.stack([residual, -residual], 2)
    text = run.lower(*given_anew).as_text()
    assert text.count("stablehlo.custom_call @gconv_grouped_conv") == 1 and "stablehlo.maximum" not in text
    got = run(*given_anew)
    close(got[..., 0, :], plain("relu")(x, w, scale, shift, residual))
    close(got[..., 1, :], plain("relu")(2 * x, w, scale, shift, -residual))


# --- export, devices and switches --------------------------------------------------------------------------------------


def test_exported_with_a_symbolic_batch():
    (n,) = jax.export.symbolic_shape("n")
    x, w, _, shift, residual = given()
    run = lambda x, r: gconv.grouped_conv(x, w, shift, residual=r, activation="gelu", **SMALL.options)
    shapes = [jax.ShapeDtypeStruct((n, *a.shape[1:]), "float32") for a in (x, residual)]
    for platforms, arguments in ((("cpu",), (x, residual)), (("cpu", "cuda", "tpu"), shapes)):
        exported = jax.export.export(jax.jit(run), platforms=platforms)(*arguments)
        assert "@gconv" not in exported.mlir_module()
        close(exported.call(x, residual), run(x, residual))
    close(exported.call(x[:1], residual[:1]), run(x[:1], residual[:1]))


@pytest.mark.parametrize("layout", ("images", "channels", "both"))
@pytest.mark.parametrize("how", ("auto", "explicit", "shard_map"))
def test_on_four_devices(how, layout):
    case = Case("mesh", (4,), (5, 4), (3, 3), 4, 2, 3, padding=1)
    operands, parts = operands_of(case, "y")
    values = (operands["x"], operands["w"], parts["shift"], parts["residual"])
    kind = AxisType.Explicit if how == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind), devices=jax.devices("cpu")[:4])
    images, channels = (None if layout == "channels" else "a"), (None if layout == "images" else "b")
    image = P(images, None, None, channels)
    specs = (image, P(None, None, None, channels), P(channels), image)

    def run(x, kernel, bias, residual):
        conv = lambda *a: gconv.grouped_conv(*a[:3], residual=a[3], activation="silu", padding=1)
        y, pull = jax.vjp(conv, x, kernel, bias, residual)
        return conv(x, kernel, bias, residual), *pull(y)

    expected = jax.jit(run)(*values)
    np.testing.assert_allclose(
        expected[0], EXACT["silu"](oracle.conv(*values[:3], **case.facts) + values[3]), rtol=1e-4, atol=1e-5
    )
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(values, specs, strict=True)]
        if how != "shard_map":
            close(jax.jit(run)(*placed), expected)
        else:
            forward = jax.shard_map(lambda *a: run(*a)[0], in_specs=specs, out_specs=image)
            close(jax.jit(forward)(*placed), expected[0])
            close(jax.jit(lambda *a: jax.vjp(forward, *a)[1](expected[0]))(*placed), expected[1:])
        if how == "explicit":
            y = jax.jit(lambda *a: gconv.grouped_conv(*a[:3], residual=a[3], activation="relu", padding=1))(*placed)
            assert jax.typeof(y).sharding.spec == image


@pytest.mark.parametrize(
    "switch",
    (jax.disable_jit, lambda: jax.debug_nans(True), lambda: jax.numpy_rank_promotion("raise"), jax.checking_leaks),
    ids=("disable_jit", "debug_nans", "numpy_rank_promotion", "checking_leaks"),
)
def test_switches(switch):
    values = given()
    run = lambda f: (f(*values), jax.grad(lambda *a: f(*a).sum(), range(5))(*values))
    expected = run(plain("gelu_exact"))
    with switch():
        close(run(whole("gelu_exact")), expected)


def test_debug_nans_finds_a_nan_behind_the_epilogue():
    x, *others = given()
    x[0, 0, 0, 0] = np.nan
    given_anew = [*map(jnp.asarray, (x, *others))]
    with jax.debug_nans(True):
        for run in (whole("silu"), lambda x, w, *_: gconv.grouped_conv(x, w)):
            with pytest.raises(FloatingPointError, match="grouped_conv_"):
                run(*given_anew)


def test_tools_that_read_programs_see_lax_only():
    bias, residual = np.ones(6, "float32"), np.ones((2, 4, 3, 6), "float32")
    run = lambda x: gconv.grouped_conv(x, KERNEL, bias, activation="gelu", residual=residual)
    text = str(jax.make_jaxpr(gconv.interop.as_lax(run))(X))
    assert "grouped_conv" not in text and "conv_general_dilated" in text and "tanh" in text
    close(gconv.interop.as_lax(run)(X), run(X))
