"""Everything that JAX does to a function can be done to `grouped_conv`: derivatives, vmap, jit, export.

Nearly every test runs for each implementation by name.
"""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import Case, draw
from jax.test_util import check_grads

from gconv import backends, grouped_conv, grouped_conv_transpose

GROUPED = Case("grouped", (2,), (4, 5), (2, 3), 2, 2, 3, strides=(2, 1), padding="same")
DEPTHWISE = Case("depthwise", (2,), (6,), (3,), 4, 1, 1, padding=2, dilation=2)
CASES = pytest.mark.parametrize("case", (GROUPED, DEPTHWISE), ids=str)


def close(got, exact, terms=64):
    """Equal up to the rounding of a sum of some tens of products in float32, relative to the largest entry."""
    got, exact = np.asarray(got), np.asarray(exact)
    assert got.shape == exact.shape
    eps = np.finfo(got.dtype).eps
    assert abs(got - exact).max(initial=0) <= terms * eps * max(abs(exact).max(initial=0), 1)


# --- derivatives -----------------------------------------------------------------------------------------------------
# T is linear in each argument: finite differences with a step of 1 have no truncation error, one argument at a time.


@CASES
@pytest.mark.parametrize("argument", ("x", "kernel"))
def test_second_derivatives(case, argument, conv_of, x64):
    conv = conv_of(case, "float64")
    x, kernel, _, _ = case.arrays("float64")
    if argument == "x":
        check_grads(lambda x: conv(x, kernel), (x,), order=2, modes=("fwd", "rev"), eps=1.0)
    else:
        check_grads(lambda k: conv(x, k), (kernel,), order=2, modes=("fwd", "rev"), eps=1.0)


@pytest.mark.parametrize("argument", ("y", "kernel"))
def test_second_derivatives_of_the_transposed_convolution(argument, conv_of, implementation, x64):
    conv_of(GROUPED, "float64")
    options = {"groups": 2, "strides": (2, 1), "padding": 1, "output_padding": (1, 0), "implementation": implementation}
    rng = np.random.default_rng(0)
    y, kernel = draw(rng, (1, 2, 3, 6), "float64"), draw(rng, (2, 3, 2, 6), "float64")
    functions = {
        "y": (lambda y: grouped_conv_transpose(y, kernel, **options), y),
        "kernel": (lambda k: grouped_conv_transpose(y, k, **options), kernel),
    }
    function, at = functions[argument]
    check_grads(function, (at,), order=2, modes=("fwd", "rev"), eps=1.0)


def test_both_arguments_together_to_order_two(conv_of, x64):
    """A bilinear function has an exact Taylor series: f(x + a, w + b) = f + df + f(a, b)."""
    conv = conv_of(GROUPED, "float64")
    (x, kernel, _, _), (a, b, _, _) = GROUPED.arrays("float64"), GROUPED.arrays("float64", seed=1)
    y, first = jax.jvp(conv, (x, kernel), (a, b))
    _, second = jax.jvp(lambda x, k: jax.jvp(conv, (x, k), (a, b))[1], (x, kernel), (a, b))
    close(y + first + second / 2, conv(x + a, kernel + b))


def test_jacfwd_equals_jacrev(conv_of):
    conv = conv_of(DEPTHWISE)
    x, kernel, _, _ = DEPTHWISE.arrays()
    forward = jax.jacfwd(conv, (0, 1))(x, kernel)
    for there, back in zip(forward, jax.jacrev(conv, (0, 1))(x, kernel), strict=True):
        close(there, back)
    close(np.tensordot(forward[0], x, 3), conv(x, kernel))  # linear in x


@CASES
def test_hessian_vector_products_agree_both_ways(case, conv_of):
    conv = conv_of(case)
    (x, kernel, _, _), (a, b, _, _) = case.arrays(), case.arrays(seed=1)

    def loss(x, kernel):
        return (conv(x, kernel) ** 3).sum() / 100

    gradient = jax.grad(loss, (0, 1))
    forward_over_reverse = jax.jvp(gradient, (x, kernel), (a, b))[1]
    reverse_over_forward = jax.grad(lambda x, k: jax.jvp(loss, (x, k), (a, b))[1], (0, 1))(x, kernel)
    reverse_over_reverse = jax.grad(lambda *p: sum(map(jnp.vdot, gradient(*p), (a, b))), (0, 1))(x, kernel)
    for one, two, three in zip(forward_over_reverse, reverse_over_forward, reverse_over_reverse, strict=True):
        close(two, one, 256)
        close(three, one, 256)


