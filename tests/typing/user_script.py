"""A program of a user, for type checkers: everything that is public, called as the pages call it. It runs, too."""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import gconv
from gconv.typing import Padding


def block(width: int, padding: Padding, rngs: nnx.Rngs) -> gconv.nnx.GroupedConv:
    """A function with annotations of its own."""
    return gconv.nnx.GroupedConv(width, 3, 1, "channel-wise", padding=padding, rngs=rngs)


# --- functions -----------------------------------------------------------------------------------------------------------

x, kernel = jnp.ones((2, 16, 16, 6)), jnp.ones((3, 3, 3, 8))
y = gconv.grouped_conv(x, kernel, groups=2, strides=(2, 1), padding=[1, 0, 2, 1], padding_value="replicate", precision="high")
assert_type(y, jax.Array)
y = gconv.grouped_conv(np.ones((2, 16, 16, 6), "float32"), kernel, padding="SAME", dilation=2, implementation="lax")
y = gconv.grouped_conv(x, kernel, padding=((1, 1), (0, 2)), padding_value=1.5, preferred_element_type="float32")
y = gconv.grouped_conv(x, kernel, input_dilation=(2, 1), precision=jax.lax.Precision.HIGHEST)
back = gconv.grouped_conv_transpose(jnp.ones((2, 8, 8, 8)), kernel, groups=2, strides=2, padding=1, output_padding=1)
assert_type(back, jax.Array)
y = gconv.grouped_conv(x, kernel, activation="relu", residual=jnp.ones((2, 14, 14, 8)))
y = gconv.grouped_conv(x, kernel, activation=jax.nn.gelu)
out, state = gconv.causal_conv1d(jnp.ones((1, 8, 3)), jnp.ones((4, 1, 3)), activation="silu")
assert_type(state, jax.Array)
y = gconv.conv_general_dilated(jnp.ones((2, 6, 32)), jnp.ones((12, 2, 5)), (2,), "SAME", feature_group_count=3)

# --- layers --------------------------------------------------------------------------------------------------------------

layer = gconv.nnx.GroupedConv(
    in_features=6,
    kernel_size=(3, 3),
    filters_per_group=4,
    groups=2,
    padding="same",
    kernel_init="he",
    bias_init=gconv.initializers.from_size(lambda size: np.zeros(size)),
    bias_learn_rate_factor=2,
    dtype=jnp.bfloat16,
    mask=np.ones((3, 3, 3, 8)),
    rngs=nnx.Rngs(0),
)
assert_type(layer(x), jax.Array)
assert_type(layer.strides, tuple[int, ...])
assert_type(layer.groups, int)
assert_type(layer.padding_size, tuple[int, ...] | None)
assert_type(layer.input_names, tuple[str, ...])
assert_type(layer.kernel_learn_rate_factor, float | None)
layer.strides = 2
layer.padding = [(1, 1), (0, 0)]
layer.padding_value = "circular"
layer.activation = "silu"
layer.kernel_l2_factor = 0.5
up = gconv.nnx.GroupedConvTranspose(8, 3, 3, 2, strides=2, kernel_init=jax.nn.initializers.lecun_normal(), rngs=nnx.Rngs(0))
assert_type(up.output_padding, tuple[int, ...])
theirs = nnx.Conv(8, 8, (3, 3), kernel_init=gconv.initializers.glorot(groups=4), feature_group_count=4, rngs=nnx.Rngs(0))
model = nnx.Sequential(block(6, "causal" if False else "same", nnx.Rngs(0)), nnx.relu, layer)

module = gconv.linen.GroupedConv(3, 4, groups=2, padding="same", name="conv1")
variables = module.init(jax.random.key(0), x)
print(gconv.describe(module, variables), gconv.describe(layer), repr(module), module.padding_mode)

# --- training ------------------------------------------------------------------------------------------------------------

factors = gconv.optim.factors(model, rules={"**/bias": gconv.optim.Factor(learn_rate=2)})
assert_type(factors, gconv.optim.Factors)
chain = optax.chain(
    gconv.optim.add_l2(1e-4, factors), optax.adam(1e-3), gconv.optim.scale_by_learn_rate_factors(factors)
)
schedule = gconv.optim.piecewise(0.01, steps_per_epoch=100)
solver = gconv.optim.sgdm(schedule, factors=factors, gradient_threshold=1.0, gradient_threshold_method="global-l2norm")
solver = gconv.optim.training_options("adam", initial_learn_rate=1e-3, factors=factors)

# --- around --------------------------------------------------------------------------------------------------------------

for name, reason in gconv.implementations("cuda").items():
    gconv.grouped_conv(x, kernel, implementation=name if reason is None else None)
print(gconv.explain(x, kernel, padding="same", platform="cpu"), gconv.explain(model, x))
mesh = jax.sharding.AbstractMesh((4, 2), ("data", "groups"))
assert_type(gconv.natural_specs(layer, mesh).kernel, jax.sharding.PartitionSpec)
print(gconv.install())
gconv.uninstall()
with gconv.accelerated() as report:
    layer(x)
print(gconv.accelerate(nnx.Sequential(theirs)), report)
block_of = jax.checkpoint(lambda x: gconv.grouped_conv(x, kernel), policy=gconv.convolutions_saveable)

found = gconv.interop.from_matlab(np.ones((3, 3, 1, 2, 8)), np.zeros((1, 1, 2, 8)), padding="same")
assert_type(found, gconv.interop.Convolution)
again = found.to_nnx(name="again")
weights = gconv.interop.kernel_to_matlab(np.ones((3, 3, 1, 16)), groups=8)
found = gconv.interop.from_torch({"weight": np.ones((8, 2, 3, 3)), "bias": np.ones(8)}, padding=1, groups=2)
found = gconv.interop.from_flax(theirs)
