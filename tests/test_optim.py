"""Learn-rate and L2 factors, from the layer to the update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import gconv
from gconv.optim import Factor, add_l2, decayed, factors, frozen, scale_by_learn_rate_factors


@pytest.fixture
def standard_promotion():
    """For what is optax's own: its Adam, MultiSteps and inject_hyperparams mix integers with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Model(nnx.Module):
    def __init__(self, rngs):
        self.conv = gconv.nnx.GroupedConv(
            4, 3, 1, "channel-wise", kernel_learn_rate_factor=0, bias_learn_rate_factor=2, kernel_l2_factor=0.5, rngs=rngs
        )
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(4, 2, rngs=rngs, kernel_metadata={"learn_rate_factor": 10.0})])

    def __call__(self, x):
        return self.heads[0](self.conv(self.norm(x)).mean((1, 2)))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        conv = gconv.linen.GroupedConv(3, 1, "channel-wise", kernel_learn_rate_factor=0, bias_l2_factor=3, name="conv")
        return nn.Dense(2, name="head")(conv(x).mean((1, 2)))


DECLARED = {
    "conv/bias": (2, 0),
    "conv/kernel": (0, 0.5),
    "heads/0/bias": (1, 0),
    "heads/0/kernel": (10.0, 1),
    "norm/bias": (1, 0),
    "norm/scale": (1, 1),
}


def as_dict(f):
    rows = [row.split() for row in str(f).splitlines()]
    return {path: tuple(float(item.split("=")[1]) for item in items) for path, *items in rows}


def gradients(model, x):
    return nnx.grad(lambda m: (m(x) ** 2).sum())(model)


@pytest.mark.parametrize("view", [lambda m: m, nnx.state, lambda m: nnx.state(m, nnx.Param)], ids=["module", "state", "params"])
def test_factors_of_nnx(view):
    assert as_dict(factors(view(Model(nnx.Rngs(0))))) == DECLARED


def test_factors_of_linen_variables():
    variables = LinenModel().init(jax.random.key(0), jnp.ones((1, 5, 5, 4)))
    expected = {"conv/bias": (1, 3), "conv/kernel": (0, 1), "head/bias": (1, 0), "head/kernel": (1, 1)}
    assert as_dict(factors(variables)) == expected
    jitted = jax.jit(LinenModel().init)(jax.random.key(0), jnp.ones((1, 5, 5, 4)))
    assert as_dict(factors(jitted)) == expected, "factors are static: jit keeps them exact"
    assert jax.tree.structure(factors(variables).l2) == jax.tree.structure(variables["params"])


def test_factors_of_plain_parameters_and_their_defaults():
    params = {"encoder": [{"w": jnp.ones(2), "b": jnp.ones(2)}], "bias": jnp.ones(1)}
    assert as_dict(factors(params)) == {"bias": (1, 0), "encoder/0/b": (1, 0), "encoder/0/w": (1, 1)}
    assert as_dict(factors(params, default=Factor(2, 3)))["bias"] == (2, 3)
    by_path = factors(params, default=lambda path: Factor(0 if path.startswith("encoder") else 1, 1))
    assert as_dict(by_path) == {"bias": (1, 1), "encoder/0/b": (0, 1), "encoder/0/w": (0, 1)}


