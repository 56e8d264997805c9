# %% [markdown]
# # Moving in: weights and layers from MATLAB and PyTorch
#
# What one learns here: how to bring the parameters of MATLAB's `groupedConvolution2dLayer` and of PyTorch's `Conv2d` into
# gconv's Flax layers, with the geometry; how to check that the numbers stay the same; and how to go back.

# %%
import tempfile
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.io import savemat
from sklearn.datasets import load_sample_image

import gconv
from gconv import interop

image = load_sample_image("china.jpg")[::4, ::4].astype(np.float32)[None] / 255  # (1, 107, 160, 3)

# %% [markdown]
# ## From MATLAB
#
# In MATLAB one saves the arrays of the layer, and as much of its geometry as one wants to travel with them:
#
# ```matlab
# Weights = layer.Weights; Bias = layer.Bias; Stride = layer.Stride; PaddingMode = layer.PaddingMode;
# save("edges.mat", "Weights", "Bias", "Stride", "PaddingMode")
# ```
#
# Here such a file is made with SciPy: 3 x 3 x 1 x 2 x 3, two filters (a horizontal and a vertical edge) for each of three
# channels, each one a group of its own.

# %%
sobel = np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], np.float32) / 4
weights = np.stack([np.stack([sobel, sobel.T], -1)] * 3, -1)[
    :, :, None
]  # (height, width, channels, filters, groups)
path = Path(tempfile.mkdtemp()) / "edges.mat"
savemat(
    path,
    {
        "Weights": weights,
        "Bias": np.zeros((1, 1, 2, 3), np.float32),
        "Stride": [2.0, 2.0],
        "PaddingMode": "same",
    },
)

edges = interop.load_mat(path).to_nnx(name="edges")
print(edges)

# %% [markdown]
# MATLAB's layout is a promise: filter `f` of group `g` is output `g * filters + f`. The check is the definition itself, written
# as loops over NumPy arrays.


# %%
def by_definition(x, weights, stride):
    """Grouped convolution with MATLAB's arrays and "same", one output number at a time."""
    (n, height, width, _), (k, _, channels, filters, groups) = x.shape, weights.shape
    output = -(-height // stride), -(-width // stride)
    total = [(o - 1) * stride + k - size for o, size in zip(output, (height, width), strict=True)]
    x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    y = np.zeros((n, *output, groups * filters))
    for row, column, g, f in np.ndindex(*output, groups, filters):
        patch = x[
            :,
            row * stride : row * stride + k,
            column * stride : column * stride + k,
            g * channels : (g + 1) * channels,
        ]
        y[:, row, column, g * filters + f] = (patch * weights[..., f, g]).sum((1, 2, 3))
    return y


corner = image[:, :20, :23]
matlab_error = float(np.abs(by_definition(corner, weights, 2) - edges(corner)).max())
print(f"largest difference from the definition: {matlab_error:.1e}")

# %%
found = np.asarray(edges(image))[0]
strength = np.hypot(found[..., 0::2], found[..., 1::2])  # horizontal and vertical, for each colour
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.imshow(image[0])
left.set(title="image", xticks=[], yticks=[])
right.imshow((strength / strength.max()).clip(0, 1) ** 0.6)
right.set(title="MATLAB's filters, in gconv: edges by colour", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## From PyTorch
#
# A module knows its geometry; a state dict does not, so one gives the arguments of the module. PyTorch itself is needed only
# for the comparison: a state dict of NumPy arrays would do.

# %%
try:
    import torch
except ImportError:
    torch = None
    print("PyTorch is not installed: its numbers are not compared here")

if torch is not None:
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(3, 12, 5, stride=2, padding=2, groups=3, padding_mode="reflect")
    ours = interop.from_torch(theirs).to_nnx()
    state = {f"stem.{name}": value.numpy() for name, value in theirs.state_dict().items()}
else:
    rng = np.random.default_rng(0)
    state = {"stem.weight": rng.normal(size=(12, 1, 5, 5)) / 5, "stem.bias": np.zeros(12)}
arguments = dict(stride=2, padding=2, groups=3, padding_mode="reflect")
from_state = interop.from_torch(state, prefix="stem.", **arguments).to_nnx()
print(from_state)

# %%
torch_error = 0.0
if torch is not None:
    with torch.no_grad():
        expected = theirs(torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    torch_error = float(max(np.abs(layer(image) - expected).max() for layer in (ours, from_state)))
    print(f"largest difference from PyTorch: {torch_error:.1e}")
    back = interop.to_torch(ours)
    print("and back:", back, sep="\n")
    print("the same bits:", all(map(torch.equal, back.parameters(), theirs.parameters())))

# %% [markdown]
# ## The trap: `padding=1` with stride 2
#
# PyTorch pads both sides alike. `"same"` of MATLAB and TensorFlow has one sample of padding less here, and puts it at the end.
# The shapes agree on even sizes, so nothing warns: the features are just shifted by one pixel. Here is the difference, on a
# layer whose only weight copies its input.

# %%
copy = np.zeros((3, 3, 1, 3), np.float32)
copy[1, 1] = 1
even = jnp.asarray(image[:, :106])
by_number = interop.from_arrays(copy, groups=3, strides=2, padding=1)(even)
by_name = interop.from_arrays(copy, groups=3, strides=2, padding="same")(even)
assert by_number.shape == by_name.shape
shift = np.abs(np.asarray(by_number - by_name))[0].mean(-1)
figure, axis = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
picture = axis.imshow(shift, cmap="magma")
axis.set(title='|padding=1 minus "same"|, stride 2', xticks=[], yticks=[])
figure.colorbar(picture, ax=axis, label="mean over channels")
plt.show()
print(
    f"mean difference {shift.mean():.3f} of a signal of mean {float(even.mean()):.3f}: not rounding"
)

# %% [markdown]
# Whole models go layer by layer: `gconv.interop.from_torch(state, prefix="layers.3.", ...)` for each. The other libraries have
# the same pair of functions: `from_keras`, `from_haiku`, `from_equinox`, `from_flax`, `from_onnx`, and `to_...` of each.

# %%
print(f"gconv {gconv.__version__} translates from:")
print(*(name.removeprefix("from_") for name in dir(interop) if name.startswith("from_")), sep=", ")
