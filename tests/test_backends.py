"""The table of implementations: who is chosen, who is refused, and what each may contain."""

import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import Case
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gconv import backends, grouped_conv, grouped_conv_transpose
from gconv.geometry import geometry

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8, 6)), jnp.float32)
KERNELS = {"depthwise": (3, 3, 1, 6), "grouped": (3, 3, 3, 4)}


def kernel_of(name):
    return jnp.asarray(np.random.default_rng(1).normal(size=KERNELS[name]), jnp.float32)


def both_gradients(implementation):
    def run(x, kernel):
        y, pull = jax.vjp(lambda x, w: grouped_conv(x, w, padding=1, strides=2, implementation=implementation), x, kernel)
        return y, pull(y)

    return run


@pytest.fixture
def no_kernel_gradient(monkeypatch):
    """A table whose best implementation is `lax` without its role "w"."""

    def why_not(role, geometry, dtype, platform):
        return "it has no kernel gradient" if role == "w" else None

    lax = backends.TABLE["lax"]
    partial = types.SimpleNamespace(x=lax.x, y=lax.y, why_not=why_not)
    monkeypatch.setitem(backends.TABLE, "partial", partial)


def test_a_named_implementation_never_falls_back_and_neither_do_its_derivatives(no_kernel_gradient):
    named = both_gradients("partial")
    jax.jit(lambda x, w: grouped_conv(x, w, implementation="partial")).lower(X, kernel_of("grouped"))
    with pytest.raises(ValueError, match="'partial' cannot run role 'w': it has no kernel gradient"):
        jax.jit(named).lower(X, kernel_of("grouped"))


def test_the_automatic_choice_takes_the_next_where_one_cannot(no_kernel_gradient, monkeypatch):
    monkeypatch.setattr(backends, "TABLE", {"partial": backends.TABLE["partial"], "lax": backends.TABLE["lax"]})
    text = jax.jit(both_gradients(None)).lower(X, kernel_of("grouped")).as_text(debug_info=True)
    assert "gconv_y_partial" in text and "gconv_x_partial" in text and "gconv_w_lax" in text
    assert "gconv_w_partial" not in text


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="`implementation` must be None or one of 'native', 'xla', 'lax', got 'cudnn'"):
        grouped_conv(X, kernel_of("grouped"), implementation="cudnn")


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("implementation", ["xla", "lax"])
def test_no_custom_call_and_no_convolution_over_the_zeros_of_strides(implementation, name):
    text = jax.jit(both_gradients(implementation)).lower(X, kernel_of(name)).as_text()
    assert "custom_call" not in text
    assert "batch_group_count" not in text or "batch_group_count = 1" in text
    assert ("lhs_dilate = [2, 2]" in text) == (implementation == "lax"), "role x by phases"


@pytest.mark.parametrize("window, padding", (((3, 3), 1), ((4,), ((3, 0),))), ids=("2d", "causal"))
@pytest.mark.parametrize("derivative", (False, True), ids=("forward", "backward"))
def test_convolutions_that_follow_each_other_are_computed_once(derivative, window, padding):
    """A tap that meets no padding reads its source itself, and XLA would compute in it what comes before, in each once more."""
    x = jnp.ones((2, *(8,) * len(window), 6))

    def forward(x, kernels):
        for kernel in kernels:
            x = jax.nn.relu(grouped_conv(x, kernel, padding=padding, implementation="xla") + 1)
        return x.sum()

    run = jax.grad(forward, argnums=(0, 1)) if derivative else forward

    def operations(depth):
        kernels = [jnp.full((*window, 1, 6), 0.1 + i) for i in range(depth)]
        return jax.jit(run).lower(x, kernels).compile().cost_analysis()["flops"]

    two, six = operations(2), operations(6)
    assert 2 * two < six < 3.5 * two


@pytest.mark.parametrize(
    "function, platform, count",
    (
        (partial(grouped_conv, padding=1), "cpu", 1),
        (partial(grouped_conv, padding=1), "cuda", 0),  # XLA pads within its sums there
        (grouped_conv, "cpu", 0),
        (partial(grouped_conv, padding=1, strides=2), "cpu", 1),
        (partial(grouped_conv_transpose, groups=6, padding=1), "cpu", 1),
        (partial(grouped_conv_transpose, groups=6, padding=1, strides=2), "cpu", 0),  # each of its phases pads for itself
    ),
    ids=range(6),
)
def test_where_xla_may_not_look_through_the_padding(function, platform, count):
    traced = jax.jit(partial(function, implementation="xla")).trace(X, kernel_of("depthwise"))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == count


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_finite_stays_in_its_windows(name, bad, implementation, needs):
    needs(geometry(X.shape, KERNELS[name], padding=1)[1])
    kernel = jnp.abs(kernel_of(name)) + 0.1
    clean = grouped_conv(X, kernel, padding=1, implementation=implementation)
    dirty = grouped_conv(X.at[0, 4, 3, 2].set(bad), kernel, padding=1, implementation=implementation)
    group = 2 if name == "depthwise" else slice(0, 2)
    touched = np.zeros(clean.shape, bool)
    touched[0, 3:6, 2:5, group] = True
    np.testing.assert_array_equal(~np.isfinite(dirty), touched)
    np.testing.assert_array_equal(np.asarray(dirty)[~touched], np.asarray(clean)[~touched])