def test_the_trees_are_ones_that_jax_and_optax_can_use():
    model = Model(nnx.Rngs(0))
    grads = nnx.as_pure(nnx.state(gradients(model, jnp.ones((2, 5, 5, 4))), nnx.Param))
    scaled = jax.tree.map(lambda factor, g: factor * g, factors(model).learn_rate, grads)
    np.testing.assert_array_equal(scaled["heads"][0]["kernel"], 10 * grads["heads"][0]["kernel"])


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("solver", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=["sgd", "adam"])
def test_updates_of_nnx_optimizer_against_the_definition(solver):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 4)), jnp.float32)
    model, plain = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    f = factors(model)
    optimizer = nnx.Optimizer(model, optax.chain(add_l2(0.01, f), solver, scale_by_learn_rate_factors(f)), wrt=nnx.Param)
    state = solver.init(nnx.as_pure(nnx.state(plain, nnx.Param)))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, gradients(model, x))

    for _ in range(3):
        step(model, optimizer)
        params = nnx.as_pure(nnx.state(plain, nnx.Param))
        grads = nnx.as_pure(nnx.state(gradients(plain, x), nnx.Param))
        grads = jax.tree.map(lambda g, w, l2: g + 0.01 * l2 * w, grads, params, f.l2)
        updates, state = solver.update(grads, state, params)
        nnx.update(plain, jax.tree.map(lambda w, u, rate: w + rate * u, params, updates, f.learn_rate))
    ours, theirs = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (model, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    untouched = Model(nnx.Rngs(0))
    np.testing.assert_array_equal(model.conv.kernel[...], untouched.conv.kernel[...])
    assert not np.array_equal(model.conv.bias[...], untouched.conv.bias[...])


def test_a_factor_of_zero_freezes_even_where_the_gradient_is_not_finite():
    f = factors({"w": 1.0, "v": 1.0}, default=lambda path: Factor(0 if path == "w" else 1, 0))
    updates, _ = scale_by_learn_rate_factors(f).update({"w": jnp.array([jnp.nan, jnp.inf]), "v": jnp.ones(2)}, ())
    assert updates["w"].tolist() == [0, 0] and updates["v"].tolist() == [1, 1]


def test_masks_for_optax_masked():
    model = Model(nnx.Rngs(0))
    f = factors(model)
    tx = optax.chain(optax.masked(optax.add_decayed_weights(1.0), decayed(f)), optax.masked(optax.set_to_zero(), frozen(f)))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(nnx.state(model, nnx.Param)), params)
    np.testing.assert_array_equal(updates["conv"]["kernel"], 0)
    np.testing.assert_array_equal(updates["heads"][0]["kernel"], params["heads"][0]["kernel"])
    np.testing.assert_array_equal(updates["norm"]["bias"], 0)


@pytest.mark.usefixtures("standard_promotion")
def test_transforms_work_inside_optax_masked_and_inject_hyperparams():
    params = {"w": jnp.ones(2), "v": jnp.ones(2)}
    f = factors(params, default=Factor(2, 1))
    tx = optax.masked(scale_by_learn_rate_factors(f), {"w": True, "v": False})
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].tolist() == [2, 2] and updates["v"].tolist() == [1, 1]
    tx = optax.inject_hyperparams(add_l2, static_args="factors")(l2=lambda step: 0.5 * (step + 1), factors=f)
    state = tx.init(params)
    for expected in (1.5, 2.0):
        updates, state = tx.update(params, state, params)
        assert updates["w"].tolist() == [expected] * 2


