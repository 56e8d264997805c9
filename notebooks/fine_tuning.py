# %% [markdown]
# # Fine-tuning with factors: a frozen backbone, a tenfold head, no decay on biases and norms
#
# What one learns here: how learn-rate and L2 factors reach the parameters in three training loops: a plain jitted one, Flax's
# `nnx.Optimizer`, and Linen's `TrainState`. A small network learns the digits 0 to 4 of scikit-learn; then its backbone is
# frozen and a new head learns the digits 5 to 9.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import gconv
from gconv.optim import Factor

digits = load_digits()
images = jnp.asarray(digits.images / 16, jnp.float32)[..., None]
labels = jnp.asarray(digits.target)
first, second = (jnp.flatnonzero((labels < 5) == low) for low in (True, False))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# %% [markdown]
# The rules speak of paths. `**` stands for any number of parts, so they fit a network of any depth; a rule that matches nothing
# is an error. Later rules win.

# %%
RULES = {
    "backbone/**": Factor(learn_rate=0),
    "head/*": Factor(learn_rate=10),
    "**/bias": Factor(l2=0),
    "backbone/norm/*": Factor(l2=0),
}


# %%
class Backbone(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = gconv.nnx.GroupedConv(1, 3, 16, 1, padding="same", rngs=rngs)
        self.depthwise = gconv.nnx.GroupedConv(
            16, 3, 2, "channel-wise", strides=2, padding="same", rngs=rngs
        )
        self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.depthwise(nnx.relu(self.conv(x))))).reshape(len(x), -1)


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.backbone = Backbone(rngs)
        self.head = nnx.Linear(4 * 4 * 32, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.backbone(x))


@nnx.jit
def nnx_step(model, optimizer, x, y):
    loss, gradients = nnx.value_and_grad(lambda m: cross_entropy(m(x), y))(model)
    optimizer.update(model, gradients)
    return loss


def accuracy(logits, labels) -> float:
    return float((logits.argmax(-1) == labels).mean())


# %% [markdown]
# ## 1. `nnx.Optimizer`, with MATLAB's own solver
#
# First the digits 0 to 4, with the factors that the layers declare; then 5 to 9 with the rules. Frozen parameters have no
# moments: the state holds two numbers for each trained parameter only.

# %%
model = Classifier(nnx.Rngs(0))
optimizer = nnx.Optimizer(
    model, gconv.optim.adam(3e-3, factors=gconv.optim.factors(model)), wrt=nnx.Param
)
for _ in range(60):
    nnx_step(model, optimizer, images[first], labels[first])

model.head = nnx.Linear(4 * 4 * 32, 5, rngs=nnx.Rngs(1))
model.backbone.norm.use_running_average = True  # the statistics of a frozen backbone rest, too
factors = gconv.optim.factors(model, rules=RULES)
print(factors)
backbone_before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model.backbone)))
optimizer = nnx.Optimizer(model, gconv.optim.adam(3e-4, factors=factors), wrt=nnx.Param)
for _ in range(60):
    nnx_step(model, optimizer, images[second], labels[second] - 5)
nnx_accuracy = accuracy(model(images[second]), labels[second] - 5)
jax.tree.map(
    np.testing.assert_array_equal, backbone_before, nnx.to_pure_dict(nnx.state(model.backbone))
)
moments = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.ndim)
print(
    f"nnx.Optimizer: {nnx_accuracy:.1%} on the new digits, {moments:,} numbers of optimizer state"
)

# %% [markdown]
# ## 2. A plain jitted loop over a dict of parameters
#
# Any tree of arrays will do (Haiku, Equinox, your own). Nothing is declared in it, so the rules say everything.

# %%
params = {
    "backbone": {"kernel": model.backbone.conv.kernel[...]},
    "head": {"w": jnp.zeros((64 * 16, 5)), "bias": jnp.zeros(5)},
}
plain_factors = gconv.optim.factors(
    params, rules={k: v for k, v in RULES.items() if "norm" not in k}
)
solver = optax.chain(
    gconv.optim.add_l2(1e-4, plain_factors),
    optax.sgd(0.02, momentum=0.9),
    gconv.optim.scale_by_learn_rate_factors(plain_factors),
)


def apply(params, x):
    features = jax.nn.relu(gconv.grouped_conv(x, params["backbone"]["kernel"], padding="same"))
    return features.reshape(len(x), -1) @ params["head"]["w"] + params["head"]["bias"]


@jax.jit
def plain_step(params, state, x, y):
    gradients = jax.grad(lambda p: cross_entropy(apply(p, x), y))(params)
    updates, state = solver.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


state = solver.init(params)
for _ in range(60):
    params, state = plain_step(params, state, images[second], labels[second] - 5)
plain_accuracy = accuracy(apply(params, images[second]), labels[second] - 5)
np.testing.assert_array_equal(params["backbone"]["kernel"], model.backbone.conv.kernel[...])
print(f"plain loop: {plain_accuracy:.1%}")


# %% [markdown]
# ## 3. Linen's `TrainState`
#
# `init` returns the declared factors beside the parameters, in the collection "factors"; rules come on top.


# %%
class LinenClassifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        conv = gconv.linen.GroupedConv(
            3,
            16,
            1,
            padding="same",
            kernel_learn_rate_factor=0,
            bias_learn_rate_factor=0,
            name="backbone",
        )
        x = nn.relu(conv(x)).reshape(len(x), -1)
        return nn.Dense(5, name="head")(x)


linen_model = LinenClassifier()
variables = linen_model.init(jax.random.key(0), images[:1])
linen_factors = gconv.optim.factors(variables, rules={"head/*": Factor(learn_rate=10)})
train_state = TrainState.create(
    apply_fn=linen_model.apply,
    params=variables["params"],
    tx=gconv.optim.sgdm(1e-3, factors=linen_factors),
)


@jax.jit
def linen_step(state, x, y):
    gradients = jax.grad(lambda p: cross_entropy(state.apply_fn({"params": p}, x), y))(state.params)
    return state.apply_gradients(grads=gradients)


for _ in range(60):
    train_state = linen_step(train_state, images[second], labels[second] - 5)
linen_accuracy = accuracy(
    linen_model.apply({"params": train_state.params}, images[second]), labels[second] - 5
)
np.testing.assert_array_equal(
    train_state.params["backbone"]["kernel"], variables["params"]["backbone"]["kernel"]
)
print(f"TrainState: {linen_accuracy:.1%}")
