"""The table of implementations: who is chosen, who is refused, and what each may contain."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gconv import backends, grouped_conv
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
    partial = types.SimpleNamespace(x=lax.x, y=lax.y, why_not=why_not, pass_over=lambda *case: None)
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
    loss = lambda w: grouped_conv(x, w).sum()
    np.testing.assert_array_equal(jax.grad(loss)(kernel.astype(jnp.float32)), jax.grad(loss)(jnp.zeros(kernel.shape)))
    with pytest.raises(TypeError, match="grad requires real- or complex-valued"):
        jax.grad(loss)(kernel)
