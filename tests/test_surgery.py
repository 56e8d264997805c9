"""`gconv.accelerate` and `gconv.accelerated`: whole models take gconv's path, and nothing else about them changes."""

import threading

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


def roles(function, *arguments) -> list[str]:
    """The lax convolutions and gconv roles in the program, sorted."""
    text = str(jax.make_jaxpr(function)(*arguments))
    return sorted(["lax"] * text.count("conv_general_dilated[") + ["gconv"] * text.count("grouped_conv_y["))


CHANGED = {"blocks/0/conv", "blocks/1/conv", "special"}


def test_a_model_of_everything():
    model = Model(nnx.Rngs(0))
    run = lambda: lambda x: model(x)  # a new function each time: JAX remembers what it traced
    model.eval()
    before, state, identities = jax.jit(run())(images()), nnx.state(model), {id(m) for _, m in nnx.iter_modules(model)}
    assert roles(run(), images()) == ["gconv"] + ["lax"] * 8

    trial = gconv.accelerate(model, dry_run=True)
    assert trial.dry_run and "3 of 8 convolutions would take" in str(trial)
    assert roles(run(), images()) == ["gconv"] + ["lax"] * 8, "a dry run changes nothing"

    done = gconv.accelerate(model)
    assert {path if path != "shared" else "blocks/0/conv" for path in done.changed} == CHANGED
    assert {**done.changed, "shared": 0}.keys() >= {**trial.changed}.keys()
    assert done.unchanged["stem"] == "one group, which lax does well"
    assert "no groups" in done.unchanged["parts/up"]
    assert "already" in done.unchanged["ours"]
    assert "input_dilation=2 with strides=2" in done.unchanged["dilated"]
    assert "of its own: <function by_hand" in done.unchanged["own"]
    assert "Standardized.__call__ is its own" in done.changed["special"]
    assert roles(run(), images()) == ["gconv"] * 5 + ["lax"] * 4

    np.testing.assert_allclose(jax.jit(run())(images()), before, atol=1e-5)
    assert identities == {id(m) for _, m in nnx.iter_modules(model)}
    assert model.shared is model.blocks[0].conv
    assert model.special.kernel.learn_rate_factor == 3
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(state))
    again = gconv.accelerate(model)
    assert not again.changed and again.unchanged["special"] == "computes by gconv already"


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
    with pytest.raises(TypeError, match=r"flax.nnx.Module, got Conv.*with gconv.accelerated\(\)"):
        gconv.accelerate(linen.Conv(4, (3, 3)))


def test_a_bare_layer_and_a_model_without_convolutions():
    layer = nnx.Conv(4, 4, (3,), feature_group_count=2, rngs=nnx.Rngs(0))
    assert [*gconv.accelerate(layer).changed] == ["(the model itself)"]
    assert str(gconv.accelerate(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))) == "0 of 0 convolutions take gconv's path"


def test_a_linen_module_inside_is_reported():
    module = nnx.bridge.ToNNX(linen.Conv(4, (3, 3), feature_group_count=2), rngs=nnx.Rngs(0))
    model = nnx.Sequential(nnx.bridge.lazy_init(module, jnp.ones((1, 5, 5, 4))))
    assert "with gconv.accelerated()" in gconv.accelerate(model).unchanged["layers/0"]


# --- everything else -------------------------------------------------------------------------------------------------


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3), strides=2)(x)
        return linen.Conv(16, (3, 3), feature_group_count=8)(x)


def haiku_model():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed: pip install dm-haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(8, 3, feature_group_count=2)(hk.Conv2D(4, 3)(x))))
    return net.init, net.apply


def linen_model():
    model = LinenModel()
    return model.init, model.apply


def equinox_model():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install equinox")
    keys = jax.random.split(jax.random.key(0))
    layers = eqx.nn.Sequential([eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Conv2d(4, 4, 3, groups=4, key=keys[1])])
    params, static = eqx.partition(layers, eqx.is_array)
    return lambda key, x: params, lambda p, x: jax.vmap(eqx.combine(p, static))(jnp.moveaxis(x, -1, 1))


@pytest.mark.parametrize("make", (linen_model, haiku_model, equinox_model))
def test_libraries_that_call_lax(make):
    init, apply = make()
    x = images()
    params = init(jax.random.key(0), x)
    assert roles(apply, params, x) == ["lax", "lax"]
    fast = gconv.accelerated()(apply)
    assert roles(fast, params, x) == ["gconv", "lax"]
    assert lax.conv_general_dilated is LAX
    loss = lambda f: jax.jit(jax.value_and_grad(lambda p, x: (f(p, x) ** 2).sum(), (0, 1)))(params, x)
    for got, expected in zip(*map(jax.tree.leaves, (loss(fast), loss(apply))), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_threads_and_errors_leave_lax_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with gconv.accelerated():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with gconv.accelerated():
        thread.start()
        entered.wait()
    assert lax.conv_general_dilated is gconv.conv_general_dilated, "the other thread is still inside"
    leave.set()
    thread.join()
    assert lax.conv_general_dilated is LAX
    with pytest.raises(ZeroDivisionError), gconv.accelerated(), gconv.accelerated():
        raise ZeroDivisionError
    assert lax.conv_general_dilated is LAX