def test_linearize_and_linear_transpose(conv_of):
    conv = conv_of(GROUPED)
    x, kernel, _, ct = GROUPED.arrays()
    y, derivative = jax.linearize(conv, x, kernel)
    close(derivative(x, np.zeros_like(kernel)), y)  # linear in x
    (back,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(ct)
    close(back, oracle.input_gradient(ct, kernel, x.shape, **GROUPED.facts))


def test_gradients_through_scan_and_remat(conv_of):
    case = Case("square", (2,), (6,), (3,), 2, 2, 2, padding="same")
    conv = conv_of(case)
    x, kernel, _, _ = case.arrays()
    kernels = jnp.stack([kernel, kernel / 2, -kernel])

    def by_scan(wrap, x, kernels):
        return jax.lax.scan(lambda x, k: (wrap(lambda x, k: jnp.tanh(conv(x, k)))(x, k), None), x, kernels)[0].sum()

    def unrolled(x, kernels):
        for i in range(3):
            x = jnp.tanh(conv(x, kernels[i]))
        return x.sum()

    exact = jax.jit(jax.grad(unrolled, (0, 1)))(x, kernels)
    for wrap in (lambda f: f, jax.checkpoint):
        for got, gradient in zip(jax.jit(jax.grad(partial(by_scan, wrap), (0, 1)))(x, kernels), exact, strict=True):
            close(got, gradient, 256)


def test_inside_custom_vjp_and_custom_jvp(conv_of):
    conv = conv_of(GROUPED)
    x, kernel, _, ct = GROUPED.arrays()
    exact = jax.vjp(conv, x, kernel)[1](ct)

    reverse = jax.custom_vjp(conv)
    reverse.defvjp(lambda x, k: (conv(x, k), (x, k)), lambda residuals, ct: jax.vjp(conv, *residuals)[1](2 * ct))
    forward = jax.custom_jvp(conv)
    forward.defjvp(lambda primals, tangents: (conv(*primals), 2 * jax.jvp(conv, primals, tangents)[1]))
    for function in (reverse, forward):
        for got, gradient in zip(jax.vjp(function, x, kernel)[1](ct), exact, strict=True):
            close(got, 2 * gradient)


# --- vmap ------------------------------------------------------------------------------------------------------------


def stacked(case, n, seed=0):
    """n different `(x, kernel, cotangent)` of a case, along a new first axis."""
    drawn = [case.arrays(seed=seed + i) for i in range(n)]
    return tuple(np.stack([d[i] for d in drawn]) for i in (0, 1, 3))


@CASES
@pytest.mark.parametrize("mapped", ((0, None), (None, 0), (0, 0)), ids=("x", "kernel", "both"))
def test_vmap_of_values_and_gradients(case, mapped, conv_of):
    conv = conv_of(case)
    xs, kernels, cts = stacked(case, 3)
    x, kernel = (a if d == 0 else a[0] for a, d in zip((xs, kernels), mapped, strict=True))

    @jax.jit
    @partial(jax.vmap, in_axes=(*mapped, 0))
    def run(x, kernel, ct):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(ct)

    y, dx, dw = run(x, kernel, cts)
    for i in range(3):
        xi, ki = (a[i] if d == 0 else a for a, d in zip((x, kernel), mapped, strict=True))
        close(y[i], oracle.conv(xi, ki, **case.facts))
        close(dx[i], oracle.input_gradient(cts[i], ki, xi.shape, **case.facts))
        close(dw[i], oracle.kernel_gradient(xi, cts[i], ki.shape, **case.facts))


@pytest.mark.parametrize("x_axis", (1, 3, -1))
@pytest.mark.parametrize("kernel_axis", (1, -1))
def test_vmap_over_any_axis_to_any_axis(x_axis, kernel_axis):
    xs, kernels, _ = stacked(GROUPED, 3)
    conv = partial(grouped_conv, **GROUPED.options)
    mapped = jax.vmap(conv, in_axes=(x_axis, kernel_axis), out_axes=2)
    y = mapped(np.moveaxis(xs, 0, x_axis), np.moveaxis(kernels, 0, kernel_axis))
    for i in range(3):
        close(y[:, :, i], oracle.conv(xs[i], kernels[i], **GROUPED.facts))


@pytest.mark.parametrize("inner", ((0, None), (None, 0), (0, 0)), ids=("x", "kernel", "both"))
@pytest.mark.parametrize("outer", ((0, None), (None, 0), (0, 0)), ids=("x", "kernel", "both"))
def test_nested_vmap(outer, inner):
    """Two mapped axes: each operand has as many of them as it is mapped over."""
    many = [stacked(DEPTHWISE, 2, seed=10 * i)[:2] for i in range(3)]
    operands = []
    for which in (0, 1):
        a = np.stack([m[which] for m in many])
        a = a if inner[which] == 0 else a[:, 0]
        operands.append(a if outer[which] == 0 else a[0])
    conv = partial(grouped_conv, **DEPTHWISE.options)
    y = jax.jit(jax.vmap(jax.vmap(conv, inner), outer))(*operands)
    for i, j in np.ndindex(3, 2):
        picked = [a[i] if o == 0 else a for a, o in zip(operands, outer, strict=True)]
        picked = [a[j] if n == 0 else a for a, n in zip(picked, inner, strict=True)]
        close(y[i, j], oracle.conv(*picked, **DEPTHWISE.facts))


def test_gradients_per_example(conv_of):
    conv = conv_of(GROUPED)
    xs, kernels, _ = stacked(GROUPED, 3)
    per_example = jax.vmap(jax.grad(lambda k, x: conv(x, k).sum()), (None, 0))(kernels[0], xs)
    for i in range(3):
        ones = np.ones(GROUPED.y_shape)
        close(per_example[i], oracle.kernel_gradient(xs[i], ones, GROUPED.kernel_shape, **GROUPED.facts))


def test_gradient_of_vmap_of_gradient(conv_of):
    """Meta-learning: one gradient step per task, and the gradient of what comes out."""
    conv = conv_of(DEPTHWISE)
    xs, kernels, _ = stacked(DEPTHWISE, 2)

    def loss(kernel, x):
        return (conv(x, kernel) ** 2).mean()

    def after_a_step(kernel, x):
        return loss(kernel - 0.1 * jax.grad(loss)(kernel, x), x)

    got = jax.jit(jax.grad(lambda k: jax.vmap(after_a_step, (None, 0))(k, xs).sum()))(kernels[0])
    close(got, sum(jax.jit(jax.grad(after_a_step))(kernels[0], x) for x in xs), 256)


@pytest.mark.parametrize("mapped", ((0, None), (None, 0), (0, 0)), ids=("x", "kernel", "both"))
def test_vmap_over_an_axis_of_size_zero(mapped):
    arrays = GROUPED.arrays()[:2]
    x, kernel = (a if d is None else np.zeros((0, *a.shape), a.dtype) for a, d in zip(arrays, mapped, strict=True))
    conv = partial(grouped_conv, **GROUPED.options)
    assert jax.vmap(conv, mapped)(x, kernel).shape == (0, *GROUPED.y_shape)
    gradients = jax.grad(lambda x, k: jax.vmap(conv, mapped)(x, k).sum(), (0, 1))(x, kernel)
    for gradient, operand in zip(gradients, (x, kernel), strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(operand))


# --- jit, tracing and export -----------------------------------------------------------------------------------------


def test_the_lowered_text_names_the_implementation_of_each_role(conv_of, implementation):
    conv = conv_of(GROUPED)
    x, kernel, _, ct = GROUPED.arrays()
    text = jax.jit(lambda x, k, ct: jax.vjp(conv, x, k)[1](ct)).lower(x, kernel, ct).as_text(debug_info=True)
    forward = jax.jit(conv).lower(x, kernel).as_text(debug_info=True)
    assert f"gconv_y_{implementation}" in forward
    assert f"gconv_x_{implementation}" in text and f"gconv_w_{implementation}" in text
    others = set(backends.TABLE) - {implementation}
    assert not [f"gconv_{role}_{other}" for role in "yxw" for other in others if f"gconv_{role}_{other}" in forward + text]


def test_compiled_ahead_of_time(conv_of):
    conv = conv_of(GROUPED)
    x, kernel, _, _ = GROUPED.arrays()
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel)]
    compiled = jax.jit(conv).lower(*shapes).compile()
    close(compiled(x, kernel), oracle.conv(x, kernel, **GROUPED.facts))


