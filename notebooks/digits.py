# %% [markdown]
# # The channel-wise separable network of MATLAB's documentation, on handwritten digits
#
# What one learns here: how to build a Flax NNX network from gconv layers, give its parameters learn-rate and L2 factors, train
# it in one jitted step, look at the channel-wise filters and at single predictions, and save and restore the network.
#
# The network is the example of MATLAB's `groupedConvolution2dLayer`. The images are the 1,797 digits that ship inside
# scikit-learn. `make demo` runs this notebook as a script and leaves the pictures in `demo-output`.

# %%
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gconv

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
OUTPUT = Path("demo-output").resolve()
OUTPUT.mkdir(parents=True, exist_ok=True)


def keep(figure, name: str) -> None:
    """Saves a picture for `make demo`; a notebook shows it as well."""
    figure.savefig(OUTPUT / name, dpi=120)


# %% [markdown]
# ## The images
#
# 8 x 8 pixels with values from 0 to 1, channels last: `(images, height, width, channels)`. A fifth is held out, each digit in
# proportion; the network never trains on it.

# %%
digits = load_digits()
everything = (digits.images / 16).astype(np.float32)[..., None]
images, held_out, labels, held_out_labels = train_test_split(
    everything, digits.target, test_size=0.2, random_state=0, stratify=digits.target
)
print(f"{len(images)} images to train, {len(held_out)} held out, each {images.shape[1:]}")

figure, axes = plt.subplots(2, 10, figsize=(9, 2.1), layout="constrained")
for axis, image, label in zip(axes.flat, images, labels, strict=False):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.set(title=f"{label}", xticks=[], yticks=[])
keep(figure, "digits.png")

# %% [markdown]
# ## The network
#
# Three convolutions do what one would do, with far fewer weights:
#
# 1. a dense one makes 32 channels from one;
# 2. a **channel-wise** one filters each channel by itself. It has 32 windows of 3 x 3, where a dense one has 32 x 32;
# 3. a **pointwise** one (1 x 1) mixes the channels.
#
# Batch norm and ReLU follow each. The last two with what follows them are a `SeparableConv`. Their biases train at twice the
# rate and without decay: layers declare such factors, and the optimizer below reads them.


