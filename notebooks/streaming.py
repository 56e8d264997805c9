# %% [markdown]
# # Sequence models: causal convolution, whole sequences and streams
#
# What one learns here: how to train a causal model on whole sequences with `gconv.causal_conv1d` and then run the very same
# parameters sample by sample, passing a small state on; how chunks of any length fit in between; and how several sequences
# share a row without seeing each other.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gconv

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"

# %% [markdown]
# ## A task: take the hum out of a signal, without looking ahead
#
# Slow random waves are the signal. A hum of fixed frequency with a random phase and some noise come on top. The model may use
# the past only, as a hearing aid must.

# %%
TIME, CHANNELS, WINDOW, LAYERS = 256, 24, 4, 3


def waves(rng, n: int, time: int = TIME):
    """Noisy inputs and clean targets `(n, time, 1)`."""
    t = np.arange(time)
    rate, phase = rng.uniform(0.02, 0.12, (2, n, 1, 1)), rng.uniform(0, 2 * np.pi, (3, n, 1, 1))
    clean = np.sin(rate[0] * t[:, None] + phase[0]) + 0.5 * np.sin(rate[1] * t[:, None] + phase[1])
    hum = 0.8 * np.sin(1.3 * t[:, None] + phase[2])
    return jnp.asarray(clean + hum + 0.1 * rng.normal(size=clean.shape), jnp.float32), jnp.asarray(
        clean, jnp.float32
    )


# %% [markdown]
# ## The model
#
# Each layer mixes the channels and then looks back over time, channel by channel: a depthwise causal convolution of window 4,
# as in Mamba and its relatives. `state` is None for whole sequences, or what the layers remember: `window - 1` samples each.


# %%
def init(key):
    keys = iter(jax.random.split(key, 2 * LAYERS + 2))
    dense = lambda i, o: jax.random.normal(next(keys), (i, o)) / np.sqrt(i)
    layers = [
        {
            "mix": dense(1 if i == 0 else CHANNELS, CHANNELS),
            "kernel": 0.4 * jax.random.normal(next(keys), (WINDOW, 1, CHANNELS)),
        }
        for i in range(LAYERS)
    ]
    return {"layers": layers, "head": dense(CHANNELS, 1)}


def apply(params, x, state=None):
    """`x (batch, time, 1)` -> the cleaned signal and the state after it."""
    new_state = []
    for i, layer in enumerate(params["layers"]):
        mixed = x @ layer["mix"]
        y, after = gconv.causal_conv1d(
            mixed, layer["kernel"], state=None if state is None else state[i], activation="silu"
        )
        x = y if i == 0 else x + y
        new_state.append(after)
    return x @ params["head"], new_state


# %%
optimizer = optax.adam(1e-2)


@jax.jit
def step(params, state, x, target):
    loss, gradient = jax.value_and_grad(lambda p: ((apply(p, x)[0] - target) ** 2)[:, 16:].mean())(
        params
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss


rng = np.random.default_rng(0)
params = init(jax.random.key(0))
opt_state, losses = optimizer.init(params), []
for _ in range(300):
    params, opt_state, loss = step(params, opt_state, *waves(rng, 16))
    losses.append(float(loss))

noisy, clean = waves(np.random.default_rng(1), 4)
whole, last_state = jax.jit(apply)(params, noisy)
error_before, error_after = (float(((s - clean) ** 2)[:, 16:].mean()) for s in (noisy, whole))
print(f"mean squared error: {error_before:.3f} noisy, {error_after:.3f} cleaned")

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 3), layout="constrained", width_ratios=(1, 2)
)
left.semilogy(losses, color=BLUE)
left.set(xlabel="step", ylabel="squared error", title="Training, whole sequences")
right.plot(noisy[0, :, 0], color=GREY, linewidth=0.8, label="input")
right.plot(clean[0, :, 0], color=ORANGE, linestyle="--", label="clean")
right.plot(whole[0, :, 0], color=BLUE, label="model")
right.set(xlabel="sample", title="A new signal")
right.legend(loc="upper right", ncols=3)
plt.show()

# %% [markdown]
# ## The same parameters, sample by sample
#
# `state` starts as zeros of shape `(batch, window - 1, channels)` per layer, 72 numbers here, whatever the length of the
# stream. `lax.scan` runs the loop in one program; a real stream calls the step as samples come.

# %%
empty = [jnp.zeros((4, WINDOW - 1, CHANNELS))] * LAYERS


@jax.jit
def one_sample(state, sample):
    y, state = apply(params, sample[:, None], state)
    return state, y[:, 0]


streamed_state, streamed = jax.lax.scan(one_sample, empty, jnp.moveaxis(noisy, 1, 0))
streamed = jnp.moveaxis(streamed, 0, 1)

state, pieces, start = empty, [], 0
chunk = jax.jit(apply)
for length in (1, 100, 3, 152):  # whatever arrives
    y, state = chunk(params, noisy[:, start : start + length], state)
    pieces.append(y)
    start += length
chunked = jnp.concatenate(pieces, axis=1)

stream_error, chunk_error = (float(jnp.abs(y - whole).max()) for y in (streamed, chunked))
print(
    f"largest difference from the whole sequence: {stream_error:.1e} by samples, "
    f"{chunk_error:.1e} by chunks"
)

# %%
state, seconds = empty, []
for t in range(200):
    begin = time.perf_counter()
    state, y = one_sample(state, noisy[:, t % TIME])
    y.block_until_ready()
    seconds.append(time.perf_counter() - begin)
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.plot(1e6 * np.array(seconds[20:]), color=BLUE, linewidth=0.8)
axis.set(
    xlabel="sample of the stream",
    ylabel="microseconds",
    title="Time of a step does not grow with the stream",
    ylim=0,
)
plt.show()
print(
    f"median step: {1e6 * np.median(seconds[20:]):.0f} microseconds on {jax.devices()[0].platform}"
)

# %% [markdown]
# ## Several sequences in one row
#
# Training packs short sequences into rows of equal length. `segment_ids` keeps them apart: what is computed for each is what it
# would be alone.

# %%
lengths = (90, 40, 126)
ids = jnp.repeat(jnp.arange(3), jnp.array(lengths), total_repeat_length=TIME)[None]
signal = jnp.asarray(np.random.default_rng(2).normal(size=(1, TIME, CHANNELS)), jnp.float32)
kernel = params["layers"][-1]["kernel"]
packed, _ = gconv.causal_conv1d(signal, kernel, segment_ids=ids)
alone = [
    gconv.causal_conv1d(part, kernel)[0]
    for part in jnp.split(signal, np.cumsum(lengths)[:-1], axis=1)
]
leaky, _ = gconv.causal_conv1d(signal, kernel)
packed_error = float(jnp.abs(packed - jnp.concatenate(alone, axis=1)).max())
print(f"packed and alone differ by at most {packed_error:.1e}")

figure, axis = plt.subplots(figsize=(7, 2.4), layout="constrained")
axis.plot(np.abs(np.asarray(leaky - packed))[0].max(-1), color=ORANGE)
for boundary in np.cumsum(lengths)[:-1]:
    axis.axvline(boundary, color=GREY, linestyle=":")
axis.set(
    xlabel="sample",
    ylabel="difference",
    title="What leaks over the borders (dotted) without segment_ids",
)
plt.show()
