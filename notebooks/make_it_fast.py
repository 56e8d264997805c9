# %% [markdown]
# # Make an existing Flax model fast
#
# What one learns here: how `gconv.explain` says what a convolution would cost and which implementation would run it; how
# `gconv.accelerate` moves a whole NNX model to gconv without touching its code, its parameters or its checkpoints; and how to
# measure what that gives on one's own machine.

# %%
import statistics
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from flax import nnx

import gconv

BLUE, ORANGE = "#0072B2", "#D55E00"


# %% [markdown]
# ## A model that knows nothing of gconv
#
# Three blocks of MobileNet's kind: depthwise 3 x 3, then 1 x 1; and a block of ResNeXt's kind with 32 groups.


# %%
class Block(nnx.Module):
    def __init__(self, channels, out, groups, strides, *, rngs):
        self.spatial = nnx.Conv(
            channels, channels, (3, 3), strides=strides, feature_group_count=groups, rngs=rngs
        )
        self.pointwise = nnx.Conv(channels, out, (1, 1), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.pointwise(nnx.relu(self.spatial(x))))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 32, (3, 3), strides=2, rngs=rngs)
        sizes = [(32, 64, 32, 1), (64, 128, 64, 2), (128, 128, 32, 1)]
        self.blocks = nnx.List([Block(*size, rngs=rngs) for size in sizes])
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


model = Network(nnx.Rngs(0))
images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 48, 48, 3)), jnp.float32)

# %% [markdown]
# ## What would run, and why
#
# `explain` takes shapes, no data. A layer has three roles: the convolution `y`, the gradient of its input `x` and the gradient
# of its kernel `w`; each may take another implementation.

# %%
x = jax.ShapeDtypeStruct((4, 24, 24, 32), "float32")
kernel = jax.ShapeDtypeStruct(model.blocks[0].spatial.kernel.shape, "float32")
print(gconv.explain(x, kernel, padding="same"))

# %% [markdown]
# ## Before


# %%
def loss(model, images):
    return (model(images) ** 2).mean()


def timed(model, rounds: int = 7) -> dict[str, float]:
    """Median milliseconds of a prediction and of a gradient, compiled, after one warm-up."""
    graph, state = nnx.split(model)
    predict = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    gradient = jax.jit(jax.grad(lambda state, x: loss(nnx.merge(graph, state), x)))
    found = {}
    for name, run in {"prediction": predict, "gradient": gradient}.items():
        jax.block_until_ready(run(state, images))
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(run(state, images))
            seconds.append(time.perf_counter() - start)
        found[name] = 1e3 * statistics.median(seconds)
    return found


before, parameters, prediction = (
    timed(model),
    nnx.to_pure_dict(nnx.state(model)),
    jax.jit(lambda x: model(x))(images),
)
print("before:", ", ".join(f"{name} {ms:.2f} ms" for name, ms in before.items()), "(medians of 7)")

# %% [markdown]
# ## One line
#
# A dry run first; then the same for real. Layers, parameters and names are the same objects as before, so optimizers and
# checkpoints go on.

# %%
print(gconv.accelerate(model, dry_run=True))

# %%
surgery = gconv.accelerate(model)
after = timed(model)
print("after:", ", ".join(f"{name} {ms:.2f} ms" for name, ms in after.items()), "(medians of 7)")
difference = float(jnp.abs(jax.jit(lambda x: model(x))(images) - prediction).max())
jax.tree.map(np.testing.assert_array_equal, parameters, nnx.to_pure_dict(nnx.state(model)))
print(f"the parameters are the same; predictions differ by at most {difference:.1e}")

# %%
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for shift, (label, color, times) in zip(
    (0.19, -0.19), (("before", ORANGE, before), ("after", BLUE, after)), strict=True
):
    bars = axis.barh(np.arange(2) + shift, [*times.values()], height=0.36, color=color, label=label)
    axis.bar_label(bars, fmt=" %.1f ms")
axis.set(
    yticks=range(2),
    yticklabels=[*before],
    xlabel="milliseconds, median of 7, logarithmic",
    xscale="log",
)
axis.set_xlim(right=2.5 * max(before.values()))
axis.legend()
axis.set_title(
    f"batch of 4 images of 48 x 48, on {jax.devices()[0].platform}, jax {jax.__version__}"
)
plt.show()

# %% [markdown]
# ## Any library, in one line
#
# Linen, Haiku, Equinox, Keras and code of one's own call `jax.lax`. `gconv.install()` reaches all of them, for the whole
# process and also in functions that were compiled before; `gconv.accelerated` is the same for a block or for one function.

# %%
module = nn.Conv(64, (3, 3), feature_group_count=64)
features = jnp.ones((4, 24, 24, 64))
variables = module.init(jax.random.key(0), features)
report = gconv.install()
print(
    "gconv's role in the program:",
    "gconv_y" in jax.jit(module.apply).lower(variables, features).as_text(debug_info=True),
)
print(report)
gconv.uninstall()