def test_linen_train_state():
    from flax.training.train_state import TrainState

    model, x = LinenModel(), jnp.ones((2, 5, 5, 4))
    variables = model.init(jax.random.key(0), x)
    f = factors(variables)
    tx = optax.chain(add_l2(1e-2, f), optax.sgd(0.1), scale_by_learn_rate_factors(f))
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    grads = jax.grad(lambda p: (state.apply_fn({"params": p}, x) ** 2).sum())(state.params)
    new = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, grads)
    np.testing.assert_array_equal(new.params["conv"]["kernel"], state.params["conv"]["kernel"])
    expected = state.params["conv"]["bias"] - 0.1 * (grads["conv"]["bias"] + 1e-2 * 3 * state.params["conv"]["bias"])
    np.testing.assert_allclose(new.params["conv"]["bias"], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_are_kept(dtype):
    params = {"w": jnp.ones(3, dtype)}
    f = factors(params, default=Factor(0.3, 0.7))
    for tx in (add_l2(jnp.float32(0.1), f), scale_by_learn_rate_factors(f)):
        updates, _ = jax.jit(tx.update)(params, (), params)
        assert updates["w"].dtype == dtype


def test_a_tree_that_differs_is_named_by_its_first_path():
    f = factors({"a": {"w": jnp.ones(1)}})
    with pytest.raises(ValueError, match="'a/v' that the factors do not have: a/w"):
        scale_by_learn_rate_factors(f).update({"a": {"v": jnp.ones(1), "w": jnp.ones(1)}}, ())
    with pytest.raises(ValueError, match="'a/w' that the tree does not have"):
        scale_by_learn_rate_factors(f).update({"a": {}}, ())
    with pytest.raises(ValueError, match="`params` must be given"):
        add_l2(0.1, f).update({"a": {"w": jnp.ones(1)}}, ())


def test_rules_by_path():
    params = {"encoder": [{"w": jnp.ones(2), "bias": jnp.ones(2)}, {"norm": {"bias": jnp.ones(1)}}], "head": {"w": jnp.ones(1)}}
    rules = {"encoder/**": Factor(learn_rate=0.1), "encoder/**/bias": Factor(l2=2), "*/w": Factor(learn_rate=7)}
    assert as_dict(factors(params, rules=rules)) == {
        "encoder/0/bias": (0.1, 2),
        "encoder/0/w": (0.1, 1),
        "encoder/1/norm/bias": (0.1, 2),
        "head/w": (7, 1),
    }
    assert as_dict(factors(params, rules={"**/bias": Factor(3, 3), "encoder/1/**": Factor(4)}))["encoder/1/norm/bias"] == (4, 3)
    with pytest.raises(ValueError, match=r"'encodr/\*\*/bias' matches no parameter.*encoder/0/bias"):
        factors(params, rules={"encodr/**/bias": Factor(1)})


def test_rules_win_over_what_layers_declare():
    f = factors(Model(nnx.Rngs(0)), rules={"conv/kernel": Factor(learn_rate=5), "**/bias": Factor(l2=1)})
    assert as_dict(f)["conv/kernel"] == (5, 0.5)
    assert as_dict(f)["conv/bias"] == (2, 1)


def test_factors_of_equinox_and_haiku_parameters():
    equinox = pytest.importorskip("equinox", reason="equinox is not installed")
    module = equinox.filter(equinox.nn.Conv2d(2, 2, 3, key=jax.random.key(0)), equinox.is_array)
    assert as_dict(factors(module)) == {"weight": (1, 1), "bias": (1, 0)}
    haiku = {"net/~/conv": {"w": jnp.ones(2), "b": jnp.ones(2)}}
    assert as_dict(factors(haiku, rules={"net/~/conv/b": Factor(2)})) == {"net/~/conv/b": (2, 0), "net/~/conv/w": (1, 1)}


def test_clip_by_parameter_norm_acts_on_each_tensor():
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3, 0.4]), "c": jnp.full(4, 300.0, jnp.float16)}
    clipped, _ = gconv.optim.clip_by_parameter_norm(1.0).update(gradients, ())
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clipped["b"], gradients["b"])
    np.testing.assert_allclose(clipped["c"].astype("float32"), 0.5, rtol=1e-3)
    assert clipped["c"].dtype == jnp.float16


@pytest.mark.usefixtures("standard_promotion")
def test_decoupled_decay_is_adamw_with_factors():
    params = {"w": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    f = factors(params)
    ours = optax.chain(optax.scale_by_adam(), gconv.optim.add_decoupled_l2(0.1, f), optax.scale_by_learning_rate(0.01))
    theirs = optax.adamw(0.01, weight_decay=0.1, mask=decayed(f))
    first, second = (tx.update(params, tx.init(params), params)[0] for tx in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first, second)


@pytest.mark.usefixtures("standard_promotion")
def test_freeze_zero_factors_keeps_no_state_for_frozen_parameters():
    params = {"w": jnp.ones(5), "bias": jnp.ones(3)}
    f = factors(params, rules={"w": Factor(learn_rate=0)})
    tx = gconv.optim.freeze_zero_factors(optax.adam(0.1), f)
    state = tx.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * 3
    updates, state = jax.jit(tx.update)(params, state, params)
    assert not updates["w"].any() and updates["bias"].all()


def test_the_loss_that_matlab_reports():
    params = {"w": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])}
    f = factors(params, rules={"bias": Factor(l2=0.5)})
    loss = lambda p: gconv.optim.regularized_loss(jnp.float32(7), p, 0.1, f)
    np.testing.assert_allclose(loss(params), 7 + 0.05 * (5 + 0.5 * 9), rtol=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, params)
    added, _ = add_l2(0.1, f).update(zeros, (), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.grad(loss)(params), added)


