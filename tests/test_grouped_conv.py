"""`grouped_conv`: values and gradients against the oracle, dtypes, padding, and what it refuses."""

import re
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import NAMED, Case, assert_matches, draw, sampled

from gconv import grouped_conv

GROUPED = Case("grouped", (2,), (5, 6), (3, 2), 3, 2, 4, strides=(1, 2), padding="same", bias=True)
DEPTHWISE = Case("depthwise", (2,), (6, 5), (3, 3), 5, 1, 1, padding=1, bias=True)


def values_and_gradients(conv, arrays) -> dict:
    """y and the gradients of every operand, under the names of `cases.expected`, in one compilation."""
    x, kernel, bias, ct = arrays
    operands = (x, kernel) if bias is None else (x, kernel, bias)

    @jax.jit
    def run(operands, ct):
        y, vjp = jax.vjp(conv, *operands)
        return y, *vjp(ct.astype(y.dtype))

    return dict(zip("yxwb", run(operands, ct), strict=False))


@pytest.mark.parametrize("case", NAMED + sampled(60, seed=0), ids=str)
def test_values_and_gradients_match_the_oracle(case):
    arrays = case.arrays()
    assert_matches(case, values_and_gradients(partial(grouped_conv, **case.options), arrays), arrays)


@pytest.mark.parametrize("case", sampled(10, seed=1), ids=str)
def test_each_implementation_matches_the_oracle(case, conv_of):
    arrays = case.arrays()
    assert_matches(case, values_and_gradients(conv_of(case), arrays), arrays)


@pytest.mark.parametrize("case", (GROUPED, DEPTHWISE), ids=str)
@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64", "complex64", "complex128"))
def test_dtype_is_kept_and_accurate(case, dtype, conv_of, x64):
    arrays = case.arrays(jnp.dtype(dtype))
    got = values_and_gradients(conv_of(case, dtype), arrays)
    assert {str(a.dtype) for a in got.values()} == {dtype}
    assert_matches(case, got, arrays)


@pytest.mark.parametrize("dtype", ("int32", "uint8"))
def test_integers_are_exact(dtype, conv_of):
    x, kernel, bias, _ = GROUPED.arrays(dtype)
    y = conv_of(GROUPED, dtype)(x, kernel, bias)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, oracle.conv(x, kernel, bias, **GROUPED.facts).astype(dtype))


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
@pytest.mark.parametrize("channels", (1, 2))
def test_half_precision_gradients_accumulate_in_float32(dtype, channels, conv_of):
    """4096 ones: bfloat16 stops counting at 256 and float16 at 2048."""
    case = Case("ones", (16,), (16, 16), (1, 1), 4 // channels, channels, channels)
    conv = conv_of(case, dtype)
    x, kernel, bias = jnp.ones(case.x_shape, dtype), jnp.ones(case.kernel_shape, dtype), jnp.ones(4, dtype)
    gradients = jax.grad(lambda k, b: conv(x, k, b).astype("float32").sum(), (0, 1))(kernel, bias)
    for gradient in gradients:
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient.astype("float32"), 4096)


@pytest.mark.parametrize("case", (GROUPED, DEPTHWISE), ids=str)
def test_no_sum_is_written_in_half_precision(case, conv_of):
    """XLA's CPU backend sums in float32 whatever it is told, so this is read off the program: no product or sum is bfloat16."""
    x, kernel, _, ct = case.arrays(jnp.bfloat16)
    conv = conv_of(case, jnp.bfloat16)
    text = jax.jit(lambda x, k, ct: jax.vjp(conv, x, k)[1](ct)).lower(x, kernel, ct).as_text()
    sums = [line for line in text.splitlines() if re.search(r"stablehlo\.(convolution|dot_general|reduce\()", line)]
    if not sums and "custom_call" in text:
        pytest.skip("a custom call: its sums are not in the program")
    assert sums and not [line for line in sums if re.search(r"-> tensor<[^>]*bf16>", line)]


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision_sums_over_channels_accumulate_in_float32(dtype, conv_of):
    case = Case("ones", (1,), (1,), (1,), 1, 4096, 1)
    x, kernel = jnp.ones(case.x_shape, dtype), jnp.ones(case.kernel_shape, dtype)
    np.testing.assert_array_equal(conv_of(case, dtype)(x, kernel).astype("float32"), 4096)