def test_donated_input(conv_of):
    case = Case("in-place", (2,), (6,), (3,), 2, 2, 2, padding="same")
    conv = conv_of(case)
    x, kernel, _, _ = case.arrays()
    donated = jnp.array(x)
    y = jax.jit(conv, donate_argnums=0)(donated, kernel)
    assert donated.is_deleted()
    close(y, oracle.conv(x, kernel, **case.facts))


def test_eval_shape_computes_nothing():
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((10**6, 10**3, 10**3, 6), (3, 3, 2, 6)))
    y = jax.eval_shape(partial(grouped_conv, padding="same", strides=2), x, kernel)
    assert y.shape == (10**6, 500, 500, 6) and y.dtype == jnp.bfloat16


def test_ensure_compile_time_eval(conv_of):
    conv = conv_of(GROUPED)
    x, kernel, _, _ = GROUPED.arrays()

    @jax.jit
    def run(z):
        with jax.ensure_compile_time_eval():
            constant = np.asarray(conv(jnp.asarray(x), jnp.asarray(kernel)))  # raises for a tracer
        return z + constant

    close(run(0.0), oracle.conv(x, kernel, **GROUPED.facts))


def test_debug_nans_finds_a_nan_and_nothing_else(conv_of):
    conv = conv_of(GROUPED)
    x, kernel, _, _ = GROUPED.arrays()
    with jax.debug_nans(True):
        gradients = jax.grad(lambda x, k: conv(x, k).sum(), (0, 1))(x, kernel)
        assert all(np.isfinite(g).all() for g in gradients)
        x[0, 0, 0, 0] = np.nan
        with pytest.raises(FloatingPointError):
            conv(x, kernel)


