"""MATLAB: the arrays of `groupedConvolution2dLayer`, and .mat files of them.

MATLAB keeps the parameters with one axis per group: Weights `(h, w, channels, filters, groups)` and Bias
`(1, 1, filters, groups)`. gconv and Flax keep `(h, w, channels, groups * filters)` and `(groups * filters,)`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from gconv.interop.convolution import Convolution, from_arrays, from_gconv, no_activation, no_mask
from gconv.interop.layouts import array
from gconv.interop.mat_files import look_up, read
from gconv.layout import bias_from_per_group, bias_to_per_group, kernel_from_per_group, kernel_to_per_group
from gconv.naming import translating
from gconv.optim.factor import Factor, checked
from gconv.typing import Padding, PaddingValue, PerAxis

A = TypeVar("A", np.ndarray[Any, Any], jax.Array)


def kernel_from_matlab(weights: A) -> A:
    """MATLAB's Weights `(*window, channels, filters, groups)` as a kernel `(*window, channels, groups * filters)`.

    Works on NumPy and JAX arrays. MATLAB drops trailing axes of size 1, so an array of one group must be given its last axis
    back first: `weights[..., None]`.

    >>> import numpy as np, gconv.interop
    >>> gconv.interop.kernel_from_matlab(np.zeros((3, 5, 2, 4, 6))).shape
    (3, 5, 2, 24)
    """
    if not 4 <= weights.ndim <= 6:
        raise ValueError(
            "`weights` must have shape (*window, channels, filters, groups) with 1, 2 or 3 window axes, got shape "
            f"{weights.shape}. MATLAB drops trailing axes of size 1: weights[..., None] gives one group back."
        )
    return kernel_from_per_group(weights)


def kernel_to_matlab(kernel: A, *, groups: int) -> A:
    """The inverse of `kernel_from_matlab`."""
    if kernel.shape[-1] % groups:
        raise ValueError(f"`groups` must divide the output channels: kernel shape {kernel.shape}, groups={groups}.")
    return kernel_to_per_group(kernel, groups)


def bias_from_matlab(bias: A) -> A:
    """MATLAB's Bias `(1, 1, filters, groups)` (or `(filters, groups)`) as `(groups * filters,)`."""
    if bias.ndim < 2 or bias.size != bias.shape[-1] * bias.shape[-2]:
        raise ValueError(f"`bias` must have shape (1, 1, filters, groups) or (filters, groups), got {bias.shape}.")
    return bias_from_per_group(bias)


def bias_to_matlab(bias: A, *, groups: int) -> A:
    """The inverse of `bias_from_matlab`: `(1, 1, filters, groups)`."""
    if bias.size % groups:
        raise ValueError(f"`groups` must divide the output channels: bias shape {bias.shape}, groups={groups}.")
    return bias_to_per_group(bias, groups)


@translating
def from_matlab(
    weights: Any,
    bias: Any,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    padding_value: PaddingValue = 0,
    weight_learn_rate_factor: float | None = None,
    bias_learn_rate_factor: float | None = None,
    weight_l2_factor: float | None = None,
    bias_l2_factor: float | None = None,
    name: str = "",
) -> Convolution:
    """The arrays of MATLAB's `groupedConvolution2dLayer` as a `Convolution`.

    >>> import numpy as np, gconv.interop
    >>> weights, bias = np.ones((3, 3, 1, 2, 8)), np.zeros((1, 1, 2, 8))
    >>> layer = gconv.interop.from_matlab(weights, bias, padding="same").to_nnx()
    >>> layer.groups, layer.filters_per_group, layer(np.ones((1, 28, 28, 8), "float32")).shape
    (8, 2, (1, 28, 28, 16))

    Args:
      weights: Weights, `(*window, channels, filters, groups)`; see `kernel_from_matlab` for one group.
      bias: Bias, `(1, 1, filters, groups)` or `(filters, groups)`; None for none.
      stride, padding, dilation, padding_value: MATLAB's Stride, Padding (`p`, `[a b]`, `[t b l r]`, `"same"`), DilationFactor
        and PaddingValue.
      weight_learn_rate_factor, bias_learn_rate_factor, weight_l2_factor, bias_l2_factor, name: WeightLearnRateFactor,
        BiasLearnRateFactor, WeightL2Factor, BiasL2Factor and Name; of the factors, None is MATLAB's default: 1, 1, 1 and 0.
    """
    weights = array("weights", weights)
    kernel = np.ascontiguousarray(kernel_from_matlab(weights))
    bias = None if bias is None else np.ascontiguousarray(bias_from_matlab(array("bias", bias)))
    options: dict[str, Any] = dict(strides=stride, padding=padding, dilation=dilation, padding_value=padding_value)
    found = from_arrays(kernel, bias, groups=weights.shape[-1], **options)
    of_kernel = _factor("weight", weight_learn_rate_factor, weight_l2_factor)
    return replace(
        found, kernel_factor=of_kernel, bias_factor=_factor("bias", bias_learn_rate_factor, bias_l2_factor), name=name
    )


