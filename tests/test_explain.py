"""What explain says must be what runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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


# --- a whole model ---------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, channels, *, rngs):
        self.depthwise = gconv.nnx.GroupedConv(channels, 3, 1, channels, padding="same", rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.pointwise = nnx.Conv(channels, 2 * channels, (1, 1), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.pointwise(self.norm(self.depthwise(x))))


class Model(nnx.Module):
    """Layers within layers, one that is called twice under two names, remat, scan, and a product outside of all layers."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([Block(8, rngs=rngs), Block(16, rngs=rngs)])
        self.again = self.blocks[0].depthwise
        self.up = gconv.nnx.GroupedConvTranspose(32, 2, 8, 2, strides=2, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        x = self.again(self.stem(x))
        for block in self.blocks:
            x = nnx.remat(lambda block, x: block(x))(block, x)
        x = self.up(x).mean((1, 2))
        x, _ = jax.lax.scan(lambda x, _: (x @ jnp.eye(16), None), x, length=3)
        return self.head(x)


def test_a_model_as_a_table():
    model = Model(nnx.Rngs(0))
    before = jax.tree.map(jnp.array, nnx.state(model))
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")
    table = gconv.explain(model, x, platform="cpu")
    assert table.parameters == sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    pixels = 2 * 8 * 8
    flops = {
        "stem": 2 * pixels * 9 * 3 * 8,
        "blocks.0.pointwise": 2 * pixels * 8 * 16,
        "blocks.1.depthwise": 2 * pixels * 9 * 16,
        "blocks.1.pointwise": 2 * pixels * 16 * 32,
        "up": 2 * pixels * 4 * 32 * 8,
        "head": 2 * 2 * 16 * 5,
        "(the model itself)": 3 * 2 * 2 * 16 * 16,
    }
    found = {layer.path: layer for layer in table.layers}
    assert {path: found[path].flops for path in flops} == flops
    (shared,) = (found[path] for path in ("again", "blocks.0.depthwise") if path in found)
    assert shared.flops == 2 * (2 * pixels * 9 * 8) and shared.parameters == 80
    assert table.flops == sum(flops.values()) + shared.flops
    assert found["stem"].bytes == 4 * (2 * 16 * 16 * 3 + 9 * 3 * 8 + pixels * 8)
    assert found["stem"].implementations == ("lax",) and found["head"].implementations == ("XLA",)
    assert found["blocks.0.norm"].flops == 0 and found["blocks.0.norm"].parameters == 16
    assert "total" in str(table) and f"{table.flops:,}" in str(table)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    assert type(model.stem) is nnx.Conv, "the model itself is not touched"


def test_the_table_says_what_is_taken():
    model, x = Model(nnx.Rngs(0)), jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")
    of = lambda: {layer.path: layer.implementations for layer in gconv.explain(model, x, platform="cpu").layers}
    assert of()["stem"] == ("lax",)
    gconv.install()
    try:
        assert of()["stem"] != ("lax",)
    finally:
        gconv.uninstall()
    gconv.accelerate(model)
    assert of()["stem"] != ("lax",)
    assert gconv.explain(model, x, platform="tpu")["stem"].implementations == ("lax",)


def test_what_is_neither_arrays_nor_a_model():
    with pytest.raises(TypeError, match="takes `x, kernel`, or an NNX model"):
        gconv.explain(jnp.ones(3))


class Training(nnx.Module):
    """Draws random numbers, takes a keyword, shares a parameter, holds a tree of parameters and one in a dict."""

    def __init__(self, rngs):
        self.first, self.second = (nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs) for _ in range(2))
        self.second.kernel = self.first.kernel
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.tree = nnx.Param({"a": jnp.ones(3), "b": jnp.ones((2, 2))})
        self.layers = nnx.Dict({"up/(down)": nnx.Conv(8, 4, (1, 1), rngs=rngs)})

    def __call__(self, x, *, train):
        x = self.dropout(self.second(self.first(x)), deterministic=not train)
        return self.layers["up/(down)"](x)


def test_a_model_that_draws_shares_and_takes_keywords():
    model, x = Training(nnx.Rngs(0)), jax.ShapeDtypeStruct((1, 8, 8, 8), "float32")
    table = gconv.explain(model, x, train=True, platform="cpu")
    assert table.parameters == 9 * 64 + 7 + 36
    assert table["layers.up/(down)"].flops == 2 * 64 * 8 * 4 and table["first"].flops == 2 * 64 * 9 * 64
    alone = gconv.explain(model.first, x, platform="cpu")
    assert alone["(the model itself)"].flops == alone.flops == 2 * 64 * 9 * 64
    with pytest.raises(TypeError, match="the model's own arguments"):
        gconv.explain(model, x, groups=2)
    with pytest.raises(TypeError, match="no argument `train`"):
        gconv.explain(x, x, train=True)


def test_a_model_of_symbolic_batch_and_on_four_devices():
    (b,) = jax.export.symbolic_shape("b")
    layer = gconv.nnx.GroupedConv(8, 3, 1, 8, padding="same", rngs=nnx.Rngs(0))
    assert "9216*b" in str(gconv.explain(layer, jax.ShapeDtypeStruct((b, 8, 8, 8), "float32")))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    image = jax.sharding.PartitionSpec("data")

    class Split(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(8, 8, use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            kernel = self.layer.kernel[...]
            specs = dict(mesh=mesh, in_specs=(image, jax.sharding.PartitionSpec()), out_specs=image)
            return jax.shard_map(lambda x, k: x @ k, **specs)(x, kernel)

    assert gconv.explain(Split(), jax.ShapeDtypeStruct((8, 8), "float32")).flops == 2 * 8 * 8 * 8
