"""An NNX model made fast layer by layer, without touching its code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax import lax

from gconv.acceleration.drop_in import conv_general_dilated
from gconv.acceleration.linear import dot_general
from gconv.layers import Config

# By the attribute of a layer that holds it: the function of lax's that it calls, and gconv's.
_FUNCTIONS = {
    "conv_general_dilated": (lax.conv_general_dilated, conv_general_dilated),
    "dot_general": (lax.dot_general, dot_general),
}
ELSEWHERE = "gconv.install() reaches it wherever it calls lax"


@dataclass(frozen=True)
class Surgery:
    """What `gconv.accelerate` did to a model; `print` shows it.

    Attributes:
      changed: the path of each layer that takes gconv's path now -> what it computes.
      uncertain: the path of each layer with a `__call__` of its own -> what it computes, if it calls its
      `conv_general_dilated` or `dot_general`. unchanged: the path of each other convolution, batch norm or linear layer -> why
      it was left as it was. dry_run: whether nothing was changed, and `changed` says what would be. norms, linears: the paths
      that are batch norms, and linear layers.
    """

    changed: Mapping[str, str]
    uncertain: Mapping[str, str]
    unchanged: Mapping[str, str]
    dry_run: bool
    norms: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()

    def __str__(self) -> str:
        every = [*self.changed, *self.uncertain, *self.unchanged]
        if not every:
            return f"0 of 0 convolutions: the model has no layer of Flax's that convolves. If it does so itself, {ELSEWHERE}."
        convolutions = [path for path in every if path not in {*self.norms, *self.linears}]
        kinds = {"convolutions": convolutions, "batch norms": self.norms, "linear layers": self.linears}
        counts = [f"{sum(p in self.changed for p in paths)} of {len(paths)} {kind}" for kind, paths in kinds.items() if paths]
        lines = [f"{_listed(counts)} {'would take' if self.dry_run else 'take'} gconv's path"]
        width = max(map(len, every))
        rows = lambda paths: [f"  {path:<{width}}  {what}" for path, what in paths.items()]
        lines += rows(self.changed)
        lines += ["if their own __call__ calls the function that they hold:", *rows(self.uncertain)] if self.uncertain else []
        lines += ["unchanged:", *rows(self.unchanged)] if self.unchanged else []
        return "\n".join(lines)


def accelerate(model: Any, *, dry_run: bool = False) -> Surgery:
    """Lets every `nnx.Conv`, `ConvTranspose`, `BatchNorm`, `Linear` and `LinearGeneral` of a model compute by gconv, in place.

    What `gconv.install` does for a process, for one model. Layers, parameters, names, metadata and graph stay the same objects,
    so optimizers and checkpoints from before and after interchange. All that changes is the function that a layer holds and
    calls, `conv_general_dilated` of a `Conv` and `dot_general` of a `Linear`, and the class of a `ConvTranspose`, a `BatchNorm`
    and a `Sequential`, which becomes a subclass. `gconv.batch_norm` computes batch norms in training, together with the relu
    that follows them in a `Sequential`. On CPU a linear layer of 128 rows and more becomes a convolution whose window is one
    pixel, in half precision and, where the rows are many for the matrix, in float32; elsewhere it stays XLA's matrix product.
    Policies of `jax.checkpoint` then see lax's convolution there, as `gconv.convolutions_saveable` does.

    >>> import gconv, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(
    ...     nnx.Conv(3, 32, (3, 3), rngs=nnx.Rngs(0)),
    ...     nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=nnx.Rngs(0)),
    ... )
    >>> print(gconv.accelerate(model))
    2 of 2 convolutions take gconv's path
      layers/0  Conv, window (3, 3), 3 -> 32 channels
      layers/1  Conv, window (3, 3), 32 groups of 1 -> 1 channels

    Args:
      model: a `flax.nnx.Module`.
      dry_run: only to report what would be changed.

    Returns:
      A `Surgery`, which says what was changed, what not, and why. A second call changes nothing.

    Programs that were compiled before keep running as they were; `nnx.jit` compiles anew, since the model's graph is another.
    """
    from flax import nnx

    from gconv.acceleration.flax_layers import Sequential

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be a flax.nnx.Module, got {type(model).__name__}. For Linen, Haiku, Equinox and everything else "
            "that calls lax: gconv.install(), or with gconv.accelerated(): ..."
        )
    changed: dict[str, str] = {}
    uncertain: dict[str, str] = {}
    unchanged: dict[str, str] = {}
    norms: list[str] = []
    linears: list[str] = []
    for path, layer in nnx.iter_modules(model):
        name = "/".join(map(str, path)) or "(the model itself)"
        if isinstance(getattr(layer, "config", None), Config):
            unchanged[name] = "a layer of gconv already"
        elif isinstance(layer, nnx.bridge.ToNNX):
            unchanged[name] = f"a Linen module: {ELSEWHERE}"
        elif isinstance(layer, (nnx.Conv, nnx.ConvTranspose, nnx.BatchNorm, nnx.Linear, nnx.LinearGeneral)):
            norms += [name] if isinstance(layer, nnx.BatchNorm) else []
            linears += [name] if isinstance(layer, (nnx.Linear, nnx.LinearGeneral)) else []
            if reason := _why_not(layer):
                unchanged[name] = reason
                continue
            calls = next((kind.__call__ for kind in (nnx.Conv, nnx.Linear, nnx.LinearGeneral) if isinstance(layer, kind)), None)
            own = calls is not None and type(layer).__call__ is not calls
            (uncertain if own else changed)[name] = _described(layer)
            if not dry_run:
                _change(layer)
        elif type(layer) is nnx.Sequential and Sequential.has_pairs(layer) and not dry_run:
            layer.__class__ = Sequential
    return Surgery(changed, uncertain, unchanged, dry_run, tuple(norms), tuple(linears))


def _change(layer) -> None:
    from flax import nnx

    from gconv.acceleration.flax_layers import BatchNorm, ConvTranspose

    if held := _held(layer):
        setattr(layer, held, _FUNCTIONS[held][1])
    else:
        layer.__class__ = BatchNorm if isinstance(layer, nnx.BatchNorm) else ConvTranspose


def _held(layer) -> str | None:
    """The attribute in which a layer holds the function of lax's that it calls, if it does."""
    return next((name for name in _FUNCTIONS if hasattr(layer, name)), None)


