# %% [markdown]
# # Grouped convolution, drawn
#
# What one learns here: which input channels reach which outputs as the number of groups grows, and what that costs; what each
# kind of padding adds around an image; why `padding=1` with stride 2 is not `"same"`; what dilation does to the window.
#
# Nothing is sketched by hand: every picture is computed by asking gconv itself, mostly through its derivatives.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

import gconv

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def reach(function, x):
    """|d output / d input|: where it is not zero, the output depends on the input."""
    return np.abs(jax.jacobian(function)(x))


# %% [markdown]
# ## Groups: which channels meet
#
# A convolution with `g` groups cuts the channels into `g` parts that never meet. With one group every output channel reads
# every input channel; `"channel-wise"` is as many groups as channels. The kernel has `channels / g` input channels, so the
# parameters and the multiplications fall by the factor `g`.

# %%
channels = 8
x = jnp.ones((1, channels))  # one sample of a signal, so that only channels are left to look at
figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained", sharey=True)
for axis, groups in zip(axes, (1, 2, 4, "channel-wise"), strict=True):
    count = channels if groups == "channel-wise" else groups
    kernel = jnp.ones((1, channels // count, channels))
    matrix = reach(lambda x, k=kernel, g=groups: gconv.grouped_conv(x, k, groups=g)[0], x)[:, 0]
    axis.imshow(matrix, cmap="Blues", vmin=0, vmax=1.4)
    axis.set(
        title=f"groups = {groups}\n{kernel.size} weights",
        xlabel="input channel",
        xticks=range(8),
        yticks=range(8),
    )
axes[0].set_ylabel("output channel")
figure.suptitle("Blue: this output channel depends on this input channel")
plt.show()

# %% [markdown]
# The kernel's layout is `(*window, channels per group, outputs)`, output `group * filters_per_group + filter`. MATLAB keeps one
# more axis for the groups; `gconv.interop` converts.

# %%
kernel = jnp.zeros((3, 3, 2, 12))  # 3 groups of 2 -> 4 channels
print(
    "gconv and Flax:",
    kernel.shape,
    "  MATLAB:",
    gconv.interop.kernel_to_matlab(kernel, groups=3).shape,
)

# %% [markdown]
# ## Padding: what stands outside the image
#
# A channel-wise convolution with a window of one sample, a one, does nothing but pad. So it shows what each `padding_value`
# adds, here to the numbers 1 to 5. "symmetric-include-edge" repeats the samples at the edge, "symmetric-exclude-edge" does not.

# %%
modes = (0, 0.7, "replicate", "symmetric-include-edge", "symmetric-exclude-edge", "circular")
row = jnp.arange(1.0, 6)[:, None]
figure, axes = plt.subplots(6, 1, figsize=(7, 4), layout="constrained")
for axis, mode in zip(axes, modes, strict=True):
    padded = np.asarray(
        gconv.grouped_conv(row, jnp.ones((1, 1, 1)), padding=3, padding_value=mode)
    )[:, 0]
    axis.imshow(padded[None], cmap="Blues", vmin=0, vmax=14, aspect="auto")
    for at, value in enumerate(padded):
        inside = 3 <= at < 8
        axis.text(
            at,
            0,
            f"{value:g}",
            ha="center",
            va="center",
            color="black" if inside else ORANGE,
            weight="bold",
        )
    axis.set(xticks=[], yticks=[0], yticklabels=[repr(mode)])
figure.suptitle("padding = 3 around 1, 2, 3, 4, 5; in orange what is added")
plt.show()

# %% [markdown]
# The same on a photograph, 60 pixels on each side. The two symmetric modes differ by one row of pixels there: nobody sees it.

# %%
image = load_sample_image("flower.jpg")[60:380:2, 180:500:2].astype(np.float32) / 255
figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for axis, mode in zip(axes, (0, "replicate", "symmetric-include-edge", "circular"), strict=True):
    padded = gconv.grouped_conv(
        image, jnp.ones((1, 1, 1, 3)), groups="channel-wise", padding=60, padding_value=mode
    )
    axis.imshow(np.asarray(padded).clip(0, 1))
    axis.add_patch(plt.Rectangle((60, 60), 160, 160, fill=False, edgecolor="white", linestyle="--"))
    axis.set(title=repr(mode), xticks=[], yticks=[])
figure.suptitle("padding = 60 around the dashed square, by padding_value")
plt.show()

# %% [markdown]
# ## How much padding: `"same"` is not `1`
#
# With a window of 3 and stride 2 on 8 samples, `padding=1` (all that PyTorch has) and `"same"` (MATLAB, TensorFlow, Flax) both
# give 4 outputs, but they read different samples: `"same"` needs only one sample of padding, and puts it at the end. Weights
# that were trained with one and run with the other see everything shifted by one pixel.

# %%
x, kernel = jnp.ones((8, 1)), jnp.ones((3, 1, 1))
figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained", sharey=True)
for axis, padding in zip(axes, (1, "same", "same_lower", "causal"), strict=True):
    matrix = reach(
        lambda x, p=padding: gconv.grouped_conv(x, kernel, strides=2, padding=p)[:, 0], x
    )[..., 0]
    axis.imshow(matrix, cmap="Oranges", vmin=0, vmax=1.4)
    axis.set(
        title=f"padding = {padding!r}",
        xlabel="reads input sample",
        xticks=range(8),
        yticks=range(4),
    )
axes[0].set_ylabel("output sample")
figure.suptitle("Window 3, stride 2: which samples each output reads")
plt.show()

# %% [markdown]
# ## Dilation: a wider window for the same price
#
# Dilation `d` reads every `d`-th sample: a window of `k` spans `(k - 1) * d + 1`. Stacked with 1, 2, 4, ... the span grows
# exponentially, with `k` weights per layer: that is how causal sequence models look far back.

# %%
image = jnp.ones((17, 17, 1))
figure, axes = plt.subplots(
    1, 4, figsize=(11, 3), layout="constrained", width_ratios=(1, 1, 1, 1.9)
)
for axis, dilation in zip(axes, (1, 2, 4), strict=False):
    center = lambda x, d=dilation: gconv.grouped_conv(
        x, jnp.ones((3, 3, 1, 1)), dilation=d, padding="same"
    )[8, 8, 0]
    axis.imshow(reach(center, image)[..., 0], cmap="Blues", vmin=0, vmax=1.4)
    axis.set(title=f"dilation = {dilation}", xticks=[], yticks=[])


def stack(x):
    for dilation in (1, 2, 4, 8):
        x = gconv.grouped_conv(x, jnp.ones((2, 1, 1)), dilation=dilation, padding="causal")
    return x[-1, 0]


span = reach(stack, jnp.ones((24, 1)))[:, 0]
axes[-1].bar(range(-23, 1), span, color=[BLUE if s else GREY for s in span])
axes[-1].set(
    title="4 causal layers of window 2,\ndilations 1, 2, 4, 8", xlabel="sample, 0 is now", yticks=[]
)
plt.show()
receptive_field = int((span > 0).sum())
print(
    f"the last output depends on {receptive_field} samples, through {4 * 2} weights"
)
