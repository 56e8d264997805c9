"""`gconv.accelerate`: an NNX model takes gconv's path, and nothing else about it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from foreign import normal
from jax import lax

import gconv
from gconv.acceleration.lowering import listening

LAX = lax.conv_general_dilated


class Standardized(nnx.Conv):
    """A Conv with a call of its own, which ends in Flax's."""

    def __call__(self, inputs):
        return super().__call__(inputs - inputs.mean())


class Block(nnx.Module):
    def __init__(self, channels, groups, *, rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), feature_group_count=groups, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.norm(self.conv(x)))


class Model(nnx.Module):
    """All that a surgeon may meet."""

    def __init__(self, rngs):
        metadata = {"kernel_metadata": {"learn_rate_factor": 3}, "rngs": rngs}
        self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([Block(8, groups, rngs=rngs) for groups in (8, 2)])
        self.shared = self.blocks[0].conv
        self.parts = nnx.Dict(up=nnx.ConvTranspose(8, 8, (2, 2), strides=(2, 2), rngs=rngs))
        self.ours = gconv.nnx.GroupedConv(8, 3, 1, 8, padding="same", rngs=rngs)
        self.dilated = nnx.Conv(8, 8, (3, 3), input_dilation=2, strides=2, padding=1, feature_group_count=4, rngs=rngs)
        self.own = nnx.Conv(8, 8, (1, 1), feature_group_count=8, conv_general_dilated=by_hand, rngs=rngs)
        self.special = Standardized(8, 8, (3, 3), feature_group_count=4, padding="CIRCULAR", **metadata)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.special(self.own(self.dilated(self.ours(self.parts["up"](self.shared(x)))))).mean((1, 2))


def by_hand(*arguments, **options):
    return LAX(*arguments, **options)


def images(n=2):
    return jnp.asarray(normal(0, n, 8, 8, 3), jnp.float32)


def taken(function, *arguments) -> int:
    """How many different convolutions of a program gconv takes, lowered anew."""
    with listening() as report:
        jax.jit(lambda *a: function(*a)).lower(*arguments)
    return report.taken.total()


CHANGED = {"stem", "blocks/0/conv", "blocks/0/norm", "blocks/1/conv", "blocks/1/norm", "parts/up"}


def test_a_model_of_everything():
    model = Model(nnx.Rngs(0))
    run = lambda x: model(x)
    model.eval()
    before, state, identities = jax.jit(run)(images()), nnx.state(model), {id(m) for _, m in nnx.iter_modules(model)}
    assert taken(run, images()) == 0

    trial = gconv.accelerate(model, dry_run=True)
    assert trial.dry_run and "4 of 8 convolutions and 2 of 2 batch norms would take" in str(trial)
    assert taken(run, images()) == 0, "a dry run changes nothing"

    done = gconv.accelerate(model)
    assert {path if path != "shared" else "blocks/0/conv" for path in done.changed} == CHANGED
    assert done.changed["stem"] == "Conv, window (3, 3), 3 -> 8 channels"
    assert done.changed["parts/up"] == "ConvTranspose, window (2, 2), 8 -> 8 channels"
    assert {*done.uncertain} == {"special"} and "if their own __call__ calls" in str(done)
    assert "already" in done.unchanged["ours"]
    assert "input_dilation=2 with strides=2" in done.unchanged["dilated"]
    assert "of its own: <function by_hand" in done.unchanged["own"]
    assert taken(run, images()) == 5, "the shared one is called twice, and lowered once"

    np.testing.assert_allclose(jax.jit(lambda x: model(x))(images()), before, atol=1e-5)
    assert identities == {id(m) for _, m in nnx.iter_modules(model)}
    assert model.shared is model.blocks[0].conv
    assert isinstance(model.parts["up"], nnx.ConvTranspose)
    assert model.special.kernel.learn_rate_factor == 3
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(state))
    again = gconv.accelerate(model)
    assert not again.changed and not again.uncertain and again.unchanged["special"] == "computes by gconv already"
    merged = nnx.merge(*nnx.split(model))
    assert taken(lambda x: merged(x), images()) == 5


@pytest.mark.usefixtures("lenient")
def test_optimizers_and_checkpoints_from_before_go_on_after(tmp_path):
    step = nnx.jit(lambda m, o, x: o.update(m, nnx.grad(lambda m: (m(x) ** 2).mean())(m)))
    make = lambda seed: nnx.Sequential(Block(4, 4, rngs=nnx.Rngs(seed)), nnx.Conv(4, 2, (1, 1), rngs=nnx.Rngs(seed)))
    x = jnp.asarray(normal(1, 2, 6, 6, 4), jnp.float32)
    slow, fast = make(0), make(0)
    optimizers = [nnx.Optimizer(m, optax.adam(1e-2), wrt=nnx.Param) for m in (slow, fast)]
    for cut in (False, True):
        if cut:
            assert gconv.accelerate(fast).changed
        for model, optimizer in zip((slow, fast), optimizers, strict=True):
            step(model, optimizer, x)
    for a, b in zip(*(jax.tree.leaves(nnx.state((m, o))) for m, o in zip((slow, fast), optimizers, strict=True)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "slow", nnx.to_pure_dict(nnx.state(slow)))
        checkpointer.wait_until_finished()
        restored = make(1)
        gconv.accelerate(restored)
        state = nnx.state(restored)
        nnx.replace_by_pure_dict(state, checkpointer.restore(tmp_path / "slow", nnx.to_pure_dict(state)))
    nnx.update(restored, state)
    np.testing.assert_allclose(restored(x), slow(x), atol=1e-5)


def test_what_is_no_nnx_model_is_sent_to_the_context_manager():
    with pytest.raises(TypeError, match=r"flax.nnx.Module, got Conv.*gconv.install\(\), or with gconv.accelerated\(\)"):
        gconv.accelerate(linen.Conv(4, (3, 3)))


def test_a_bare_layer_and_a_model_without_convolutions():
    layer = nnx.Conv(4, 4, (3,), feature_group_count=2, rngs=nnx.Rngs(0))
    assert [*gconv.accelerate(layer).changed] == ["(the model itself)"]
    report = str(gconv.accelerate(nnx.Embed(2, 2, rngs=nnx.Rngs(0))))
    assert report.startswith("0 of 0 convolutions") and "gconv.install()" in report


def test_a_linen_module_inside_is_reported():
    module = nnx.bridge.ToNNX(linen.Conv(4, (3, 3), feature_group_count=2), rngs=nnx.Rngs(0))
    model = nnx.Sequential(nnx.bridge.lazy_init(module, jnp.ones((1, 5, 5, 4))))
    assert "gconv.install()" in gconv.accelerate(model).unchanged["layers/0"]
