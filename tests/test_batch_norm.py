"""`gconv.batch_norm`: its numbers, derivatives, transformations, meshes, and which code computes them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from process import printed, printed_on_any_threads

import gconv
from gconv import native
from gconv.norm import kernels, plain

MISSING = kernels.why_not("float32", "cpu", (1,))
built = pytest.mark.skipif(MISSING is not None, reason=f"native: {MISSING}")
EPSILON = 1e-3
DATA = PartitionSpec("data")


@pytest.fixture(params=["native", "xla"])
def which(request, monkeypatch):
    """With and without kernels."""
    if request.param == "native" and MISSING is not None:
        pytest.skip(f"native: {MISSING}")
    if request.param == "xla":
        monkeypatch.setattr(kernels, "why_not", lambda *_: "this test wants none")
        jax.clear_caches()
        yield request.param
        jax.clear_caches()
    else:
        yield request.param


# --- the oracle: NumPy in float64, with the textbook's gradients -----------------------------------------------------


def forward(x, scale, bias, residual=None, relu=False):
    x = np.asarray(x, np.float64)
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    z = (x - mean) / np.sqrt(var + EPSILON) * np.asarray(scale, np.float64) + np.asarray(bias, np.float64)
    z = z if residual is None else z + np.asarray(residual, np.float64)
    return np.where(z > 0, z, 0) if relu else z, mean, var


def gradients(cotangents, x, scale, bias, residual=None, relu=False):
    """Of x, scale, bias and the residual, for cotangents of y, mean and var."""
    dy, dmean, dvar = (np.asarray(c, np.float64) for c in cotangents)
    x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    _, mean, var = forward(x, scale, bias)
    axes, rows = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    dz = np.where(forward(x, scale, bias, residual)[0] > 0, dy, 0) if relu else dy
    deviation = np.sqrt(var + EPSILON)
    normal = (x - mean) / deviation
    dscale, dbias = (dz * normal).sum(axes), dz.sum(axes)
    dnormal = dz * scale
    through_var = (dnormal * normal).sum(axes) / rows
    dx = (dnormal - dnormal.sum(axes) / rows - normal * through_var) / deviation
    dx += dmean / rows + dvar * 2 * (x - mean) / rows
    return (dx, dscale, dbias) if residual is None else (dx, dscale, dbias, dz)


def arrays(shape, dtype="float32", *, residual=False, seed=0):
    """x, scale, bias, maybe a residual; and cotangents of y, mean and var."""
    rng = np.random.default_rng((seed, *shape))
    large = lambda: jnp.asarray(rng.standard_normal(shape), dtype)
    small = lambda: jnp.asarray(rng.uniform(0.5, 1.5, shape[-1]), "float64" if dtype == "float64" else "float32")
    operands = (large(), small(), small(), *([large()] if residual else []))
    return operands, (large(), small(), small())


def norm(relu=False, **options):
    def run(x, scale, bias, residual=None):
        activation = "relu" if relu else None
        return gconv.batch_norm(x, scale, bias, epsilon=EPSILON, activation=activation, residual=residual, **options)

    return run


def pulled(function):
    """Results and gradients in one program."""

    def run(operands, cotangents):
        results, pull = jax.vjp(function, *operands)
        return results, pull(cotangents)

    return run


def close(got, expected, tolerance=2e-5):
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(initial=0), 1))


# --- numbers ---------------------------------------------------------------------------------------------------------

KINDS = tuple(itertools.product((False, True), (False, True)))  # relu, residual
SHAPES = [(rows, channels) for rows in (1, 2, 7, 1000) for channels in (1, 3, 16, 17, 144)]
SHAPES += [(4, 9, 1200), (2, 3, 5, 7, 40), (5,)]
DRAWN = [(shape, *KINDS[kind]) for i, shape in enumerate(SHAPES) for kind in (i % 4, 3 - i % 4)]


@pytest.mark.parametrize(("shape", "relu", "residual"), DRAWN, ids=str)
def test_results_and_gradients(shape, relu, residual, which):
    operands, cotangents = arrays(shape, residual=residual)
    results, found = jax.jit(pulled(norm(relu)))(operands, cotangents)
    close(results, forward(*operands, relu=relu))
    close(found, gradients(cotangents, *operands, relu=relu), 2e-4 if shape[0] == 2 else 2e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(7, 3), (300, 17), (65, 144)], ids=str)
def test_float64(shape, which):
    operands, cotangents = arrays(shape, "float64", residual=True)
    results, found = jax.jit(pulled(norm(True)))(operands, cotangents)
    assert {a.dtype for a in (*results, *found)} == {np.dtype("float64")}
    close(results, forward(*operands, relu=True), 1e-12)
    close(found, gradients(cotangents, *operands, relu=True), 1e-11)


@pytest.mark.parametrize(("relu", "residual"), KINDS)
@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_is_summed_in_float32(dtype, digits, relu, residual, which):
    operands, cotangents = arrays((40, 50, 24), dtype, residual=residual)
    results, found = jax.jit(pulled(norm(relu)))(operands, cotangents)
    assert [a.dtype.name for a in results] == [dtype, "float32", "float32"]
    assert [a.dtype.name for a in found] == [dtype, "float32", "float32", *([dtype] if residual else [])]
    expected = forward(*operands, relu=relu), gradients(cotangents, *operands, relu=relu)
    close(results[1:], expected[0][1:], 1e-5)
    close([results[0], found[0]], [expected[0][0], expected[1][0]], 2.0**-digits)
    close(found[1:3], expected[1][1:3], 1e-5)


@built
@pytest.mark.parametrize("rows", (7, 100, 20_000))
@pytest.mark.parametrize("channels", (3, 16, 40))
def test_large_means_cost_no_digits_of_the_variance(rows, channels):
    """In float32 the mean of the squares less the square of the mean would be noise: 1e8, of which 8 is one unit."""
    x = arrays((rows, channels))[0][0] / 4 + 1e4
    _, mean, var = gconv.batch_norm(x, None, None)
    close([mean, var], forward(x, 1, 0)[1:], 1e-6)


def test_given_statistics(which):
    (x, scale, bias, residual), (_, mean, var) = arrays((3, 4, 5), residual=True)
    y = gconv.batch_norm(x, scale, bias, mean=mean, var=var, residual=residual, activation="relu", epsilon=EPSILON)
    of_x, m, v, s, b, r = (np.float64(a) for a in (x, mean, var, scale, bias, residual))
    exact = (of_x - m) / np.sqrt(v + EPSILON) * s + b + r
    close([y], [np.maximum(exact, 0)])
    half = gconv.batch_norm(x.astype("bfloat16"), scale, None, mean=mean, var=var)
    assert half.dtype == "bfloat16"


@pytest.mark.parametrize(("scale", "bias"), [(None, True), (True, None), (None, None)])
def test_without_scale_or_bias(scale, bias):
    (x, *given), _ = arrays((6, 5))
    given = [a if there else None for a, there in zip(given, (scale, bias), strict=True)]
    close(norm()(x, *given), forward(x, *(default if a is None else a for a, default in zip(given, (1, 0), strict=True))))


@pytest.mark.parametrize("activation", ("silu", "gelu", jax.nn.relu6, jax.nn.relu, lambda y: 2 * y))
def test_any_activation(activation):
    (x, scale, bias), _ = arrays((6, 5))
    y, _, _ = gconv.batch_norm(x, scale, bias, epsilon=EPSILON, activation=activation)
    function = getattr(jax.nn, activation) if isinstance(activation, str) else activation
    close([y], [function(jnp.asarray(forward(x, scale, bias)[0], "float32"))])


@built
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("row", (0, 3, 700, 999))
@pytest.mark.parametrize("where", ("x", "residual", "dy"))
def test_what_is_not_finite_goes_where_it_does_in_plain_jax(value, row, where):
    operands, cotangents = arrays((1000, 20), residual=True)
    spoil = lambda a: a.at[row, 5].set(value)
    if where == "dy":
        cotangents = (spoil(cotangents[0]), *cotangents[1:])
    else:
        i = ("x", "residual").index(where) * 3
        operands = (*operands[:i], spoil(operands[i]), *operands[i + 1 :])
    got, expected = (jax.jit(pulled(f))(operands, cotangents) for f in (norm(True), textbook))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_array_equal(a[np.isinf(a)], b[np.isinf(b)])


def textbook(x, scale, bias, residual):
    """Plain JAX, as one would write it."""
    along = lambda a: a.reshape(*(1,) * (x.ndim - 1), -1)
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    z = (x - along(mean)) * along(lax.rsqrt(var + EPSILON) * scale) + along(bias) + residual
    return jax.nn.relu(z), mean, var


# --- which code runs -------------------------------------------------------------------------------------------------


def passes(function, *operands, **options) -> dict[str, int]:
    """How often a program calls each kernel of batch norm."""
    text = jax.jit(function).trace(*operands).lower(**options).as_text(debug_info=True)
    return {name: text.count(f"gconv_norm_{name}_native/") > 0 for name in kernels.PASSES if f"norm_{name}_native" in text}


@built
def test_a_training_step_is_four_kernels():
    operands, cotangents = arrays((4, 6, 6, 8), residual=True)
    lowered = jax.jit(pulled(norm(True))).lower(operands, cotangents)
    assert lowered.as_text().count(f"custom_call @{native.NORM_TARGET}") == 4
    assert {*passes(pulled(norm(True)), operands, cotangents)} == {*kernels.PASSES} - {"totals"}
    text = lowered.compile().as_text()
    assert "reduce(" not in text, "no sum over anything large is XLA's"


@built
def test_what_leaves_this_machine_or_is_split_over_devices_holds_xlas_operations_only():
    operands, cotangents = arrays((8, 4, 16), residual=True)
    exported = jax.export.export(jax.jit(pulled(norm(True))), platforms=("cpu", "cuda", "tpu"))(operands, cotangents)
    assert native.NORM_TARGET not in exported.mlir_module()
    close(exported.call(operands, cotangents)[0], forward(*operands, relu=True))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    operands = (jax.device_put(operands[0], NamedSharding(mesh, DATA)), *operands[1:3])
    assert native.NORM_TARGET not in jax.jit(norm()).lower(*operands).as_text()


def test_a_symbolic_batch_is_exported():
    n = jax.export.symbolic_shape("n")[0]
    shapes = (jax.ShapeDtypeStruct((n, 6), "float32"), *[jax.ShapeDtypeStruct((6,), "float32")] * 2)
    exported = jax.export.export(jax.jit(norm(True)))(*shapes)
    operands, _ = arrays((9, 6))
    close(exported.call(*operands), forward(*operands, relu=True))


def test_other_platforms_and_types_have_no_kernels():
    assert "not on 'cuda'" in kernels.why_not("float32", "cuda", (2, 2))
    assert "not for float8" in kernels.why_not("float8_e4m3fn", "cpu", (2, 2))
    assert "no numbers" in kernels.why_not("float32", "cpu", (0, 2))


def test_without_the_library_plain_jax_computes_it(monkeypatch, tmp_path):
    native.load.cache_clear()
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    try:
        assert "it was not built" in kernels.why_not("float32", "cpu", (2, 2))
        operands, cotangents = arrays((31, 3))
        close(pulled(norm())(operands, cotangents)[1], gradients(cotangents, *operands))
    finally:
        native.load.cache_clear()


def test_no_rows():
    y, mean, _ = gconv.batch_norm(jnp.zeros((0, 3)), None, None)
    assert y.shape == (0, 3) and np.isnan(mean).all()


@built
def test_forms_agree_pass_by_pass():
    """`plain` says what each kernel computes."""
    (x, scale, bias, residual), (dy, mean, var) = arrays((70, 20), residual=True)
    factors, terms = jnp.stack([mean, scale, bias]), jnp.stack([var, bias])
    calls = {
        "moments": (x,),
        "apply": (x, factors, residual),
        "sums": (x, factors, residual, dy),
        "backward": (x, factors, residual, dy, terms),
    }
    for name, operands in calls.items():
        for relu in (False, True)[name == "moments" :]:
            options = {} if name == "moments" else {"relu": relu}
            if name in ("sums", "backward") and not relu:
                operands = (*operands[:2], *operands[3:])
            results = (jax.jit(functools.partial(getattr(form, name), **options))(*operands) for form in (kernels, plain))
            close(*map(jax.tree.leaves, results), 1e-5)


# --- transformations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("relu", "residual"), KINDS)
def test_forward_mode_is_the_transpose_of_reverse_mode(relu, residual, which):
    operands, cotangents = arrays((5, 6, 7), residual=residual)
    tangents = arrays((5, 6, 7), residual=residual, seed=1)[0]
    _, moved = jax.jvp(norm(relu), operands, tangents)
    back = gradients(cotangents, *operands, relu=relu)
    total = lambda a, b: sum(np.vdot(np.float64(p), np.float64(q)) for p, q in zip(a, b, strict=True))
    assert abs(total(cotangents, moved) - total(back, tangents)) < 1e-3


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize("order", ("rev-rev", "fwd-rev", "rev-fwd", "fwd-fwd"))
def test_second_derivatives(order, relu, which):
    operands, cotangents = arrays((4, 5, 3), "float64", residual=True)
    directions = arrays((4, 5, 3), "float64", residual=True, seed=1)[0]

    def scalar(function):
        return lambda *a: sum(jnp.vdot(c, jnp.sin(r)) for c, r in zip(cotangents, function(*a), strict=True))

    def derived(function, mode):
        if mode == "rev":
            return lambda *a: sum(map(jnp.vdot, jax.grad(function, (0, 1, 2, 3))(*a), directions))
        return lambda *a: jax.jvp(function, a, directions)[1]

    inner, outer = order.split("-")[::-1]
    plainly = textbook if relu else lambda *a: (textbook(*a[:3], 1e3)[0] - 1e3 + a[3], *textbook(*a)[1:])

    def second(function):
        first = derived(scalar(function), inner)
        return jax.grad(first, (0, 1, 2, 3)) if outer == "rev" else derived(first, "fwd")

    got, expected = (jax.tree.leaves(jax.jit(second(f))(*operands)) for f in (norm(relu), plainly))
    close(got, expected, 1e-8)


def test_gradients_of_a_part_of_the_arguments(which):
    operands, cotangents = arrays((5, 6, 7), residual=True)
    expected = gradients(cotangents, *operands, relu=True)
    for i in range(4):
        of_one = lambda a, i=i: norm(True)(*operands[:i], a, *operands[i + 1 :])
        close(jax.vjp(of_one, operands[i])[1](cotangents), [expected[i]])
    only = jax.grad(lambda x: norm(True)(x, *operands[1:])[2].sum())(operands[0])
    zeros = np.zeros_like(cotangents[0]), np.zeros(7), np.ones(7)
    close([only], [gradients(zeros, *operands, relu=True)[0]])


@pytest.mark.parametrize("mapped", ((0, None, None), (None, 0, 0), (1, 0, None), (2, None, 0)))
def test_vmap(mapped, which):
    (x, scale, bias), _ = arrays((3, 4, 5))
    stacked = [
        a if axis is None else jnp.stack([a, a * 2 + 1, a - 3], axis) for a, axis in zip((x, scale, bias), mapped, strict=True)
    ]
    got = jax.vmap(norm(True), in_axes=mapped)(*stacked)
    for i in range(3):
        one = [a if axis is None else jnp.take(a, i, axis) for a, axis in zip(stacked, mapped, strict=True)]
        close([a[i] for a in got], forward(*one, relu=True))
    total = lambda *a: sum(r.sum() for r in jax.vmap(lambda *a: jax.tree.map(jnp.cos, norm(True)(*a)), in_axes=mapped)(*a))
    each = lambda *a: sum(
        jnp.cos(r).sum()
        for i in range(3)
        for r in norm(True)(*(b if axis is None else jnp.take(b, i, axis) for b, axis in zip(a, mapped, strict=True)))
    )
    close(jax.grad(total, (0, 1, 2))(*stacked), jax.grad(each, (0, 1, 2))(*stacked), 1e-4)


def test_vmap_with_an_axis_name_is_one_large_batch():
    (x, scale, bias), _ = arrays((4, 6, 5))
    y, mean, var = jax.vmap(norm(True, axis_name="i"), in_axes=(0, None, None), axis_name="i")(x, scale, bias)
    expected = forward(x, scale, bias, relu=True)
    close([y, *mean, *var], [expected[0], *[expected[1]] * 4, *[expected[2]] * 4])


def test_scan_remat_and_linearize(which):
    operands, cotangents = arrays((6, 7, 5))

    def layers(run):
        def total(x, scale, bias):
            last, means = lax.scan(lambda x, _: run(x, scale, bias)[:2], x, None, length=3)
            return jnp.vdot(last, cotangents[0]) + jnp.cos(means).sum()

        return jax.value_and_grad(total, (0, 1, 2))(*operands)

    value, found = layers(norm(True))
    again, rematerialized = layers(jax.checkpoint(norm(True)))
    close([again, *rematerialized], [value, *found])
    step = 1e-3 * cotangents[1]
    moved = layers(lambda x, scale, bias: norm(True)(x, scale + step, bias))[0]
    assert abs(float(moved - value) - float(jnp.vdot(found[1], step))) < 1e-2 * abs(float(moved - value)) + 1e-4
    results, linear = jax.linearize(norm(True), *operands)
    close(results, forward(*operands, relu=True))
    close(linear(*operands), jax.jvp(norm(True), operands, operands)[1])


def test_outside_jit_and_with_jit_disabled():
    operands, cotangents = arrays((6, 7, 5), residual=True)
    with jax.disable_jit():
        results, found = pulled(norm(True))(operands, cotangents)
    close(results, forward(*operands, relu=True))
    close(found, gradients(cotangents, *operands, relu=True))


def test_what_is_kept_for_the_gradient_is_x_and_the_residual():
    operands, _ = arrays((8, 9, 64), residual=True)
    _, pull = jax.vjp(norm(True), *operands)
    kept = [a for a in jax.tree.leaves(pull) if a.size > 64 * 8]
    assert 1 <= len(kept) <= 2 and all(any((a == b).all() for b in (operands[0], operands[3])) for a in kept)


# --- many devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_vma", (False, True))
@pytest.mark.parametrize("residual", (False, True))
def test_shard_map_with_an_axis_name_is_one_large_batch(residual, check_vma, which):
    operands, cotangents = arrays((16, 4, 5), residual=residual)
    mesh = jax.make_mesh((4, 2), ("data", "more"), axis_types=(AxisType.Auto,) * 2)
    both = PartitionSpec(("data", "more"))
    specs = (both, PartitionSpec(), PartitionSpec(), *([both] if residual else []))
    run = jax.shard_map(
        norm(True, axis_name=("data", "more")),
        mesh=mesh,
        in_specs=specs,
        out_specs=(both, PartitionSpec(), PartitionSpec()),
        check_vma=check_vma,
    )
    results, found = jax.jit(pulled(run))(operands, cotangents)
    close(results, forward(*operands, relu=True))
    close(found, gradients(cotangents, *operands, relu=True))
    assert jax.jit(run).lower(*operands).as_text().count("stablehlo.all_reduce") == 1
    if which == "native":
        assert native.NORM_TARGET in jax.jit(run).lower(*operands).as_text()


def test_shard_map_without_one_keeps_devices_apart():
    operands, _ = arrays((8, 4, 5))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (DATA, PartitionSpec(), PartitionSpec()), "out_specs": (DATA, DATA, DATA)}
    y, mean, var = jax.shard_map(norm(), mesh=mesh, **specs)(*operands)
    for i in range(8):
        close([y[i], mean[5 * i : 5 * i + 5], var[5 * i : 5 * i + 5]], forward(operands[0][i], *operands[1:]))


@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit))
@pytest.mark.parametrize("spec", (DATA, PartitionSpec(None, "data"), PartitionSpec(None, None, "data")), ids=str)
def test_placed_on_a_mesh(spec, kind):
    operands, cotangents = arrays((8, 8, 16))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        place = lambda a, s: jax.device_put(a, NamedSharding(mesh, s))
        channels = PartitionSpec(*spec[2:])
        placed = place(operands[0], spec), *(place(a, PartitionSpec()) for a in operands[1:])
        cts = place(cotangents[0], spec), *(place(a, channels) for a in cotangents[1:])
        results, found = jax.jit(pulled(norm(True)))(placed, cts)
        assert results[0].sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    close(results, forward(*operands, relu=True))
    close(found, gradients(cotangents, *operands, relu=True))


# --- threads ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import hashlib, os, json, sys
import jax, numpy as np, gconv
from gconv import native
rng = np.random.default_rng(5)
hashes = []
for shape in ((8, 29, 31, 40), (3000, 3), (700, 1500), (40000, 17)):
    x, r, ct = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    s, b = rng.standard_normal((2, shape[-1])).astype(np.float32)
    run = lambda *a: gconv.batch_norm(*a[:3], residual=a[3], activation="relu")
    results, pull = jax.vjp(jax.jit(run), x, s, b, r)
    for a in (*results, *pull((ct, s, b))):
        hashes.append(hashlib.sha256(np.asarray(a).tobytes()).hexdigest())
print(json.dumps([native.instruction_set(), hashes]))
"""