@pytest.mark.parametrize("differentiated", (False, True), ids=("values", "gradients"))
def test_exported_for_every_platform_with_a_symbolic_batch(differentiated):
    """Lowered here for machines that are not here, and run for two batch sizes."""
    function, exported, (x, kernel) = export(differentiated)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for n in (1, 3):
        xs = np.concatenate([x, x])[:n]
        for got, exact in zip(exported.call(xs, kernel), function(xs, kernel), strict=True):
            close(got, exact)


def test_an_exported_program_is_serialized_and_read_back():
    pytest.importorskip("flatbuffers", reason="jax.export serializes with flatbuffers, which is not installed")
    function, exported, (x, kernel) = export(differentiated=True)
    read = jax.export.deserialize(exported.serialize())
    for got, exact in zip(read.call(x, kernel), function(x, kernel), strict=True):
        close(got, exact)


def export(differentiated):
    (batch,) = jax.export.symbolic_shape("batch")
    x, kernel, _, _ = GROUPED.arrays()
    conv = partial(grouped_conv, **GROUPED.options)

    def function(x, kernel):
        return jax.grad(lambda x, k: conv(x, k).sum(), (0, 1))(x, kernel) if differentiated else (conv(x, kernel),)

    shapes = (jax.ShapeDtypeStruct((batch, *x.shape[1:]), "float32"), jax.ShapeDtypeStruct(kernel.shape, "float32"))
    return function, jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(*shapes), (x, kernel)


def test_lowers_for_platforms_that_are_not_here():
    x, kernel, _, _ = GROUPED.arrays()
    traced = jax.jit(partial(grouped_conv, **GROUPED.options)).trace(x, kernel)
    for platform in ("cuda", "rocm", "tpu"):
        assert "gconv_y_" in traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)