# %%
class Network(nnx.Module):
    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, rngs: nnx.Rngs):
        height, width, channels = image_shape
        self.conv = gconv.nnx.GroupedConv(
            channels, 3, filters_per_group=32, groups=1, padding="same", name="conv", rngs=rngs
        )
        self.norm = gconv.nnx.BatchNorm(32, momentum=0.9, activation="relu", rngs=rngs)
        self.separable = gconv.nnx.SeparableConv(
            32, 3, 16, strides=2, padding="same", norm="batch", activation="relu", use_bias=True,
            depthwise_options={"bias_learn_rate_factor": 2, "name": "channel-wise"},
            pointwise_options={"bias_learn_rate_factor": 2, "name": "pointwise"},
            norm_options={"momentum": 0.9}, rngs=rngs,
        )  # fmt: skip
        pooled = -(-height // 2) // 2 * (-(-width // 2) // 2)
        self.head = nnx.Linear(pooled * 16, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.separable(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.reshape(len(x), -1))


model = Network(images.shape[1:], 10, rngs=nnx.Rngs(0))
print(model.separable.depthwise)

# %% [markdown]
# ## The optimizer
#
# `gconv.optim.factors` collects what the layers declare. Any optax chain obeys it: `add_l2` at the start adds the L2 term of
# each parameter, `scale_by_learn_rate_factors` at the end scales its step.

# %%
EPOCHS, BATCH = 40, 64
steps = EPOCHS * (len(images) // BATCH)
factors = gconv.optim.factors(model)
print(factors)
optimizer = nnx.Optimizer(
    model,
    optax.chain(
        gconv.optim.add_l2(1e-4, factors),
        optax.adam(optax.cosine_decay_schedule(5e-3, steps)),
        gconv.optim.scale_by_learn_rate_factors(factors),
    ),
    wrt=nnx.Param,
)

# %% [markdown]
# ## Training
#
# One step is one compiled program: prediction, gradient and update. An epoch shows every image once, in a new order.


# %%
@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss_of(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    (loss, logits), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    optimizer.update(model, gradients)
    return loss, (logits.argmax(-1) == labels).mean()


@nnx.jit
def predict(model, images):
    return model(images)


rng = np.random.default_rng(0)
curves = {"loss": [], "training": [], "held out": []}
for epoch in range(1, EPOCHS + 1):
    order = rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
    model.train()
    found = [train_step(model, optimizer, images[rows], labels[rows]) for rows in order]
    model.eval()
    accuracy = float((predict(model, held_out).argmax(-1) == held_out_labels).mean())
    loss, train_accuracy = (float(np.mean(values)) for values in zip(*found, strict=True))
    for curve, value in zip(curves.values(), (loss, train_accuracy, accuracy), strict=True):
        curve.append(value)
    if epoch == 1 or epoch % 10 == 0:
        print(
            f"epoch {epoch:>2}: loss {loss:.4f}, accuracy {train_accuracy:.2%}, "
            f"held out {accuracy:.2%}"
        )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
epochs = range(1, EPOCHS + 1)
left.semilogy(epochs, curves["loss"], color=BLUE)
left.set(xlabel="epoch", ylabel="cross-entropy", title="Training loss")
right.plot(epochs, curves["training"], color=BLUE, label="training")
right.plot(epochs, curves["held out"], color=ORANGE, linestyle="--", label="held out")
right.set(
    xlabel="epoch", ylabel="accuracy", title=f"Held out: {accuracy:.2%} of {len(held_out)} images"
)
right.legend()
keep(figure, "curves.png")

# %% [markdown]
# ## What it learned
#
# The 32 channel-wise filters, on one scale of colours around zero. Each one looks at one channel only, so each can be read by
# itself: edges, corners and blurs.

# %%
filters = np.asarray(model.separable.depthwise.kernel[...])[:, :, 0, :]
figure, axes = plt.subplots(4, 8, figsize=(8, 4.4), layout="constrained")
limit = np.abs(filters).max()
for channel, axis in enumerate(axes.flat):
    picture = axis.imshow(filters[..., channel], cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_title(f"{channel}", fontsize=8)
    axis.set(xticks=[], yticks=[])
figure.colorbar(picture, ax=axes, label="weight")
figure.suptitle("Channel-wise filters: one 3 x 3 window per channel")
keep(figure, "filters.png")

# %% [markdown]
# ## What it predicts
#
# Above, images that were held out, with the prediction and its probability. Below, those that it gets wrong or is least sure
# of: in orange the prediction, in brackets the truth.

# %%
probabilities = np.asarray(jax.nn.softmax(predict(model, held_out)))
guesses = probabilities.argmax(-1)
wrong = int((guesses != held_out_labels).sum())
certainty = probabilities[np.arange(len(held_out)), held_out_labels]
print(f"{wrong} of {len(held_out)} are wrong")

figure, axes = plt.subplots(2, 8, figsize=(9, 3), layout="constrained")
for axis, i in zip(axes.flat, [*range(8), *certainty.argsort()[:8]], strict=True):
    axis.imshow(held_out[i, ..., 0], cmap="gray_r")
    right = guesses[i] == held_out_labels[i]
    title = f"{guesses[i]}: {probabilities[i].max():.0%}" + (
        "" if right else f" ({held_out_labels[i]})"
    )
    axis.set_title(title, fontsize=9, color=BLUE if right else ORANGE)
    axis.set(xticks=[], yticks=[])
keep(figure, "predictions.png")

# %% [markdown]
# ## Save and restore
#
# The parameters are plain arrays with the names and layouts of Flax's `Conv`. The restored network started from other random
# numbers, so equal predictions show that everything came from the file.

# %%
restored = Network(images.shape[1:], 10, rngs=nnx.Rngs(1))
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(OUTPUT / "checkpoint", nnx.to_pure_dict(nnx.state(model)), force=True)
    checkpointer.wait_until_finished()
    state = nnx.state(restored)
    nnx.replace_by_pure_dict(
        state, checkpointer.restore(OUTPUT / "checkpoint", nnx.to_pure_dict(state))
    )
nnx.update(restored, state)
restored.eval()
np.testing.assert_array_equal(predict(model, held_out), predict(restored, held_out))
print(
    f"held-out accuracy: {accuracy:.2%} of {len(held_out)} images; "
    "the restored network predicts the same"
)
print(f"pictures and checkpoint: {OUTPUT.name}")