def to_matlab(layer: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters of a gconv layer under MATLAB's names, `{"Weights": ..., "Bias": ...}`.

    Args:
      layer: a layer of `gconv.nnx`, a pair `(module, variables)` of `gconv.linen`, or a `Convolution`; not a transposed one,
        which MATLAB has without groups only.
    """
    found = from_gconv(layer)
    no_mask(found, "MATLAB")
    no_activation(found, "MATLAB")
    if found.config.transposed:
        raise ValueError("MATLAB has no grouped transposed convolution: a GroupedConv would work.")
    values = {"Weights": kernel_to_matlab(found.kernel, groups=found.groups)}
    if found.bias is not None:
        values["Bias"] = bias_to_matlab(found.bias, groups=found.groups)
    return values


# What a file may hold beside the parameters, so that the rest of the layer travels with them -> the option that it is.
OPTIONS = {
    "Stride": "stride",
    "DilationFactor": "dilation",
    "PaddingMode": "padding",
    "PaddingSize": "padding",
    "PaddingValue": "padding_value",
    "WeightLearnRateFactor": "weight_learn_rate_factor",
    "BiasLearnRateFactor": "bias_learn_rate_factor",
    "WeightL2Factor": "weight_l2_factor",
    "BiasL2Factor": "bias_l2_factor",
    "Name": "name",
}


def load_mat(
    path: str | Path, *, weights: str = "Weights", bias: str | None = "Bias", window_axes: int = 2, **options: Any
) -> Convolution:
    """The `Convolution` in a .mat file, as MATLAB saves it by::

        Weights = layer.Weights; Bias = layer.Bias; Stride = layer.Stride;  % and the rest
        save("layer.mat", "Weights", "Bias", "Stride")

    A dlarray is saved as `extractdata(...)`. MATLAB drops trailing axes of size 1; here they are put back.

    Args:
      path: the file; version 7.3 (HDF5) needs the extra `gconv[matlab]`.
      weights, bias: the names of the variables, as in MATLAB: `"layer.Weights"` is a field of a struct, `"layers(2).Weights"`
        one of an array of structs, `"layers{2}.Weights"` one in a cell array, counted from 1. A `Bias` beside the weights is
        found by itself. `bias=None` for a layer without one.
      window_axes: the number of spatial axes, 2 for images: an array of one group does not tell it.
      options: `stride`, `padding`, `dilation`, `padding_value`, the factors and `name` as in `from_matlab`; where they are not
        given, the variables Stride, DilationFactor, PaddingMode, PaddingSize, PaddingValue, WeightLearnRateFactor,
        BiasLearnRateFactor, WeightL2Factor, BiasL2Factor and Name of the file (of the same struct) count.

    Raises:
      FileNotFoundError: with the path and the files that are near.
      ValueError: for a file that is none of MATLAB's; for a variable that is not there, with those that are; for shapes that do
        not go together.
      TypeError: for options that `from_matlab` has not.
    """
    variables = read(Path(path))
    within = weights.rpartition(".")[0]
    if within and bias == "Bias" and "Bias" not in variables:
        bias = f"{within}.Bias"
    rank, kernel = window_axes, array(weights, np.asarray(look_up(variables, weights)))
    if kernel.ndim > rank + 3:
        raise ValueError(f"{weights!r} of shape {kernel.shape} has {kernel.ndim} axes: window_axes={rank} has {rank + 3}.")
    kernel = kernel.reshape(*kernel.shape, *(1,) * (rank + 3 - kernel.ndim))
    filters, groups = kernel.shape[-2:]
    vector = None if bias is None else array(bias, np.asarray(look_up(variables, bias)))
    if vector is not None:
        if vector.size != filters * groups:
            raise ValueError(f"{bias!r} must have {filters} filters x {groups} groups, got shape {vector.shape}.")
        vector = vector.reshape(filters, groups, order="F")
    beside: Mapping = look_up(variables, within) if within else variables
    return from_matlab(kernel, vector, **{**_options(beside), **options})


def save_mat(path: str | Path, layer: Any) -> None:
    """Writes Weights, Bias, geometry, factors and Name of a gconv layer to a .mat file that MATLAB and `load_mat` read.

    Of several layers, `{"stem": layer, ...}` becomes a struct for each name, and `[layer, ...]` a cell array `layers`.

    >>> import gconv.interop, numpy as np, tempfile, pathlib
    >>> found = gconv.interop.from_matlab(np.ones((3, 3, 1, 2, 8)), None, stride=2, padding="same")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "layer.mat"
    >>> gconv.interop.save_mat(path, found)
    >>> gconv.interop.load_mat(path, bias=None).config.padding
    'same'

    Args:
      layer: as in `to_matlab`, or a mapping or a list of such layers.
    """
    from scipy.io import savemat

    if isinstance(layer, Mapping):
        savemat(path, {name: _record(one) for name, one in layer.items()})
    elif isinstance(layer, list):
        cells = np.empty((1, len(layer)), object)
        cells[0, :] = [_record(one) for one in layer]
        savemat(path, {"layers": cells})
    else:
        savemat(path, _record(layer))


def _record(layer) -> dict[str, Any]:
    """What a file holds of a layer."""
    found = from_gconv(layer)
    c = found.config
    numbers: dict[str, Any] = {"Stride": np.array(c.strides, float), "DilationFactor": np.array(c.dilation, float)}
    if c.padding_size is None or c.padding == "same":
        if c.padding != "same":
            raise ValueError(f'MATLAB has no padding="{c.padding}" with strides. "same" or numbers would work.')
        numbers["PaddingMode"] = "same"
    else:
        numbers |= {"PaddingMode": "manual", "PaddingSize": np.array(c.padding_size, float)}
    numbers["PaddingValue"] = c.padding_value
    for parameter, factor in (("Weight", found.kernel_factor), ("Bias", found.bias_factor)):
        said = {f"{parameter}LearnRateFactor": factor.learn_rate, f"{parameter}L2Factor": factor.l2}
        numbers |= {name: float(value) for name, value in said.items() if value is not None}
    numbers |= {"Name": found.name} if found.name else {}
    return to_matlab(layer) | numbers


def _factor(parameter: str, learn_rate, l2) -> Factor:
    given = {f"{parameter}_learn_rate_factor": learn_rate, f"{parameter}_l2_factor": l2}
    return Factor(*(None if value is None else checked(name, value) for name, value in given.items()))


def _options(variables: Mapping) -> dict[str, Any]:
    """The options among the variables of a file, or among the fields of a struct."""
    found: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if (
            name not in variables or np.size(variables[name]) == 0 or found.get(option) == "same"
        ):  # the mode; the size beside it was that of one input
            continue
        value = np.asarray(variables[name])
        if value.dtype.kind != "U":
            numbers = [int(v) if float(v).is_integer() else float(v) for v in value.flat]
            found[option] = numbers[0] if len(numbers) == 1 else numbers
        elif name != "PaddingMode" or value.flat[0] != "manual":
            found[option] = str(value.flat[0])
    return found
