"""What explain says must be what runs."""

import jax
import jax.numpy as jnp
import pytest

import gconv
from gconv import roles

CASES = [((2, 9, 8, 6), (3, 3, 1, 6)), ((2, 9, 8, 6), (3, 3, 3, 4)), ((4, 50, 8), (5, 8, 8))]


@pytest.mark.parametrize("name", [None, *gconv.implementations()])
@pytest.mark.parametrize("x_shape, kernel_shape", CASES)
def test_the_lowered_text_agrees(x_shape, kernel_shape, name):
    if name and (reason := gconv.implementations("cpu")[name]):
        pytest.skip(f"{name}: {reason}")
    x, kernel = jax.ShapeDtypeStruct(x_shape, "float32"), jax.ShapeDtypeStruct(kernel_shape, "float32")
    found = gconv.explain(x, kernel, padding="same", implementation=name)

    def both_gradients(x, kernel):
        y, pull = jax.vjp(lambda x, w: gconv.grouped_conv(x, w, padding="same", implementation=name), x, kernel)
        return pull(y)

    text = jax.jit(both_gradients).lower(x, kernel).as_text(debug_info=True)
    for role in roles.OPERANDS:
        ran = {n for n in gconv.implementations() if f"gconv_{role}_{n}" in text}
        assert ran == {found[role].implementation}
        assert name is None or found[role].implementation == name
        assert set(found[role].reasons) == set(gconv.implementations()) - ran
        assert all(found[role].reasons.values())


def test_flops_bytes_and_scratch():
    x, kernel = jax.ShapeDtypeStruct((2, 3, 10, 6), "bfloat16"), jax.ShapeDtypeStruct((5, 2, 9), "bfloat16")
    found = gconv.explain(x, kernel, strides=2, preferred_element_type=jnp.float32)
    outputs = 2 * 3 * 3 * 9
    for role in found.roles:
        assert role.flops == 2 * outputs * 5 * 2
        assert role.bytes == 2 * (2 * 3 * 10 * 6 + 5 * 2 * 9) + 4 * outputs
        assert role.scratch >= 0
    assert "3 groups of 2 -> 3 channels" in str(found)


def test_other_platforms_are_explained_without_being_there():
    x, kernel = jax.ShapeDtypeStruct((2, 9, 8, 6), "float32"), jax.ShapeDtypeStruct((3, 3, 1, 6), "float32")
    for platform in ("cuda", "tpu"):
        found = gconv.explain(x, kernel, platform=platform)
        assert found["y"].scratch is None
        assert f"on {platform}" in str(found)


def test_padding_with_a_value_is_explained_as_it_runs():
    x, kernel = jax.ShapeDtypeStruct((2, 9, 8, 6), "float32"), jax.ShapeDtypeStruct((3, 3, 1, 6), "float32")
    found = gconv.explain(x, kernel, padding=1, padding_value="circular")
    assert found.geometry.spatial == (11, 10) and found.geometry.output == (9, 8)
    assert found["y"].flops == gconv.explain(x, kernel, padding=1)["y"].flops
    with pytest.raises(ValueError, match="`platform` must be one of 'cpu', 'cuda'.*'gpu'"):
        gconv.explain(x, kernel, platform="gpu")


def test_wrong_names_are_errors_here_too():
    x, kernel = jax.ShapeDtypeStruct((2, 9, 8, 6), "float32"), jax.ShapeDtypeStruct((3, 3, 1, 6), "float32")
    with pytest.raises(ValueError, match="`implementation` must be None or one of"):
        gconv.explain(x, kernel, implementation="cudnn")
    assert list(gconv.implementations())[-1] == "lax"
    assert gconv.implementations()["lax"] is None