@pytest.mark.usefixtures("standard_promotion")
def test_sharded_parameters_keep_their_sharding():
    mesh = jax.make_mesh((2,), ("groups",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P(None, None, None, "groups"))
    params = {"kernel": jax.device_put(jnp.ones((3, 3, 1, 4)), sharding)}
    f = factors(params, default=Factor(0.5, 2))
    for tx in (optax.chain(add_l2(0.1, f), optax.adam(0.1), scale_by_learn_rate_factors(f)), gconv.optim.adam(0.1, factors=f)):
        state = jax.jit(tx.init)(params)
        updates, state = jax.jit(tx.update)(params, state, params)
        assert updates["kernel"].sharding.is_equivalent_to(sharding, 4)
        assert all(leaf.sharding.is_equivalent_to(sharding, 4) for leaf in jax.tree.leaves(state) if leaf.ndim)


def test_linen_factors_survive_checkpoints_or_say_that_they_did_not(tmp_path):
    import orbax.checkpoint as ocp
    from flax import serialization

    module = gconv.linen.GroupedConv(3, 1, 4, kernel_l2_factor=7, bias_learn_rate_factor=0)
    variables = module.init(jax.random.key(0), jnp.ones((1, 5, 5, 4)))
    expected = {"bias": (0, 0), "kernel": (1, 7)}
    assert as_dict(factors(serialization.from_bytes(variables, serialization.to_bytes(variables)))) == expected
    assert as_dict(factors(serialization.msgpack_restore(serialization.to_bytes(variables)))) == expected
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "variables", variables)
        checkpointer.wait_until_finished()
        assert as_dict(factors(checkpointer.restore(tmp_path / "variables", variables))) == expected
    lost = {"params": variables["params"], "factors": {"kernel_factor": None}}
    with pytest.raises(ValueError, match="holds None for 'kernel'.*restored with a target"):
        factors(lost)


def test_a_linen_layer_crosses_the_bridge_to_nnx():
    x = jnp.ones((1, 5, 5, 4))
    module = gconv.linen.GroupedConv(3, 1, 4, kernel_metadata={"out_sharding": (None, None, None, "groups")})
    assert hash(module) == hash(module.clone())
    bridged = nnx.bridge.ToNNX(gconv.linen.GroupedConv(3, 1, 4), rngs=nnx.Rngs(0)).lazy_init(x)
    kernel = nnx.state(bridged, nnx.Param)["kernel"][...]
    np.testing.assert_allclose(bridged(x), gconv.grouped_conv(x, kernel), rtol=1e-6)


# --- through Flax's lifted transformations and its bridge: a frozen kernel stays frozen, or somebody says why not ------------

X = np.random.default_rng(5).normal(size=(2, 5, 6, 4)).astype(np.float32)
FROZEN = dict(padding="same", kernel_learn_rate_factor=0, bias_l2_factor=3)
EXPECTED = {"bias": (1, 3), "kernel": (0, 1)}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return gconv.linen.GroupedConv((3, 3), 1, 4, **FROZEN, name="conv")(x), None


class Calls(nn.Module):
    """`lift(module, x)` inside a module."""

    lift: object

    @nn.compact
    def __call__(self, x):
        return self.lift(Block(name="block"), x)


BOTH = {"params": 0, "factors": 0}
PER_STEP = dict(split_rngs={"params": True}, length=3)
LIFTS = {
    "scan": lambda: nn.scan(Block, variable_axes=BOTH, **PER_STEP)(),
    "scan of all": lambda: nn.scan(Block, variable_axes={True: 0}, **PER_STEP)(),
    "scan of one": lambda: nn.scan(Block, variable_broadcast=["params", "factors"], split_rngs={"params": False}, length=3)(),
    "vmap": lambda: nn.vmap(Block, variable_axes=BOTH, split_rngs={"params": True})(),
    "vmap of one": lambda: nn.vmap(Block, variable_axes={"params": None, "factors": None}, split_rngs={"params": False})(),
    "remat": lambda: nn.remat(Block)(),
    "jit": lambda: nn.jit(Block)(),
    "map_variables": lambda: nn.map_variables(Block, "params", init=True)(),
    "metadata axis": lambda: nn.add_metadata_axis(Block, {"params": 0}, {nn.PARTITION_NAME: "layers"})(),
    "cond": lambda: Calls(lambda block, x: nn.cond(True, lambda b, x: b(x), lambda b, x: b(x), block, x)),
    "vjp": lambda: Calls(lambda block, x: nn.vjp(lambda b, x: b(x)[0], block, x)[0]),
}


