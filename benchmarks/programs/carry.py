"""Weights from a Flax model into the PyTorch model of the same names."""

import numpy as np
import torch
from flax import nnx

NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def to_torch(model: nnx.Module, target: torch.nn.Module) -> torch.nn.Module:
    """Fills `target` in place; an error if a name on either side is left over or a shape differs."""
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        *where, last = map(str, path)
        value = np.asarray(variable.get_value())
        if last == "kernel":  # (*window, in, out) -> (out, in, *window)
            value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
        tensors[".".join([*where, NAMES.get(last, last)])] = torch.from_numpy(value.copy())
    counters = {name: value for name, value in target.state_dict().items() if name.endswith("num_batches_tracked")}
    target.load_state_dict(tensors | counters, strict=True)
    return target


def channels_first(array: np.ndarray) -> torch.Tensor:
    """Images as PyTorch takes them; sequences stay as they are."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1) if array.ndim == 4 else array))
