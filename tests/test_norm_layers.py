"""`gconv.nnx.BatchNorm`, `gconv.linen.BatchNorm`, and batch norms under `gconv.accelerate`: Flax's, to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, PartitionSpec

import gconv
from gconv import native
from gconv.norm import kernels

MISSING = kernels.why_not("float32", "cpu", (1,))
built = pytest.mark.skipif(MISSING is not None, reason=f"native: {MISSING}")
pytestmark = pytest.mark.usefixtures("lenient")  # Flax mixes ranks


def images(dtype="float32", seed=0, shape=(4, 6, 5, 8)):
    return jnp.asarray(np.random.default_rng(seed).normal(1.5, 2, shape), dtype)


def close(got, expected, tolerance=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(initial=0), 1))


def filled(options) -> dict:
    """Initializers that are not the defaults."""
    return {"scale_init": nnx.initializers.normal(1.0), "bias_init": nnx.initializers.normal(1.0)} | options


OPTIONS = (
    {},
    {"momentum": 0.8, "epsilon": 0.1},
    {"use_bias": False},
    {"use_scale": False},
    {"use_scale": False, "use_bias": False},
    {"use_fast_variance": False},
    {"dtype": jnp.bfloat16},
    {"dtype": jnp.float16, "param_dtype": jnp.float16},
    {"param_dtype": jnp.bfloat16},
    {"axis": 3},
    {"axis": 1},
    {"axis": (-1,)},
)


def tolerance_of(options, dtype) -> float:
    types = [dtype, *(options.get(name, "float32") for name in ("dtype", "param_dtype"))]
    return 2e-2 if any(jnp.dtype(t).itemsize < 4 for t in types) else 1e-5


def trained(layer, x):
    """y, gradients of the layer and of x, and what the layer holds afterwards."""

    def run(layer, x):
        y = layer(x)
        return (y.astype(jnp.float32) * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum(), y

    (_, y), found = nnx.jit(nnx.value_and_grad(run, argnums=(0, 1), has_aux=True))(layer, x)
    return y, jax.tree.leaves(found), nnx.to_pure_dict(nnx.state(layer))


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nnx_equals_flax(options, dtype):
    axis = options.get("axis", -1)
    features = images().shape[axis[0] if isinstance(axis, tuple) else axis]
    ours, theirs = (kind(features, **filled(options), rngs=nnx.Rngs(3)) for kind in (gconv.nnx.BatchNorm, nnx.BatchNorm))
    assert jax.tree.structure(nnx.to_pure_dict(nnx.state(ours))) == jax.tree.structure(nnx.to_pure_dict(nnx.state(theirs)))
    tolerance = tolerance_of(options, dtype)
    for seed in range(2):
        close(trained(ours, images(dtype, seed)), trained(theirs, images(dtype, seed)), tolerance)
    ours.eval(), theirs.eval()
    close(ours(images(dtype, 2)), theirs(images(dtype, 2)), tolerance)
    close(ours(images(dtype, 2), use_running_average=False), theirs(images(dtype, 2), use_running_average=False), tolerance)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("options", [*OPTIONS, {"force_float32_reductions": False}], ids=str)
def test_linen_equals_flax(options, dtype):
    x = images(dtype)
    found = []
    for kind in (gconv.linen.BatchNorm, linen.BatchNorm):
        layer = kind(use_running_average=False, **filled(options))
        variables = layer.init(jax.random.key(3), x)

        def loss(params, x, layer=layer, variables=variables):
            y, changed = layer.apply(variables | {"params": params}, x, mutable=["batch_stats"])
            return (y.astype(jnp.float32) * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum(), (y, changed)

        params = variables.get("params", {})
        found.append((variables, jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)))
    if options.get("force_float32_reductions", True) or dtype == "float32":
        close(*found, tolerance_of(options, dtype))


@pytest.mark.parametrize("which", ("nnx", "linen"))
@pytest.mark.parametrize("running", (False, True))
def test_the_activation(which, running):
    x = images()
    for activation in ("relu", jax.nn.silu):
        function = getattr(jax.nn, activation) if isinstance(activation, str) else activation
        if which == "nnx":
            ours = gconv.nnx.BatchNorm(8, activation=activation, use_running_average=running, rngs=nnx.Rngs(0))
            close(ours(x), function(nnx.BatchNorm(8, use_running_average=running, rngs=nnx.Rngs(0))(x)))
        else:
            ours = gconv.linen.BatchNorm(use_running_average=running, activation=activation)
            theirs = linen.BatchNorm(use_running_average=running)
            variables = ours.init(jax.random.key(0), x)
            apply = lambda layer: layer.apply(variables, x, mutable=["batch_stats"])  # noqa: B023
            close(apply(ours), (function(apply(theirs)[0]), apply(theirs)[1]))


@built
@pytest.mark.parametrize("which", ("nnx", "linen"))
def test_training_runs_the_kernels(which):
    if which == "nnx":
        graph, state = nnx.split(gconv.nnx.BatchNorm(8, activation="relu", rngs=nnx.Rngs(0)))
        loss = lambda state, x: nnx.merge(graph, state, copy=True)(x).sum()
    else:
        layer = gconv.linen.BatchNorm(use_running_average=False, activation="relu")
        state = layer.init(jax.random.key(0), images())
        loss = lambda state, x: layer.apply(state, x, mutable=["batch_stats"])[0].sum()
    text = jax.jit(jax.value_and_grad(loss, argnums=1)).lower(state, images()).as_text()
    assert text.count(f"custom_call @{native.NORM_TARGET}") == 4


@pytest.mark.parametrize("kind", (gconv.nnx.BatchNorm, nnx.BatchNorm))
def test_masks_and_groups_of_devices_are_flaxs(kind):
    x, mask = images(), jnp.arange(4).reshape(4, 1, 1, 1) < 3
    layer, whole = (k(8, rngs=nnx.Rngs(0)) for k in (kind, nnx.BatchNorm))
    close(layer(x, mask=mask)[:3], whole(x[:3]), 1e-4)
    grouped = kind(8, axis_name="i", axis_index_groups=[[0, 1], [2, 3]], rngs=nnx.Rngs(0))
    mesh, specs = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,)), {"in_specs": PartitionSpec("i"), "check_vma": False}
    y = jax.shard_map(lambda x: nnx.clone(grouped)(x), mesh=mesh, out_specs=PartitionSpec("i"), **specs)(x)
    close(y[:2], nnx.BatchNorm(8, rngs=nnx.Rngs(0))(x[:2]), 1e-4)


def test_statistics_over_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    layer = gconv.nnx.BatchNorm(8, axis_name="data", rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def run(state, x):
        layer = nnx.merge(graph, state)
        return layer(x), nnx.state(layer)

    data, whole = PartitionSpec("data"), PartitionSpec()
    y, after = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(whole, data), out_specs=(data, whole)))(state, images())
    alone = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    close(y, alone(images()))
    close(nnx.to_pure_dict(after), nnx.to_pure_dict(nnx.state(alone)))


def test_checkpoints_interchange(tmp_path):
    theirs = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    theirs(images())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "flax", nnx.to_pure_dict(nnx.state(theirs)))
        checkpointer.wait_until_finished()
        ours = gconv.nnx.BatchNorm(8, activation="relu", rngs=nnx.Rngs(1))
        state = nnx.state(ours)
        nnx.replace_by_pure_dict(state, checkpointer.restore(tmp_path / "flax", nnx.to_pure_dict(state)))
    nnx.update(ours, state)
    ours.eval(), theirs.eval()
    close(ours(images(seed=1)), nnx.relu(theirs(images(seed=1))))
    variables = linen.BatchNorm(use_running_average=True).init(jax.random.key(0), images())
    close(gconv.linen.BatchNorm(use_running_average=True).init(jax.random.key(0), images()), variables)


class Net(linen.Module):
    norm: type

    @linen.compact
    def __call__(self, x):
        return self.norm(use_running_average=False)(linen.Dense(8)(x))


def test_names_in_linen_are_flaxs():
    ours, theirs = (Net(norm).init(jax.random.key(0), images()) for norm in (gconv.linen.BatchNorm, linen.BatchNorm))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


def test_errors():
    with pytest.raises(ValueError, match='Did you mean "relu"'):
        gconv.nnx.BatchNorm(8, activation="relux", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='Did you mean "relu"'):
        gconv.linen.BatchNorm(use_running_average=False, activation="relux").init(jax.random.key(0), images())
    with pytest.raises(ValueError, match="use_running_average"):
        gconv.nnx.BatchNorm(8, use_running_average=None, rngs=nnx.Rngs(0))(images())
    with pytest.raises(ValueError, match="use_running_average"):
        gconv.linen.BatchNorm().init(jax.random.key(0), images())
    layer = gconv.linen.BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match="use_running_average"):
        layer.apply(layer.init(jax.random.key(0), images()), images(), use_running_average=False, mutable=["batch_stats"])


# --- accelerate ------------------------------------------------------------------------------------------------------


class Scaled(nnx.BatchNorm):
    def __call__(self, x):
        return 2 * super().__call__(x)


def model(seed=0):
    rngs = nnx.Rngs(seed)
    shared = nnx.BatchNorm(8, rngs=rngs)
    groups = nnx.BatchNorm(8, axis_name="i", axis_index_groups=[[0]], use_running_average=True, rngs=rngs)
    layers = (nnx.Conv(8, 8, (3, 3), rngs=rngs), shared, nnx.relu, nnx.BatchNorm(8, rngs=rngs), nnx.silu, shared)
    return nnx.Sequential(*layers, Scaled(8, rngs=rngs), groups)


def test_accelerate_trains_batch_norms_and_takes_the_relu_in():
    slow, fast = model(), model()
    trial = gconv.accelerate(fast, dry_run=True)
    assert type(fast) is nnx.Sequential and type(fast.layers[1]) is nnx.BatchNorm
    assert str(trial).startswith("1 of 1 convolutions and 2 of 4 batch norms would take gconv's path")
    done = gconv.accelerate(fast)
    assert done.changed == trial.changed and done.changed["layers/1"] == "BatchNorm, 8 channels"
    assert "a class of its own" in done.unchanged["layers/6"] and "axis_index_groups" in done.unchanged["layers/7"]
    assert fast.layers[1] is fast.layers[5] and fast.layers[1].activation is None
    optimizers = [nnx.Optimizer(m, optax.sgd(1e-2), wrt=nnx.Param) for m in (slow, fast)]
    step = nnx.jit(lambda m, o, x: o.update(m, nnx.grad(lambda m: (m(x) ** 2).mean())(m)))
    for seed in range(3):
        for m, optimizer in zip((slow, fast), optimizers, strict=True):
            step(m, optimizer, images(seed=seed))
    close(nnx.to_pure_dict(nnx.state(fast)), nnx.to_pure_dict(nnx.state(slow)), 1e-4)
    slow.eval(), fast.eval()
    close(jax.jit(lambda x: fast(x))(images()), slow(images()), 1e-4)
    again = gconv.accelerate(fast)
    assert not again.changed and again.unchanged["layers/1"] == "computes by gconv already"


@built
def test_accelerated_batch_norms_run_the_kernels():
    """The relu of the first pair is in its kernel; the other two have none, so XLA writes their y."""
    fast = model()
    gconv.accelerate(fast)
    graph, state = nnx.split(fast)
    text = jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, images()).as_text(debug_info=True)
    calls = [line for line in text.splitlines() if f"custom_call @{native.NORM_TARGET}" in line]
    assert [sum(f"pass = {number} :" in line for line in calls) for number in range(4)] == [3, 1, 0, 0]