@built
def test_the_bits_depend_on_no_number_of_threads():
    printed_on_any_threads(PROGRAM)


@built
def test_each_instruction_set_computes_the_same_to_rounding():
    """Another process, for the set is chosen once."""
    program = """
import jax, numpy as np, gconv
from gconv.norm import kernels
rng = np.random.default_rng(5)
for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 2e-3)):
    x, r, ct = (rng.standard_normal((300, 19)).astype(dtype) for _ in range(3))
    s, b = rng.standard_normal((2, 19)).astype("float32")
    run = lambda *a: jax.vjp(lambda *a: gconv.batch_norm(*a[:3], residual=a[3], activation="relu"), *a)[1]((ct, s, b))
    found = jax.jit(run)(x, s, b, r)
    kernels.why_not, _ = (lambda *_: "none"), jax.clear_caches()
    expected = jax.jit(run)(x, s, b, r)
    for p, q in zip(found, expected):
        np.testing.assert_allclose(np.float32(p), np.float32(q), atol=tolerance * np.abs(np.float32(q)).max())
    import importlib; importlib.reload(kernels)
    jax.clear_caches()
"""
    below_avx512 = ("avx2", "baseline")
    sets = {"avx512_bf16": below_avx512, "avx512": below_avx512, "avx2": ("baseline",)}.get(native.instruction_set(), ())
    for name in sets:
        printed(program, GCONV_NATIVE_ISA=name)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    (
        ({"x": jnp.ones((4, 3), "int32")}, TypeError, r"`x` must be floating, got int32. x.astype\('float32'\) would work"),
        ({"x": jnp.ones((4, 3), "complex64")}, TypeError, "`x` must be floating, got complex64"),
        ({"x": [1.0]}, TypeError, "`x` must be an array, got list"),
        ({"x": jnp.ones(())}, ValueError, "A shape that works"),
        ({"scale": jnp.ones(4)}, ValueError, r"`scale` .* has 3, got shape \(4,\). A shape that works: \(3,\)"),
        ({"bias": jnp.ones((1, 3))}, ValueError, r"`bias` .* got shape \(1, 3\)"),
        ({"mean": jnp.ones(3)}, ValueError, "`mean` and `var` go together: got `mean` without `var`"),
        ({"mean": jnp.ones(3), "var": jnp.ones(3), "axis_name": "i"}, ValueError, "`axis_name`='i'"),
        ({"residual": jnp.ones((4, 3), "bfloat16")}, ValueError, "`residual` must be like `x`, float32"),
        ({"activation": "rely"}, ValueError, 'Did you mean "relu"'),
        ({"activation": 3}, ValueError, "Names that work: relu, "),
        ({"eps": 1e-3}, TypeError, "`epsilon`"),
    ),
)
def test_errors_say_what_works(wrong, error, message):
    with pytest.raises(error, match=message):
        gconv.batch_norm(**{"x": jnp.ones((4, 3)), "scale": jnp.ones(3), "bias": jnp.ones(3), **wrong})


