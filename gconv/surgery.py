"""Whole models made fast without touching their code: NNX models layer by layer, everything else by the call it makes."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jax import lax

from gconv.drop_in import conv_general_dilated
from gconv.layer import Config
from gconv.swapping import Swap

_SWAP = Swap(lax, "conv_general_dilated", conv_general_dilated)


@dataclass(frozen=True)
class Surgery:
    """What `gconv.accelerate` did to a model; `print` shows it.

    Attributes:
      changed: the path of each layer that takes gconv's path now -> what it computes.
      unchanged: the path of each other convolution -> why it was left as it was.
      dry_run: whether nothing was changed, and `changed` says what would be.
    """

    changed: Mapping[str, str]
    unchanged: Mapping[str, str]
    dry_run: bool

    def __str__(self) -> str:
        total = len(self.changed) + len(self.unchanged)
        verb = "would take" if self.dry_run else "take"
        lines = [f"{len(self.changed)} of {total} convolutions {verb} gconv's path"]
        width = max(map(len, [*self.changed, *self.unchanged]), default=0)
        lines += [f"  {path:<{width}}  {what}" for path, what in self.changed.items()]
        lines += ["unchanged:"] if self.unchanged else []
        lines += [f"  {path:<{width}}  {why}" for path, why in self.unchanged.items()]
        return "\n".join(lines)


def accelerate(model, *, dry_run: bool = False) -> Surgery:
    """Lets every grouped `flax.nnx.Conv` of a model compute by gconv, in place.

    Layers, parameters, names, metadata and graph stay the same objects, so optimizers and checkpoints from before and after
    interchange. All that changes is the function which a layer calls, its `conv_general_dilated`.

    >>> import gconv, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(
    ...     nnx.Conv(3, 32, (3, 3), rngs=nnx.Rngs(0)),
    ...     nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=nnx.Rngs(0)),
    ... )
    >>> print(gconv.accelerate(model))
    1 of 2 convolutions take gconv's path
      layers/1  Conv, window (3, 3), 32 groups of 1 -> 1 channels
    unchanged:
      layers/0  one group, which lax does well

    Args:
      model: a `flax.nnx.Module`.
      dry_run: only to report what would be changed.

    Returns:
      A `Surgery`, which says what was changed, what not, and why. A second call changes nothing.

    Programs that were compiled before keep running as they were; `nnx.jit` compiles anew, since the model's graph is another.
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be a flax.nnx.Module, got {type(model).__name__}. For Linen, Haiku, Equinox and everything else "
            "that calls lax: with gconv.accelerated(): ..."
        )
    changed, unchanged = {}, {}
    for path, layer in nnx.iter_modules(model):
        name = "/".join(map(str, path)) or "(the model itself)"
        kind = type(layer).__name__
        if isinstance(getattr(layer, "config", None), Config):
            unchanged[name] = "a layer of gconv already"
        elif isinstance(layer, nnx.ConvTranspose):
            unchanged[name] = "a ConvTranspose of Flax, which has no groups"
        elif isinstance(layer, nnx.bridge.ToNNX):
            unchanged[name] = "a Linen module, which decides when it is called: with gconv.accelerated(): ..."
        elif isinstance(layer, nnx.Conv):
            if reason := _why_not(layer):
                unchanged[name] = reason
                continue
            groups = layer.feature_group_count
            each = f"{layer.in_features // groups} -> {layer.out_features // groups}"
            changed[name] = f"{kind}, window {layer.kernel_size}, {groups} groups of {each} channels"
            if type(layer).__call__ is not nnx.Conv.__call__:
                changed[name] += f"; {kind}.__call__ is its own and has to call conv_general_dilated"
            if not dry_run:
                layer.conv_general_dilated = conv_general_dilated
    return Surgery(changed, unchanged, dry_run)


def _why_not(layer) -> str | None:
    """Why a Flax Conv stays as it is, or None."""
    if layer.conv_general_dilated is conv_general_dilated:
        return "computes by gconv already"
    if layer.conv_general_dilated is not _SWAP.original:
        return f"has a conv_general_dilated of its own: {layer.conv_general_dilated!r}"
    if layer.feature_group_count == 1:
        return "one group, which lax does well"
    if len(layer.kernel_size) > 3:
        return f"{len(layer.kernel_size)} spatial axes, gconv has 1, 2 or 3"
    strides, dilation = (_largest(getattr(layer, name)) for name in ("strides", "input_dilation"))
    if strides > 1 and dilation > 1:
        return f"input_dilation={layer.input_dilation} with strides={layer.strides}: no transposed convolution"
    return None


def _largest(value) -> int:
    return max((value,) if isinstance(value, int) else value or (1,))


@contextlib.contextmanager
def accelerated() -> Iterator[None]:
    """Everything that calls `jax.lax.conv_general_dilated` inside computes its grouped convolutions by gconv.

    For Linen, Haiku, Equinox, Keras and code of one's own, whose layers look the function up when they are called. A context
    manager, and a decorator of what is traced:

    >>> import gconv, jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> module, x = nn.Conv(32, (3, 3), feature_group_count=32), jnp.ones((1, 8, 8, 32))
    >>> variables = module.init(jax.random.key(0), x)
    >>> apply = jax.jit(gconv.accelerated()(module.apply))                # one line: trace the model inside
    >>> with gconv.accelerated():                                         # the same for a block of code
    ...     y = module.apply(variables, x)
    >>> "gconv_y" in apply.lower(variables, x).as_text(debug_info=True)
    True

    What counts is the moment of tracing: a function that `jax.jit` traced before stays as it was, and one that it traced inside
    stays fast afterwards. While any thread is inside, `jax.lax.conv_general_dilated` is gconv's for all threads, which changes
    no result. A module that imported the function itself (`from jax.lax import conv_general_dilated`) is not reached.
    """
    with _SWAP.inside():
        yield
