"""Inference and one training step of a network, in Flax or PyTorch, ready for the stopwatch.

The training step is forward, backward and stochastic gradient descent with momentum, in training mode (batch norms use and
update their statistics). Each step goes on from the parameters that the last one left. Its result is the loss and the norm of
the gradient of all parameters.

A step may compute in bfloat16. Parameters, their gradients, the loss and the optimizer stay in float32: Flax's layers have
`dtype=jnp.bfloat16`, and PyTorch runs forward under `torch.autocast`.
"""

import contextlib
import zlib
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.measuring import machine
from benchmarks.measuring.work import Prepared, timed
from benchmarks.programs import networks

RATE, MOMENTUM = 1e-3, 0.9


def build(name: str, conv: Callable) -> nnx.Module:
    """The network with random weights that depend on their names only, so that two versions of it are equal."""
    graph, state = nnx.split(nnx.eval_shape(lambda: networks.ALL[name](conv, rngs=nnx.Rngs(0))))

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


def compute_in(model: nnx.Module, dtype: str) -> None:
    """Makes every layer compute as if it were built with this `dtype`. The parameters stay as they are."""
    for _, layer in nnx.iter_modules(model):
        if hasattr(layer, "param_dtype"):
            layer.dtype = jnp.dtype(dtype)


def example(name: str, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random input, and labels (the Mamba block learns to give its input back)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(networks.input_shape(name, batch, size), np.float32)
    return x, x if name == "mamba" else rng.integers(0, 1000, batch)


# --- Flax ------------------------------------------------------------------------------------------------------------


def loss_of(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    if outputs.shape == labels.shape:
        return ((outputs - labels) ** 2).mean()
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def flax_inference(
    name: str,
    conv: Callable,
    batch: int,
    size: int,
    *,
    around=contextlib.nullcontext,
    change: Callable = lambda f: f,
    frozen=False,
) -> Prepared:
    """`around` is what the program is compiled in, and `change` what becomes of the function before it is.

    `frozen`: `change` makes a function of the model, in which weights are constants, as they are to engines.
    The program is given its weights as a list, because engines hold theirs: a `State` of NNX is taken apart by Python at each
    call, which takes about a millisecond for the 357 arrays of RegNetX-400MF.
    """
    model = build(name, conv)
    model.eval()
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    x = jnp.asarray(example(name, batch, size)[0])
    with around():
        if frozen:
            leaves, fast = [], change(model)
            function = lambda leaves, x: fast(x)
        else:
            function = change(lambda leaves, x: nnx.merge(graph, jax.tree.unflatten(tree, leaves))(x))
        program, seconds = timed(lambda: jax.jit(function).lower(leaves, x).compile())
    run = partial(program, leaves, x)
    return Prepared(run, lambda: np.asarray(run()), seconds, keep=program)


def training_step(
    name: str, conv: Callable, *, change: Callable = lambda model: None, dtype: str = "float32"
) -> tuple[Callable, tuple]:
    """The step as a pure function `(*state, x, labels) -> (loss, *state)`, and the first state.

    `change` may change the model in place before that. `dtype` is what the layers compute in.
    """
    model = build(name, conv)
    if dtype != "float32":  # in which layers compute if nothing is said
        compute_in(model, dtype)
    change(model)
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


def flax_training(
    name: str,
    conv: Callable,
    batch: int,
    size: int,
    *,
    around=contextlib.nullcontext,
    change: Callable = lambda model: None,
    dtype: str = "float32",
) -> Prepared:
    """`around` is what the program is compiled in, and `change` what is done to the model before it is."""
    step, state = training_step(name, conv, change=change, dtype=dtype)
    x, labels = (jnp.asarray(a) for a in example(name, batch, size))
    with around():
        program, seconds = timed(lambda: jax.jit(step, donate_argnums=(0, 1, 2)).lower(*state, x, labels).compile())
    now = [*state]

    def run():
        loss, *now[:] = program(*now, x, labels)
        return loss, now

    def result():
        loss, (_, _, solver_state) = run()
        momenta = jax.tree.leaves(solver_state[0].trace)  # after the first step they are the gradient
        return [np.asarray(loss), np.sqrt(sum(np.vdot(m, m) for m in map(np.asarray, momenta)))]

    return Prepared(run, result, seconds, keep=program)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_model(name: str, channels_last: bool):
    import torch

    from benchmarks.programs import carry, networks_torch

    torch.set_num_threads(machine.cores())
    model = carry.to_torch(build(name, networks.flax_layer), networks_torch.ALL[name]())
    return model.to(memory_format=torch.channels_last) if channels_last else model


def torch_example(name: str, batch: int, size: int, channels_last: bool):
    import torch

    from benchmarks.programs import carry

    x, labels = example(name, batch, size)
    moved = carry.channels_first(x)
    if channels_last and moved.ndim == 4:
        moved = moved.contiguous(memory_format=torch.channels_last)
    return moved, torch.from_numpy(labels)


def _compiled(model: Callable) -> Callable:
    """By PyTorch's compiler, to which weights are constants ("frozen") where nothing is differentiated."""
    import torch
    from torch._inductor import config

    config.freezing = True
    config.compile_threads = 1  # more are processes, forked from this one
    return torch.compile(model)


def torch_inference(name: str, batch: int, size: int, *, channels_last: bool, compiled: bool = False) -> Prepared:
    """`compiled`: by `torch.compile`, which packs frozen weights beforehand; else each call is eager."""
    import torch

    model = torch_model(name, channels_last).eval()
    x, _ = torch_example(name, batch, size, channels_last)
    forward = _compiled(model) if compiled else model

    def run():
        with torch.no_grad():
            return forward(x)

    return Prepared(run, lambda: run().numpy(), timed(run)[1] if compiled else 0.0)


def torch_training(
    name: str, batch: int, size: int, *, channels_last: bool, compiled: bool = False, dtype: str = "float32"
) -> Prepared:
    """`compiled`: the model by `torch.compile`, forward and backward; the loss and the optimizer stay eager."""
    import torch

    model = torch_model(name, channels_last).train()
    x, labels = torch_example(name, batch, size, channels_last)
    solver = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    loss_of = torch.nn.functional.mse_loss if name == "mamba" else torch.nn.functional.cross_entropy
    forward = _compiled(model) if compiled else model
    around = contextlib.nullcontext() if dtype == "float32" else torch.autocast("cpu", getattr(torch, dtype))

    def forward_and_loss():
        with around:
            return loss_of(forward(x), labels)

    def step():
        loss = forward_and_loss()
        loss.backward()
        solver.step()
        solver.zero_grad(set_to_none=True)
        return loss

    def result():
        loss = step()
        momenta = [solver.state[parameter]["momentum_buffer"] for parameter in model.parameters()]
        return [loss.detach().numpy(), torch.nn.utils.get_total_norm(momenta).numpy()]

    def compile_():  # in a first forward and backward, which leave nothing but a step of the batch norms' statistics
        forward_and_loss().backward()
        solver.zero_grad(set_to_none=True)

    return Prepared(step, result, timed(compile_)[1] if compiled else 0.0)
