"""Inference and one training step of a network, in Flax or PyTorch, ready for the stopwatch.

The training step is forward, backward and stochastic gradient descent with momentum, in training mode (batch norms use and
update their statistics). Each step goes on from the parameters that the last one left.
"""

import contextlib
import importlib.util
import zlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import gconv
from benchmarks.measuring import machine
from benchmarks.measuring.work import Prepared, timed
from benchmarks.programs import networks

RATE, MOMENTUM = 1e-3, 0.9


def build(name: str, conv: Callable) -> nnx.Module:
    """The network with random weights that depend on their names only, so that two versions of it are equal."""
    graph, state = nnx.split(nnx.eval_shape(lambda: networks.NETWORKS[name](conv, rngs=nnx.Rngs(0))))

    def fill(path, leaf):
        where = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        rng = np.random.default_rng(zlib.crc32(where.encode()))
        noise, last = rng.standard_normal(leaf.shape, np.float32), where.rpartition("/")[2]
        if last == "kernel":  # variance 2 / fan-in, as He et al. for ReLU
            noise *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif last in ("scale", "var", "skip"):
            noise = 1 + 0.1 * np.abs(noise)
        elif last == "decay":
            noise = np.log(np.arange(1, 1 + len(noise), dtype=np.float32))
        else:
            noise *= 0.1
        return jnp.asarray(noise.astype(leaf.dtype))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def example(name: str, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random input, and labels (the Mamba block learns to give its input back)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(networks.input_shape(name, batch, size), np.float32)
    return x, x if name == "mamba" else rng.integers(0, 1000, batch)


# --- Flax ------------------------------------------------------------------------------------------------------------


def loss_of(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    if outputs.shape == labels.shape:
        return ((outputs - labels) ** 2).mean()
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def flax_inference(
    name: str, conv: Callable, batch: int, size: int, *, around=contextlib.nullcontext, change: Callable = lambda f: f
) -> Prepared:
    """`around` is what the program is compiled in, and `change` what becomes of the function before it is."""
    model = build(name, conv)
    model.eval()
    graph, state = nnx.split(model)
    x = jnp.asarray(example(name, batch, size)[0])
    with around():
        function = change(lambda state, x: nnx.merge(graph, state)(x))
        program, seconds = timed(lambda: jax.jit(function).lower(state, x).compile())
    run = partial(program, state, x)
    return Prepared(run, lambda: np.asarray(run()), seconds)


def training_step(name: str, conv: Callable) -> tuple[Callable, tuple]:
    """The step as a pure function `(*state, x, labels) -> (loss, *state)`, and the first state."""
    model = build(name, conv)
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    solver = optax.sgd(RATE, MOMENTUM)

    def step(params, rest, solver_state, x, labels):
        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)  # batch norms update their statistics in place
            value = loss_of(model(x), labels)
            return value, nnx.split(model, nnx.Param, ...)[2]

        (value, new_rest), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, solver_state = solver.update(gradient, solver_state, params)
        return value, optax.apply_updates(params, updates), new_rest, solver_state

    return step, (params, rest, solver.init(params))


def flax_training(name: str, conv: Callable, batch: int, size: int, *, around=contextlib.nullcontext) -> Prepared:
    step, state = training_step(name, conv)
    x, labels = (jnp.asarray(a) for a in example(name, batch, size))
    with around():
        program, seconds = timed(lambda: jax.jit(step, donate_argnums=(0, 1, 2)).lower(*state, x, labels).compile())
    now = [*state]

    def run():
        loss, *now[:] = program(*now, x, labels)
        return loss, now

    return Prepared(run, lambda: np.asarray(run()[0]), seconds)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_model(name: str, channels_last: bool):
    import torch

    from benchmarks.programs import carry, networks_torch

    torch.set_num_threads(machine.cores())
    model = carry.to_torch(build(name, networks.flax_layer), networks_torch.NETWORKS[name]())
    return model.to(memory_format=torch.channels_last) if channels_last else model


def torch_example(name: str, batch: int, size: int, channels_last: bool):
    import torch

    from benchmarks.programs import carry

    x, labels = example(name, batch, size)
    moved = carry.channels_first(x)
    if channels_last and moved.ndim == 4:
        moved = moved.contiguous(memory_format=torch.channels_last)
    return moved, torch.from_numpy(labels)


def torch_inference(name: str, batch: int, size: int, *, channels_last: bool) -> Prepared:
    import torch

    model = torch_model(name, channels_last).eval()
    x, _ = torch_example(name, batch, size, channels_last)

    def run():
        with torch.inference_mode():
            return model(x)

    return Prepared(run, lambda: run().numpy())


def torch_training(name: str, batch: int, size: int, *, channels_last: bool) -> Prepared:
    import torch

    model = torch_model(name, channels_last).train()
    x, labels = torch_example(name, batch, size, channels_last)
    solver = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    loss_of = torch.nn.functional.mse_loss if name == "mamba" else torch.nn.functional.cross_entropy

    def run():
        solver.zero_grad(set_to_none=True)
        loss = loss_of(model(x), labels)
        loss.backward()
        solver.step()
        return loss

    return Prepared(run, lambda: run().detach().numpy())


# --- who is compared -------------------------------------------------------------------------------------------------

MODES = ("inference", "training")


def peers(mode: str) -> dict[str, Callable[[str, int, int], Prepared]]:
    """Functions of a network's name, batch and size; PyTorch's are missing where it is."""
    of_flax = {"inference": flax_inference, "training": flax_training}[mode]
    of_torch = {"inference": torch_inference, "training": torch_training}[mode]
    found = {key: lambda name, batch, size, conv=conv: of_flax(name, conv, batch, size) for key, conv in networks.CONVS.items()}
    found["nnx.Conv installed"] = lambda name, batch, size: of_flax(
        name, networks.flax_layer, batch, size, around=gconv.accelerated
    )
    if mode == "inference":
        found["nnx.Conv fused"] = lambda name, batch, size: flax_inference(
            name, networks.flax_layer, batch, size, around=gconv.accelerated, change=gconv.fuse
        )
    if importlib.util.find_spec("torch"):
        found["PyTorch contiguous"] = partial(of_torch, channels_last=False)
        found["PyTorch channels_last"] = partial(of_torch, channels_last=True)
    return found