GOOD = {"pass": np.int64(2), "relu": True, "residual": True, "partitions": np.int64(2)}


def call(*, x=(6, 5), dy=(6, 5), residual=(6, 5), factors=(3, 5), result=(2, 5), size=160, **options):
    dtype, other = options.pop("dtype", "float32"), options.pop("other", "float32")
    native.register_kernels()
    results = (jax.ShapeDtypeStruct(result, "float32"), jax.ShapeDtypeStruct((size,), jnp.uint8))
    operands = (jnp.ones(x, dtype), jnp.ones(factors), *([jnp.ones(residual)] if residual else []), jnp.ones(dy, other))
    return jax.ffi.ffi_call(native.NORM_TARGET, results)(*operands, **(GOOD | options))[0]


@built
def test_a_well_formed_call_runs():
    np.testing.assert_array_equal(call(), [[6.0] * 5, [0.0] * 5])


@built
@pytest.mark.parametrize(
    ("wrong", "message"),
    (
        ({"x": (6, 5, 1)}, "two axes"),
        ({"x": (0, 5)}, "must not be empty"),
        ({"x": (7, 5)}, "does not fit"),
        ({"factors": (2, 5)}, "does not fit"),
        ({"residual": (6, 4)}, "does not fit"),
        ({"residual": None}, "are missing"),
        ({"dy": (5, 5)}, "does not fit"),
        ({"result": (3, 5)}, "does not fit"),
        ({"dtype": "int32"}, "elements must be"),
        ({"dtype": "bfloat16"}, "does not fit"),
        ({"other": "float16"}, "does not fit"),
        ({"size": 159}, "scratch is too small"),
        ({"partitions": np.int64(0)}, "partitions must lie"),
        ({"partitions": np.int64(1 << 40)}, "partitions must lie"),
        ({"pass": np.int64(5)}, "the pass must be"),
        ({"pass": np.int64(0)}, "no residual"),
        ({"pass": np.int64(3)}, "are missing"),
        ({"relu": False}, "no residual"),
    ),
)
def test_a_malformed_call_is_an_error(wrong, message):
    with pytest.raises((ValueError, RuntimeError), match=f"gconv: .*{message}"):
        jax.block_until_ready(call(**wrong))