def _why_not(layer) -> str | None:
    """Why a layer of Flax stays as it is, or None."""
    from flax import nnx

    from gconv.acceleration.flax_layers import BatchNorm, ConvTranspose

    held = _held(layer)
    if isinstance(layer, (ConvTranspose, BatchNorm)) or (held and getattr(layer, held) is _FUNCTIONS[held][1]):
        return "computes by gconv already"
    if held and (theirs := getattr(layer, held)) not in (None, _FUNCTIONS[held][0]):
        return f"has a {held} of its own: {theirs!r}"
    if isinstance(layer, (nnx.Linear, nnx.LinearGeneral)):
        return f"has a dot_general_cls of its own: {own!r}" if (own := getattr(layer, "dot_general_cls", None)) else None
    if isinstance(layer, nnx.BatchNorm):
        if type(layer) is not nnx.BatchNorm:
            return "a class of its own"
        return "axis_index_groups, which gconv does not have" if layer.axis_index_groups is not None else None
    if len(layer.kernel_size) > 3:
        return f"{len(layer.kernel_size)} spatial axes, gconv has 1, 2 or 3"
    if isinstance(layer, nnx.ConvTranspose):
        return None if type(layer) is nnx.ConvTranspose else f"a class of its own: {ELSEWHERE}"
    if _largest(layer.strides) > 1 and _largest(layer.input_dilation) > 1:
        return f"input_dilation={layer.input_dilation} with strides={layer.strides}: no transposed convolution"
    return None


def _described(layer) -> str:
    if hasattr(layer, "use_running_average"):
        return f"{type(layer).__name__}, {layer.num_features} channels"
    if hasattr(layer, "dot_general"):
        return f"{type(layer).__name__}, {layer.in_features} -> {layer.out_features} features"
    groups = getattr(layer, "feature_group_count", 1)
    each = f"{layer.in_features // groups} -> {layer.out_features // groups} channels"
    return f"{type(layer).__name__}, window {layer.kernel_size}, {each if groups == 1 else f'{groups} groups of {each}'}"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _largest(value) -> int:
    return max((value,) if isinstance(value, int) else value or (1,))
