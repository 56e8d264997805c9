"""Where the variables of an NNX model live on a mesh."""

from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gconv.mesh.placement import natural_specs
from gconv.naming import translating


@translating
def shardings(model: nnx.Module, mesh: Mesh, *, groups: str | None = "groups") -> nnx.State:
    """Where a model's variables live on a mesh: kernels and biases of gconv's layers over their groups, all others everywhere.

    An optimizer made afterwards keeps its state where the parameters are.

    >>> import jax, jax.numpy as jnp, gconv
    >>> from flax import nnx
    >>> mesh = jax.make_mesh((1, 1), ("data", "groups"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(
    ...     gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
    ... )
    >>> nnx.update(model, jax.device_put(nnx.state(model), gconv.nnx.shardings(model, mesh)))
    >>> model.layers[0].kernel[...].sharding.spec
    P(None, None, None, 'groups')

    Args:
      model: any NNX module; stacks of layers, which `nnx.vmap` makes, keep the stack's axes whole.
      mesh: whose axis `groups` splits the groups of the layers that it divides; see `gconv.natural_specs`.

    Returns:
      A state like `nnx.state(model)` with a `NamedSharding` in the place of every value, for `jax.device_put`,
      `jax.lax.with_sharding_constraint` and the arguments of `jax.jit`.

    Raises:
      TypeError, ValueError: for what is no NNX module; for an axis that the mesh does not have.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be a flax.nnx.Module, got {type(model).__name__}. Of other trees of parameters: "
            "jax.tree.map, with the specs that gconv.natural_specs(layer, mesh) gives for each layer."
        )
    specs: dict[tuple, PartitionSpec] = {}
    for path, module in nnx.iter_modules(model):
        if hasattr(getattr(module, "config", None), "stack_of"):
            found = natural_specs(module, mesh, data=None, groups=groups)
            specs |= {(*path, name): spec for name, spec in (found._asdict() | {"mask": found.kernel}).items()}

    def place(path, leaf):
        sharding = NamedSharding(mesh, specs.get(path, PartitionSpec()))
        return leaf.replace(sharding) if isinstance(leaf, nnx.Variable) else sharding  # a mask is an array by itself

    return nnx.map_state(place, nnx.state(model))
