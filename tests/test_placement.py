"""Layers on a mesh of data x groups: where parameters, optimizer state and factors live, and what a training step sends."""

import jax
import numpy as np
import optax
import oracle
import pytest
from flax import linen as nn
from flax import nnx
from jax import P
from jax.sharding import AxisType, NamedSharding

import gconv
from benchmarks.measuring.collectives import count

BATCH, SIZE, CLASSES = 8, 6, 5
KERNEL = P(None, None, None, "groups")


def make_mesh(shape=(2, 2), axis_type=AxisType.Auto):
    return jax.make_mesh(shape, ("data", "groups"), axis_types=(axis_type,) * 2, devices=jax.devices("cpu")[: np.prod(shape)])


class Network(nnx.Module):
    def __init__(self, *, rngs):
        conv = gconv.nnx.GroupedConv
        self.stem = conv(3, 3, 8, 1, padding="same", rngs=rngs)
        self.grouped = conv(8, 3, 4, 4, padding="same", bias_learn_rate_factor=2, kernel_l2_factor=0.5, rngs=rngs)
        self.depthwise = conv(16, 3, 1, "channel-wise", strides=2, padding="same", rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        for layer in (self.stem, self.grouped, self.depthwise):
            x = nnx.relu(layer(x))
        return self.head(x.mean((1, 2)))


def optimizer_of(model):
    return nnx.Optimizer(model, gconv.optim.adam(1e-2, l2=1e-3, factors=gconv.optim.factors(model)), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, images, labels):
    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((BATCH, SIZE, SIZE, 3)).astype("float32"), rng.integers(0, CLASSES, BATCH)


def losses(model, optimizer, images, labels, steps=4):
    return [float(step(model, optimizer, images, labels)) for _ in range(steps)]


@pytest.mark.parametrize("shape", ((2, 2), (1, 4), (2, 4)), ids=str)
def test_data_times_groups_trains_as_on_one_device(shape):
    model = Network(rngs=nnx.Rngs(0))
    expected = losses(model, optimizer_of(model), *data())
    mesh, model = make_mesh(shape), Network(rngs=nnx.Rngs(0))
    nnx.update(model, jax.device_put(nnx.state(model), gconv.nnx.shardings(model, mesh)))
    optimizer = optimizer_of(model)
    images, labels = data()
    images = jax.device_put(images, NamedSharding(mesh, P("data")))
    labels = jax.device_put(labels, NamedSharding(mesh, P("data")))
    text = step.lower(model, optimizer, images, labels).compile().as_text()
    assert {*count(text)} <= {"all-reduce"}
    np.testing.assert_allclose(losses(model, optimizer, images, labels), expected, rtol=1e-5)
    for name in ("grouped", "depthwise"):
        placed = NamedSharding(mesh, KERNEL)
        assert getattr(model, name).kernel[...].sharding.is_equivalent_to(placed, 4)
        states = [leaf for path, leaf in jax.tree.leaves_with_path(nnx.state(optimizer)) if f"'{name}'" in str(path)]
        kernels = [leaf for leaf in states if leaf.ndim == 4]
        assert len(kernels) >= 2 and all(leaf.sharding.is_equivalent_to(placed, 4) for leaf in kernels)


def test_metadata_places_parameters_and_optimizer_state_on_explicit_axes():
    mesh = make_mesh(axis_type=AxisType.Explicit)
    images, labels = data()
    with jax.set_mesh(mesh):
        metadata = {"kernel_metadata": {"out_sharding": KERNEL}, "bias_metadata": {"out_sharding": P("groups")}}
        model = gconv.nnx.GroupedConv(4, 3, 2, 4, padding="same", **metadata, rngs=nnx.Rngs(0))
        optimizer = optimizer_of(model)
        assert jax.typeof(model.kernel[...]).sharding.spec == KERNEL
        specs = {jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.ndim == 4}
        assert specs == {KERNEL}
        x = jax.device_put(np.repeat(images, 2, -1)[..., :4], P("data", None, None, "groups"))
        y = model(x)
        assert jax.typeof(y).sharding.spec == gconv.natural_specs(model, mesh).outputs == P("data", None, None, "groups")
        gradients = nnx.grad(lambda m, x: (m(x) ** 2).mean())(model, x)
        optimizer.update(model, gradients)
        assert jax.typeof(model.kernel[...]).sharding.spec == KERNEL
        assert jax.typeof(model.bias[...]).sharding.spec == P("groups")


def test_linen_metadata_places_the_parameters():
    mesh = make_mesh()
    module = gconv.linen.GroupedConv(3, 2, 4, padding="same")
    specs = gconv.natural_specs(module, mesh)
    module = module.clone(kernel_metadata={"out_sharding": specs.kernel}, bias_metadata={"out_sharding": specs.bias})
    x = jax.device_put(np.ones((4, 5, 5, 8), "float32"), NamedSharding(mesh, specs.inputs))
    placed = nn.get_sharding(jax.eval_shape(module.init, jax.random.key(0), x), mesh)["params"]
    init = jax.jit(lambda key: nn.unbox(module.init(key, x)["params"]), out_shardings=placed)
    params = init(jax.random.key(0))
    assert params["kernel"].sharding.spec == specs.kernel and params["bias"].sharding.spec == specs.bias
    state = gconv.optim.adam(1e-3, factors=gconv.optim.factors(params)).init(params)
    assert all(leaf.sharding.is_equivalent_to(placed["kernel"], 4) for leaf in jax.tree.leaves(state) if leaf.ndim == 4)
    gradient = jax.jit(jax.grad(lambda params, x: (module.apply({"params": params}, x) ** 2).sum()))
    assert count(gradient.lower(params, x).compile().as_text()).keys() <= {"all-reduce"}
    assert gradient(params, x)["kernel"].sharding.is_equivalent_to(placed["kernel"], 4)


def test_natural_specs():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "groups"))
    depthwise = gconv.nnx.GroupedConv(8, (5,), 2, "channel-wise", rngs=nnx.Rngs(0))
    assert gconv.natural_specs(depthwise, mesh) == (
        P("data", None, "groups"),
        P(None, None, "groups"),
        P("groups"),
        P("data", None, "groups"),
    )
    stem = gconv.nnx.GroupedConv(6, 3, 2, 2, rngs=nnx.Rngs(0))  # 2 groups over 4 parts: they stay whole
    assert gconv.natural_specs(stem, mesh).kernel == P(None, None, None, None)
    assert gconv.natural_specs(depthwise, mesh, data=None, groups="data").inputs == P(None, None, "data")
    transposed = gconv.nnx.GroupedConvTranspose(8, 3, 2, 4, rngs=nnx.Rngs(0))
    assert gconv.natural_specs(transposed, mesh).kernel == P(None, None, None, "groups")
    linen = gconv.linen.GroupedConv(3, 1, "channel-wise")
    assert gconv.natural_specs(linen, mesh, in_features=8).bias == P("groups")
    with pytest.raises(ValueError, match="`in_features` must be given"):
        gconv.natural_specs(linen, mesh)
    with pytest.raises(
        ValueError, match="`groups` must be an axis of the mesh, got 'model'. Values that work: 'data', 'groups'"
    ):
        gconv.natural_specs(stem, mesh, groups="model")


