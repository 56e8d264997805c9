"""Where the arrays of a layer live on a mesh of data x groups."""

from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, Mesh, PartitionSpec


class Specs(NamedTuple):
    """The `PartitionSpec`s of a layer's arrays.

    Attributes:
      inputs, outputs: `(batch, *spatial, channels)`.
      kernel: `(*window, channels per group, output channels)`.
      bias: `(output channels,)`.

    Of a stack of layers, as `nnx.vmap` makes it, kernel and bias have the stack's axes in front; inputs and outputs are those
    of one layer.
    """

    inputs: PartitionSpec
    kernel: PartitionSpec
    bias: PartitionSpec
    outputs: PartitionSpec


def natural_specs(
    layer: Any,
    mesh: Mesh | AbstractMesh,
    *,
    data: str | None = "data",
    groups: str | None = "groups",
    in_features: int | None = None,
) -> Specs:
    """The specs with which a layer needs no communication but one all-reduce per parameter's gradient: data x groups.

    Images are split over one axis of the mesh, whole groups over another. A layer whose number of groups the second axis does
    not divide, such as a stem with one group, keeps its channels whole.

    >>> import jax, gconv
    >>> from flax import nnx
    >>> mesh = jax.sharding.AbstractMesh((4, 2), ("data", "groups"))
    >>> layer = gconv.nnx.GroupedConv(32, 3, 8, 4, rngs=nnx.Rngs(0))
    >>> gconv.natural_specs(layer, mesh).inputs
    P('data', None, None, 'groups')
    >>> gconv.natural_specs(layer, mesh).kernel
    P(None, None, None, 'groups')

    Args:
      layer: a `GroupedConv` or `GroupedConvTranspose` of `gconv.nnx` or `gconv.linen`.
      mesh: a `jax.sharding.Mesh` or `AbstractMesh`.
      data, groups: names of its axes, or None not to split the images or the groups.
      in_features: channels of the input: of a Linen layer with groups="channel-wise", which does not know them.

    Raises:
      TypeError: for what is no layer of gconv.
      ValueError: for an axis that the mesh does not have; for a layer that does not know how many groups it has; for layers
        stacked along another axis than the first.
    """
    config: Any = getattr(layer, "config", None)
    if not hasattr(config, "stack_of"):
        made = isinstance(layer, type)
        kind = f"the class {layer.__name__}" if made else f"{type(layer).__module__.partition('.')[0]}'s {type(layer).__name__}"
        raise TypeError(
            f"`layer` must be a GroupedConv or GroupedConvTranspose of gconv, got {kind}. A layer of Flax converts: "
            "gconv.interop.from_flax(layer).to_nnx()."
        )
    for name, axis in (("data", data), ("groups", groups)):
        if axis is not None and axis not in mesh.axis_names:
            known = ", ".join(map(repr, mesh.axis_names))
            raise ValueError(f"`{name}` must be an axis of the mesh, got {axis!r}. Values that work: {known}, or None.")
    features = getattr(layer, "in_features", in_features)
    if features is None and isinstance(config.groups, str):
        raise ValueError('`in_features` must be given: a Linen layer with groups="channel-wise" reads them off its input.')
    count = config.groups if features is None else config.split(features)[0]
    over = groups if groups is not None and count % mesh.shape[groups] == 0 else None
    blank = (None,) * len(config.window)
    image = PartitionSpec(data, *blank, over)
    kernel = getattr(layer, "kernel", None)  # a Linen module has none
    stack = () if kernel is None else (None,) * len(config.stack_of(kernel.shape, features))
    return Specs(image, PartitionSpec(*stack, *blank, None, over), PartitionSpec(*stack, over), image)
