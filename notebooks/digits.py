# %% [markdown]
# # The channel-wise separable network of MATLAB's documentation, on handwritten digits
#
# What one learns here: how to build a Flax NNX network from gconv layers, give its parameters learn-rate and L2 factors, train
# it in one jitted step, look at the channel-wise filters it learned, and save and restore it.
#
# The network is the example of MATLAB's `groupedConvolution2dLayer`; the images are the 1,797 digits that ship inside
# scikit-learn, 8 x 8 pixels each. Run it as a script (`make demo`) or open it as a notebook with jupytext.

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import gconv


# %%
class Network(nnx.Module):
    """conv 3x3 x32 - channel-wise conv 3x3 / 2 - conv 1x1 x16 - max pool - fully connected; batch norm and ReLU between."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, rngs: nnx.Rngs):
        height, width, channels = image_shape
        conv = gconv.nnx.GroupedConv
        self.conv = conv(channels, 3, 32, 1, padding="same", name="conv", rngs=rngs)
        # Biases train at twice the rate and without decay: the factors travel with the parameters into the optimizer.
        self.channel_wise = conv(
            32, 3, 1, "channel-wise", strides=2, padding="same", bias_learn_rate_factor=2, name="channel-wise", rngs=rngs
        )
        self.pointwise = conv(32, 1, 16, 1, padding="same", bias_learn_rate_factor=2, name="pointwise", rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(n, momentum=0.9, rngs=rngs) for n in (32, 32, 16)])
        pooled = -(-height // 2) // 2 * (-(-width // 2) // 2)
        self.head = nnx.Linear(pooled * 16, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for layer, norm in zip((self.conv, self.channel_wise, self.pointwise), self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.reshape(len(x), -1))


def make_optimizer(model: nnx.Module, steps: int) -> nnx.Optimizer:
    factors = gconv.optim.factors(model)
    print(factors)
    return nnx.Optimizer(
        model,
        optax.chain(
            gconv.optim.add_l2(1e-4, factors),
            optax.adam(optax.cosine_decay_schedule(5e-3, steps)),
            gconv.optim.scale_by_learn_rate_factors(factors),
        ),
        wrt=nnx.Param,
    )


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


# %%
def load(seed: int = 0):
    """Images `(n, 8, 8, 1)` in [0, 1] and labels, 80% to train and 20% held out, each digit in proportion."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    return train_test_split(images, digits.target, test_size=0.2, random_state=seed, stratify=digits.target)


def train(model: Network, data, *, epochs: int, batch: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """Trains in place; the curves, one value per epoch."""
    images, held_out, labels, held_out_labels = data
    optimizer = make_optimizer(model, epochs * (len(images) // batch))
    rng = np.random.default_rng(seed)
    curves: dict[str, list[float]] = {"loss": [], "train accuracy": [], "held-out accuracy": []}
    with tqdm(range(epochs), desc="training", unit="epoch") as bar:
        for _ in bar:
            order = rng.permutation(len(images))[: len(images) // batch * batch].reshape(-1, batch)
            model.train()
            steps = [train_step(model, optimizer, images[rows], labels[rows]) for rows in order]
            model.eval()
            accuracy = float((predict(model, held_out).argmax(-1) == held_out_labels).mean())
            loss, train_accuracy = (float(np.mean(values)) for values in zip(*steps, strict=True))
            for curve, value in zip(curves.values(), (loss, train_accuracy, accuracy), strict=True):
                curve.append(value)
            bar.set_postfix(loss=f"{loss:.4f}", held_out=f"{accuracy:.2%}")
    return curves


# %%
def draw_filters(model: Network, path: Path) -> None:
    """The 32 channel-wise filters on one scale of colours around zero."""
    filters = np.asarray(model.channel_wise.kernel[...])[:, :, 0, :]
    figure, axes = plt.subplots(4, 8, figsize=(8, 4.6), layout="constrained")
    limit = np.abs(filters).max()
    for channel, axis in enumerate(axes.flat):
        image = axis.imshow(filters[..., channel], cmap="RdBu", vmin=-limit, vmax=limit)
        axis.set_title(f"{channel}", fontsize=8)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="weight")
    figure.suptitle("Channel-wise filters: one 3 x 3 window per channel")
    figure.savefig(path, dpi=120)


def draw_curves(curves: dict[str, list[float]], path: Path) -> None:
    epochs = range(1, len(curves["loss"]) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.semilogy(epochs, curves["loss"], color="#0072B2")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="Training loss")
    right.plot(epochs, curves["train accuracy"], color="#0072B2", label="training")
    right.plot(epochs, curves["held-out accuracy"], color="#D55E00", linestyle="--", label="held out")
    right.set(xlabel="epoch", ylabel="accuracy", title=f"Held out: {curves['held-out accuracy'][-1]:.2%}")
    right.legend()
    figure.savefig(path, dpi=120)


def save_and_restore(model: Network, directory: Path) -> Network:
    """Saves with orbax and restores into a network that was initialized differently."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, nnx.to_pure_dict(nnx.state(model)), force=True)
        checkpointer.wait_until_finished()
        restored = Network((8, 8, 1), 10, rngs=nnx.Rngs(1))
        state = nnx.state(restored)
        nnx.replace_by_pure_dict(state, checkpointer.restore(directory, nnx.to_pure_dict(state)))
    nnx.update(restored, state)
    restored.eval()
    return restored


# %%
def main(output: Path = Path("demo-output"), epochs: int = 40) -> float:
    """Trains, draws, saves and restores; returns the held-out accuracy."""
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    data = load()
    model = Network((8, 8, 1), 10, rngs=nnx.Rngs(0))
    print(model.channel_wise)
    curves = train(model, data, epochs=epochs)
    draw_filters(model, output / "filters.png")
    draw_curves(curves, output / "curves.png")
    restored = save_and_restore(model, output / "checkpoint")
    held_out = data[1]
    if not jnp.array_equal(predict(model, held_out), predict(restored, held_out)):
        raise SystemExit("the restored network predicts something else")
    accuracy = curves["held-out accuracy"][-1]
    print(f"held-out accuracy: {accuracy:.2%} of {len(held_out)} images; the restored network predicts the same")
    print(f"pictures and checkpoint: {output}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where pictures and checkpoint go")
    parser.add_argument("--epochs", type=int, default=40)
    main(**vars(parser.parse_known_args()[0]))  # a notebook's kernel has arguments of its own