def below_any_name(f):
    """The factors of the one layer in a tree, whatever a lift calls its parents."""
    return {path.rsplit("/", 1)[-1]: value for path, value in as_dict(f).items()}


@pytest.mark.parametrize("make", LIFTS.values(), ids=LIFTS)
def test_factors_survive_lifted_transformations(make):
    module = make()
    variables = module.init(jax.random.key(0), X)
    found = factors(variables)
    assert below_any_name(found) == EXPECTED
    assert jax.tree.structure(found.l2) == jax.tree.structure(variables["params"])
    # And the kernel does not move, nor the result change but by the bias.
    tx = gconv.optim.sgdm(0.1, factors=found)
    loss = lambda params: (module.apply({**variables, "params": params}, X)[0] ** 2).sum()
    updates, _ = tx.update(jax.grad(loss)(variables["params"]), tx.init(variables["params"]), variables["params"])
    moved = {jax.tree_util.keystr(path): bool(leaf.any()) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    assert {path.rsplit("['")[-1]: value for path, value in moved.items()} == {"bias']": True, "kernel']": False}


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.scan(Block, variable_axes={"params": 0}, **PER_STEP)(),
        lambda: nn.scan(Block, variable_broadcast="params", split_rngs={"params": False}, length=3)(),
        lambda: nn.vmap(Block, variable_axes={"params": 0}, split_rngs={"params": True})(),
        lambda: nnx.bridge.ToNNX(nn.scan(Block, variable_axes={"params": 0}, **PER_STEP)(), rngs=nnx.Rngs(0)),
    ],
    ids=["scan", "scan of one", "vmap", "bridged"],
)
def test_a_lift_that_would_lose_factors_is_refused(make):
    with pytest.raises(ValueError, match="GroupedConv/conv declares") as raised:
        module = make()
        module.lazy_init(X) if isinstance(module, nnx.Module) else module.init(jax.random.key(0), X)
    for text in ("kernel_learn_rate_factor=0", 'variable_axes={"params": 0, "factors": 0}', 'rules={"**/kernel"'):
        assert text in str(raised.value)


def test_init_and_apply_that_would_lose_factors_are_refused():
    with pytest.raises(ValueError, match=r'GroupedConv declares kernel_learn_rate_factor=0.*mutable=\["params", "factors"\]'):
        gconv.linen.GroupedConv(3, 1, 4, kernel_learn_rate_factor=0).init(jax.random.key(0), X, mutable=["params"])
    with pytest.raises(ValueError, match="GroupedConvTranspose declares kernel_l2_factor=0.5"):
        twin = gconv.linen.GroupedConvTranspose(3, 1, 4, kernel_l2_factor=0.5)
        twin.apply({}, X, rngs={"params": jax.random.key(0)}, mutable="params")
    # What says nothing but the defaults loses nothing, and what has its parameters makes none.
    plain = gconv.linen.GroupedConv(3, 1, 4)
    assert {*plain.init(jax.random.key(0), X, mutable=["params"])} == {"params"}
    frozen = Block()
    variables = frozen.init(jax.random.key(0), X)
    assert frozen.apply({"params": variables["params"]}, X, mutable=["params"])[0][0].shape == X.shape
    scan = nn.scan(Block, variable_axes={"params": 0}, **PER_STEP)()
    stacked = {"params": jax.tree.map(lambda p: jnp.stack([p] * 3), variables["params"])}
    assert scan.apply(stacked, X)[0].shape == X.shape


def bridged_to_nnx(module):
    return nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(X)


class Mixed(nnx.Module):
    """A bridged layer among others."""

    def __init__(self):
        self.linen = nnx.bridge.ToNNX(Block(), rngs=nnx.Rngs(0))
        self.own = gconv.nnx.GroupedConv(4, 3, 1, 4, padding="same", bias_learn_rate_factor=5, rngs=nnx.Rngs(0))
        self.others = nnx.List([nnx.bridge.ToNNX(gconv.linen.GroupedConv(3, 1, 4, **FROZEN), rngs=nnx.Rngs(0))])

    def __call__(self, x):
        return self.others[0](self.own(self.linen(x)[0]))


