"""Half precision on CPU: sums in float32 that are rounded once, no copies of operands, and nothing that meets another's zero.

The oracle sums in float64. `make sanitize` adds random problems, also for the instruction that adds the products of pairs.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import gconv
from gconv import backends, native
from gconv.geometry import geometry
from gconv.roles import OPERANDS

MISSING = native.load()[1]
built = pytest.mark.skipif(MISSING is not None, reason=f"native: {MISSING}")
by_pairs = pytest.mark.skipif(native.instruction_set() != "avx512_bf16", reason="no pairs of bfloat16 are multiplied here")
CPUINFO = Path("/proc/cpuinfo")
HAS_PAIRS = CPUINFO.exists() and "avx512_bf16" in CPUINFO.read_text()

ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # at most, of a number

# (spatial, window, groups, channels, filters), strides, padding, dilation: borders, odd sizes, strands and vectors with a rest.
PROBLEMS = {
    "depthwise": (((9, 11), (3, 3), 70, 1, 1), (1, 1), ((1, 1), (2, 0)), (1, 1)),
    "depthwise, few channels": (((9, 11), (3, 3), 13, 1, 1), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "depthwise, strides and a long window": (((13, 17), (5, 7), 33, 1, 1), (2, 2), ((2, 2), (3, 3)), (1, 1)),
    "depthwise, seven taps": (((7, 15), (7, 7), 21, 1, 1), (1, 1), ((3, 3), (3, 3)), (1, 1)),
    "depthwise, dilation": (((3, 33), (1, 3), 40, 1, 1), (1, 1), ((0, 0), (4, 4)), (1, 4)),
    "two channels": (((7, 9), (3, 3), 21, 2, 2), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "four channels": (((7, 9), (3, 3), 9, 4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "eight channels": (((7, 9), (3, 3), 5, 8, 8), (1, 2), ((1, 1), (1, 1)), (1, 1)),
    "two filters of a channel": (((7, 9), (3, 3), 21, 1, 2), (1, 2), ((1, 1), (1, 1)), (1, 1)),
    "four filters of a channel": (((7, 9), (3, 3), 11, 1, 4), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "one group of four channels": (((7, 70), (3, 3), 1, 4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "eight channels, few filters": (((7, 9), (3, 3), 5, 8, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "odd channels": (((7, 9), (3, 2), 3, 7, 5), (1, 1), ((1, 1), (1, 0)), (1, 1)),
    "wide groups": (((7, 9), (3, 3), 2, 24, 40), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "wide groups, strides": (((8, 11), (3, 3), 2, 10, 20), (2, 2), ((1, 0), (1, 1)), (1, 1)),
    "wide groups, dilation": (((8, 13), (2, 3), 2, 10, 20), (1, 1), ((1, 0), (2, 2)), (1, 2)),
    "one group of few channels": (((9, 11), (3, 3), 1, 4, 24), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "a matrix product": (((3, 7), (1, 1), 1, 20, 48), (1, 1), ((0, 0), (0, 0)), (1, 1)),
}


def problem(name, dtype, seed=0):
    """x, kernel, y and what the oracle is told; all three are random in `dtype`."""
    (spatial, window, groups, channels, filters), strides, pads, dilation = PROBLEMS[name]
    options = {"groups": groups, "strides": strides, "pads": pads, "dilation": dilation}
    generator = np.random.default_rng(seed)
    x, kernel = (
        jnp.asarray(generator.standard_normal(shape), dtype)
        for shape in ((3, *spatial, groups * channels), (*window, channels, groups * filters))
    )
    y = jnp.asarray(generator.standard_normal(oracle.conv(wide(x), wide(kernel), **options).shape), dtype)
    return x, kernel, y, options


def wide(a):
    return np.asarray(a).astype(np.float64)


def facts_of(x, kernel, options):
    given = {"groups": options["groups"], "strides": options["strides"], "dilation": options["dilation"]}
    return geometry(x.shape, kernel.shape, padding=options["pads"], **given)[1]


def kernels(role, facts, dtype, batch):
    """The names of the kernels that can do a role."""
    return [name for name, why in backends.native.kernels(role, facts, jnp.dtype(dtype), batch).items() if why is None]


def expected_of(role, x, kernel, y, options):
    if role == "y":
        return oracle.conv(wide(x), wide(kernel), **options)
    if role == "x":
        return oracle.input_gradient(wide(y), wide(kernel), x.shape, **options)
    return oracle.kernel_gradient(wide(x), wide(y), kernel.shape, **options)


def run(role, arrays, facts, dtype, name, precision=None):
    return run_in((dtype,), role, arrays, facts, name, precision)[0]


def run_in(dtypes, role, arrays, facts, name, precision=None):
    """The results in each of some types, by one program."""
    call = functools.partial(getattr(backends.native, role), geometry=facts, precision=precision, forced=name)
    results = jax.jit(lambda *operands: [call(*operands, dtype=t) for t in dtypes])
    found = results(*(arrays[operand] for operand in OPERANDS[role]))
    assert [a.dtype for a in found] == [*dtypes]
    return [wide(a) for a in found]


@built
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("role", "yxw")
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_kernel_rounds_sums_in_float32_once(name, role, dtype):
    """Where float32 is asked for, it gives the very sums that it rounds otherwise."""
    x, kernel, y, options = problem(name, dtype)
    facts = facts_of(x, kernel, options)
    expected = expected_of(role, x, kernel, y, options)
    magnitude = expected_of(role, *(abs(wide(a)) for a in (x, kernel, y)), options)
    half = ROUNDING[dtype]
    found = kernels(role, facts, dtype, 3)
    assert found
    for kernel_name in found:
        types = (jnp.dtype(dtype), jnp.dtype("float32"))
        result, sums = run_in(types, role, {"x": x, "w": kernel, "y": y}, facts, kernel_name)
        allowed = half * abs(expected) + 6e-7 * magnitude + 6e-8
        worst = (abs(result - expected) / allowed).max()
        assert worst <= 1, f"{kernel_name}: {worst}"
        worst = (abs(sums - expected) / (6e-7 * magnitude + 6e-8)).max()
        assert worst <= 1, f"{kernel_name}, in float32: {worst}"
        np.testing.assert_array_equal(wide(np.float32(sums).astype(jnp.dtype(dtype))), result, err_msg=kernel_name)


@built
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("role", "yxw")
@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_not_finite_reaches_exactly_the_sums_that_hold_it(name, role, bad):
    """In bfloat16 with every kernel, from x and y: a pair never meets a zero in place of its neighbour.

    A kernel's own value may meet the zeros of padding, as it does in XLA.
    """
    x, kernel, y, options = problem(name, "bfloat16")
    facts = facts_of(x, kernel, options)
    arrays = {"x": x, "w": kernel, "y": y}
    for spoiled in set(OPERANDS[role]) - {"w"}:
        ones = {operand: jnp.ones_like(a) for operand, a in arrays.items()}
        where = np.zeros(arrays[spoiled].shape)
        where.reshape(-1)[[0, where.size // 3, where.size // 2 + 1, -1]] = 1
        held = expected_of(role, *((ones | {spoiled: where})[operand] for operand in "xwy"), options) > 0
        values = arrays | {spoiled: jnp.where(where > 0, jnp.bfloat16(bad), arrays[spoiled])}
        for kernel_name in kernels(role, facts, "bfloat16", 3):
            if kernel_name.startswith("winograd"):  # looks for it, and takes plain sums of its tile then
                continue
            result = run(role, values, facts, jnp.dtype("bfloat16"), kernel_name)
            np.testing.assert_array_equal(~np.isfinite(result), held, err_msg=f"{kernel_name}, {spoiled}")


@by_pairs
@pytest.mark.parametrize("role", "yxw")
def test_a_precision_above_the_default_keeps_numbers_below_the_smallest_normal_one(role):
    x, kernel, y, options = problem("wide groups", "bfloat16")
    facts = facts_of(x, kernel, options)
    tiny = {
        name: abs(a) * 0 + (2.0**-130 if name == OPERANDS[role][0] else 1)
        for name, a in zip("xwy", (x, kernel, y), strict=True)
    }
    tiny = {name: a.astype("bfloat16") for name, a in tiny.items()}
    expected = expected_of(role, *(tiny[operand] for operand in "xwy"), options)
    exact = run(role, tiny, facts, jnp.dtype("bfloat16"), "", precision="highest")
    np.testing.assert_allclose(exact, expected, rtol=2**-8)
    assert backends.native.plan(role, facts, jnp.dtype("bfloat16"), 3).by_pairs
    assert not backends.native.plan(role, facts, jnp.dtype("bfloat16"), 3, "highest").by_pairs
    assert not run(role, tiny, facts, jnp.dtype("bfloat16"), "").any()  # as documented


@by_pairs
def test_explain_says_that_pairs_are_multiplied():
    x, kernel = jax.ShapeDtypeStruct((8, 14, 14, 256), "bfloat16"), jax.ShapeDtypeStruct((3, 3, 32, 256), "bfloat16")
    assert "products of pairs of bfloat16" in str(gconv.explain(x, kernel, padding="same", platform="cpu"))
    wide_x, wide_kernel = (jax.ShapeDtypeStruct(a.shape, "float32") for a in (x, kernel))
    assert "pairs of bfloat16" not in str(gconv.explain(wide_x, wide_kernel, padding="same", platform="cpu"))


@built
@pytest.mark.skipif(not HAS_PAIRS or native.instruction_set() != "avx512", reason="pairs are multiplied unasked, or not at all")
def test_pairs_where_they_have_to_be_asked_for():
    """The two above, and one of all kernels, on Intel's processors."""
    chosen = "numbers_below or explain_says or finite"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", chosen, __file__]
    environment = os.environ | {"GCONV_NATIVE_ISA": "avx512_bf16"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout


@built
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("spatial", [(64,), (12, 12), (6, 6, 6)])
def test_operands_are_not_copied(spatial, dtype):
    """XLA of jaxlib 0.10 copies an operand of bfloat16 that is reshaped for the call."""
    x, kernel = jnp.ones((4, *spatial, 32), dtype), jnp.ones((*(3 for _ in spatial), 1, 32), dtype)
    loss = functools.partial(gconv.grouped_conv, padding="same", implementation="native")
    step = jax.jit(lambda x, w, y: (loss(x, w), jax.vjp(loss, x, w)[1](y)))
    text = step.lower(x, kernel, x).compile().as_text()
    assert text.count('custom_call_target="gconv_grouped_conv"') == 3
    assert not re.findall(r" = \S+ (?:copy|fusion|convert|transpose)\(", text)


@built
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("groups", [1, 4, 24])
def test_float32_from_half_precision_takes_no_converted_operands(groups, dtype):
    """With what follows a convolution, and from lax's own with `install`; its derivatives are those of the float32 results."""
    generator = np.random.default_rng(groups)
    x, kernel = (jnp.asarray(generator.standard_normal(s), dtype) for s in ((2, 9, 11, 24), (3, 3, 24 // groups, 24)))
    residual = jnp.asarray(generator.standard_normal((2, 9, 11, 24)), dtype)
    options = dict(groups=groups, padding="same", preferred_element_type="float32", implementation="native")
    finished = functools.partial(gconv.grouped_conv, activation="relu", **options)
    numbers = ("NHWC", "HWIO", "NHWC")
    of_lax = dict(padding="SAME", feature_group_count=groups, dimension_numbers=numbers, preferred_element_type="float32")

    @jax.jit
    def calls(x, kernel):
        return finished(x, kernel), gconv.conv_general_dilated(x, kernel, (1, 1), **of_lax)

    text = calls.lower(x, kernel).compile().as_text()
    assert text.count('custom_call_target="gconv_grouped_conv"') == 2
    assert not re.findall(r" = \S+ (?:copy|fusion|convert|transpose)\(", text)
    geometry_of = {"groups": groups, "strides": (1, 1), "pads": ((1, 1), (1, 1)), "dilation": (1, 1)}
    expected = oracle.conv(wide(x), wide(kernel), **geometry_of)
    found, plain = calls(x, kernel)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-5)
    summed = finished(x, kernel, residual=residual)
    np.testing.assert_allclose(summed, np.maximum(expected + wide(residual), 0), rtol=1e-5, atol=1e-5)

    ct = jnp.asarray(generator.standard_normal(found.shape), "float32")
    gradients = jax.jit(lambda *a: jax.vjp(functools.partial(gconv.grouped_conv, **options), *a)[1](ct))(x, kernel)
    assert [g.dtype for g in gradients] == [dtype, dtype]
    of_x = oracle.input_gradient(wide(ct), wide(kernel), x.shape, **geometry_of)
    of_kernel = oracle.kernel_gradient(wide(x), wide(ct), kernel.shape, **geometry_of)
    for gradient, exact in zip(gradients, (of_x, of_kernel), strict=True):
        np.testing.assert_allclose(wide(gradient), exact, rtol=ROUNDING[dtype], atol=1e-4)