def test_integers_and_float0_as_in_lax():
    x, kernel = jnp.arange(40).reshape(1, 10, 4), jnp.ones((3, 2, 4), jnp.int32)
    tangents = (np.zeros(x.shape, jax.dtypes.float0), np.zeros(kernel.shape, jax.dtypes.float0))
    options = dict(window_strides=(1,), padding="VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2)
    ours = jax.jvp(grouped_conv, (x, kernel), tangents)
    theirs = jax.jvp(lambda x, w: jax.lax.conv_general_dilated(x, w, **options), (x, kernel), tangents)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(ours[0], theirs[0])
    loss = lambda w: grouped_conv(x.astype(w.dtype), w).sum()
    np.testing.assert_array_equal(jax.grad(loss)(kernel.astype(jnp.float32)), jax.grad(loss)(jnp.zeros(kernel.shape)))
    with pytest.raises(TypeError, match="grad requires real- or complex-valued"):
        jax.grad(loss)(kernel)


# --- paddings that crop ----------------------------------------------------------------------------------------------
# XLA:CPU reads outside the buffer at some negative paddings (openxla/xla issue 48713): none may reach it.

CROPPED = (
    Case("stride-of-3", (1,), (9, 9), (3, 3), 2, 12, 12, strides=3, padding=1),
    Case("stride-of-4", (1,), (12, 12), (5, 5), 2, 12, 4, strides=4, padding=2),
    Case("padding-over-window", (1,), (8, 7), (3, 3), 2, 8, 8, padding=((4, 1), (5, 0))),
    Case("padding-over-window-wide", (2,), (9, 9), (3, 3), 1, 16, 16, padding=((4, 1), (4, 1))),
    Case("padding-over-window-dilated", (1,), (8, 9), (3, 2), 2, 6, 6, padding=((7, 2), (1, 5)), dilation=(2, 3)),
    Case("one-row-of-many", (1,), (9, 9), (1, 1), 1, 12, 12, strides=5),
    Case("1d", (2,), (11,), (3,), 2, 12, 12, strides=4, padding=((6, 1),)),
    Case("3d", (1,), (7, 5, 6), (2, 3, 1), 2, 6, 6, strides=(3, 2, 4), padding=((3, 0), (4, 1), (0, 2))),
)


def all_roles(case, implementation):
    def run(x, kernel, ct):
        y, pull = jax.vjp(lambda x, k: grouped_conv(x, k, **case.options, implementation=implementation), x, kernel)
        return y, *pull(ct)

    return run


def exact(case, x, kernel, ct):
    return (
        oracle.conv(x, kernel, **case.facts),
        oracle.input_gradient(ct, kernel, x.shape, **case.facts),
        oracle.kernel_gradient(x, ct, kernel.shape, **case.facts),
    )


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("where", ("here", "exported", "four devices"))
@pytest.mark.parametrize("case", CROPPED, ids=str)
def test_no_negative_padding_reaches_xla(case, where, implementation, needs):
    needs(geometry(case.x_shape, case.kernel_shape, **{k: v for k, v in case.options.items() if k != "padding_value"})[1])
    x, kernel, _, ct = case.arrays()
    if where == "four devices":
        x, ct = (np.concatenate([a, -a, 2 * a, a + 1][: 4 // len(a)]) for a in (x, ct))
    run = jax.jit(all_roles(case, None if where == "exported" else implementation))
    operands = (x, kernel, ct)
    if where == "four devices":
        mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
        operands = [
            jax.device_put(a, NamedSharding(mesh, PartitionSpec(spec)))
            for a, spec in zip(operands, ("data", None, "data"), strict=True)
        ]
    if where == "exported":
        program = jax.export.export(run)(*operands)
        text, got = program.mlir_module(), program.call(*operands)
    else:
        text, got = run.lower(*operands).as_text(), run(*operands)
    assert not re.findall(r"pad = \[[^=]*-\d", text)
    assert_close(got, exact(case, x, kernel, ct))


@pytest.mark.parametrize("where", ("here", "exported"))
@pytest.mark.parametrize("name", (None, "xla", "lax"))
def test_a_transposed_convolution_with_output_padding(where, name):
    y, kernel = jnp.ones((1, 4, 4, 24)), jnp.ones((3, 3, 12, 24))
    options = dict(groups=2, strides=3, padding=1, output_padding=2, implementation=name)
    run = jax.jit(lambda y: grouped_conv_transpose(y, kernel, **options))
    got = jax.export.export(run)(y).call(y) if where == "exported" else run(y)
    np.testing.assert_array_equal(np.unique(got), [0, 12])
