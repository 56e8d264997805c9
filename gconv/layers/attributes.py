"""The attributes of a layer as descriptors with types: what may be read, and what may be given anew.

Every attribute that a user could set acts, or says why it does not.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from gconv.layers.config import Config, reconfigured
from gconv.naming import translated
from gconv.optim.factor import DEFAULTS, checked

Got = TypeVar("Got")
Given = TypeVar("Given")

_MADE = "is fixed when the layer is made. Make a new one, with another `{name}`"
_USED = "is used once, when the layer is made. The values are layer.kernel[...] and layer.bias[...], which may be set"
_METADATA = "is used once: layer.kernel.set_metadata(...), layer.bias.set_metadata(...)"
FIXED = {
    **dict.fromkeys(("in_features", "kernel_size", "filters_per_group", "groups", "num_channels_per_group"), _MADE),
    **dict.fromkeys(("use_bias", "param_dtype"), _MADE),
    **dict.fromkeys(("kernel_init", "bias_init", "rngs"), _USED),
    **dict.fromkeys(("kernel_metadata", "bias_metadata"), _METADATA),
    **dict.fromkeys(("padding_mode", "padding_size"), "follows from `padding`, which may be set"),
    **dict.fromkeys(("num_inputs", "input_names", "num_outputs", "output_names"), "is the same for every layer"),
    "out_features": "is groups * filters_per_group",
}
OPTIONS = (
    *("strides", "padding", "dilation", "input_dilation", "padding_value", "output_padding"),
    *("activation", "dtype", "precision", "implementation", "preferred_element_type"),
)
MATLAB = {
    "Name": "name",
    "FilterSize": "kernel_size",
    "NumGroups": "groups",
    "NumFiltersPerGroup": "filters_per_group",
    "NumChannelsPerGroup": "num_channels_per_group",
    "Stride": "strides",
    "DilationFactor": "dilation",
    "Padding": "padding",
    "PaddingMode": "padding_mode",
    "PaddingSize": "padding_size",
    "PaddingValue": "padding_value",
    "Weights": "kernel",
    "Bias": "bias",
    "WeightsInitializer": "kernel_init",
    "BiasInitializer": "bias_init",
    "WeightLearnRateFactor": "kernel_learn_rate_factor",
    "BiasLearnRateFactor": "bias_learn_rate_factor",
    "WeightL2Factor": "kernel_l2_factor",
    "BiasL2Factor": "bias_l2_factor",
    "NumInputs": "num_inputs",
    "InputNames": "input_names",
    "NumOutputs": "num_outputs",
    "OutputNames": "output_names",
}
# Of Flax's, PyTorch's and Keras' layers.
_OTHERS = (
    *("feature_group_count", "kernel_dilation", "features", "stride", "in_channels", "out_channels", "weight"),
    *("dilation_rate", "kernel_initializer", "bias_initializer", "kernel_shape", "conv_general_dilated"),
)


class Fact(Generic[Got]):
    """What the configuration says, under a name of its own: read only."""

    def __init__(self, of: Callable[[Config], Got], doc: str | None = None):
        self._of, self.__doc__ = of, doc

    @overload
    def __get__(self, layer: None, owner: type) -> "Fact[Got]": ...
    @overload
    def __get__(self, layer: Any, owner: type) -> Got: ...
    def __get__(self, layer, owner):
        return self if layer is None else self._of(layer.config)


class Option(Generic[Got, Given]):
    """An option of the configuration, as it is in force; setting it acts from the next call on."""

    def __init__(self, doc: str | None = None):
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, layer: None, owner: type) -> "Option[Got, Given]": ...
    @overload
    def __get__(self, layer: Any, owner: type) -> Got: ...
    def __get__(self, layer, owner):
        return self if layer is None else getattr(layer.config, self._name)

    def __set__(self, layer: Any, value: Given) -> None:
        layer.config = reconfigured(layer.config, self._name, value)


class FactorOf:
    """A factor of a parameter, which its metadata holds; None without the parameter."""

    def __init__(self, parameter: str, kind: str):
        self._parameter, self._kind = parameter, kind

    @overload
    def __get__(self, layer: None, owner: type) -> "FactorOf": ...
    @overload
    def __get__(self, layer: Any, owner: type) -> float | None: ...
    def __get__(self, layer, owner):
        if layer is None:
            return self
        variable = getattr(layer, self._parameter)
        default = getattr(DEFAULTS[self._parameter], self._kind.removesuffix("_factor"))
        return None if variable is None else variable.get_metadata().get(self._kind, default)

    def __set__(self, layer: Any, value: float) -> None:
        variable, name = getattr(layer, self._parameter), f"{self._parameter}_{self._kind}"
        if variable is None:
            raise AttributeError(f"`{name}` has nothing to act on: the layer was made with use_bias=False.")
        variable.set_metadata(**{self._kind: checked(name, value)})


class Facts:
    """What MATLAB shows of a layer and nobody sets."""

    padding_mode = Fact(lambda c: c.padding_mode, "'manual', or the name that fixes the padding when the input is known.")
    padding_size = Fact(lambda c: c.padding_size, "Low and high of each axis in turn; None where it depends on the input.")
    num_inputs = Fact[int](lambda c: 1, "MATLAB's NumInputs.")
    input_names = Fact[tuple[str, ...]](lambda c: ("in",), "MATLAB's InputNames.")
    num_outputs = Fact[int](lambda c: 1, "MATLAB's NumOutputs.")
    output_names = Fact[tuple[str, ...]](lambda c: ("out",), "MATLAB's OutputNames.")


def why_not_set(layer: Any, name: str) -> str | None:
    """Why an attribute of this name would have no effect on a layer, or None."""
    kind = type(layer)
    if name in FIXED:
        return f"`{name}` of {kind.__name__} {FIXED[name].format(name=name)}."
    if name in OPTIONS:
        return f"{kind.__name__} has no `{name}`."
    return why_not_there(kind, name)


def why_not_there(kind: type, name: str) -> str | None:
    """What an attribute that another library's layer has is called here, or None."""
    if name in MATLAB:
        return f"{kind.__name__} has no `{name}`: what MATLAB calls so is `{MATLAB[name]}`."
    if name not in _OTHERS:
        return None
    own = ("in_features", "out_features", "kernel_size", "kernel_init", "bias_init", "kernel", "groups", *OPTIONS)
    here = "out_features" if name in ("features", "out_channels") else translated(name, own)
    return f"{kind.__name__} has no `{name}`" + (f": here it is `{here}`." if here else ".")