VIEWS = {
    "module": lambda m: m,
    "state": nnx.state,
    "split": lambda m: nnx.split(m)[1],
    "pure": lambda m: {k: v for k, v in nnx.to_pure_dict(nnx.state(m)).items() if k != "to_nnx__rngs"},
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_factors_of_linen_layers_that_crossed_to_nnx(view):
    assert as_dict(factors(view(bridged_to_nnx(gconv.linen.GroupedConv(3, 1, 4, **FROZEN))))) == EXPECTED
    assert as_dict(factors(view(bridged_to_nnx(Block())))) == {f"conv/{name}": value for name, value in EXPECTED.items()}


def test_a_model_with_bridged_layers_trains_what_they_declare():
    model = Mixed()
    nnx.bridge.lazy_init(model, X)
    found = factors(model)
    bridged = {f"{parent}/{name}": value for parent in ("linen/conv", "others/0") for name, value in EXPECTED.items()}
    assert as_dict(found) == bridged | {"own/bias": (5, 0), "own/kernel": (1, 1)}
    optimizer = nnx.Optimizer(model, gconv.optim.adam(0.1, factors=found), wrt=nnx.Param)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer.update(model, nnx.grad(lambda m: (m(X) ** 2).sum())(model))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    frozen = {"bias": False, "kernel": True}
    assert same == {"linen": {"conv": frozen}, "own": {"bias": False, "kernel": False}, "others": {0: frozen}}


def test_metadata_on_a_bridged_parameter_wins():
    model = bridged_to_nnx(gconv.linen.GroupedConv(3, 1, 4, **FROZEN))
    model.kernel.set_metadata(learn_rate_factor=7)
    assert as_dict(factors(model)) == {"bias": (1, 3), "kernel": (7, 1)}


class BridgedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return to_linen(name="conv")(x), None


def to_linen(**options):
    return nnx.bridge.ToLinen(gconv.nnx.GroupedConv, args=(4, 3, 1, 4), kwargs=FROZEN, **options)


@pytest.mark.parametrize("whole", [True, False], ids=["variables", "params"])
@pytest.mark.parametrize(
    "make",
    [to_linen, BridgedBlock, lambda: nn.scan(BridgedBlock, variable_axes={"params": 0}, **PER_STEP)()],
    ids=["alone", "inside", "scan"],
)
def test_factors_of_nnx_layers_that_crossed_to_linen(make, whole):
    module = make()
    variables = module.init(jax.random.key(0), X)
    found = factors(variables if whole else variables["params"])
    assert below_any_name(found) == EXPECTED
    assert jax.tree.structure(found.learn_rate) == jax.tree.structure(variables["params"])
    tx = optax.chain(add_l2(0.1, found), optax.sgd(0.1), scale_by_learn_rate_factors(found))
    params = variables["params"]
    gradient = jax.grad(lambda params: sum((y**2).sum() for y in jax.tree.leaves(module.apply({"params": params}, X))))(params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    assert [bool(leaf.any()) for leaf in jax.tree.leaves(updates)] == [True, False], "bias, kernel"


def test_layers_cross_the_bridge_and_back():
    there_and_back = nnx.bridge.ToLinen(lambda rngs: nnx.bridge.ToNNX(Block(), rngs=rngs).lazy_init(X))
    assert below_any_name(factors(there_and_back.init(jax.random.key(0), X))) == EXPECTED
    assert below_any_name(factors(bridged_to_nnx(BridgedBlock()))) == EXPECTED


def test_wrong_factors_are_named():
    params = {"w": jnp.ones(1)}
    with pytest.raises(ValueError, match="`learn_rate` must be a finite number of at least 0, got -2"):
        factors(params, rules={"w": Factor(-2)})
    with pytest.raises(TypeError, match=r"`rules\['w'\]` must be a Factor, got 0.1"):
        factors(params, rules={"w": 0.1})
    with pytest.raises(TypeError, match="`default` must be a Factor, got 2"):
        factors(params, default=2)
    layer = gconv.nnx.GroupedConv(2, 3, 1, 2, kernel_metadata={"learn_rate_factor": "x"}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the metadata of 'kernel'.*'x'"):
        factors(layer)
    layer = gconv.nnx.GroupedConv(2, 3, 1, 2, kernel_learn_rate_factor=np.float32(0.5), rngs=nnx.Rngs(0))
    assert as_dict(factors(layer))["kernel"] == (0.5, 1)