@pytest.mark.parametrize(("dtype", "preferred"), (("bfloat16", "float32"), ("float32", "float64"), ("complex64", "complex128")))
def test_preferred_element_type_is_the_result_and_gradients_keep_their_own(dtype, preferred, conv_of, x64):
    arrays = GROUPED.arrays(jnp.dtype(dtype))
    got = values_and_gradients(partial(conv_of(GROUPED, dtype), preferred_element_type=preferred), arrays)
    assert [str(a.dtype) for a in got.values()] == [preferred, dtype, dtype, dtype]
    assert_matches(GROUPED, got, arrays)


def test_preferred_element_type_widens_integers():
    x, kernel = jnp.full((1, 8, 4), 100, "int8"), jnp.full((3, 4, 2), 100, "int8")
    y = grouped_conv(x, kernel, preferred_element_type="int32")
    assert y.dtype == "int32"
    np.testing.assert_array_equal(y, 3 * 4 * 100 * 100)


def test_precision_reaches_the_gradients():
    x, kernel, _, _ = GROUPED.arrays()

    def loss(x, kernel):
        return grouped_conv(x, kernel, **GROUPED.options, implementation="lax", precision="highest").sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and all("precision HIGHEST" in line for line in convolutions)


def test_default_matmul_precision_counts_where_the_function_is_called():
    x, kernel, _, _ = GROUPED.arrays()
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(lambda x, k: grouped_conv(x, k, **GROUPED.options, implementation="lax")).trace(x, kernel)
    assert "precision HIGHEST" in traced.lower().as_text()


@pytest.mark.parametrize("mode", cases.NUMPY_MODES)
@pytest.mark.parametrize("size", (1, 2, 3, 5))
def test_padding_larger_than_the_input_repeats_as_in_numpy(mode, size):
    x = np.arange(size, dtype="float32")[:, None] + 1
    identity = np.ones((1, 1, 1), "float32")
    for pads in ((0, 1), (7, 4), (3, 12)):
        y = grouped_conv(x, identity, padding=pads, padding_value=mode)
        np.testing.assert_array_equal(y[:, 0], np.pad(x[:, 0], pads, mode=cases.NUMPY_MODES[mode]), err_msg=str(pads))


@pytest.mark.parametrize("fill", (2, -1.5, np.float32(0.25), np.int64(3), np.array(2.0)), ids=repr)
def test_padding_value_may_be_any_number(fill):
    x, identity = np.ones((2, 1), "float32"), np.ones((1, 1, 1), "float32")
    np.testing.assert_array_equal(grouped_conv(x, identity, padding=1, padding_value=fill)[:, 0], [fill, 1, 1, fill])


def test_padding_value_may_be_complex():
    x, identity = np.ones((2, 1), "complex64"), np.ones((1, 1, 1), "complex64")
    np.testing.assert_array_equal(grouped_conv(x, identity, padding=(1, 0), padding_value=2j)[:, 0], [2j, 1, 1])