def stack_of(kind, *sizes, **options):
    """A stack of layers as `nnx.vmap` makes it, one more axis for each size."""

    def make(keys):
        return getattr(gconv.nnx, kind)(8, 3, 2, 4, padding="same", **options, rngs=nnx.Rngs(keys))

    for size in reversed(sizes):
        make = nnx.vmap(make, in_axes=0, out_axes=0, axis_size=size)
    return make(jax.random.split(jax.random.key(0), sizes))


@pytest.mark.parametrize("kind", ["GroupedConv", "GroupedConvTranspose"])
@pytest.mark.parametrize("sizes", [(), (3,), (2, 3), (4, 4)], ids=str)
def test_stacks_of_layers_keep_their_axes_whole(kind, sizes):
    mesh, front = make_mesh(), (None,) * len(sizes)
    stack = stack_of(kind, *sizes)
    specs = gconv.natural_specs(stack, mesh)
    assert specs.kernel == P(*front, None, None, None, "groups") and specs.bias == P(*front, "groups")
    assert specs.inputs == specs.outputs == P("data", None, None, "groups"), "of one layer"
    placed = gconv.nnx.shardings(nnx.Sequential(stack), mesh)["layers"][0]
    assert placed["kernel"].get_value().spec == specs.kernel and placed["bias"].get_value().spec == specs.bias
    abstract = nnx.eval_shape(lambda: stack_of(kind, *sizes, use_bias=False))
    assert gconv.natural_specs(abstract, mesh).kernel == specs.kernel


def test_a_placed_stack_of_layers_computes_as_on_one_device():
    mesh, stack = make_mesh(), stack_of("GroupedConv", 3)
    x = np.random.default_rng(0).standard_normal((4, 6, 5, 8)).astype("float32")
    scan = nnx.jit(nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry))
    expected = x
    for i in range(3):
        kernel, bias = (np.asarray(p[...])[i] for p in (stack.kernel, stack.bias))
        pads = ((1, 1), (1, 1))
        expected = oracle.conv(expected, kernel, bias, groups=4, strides=(1, 1), pads=pads, dilation=(1, 1))
    np.testing.assert_allclose(scan(stack, x), expected, rtol=1e-4, atol=1e-4)
    nnx.update(stack, jax.device_put(nnx.state(stack), gconv.nnx.shardings(stack, mesh)))
    assert stack.kernel[...].sharding.shard_shape(stack.kernel.shape) == (3, 3, 3, 2, 4)
    specs = gconv.natural_specs(stack, mesh)
    placed = jax.device_put(x, NamedSharding(mesh, specs.inputs))
    np.testing.assert_allclose(scan(stack, placed), expected, rtol=1e-4, atol=1e-4)


def test_a_stack_along_another_axis_is_refused():
    keys = jax.random.split(jax.random.key(0), 5)
    make = lambda key: gconv.nnx.GroupedConv(8, 3, 2, 4, rngs=nnx.Rngs(key))
    with pytest.raises(ValueError, match=r"`kernel` must have shape \(3, 3, 2, 8\).*got \(3, 3, 2, 8, 5\).*works: 0"):
        gconv.nnx.shardings(nnx.vmap(make, in_axes=0, out_axes=-1)(keys), make_mesh())


def test_whole_groups_need_no_more_memory_than_their_part():
    """What one device holds of a kernel and its gradient's operands is its own part."""
    mesh = make_mesh((1, 8))
    layer = gconv.nnx.GroupedConv(64, 3, 8, 8, padding="same", use_bias=False, rngs=nnx.Rngs(0))
    specs = gconv.natural_specs(layer, mesh)
    x = jax.ShapeDtypeStruct((2, 16, 16, 64), "float32", sharding=NamedSharding(mesh, specs.inputs))
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 64), "float32", sharding=NamedSharding(mesh, specs.kernel))
    conv = jax.jit(lambda x, kernel: gconv.grouped_conv(x, kernel, padding="same"))
    memory = conv.lower(x, kernel).compile().memory_analysis()
    assert memory.argument_size_in_bytes == 4 * (2 * 16 * 16 * 64 + 3 * 3 * 8 * 64) // 8
    assert memory.output_size_in_bytes == 4 * 2 * 16 * 16 * 64 // 8