@pytest.mark.parametrize(
    ("x", "kernel", "bias", "result"),
    (
        ("float16", "float32", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16", "float32"),
        ("bfloat16", "float16", "bfloat16", "float32"),
        ("int8", "float32", "float32", "float32"),
        ("float32", "float32", "float16", "float32"),
        ("bfloat16", "bfloat16", "float32", "float32"),
        ("float32", "complex64", "float32", "complex64"),
    ),
)
@pytest.mark.usefixtures("lenient")
def test_mixed_dtypes_are_promoted_and_gradients_keep_their_own(x, kernel, bias, result):
    drawn = GROUPED.arrays()
    operands = [jnp.asarray(a).astype(dtype) for a, dtype in zip(drawn, (x, kernel, bias), strict=False)]
    y = grouped_conv(*operands, **GROUPED.options)
    assert y.dtype == result
    assert_matches(GROUPED, {"y": y}, (*operands, drawn[3]))
    inexact = [i for i, a in enumerate(operands) if jnp.issubdtype(a.dtype, jnp.inexact)]
    shapes = jax.eval_shape(lambda *a: jax.vjp(lambda *a: grouped_conv(*a, **GROUPED.options), *a)[1](y), *operands)
    assert [shapes[i].dtype for i in inexact] == [operands[i].dtype for i in inexact]


def test_numpy_arrays_give_jax_arrays_of_jax_default_width():
    x, kernel, bias, ct = GROUPED.arrays("float64")
    y = grouped_conv(x, kernel, bias, **GROUPED.options)
    assert isinstance(y, jax.Array) and y.dtype == "float32"
    assert_matches(GROUPED, {"y": y}, tuple(np.float32(a) for a in (x, kernel, bias, ct)))


def test_groups_are_read_off_the_shapes():
    x, kernel = draw(np.random.default_rng(0), (1, 5, 6), "float32"), np.ones((3, 2, 9), "float32")
    read = grouped_conv(x, kernel)
    np.testing.assert_array_equal(read, grouped_conv(x, kernel, groups=3))
    case = Case("read", (1,), (5,), (3,), 3, 2, 3)
    assert_matches(case, {"y": read}, (x, kernel, None, np.zeros(case.y_shape)))


def test_each_group_is_a_convolution_of_its_own():
    x, kernel, _, _ = GROUPED.arrays()
    whole = np.asarray(grouped_conv(x, kernel, **GROUPED.options))
    options = {**GROUPED.options, "groups": 1}
    for g in range(3):
        alone = grouped_conv(x[..., 2 * g : 2 * g + 2], kernel[..., 4 * g : 4 * g + 4], **options)
        size = grouped_conv(*map(abs, (x[..., 2 * g : 2 * g + 2], kernel[..., 4 * g : 4 * g + 4])), **options)
        assert np.all(abs(whole[..., 4 * g : 4 * g + 4] - alone) <= 2 * GROUPED.terms("y") * 1.2e-7 * size)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    (
        ({"x": [[1.0]]}, TypeError, "`x` must be an array, got list"),
        ({"kernel": None}, TypeError, "`kernel` must be an array, got NoneType"),
        ({"x": np.ones((5, 6), bool)}, TypeError, "`x` must have a numeric dtype, got bool"),
        ({"bias": np.ones(5, "float32")}, ValueError, r"`bias` .* shape \(6,\), got \(5,\)"),
        ({"implementation": "fastest"}, ValueError, "`implementation` must be None or one of .*'lax'"),
        ({"padding": 1, "padding_value": "mirror"}, ValueError, "`padding_value` must be a number or one of"),
        ({"padding": 1, "padding_value": 1j}, TypeError, "`padding_value`=1j is complex and x.dtype=float32 is not"),
        ({"padding": 1, "padding_value": None}, TypeError, "`padding_value` must be a number"),
        ({"groups": 4}, ValueError, "`groups` must divide the input channels: 6 channels, groups=4.* that work: 1, 2, 3, 6"),
        ({"precision": "most"}, ValueError, "(?i)precision"),
    ),
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_with_the_argument_and_its_numbers(changed, error, message):
    arguments = {"x": np.ones((5, 6), "float32"), "kernel": np.ones((3, 2, 6), "float32"), "bias": None, **changed}
    with pytest.raises(error, match=message):
        grouped_conv(arguments.pop("x"), arguments.pop("kernel"), arguments.pop("bias"), **arguments)


@pytest.mark.parametrize(
    ("dtype", "fill"), (("int32", 0.5), ("int8", 300), ("uint8", -1), ("int32", float("nan")), ("int32", 1j), ("int32", -1e99))
)
def test_a_padding_value_that_the_dtype_cannot_hold_is_refused_with_one_that_works(dtype, fill):
    x, kernel = np.ones((3, 1), dtype), np.ones((1, 1, 1), dtype)
    with pytest.raises(TypeError, match=f"`padding_value`=.*x.dtype={dtype}") as refused:
        grouped_conv(x, kernel, padding=1, padding_value=fill)
    suggestion = float(str(refused.value).rsplit(": ", 1)[1].rstrip("."))
    y = grouped_conv(x, kernel, padding=1, padding_value=suggestion)
    np.testing.assert_array_equal(y[:, 0], [suggestion, 1, 1, 1, suggestion])


def test_nothing_to_repeat_is_refused():
    x, kernel = np.ones((1, 0, 1), "float32"), np.ones((1, 1, 1), "float32")
    with pytest.raises(ValueError, match="nothing to repeat: spatial axis 0 of `x` has size 0"):
        grouped_conv(x, kernel, padding=2, padding_value="circular")
