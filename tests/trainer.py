"""One of several processes that train a network together, on a mesh of data x groups; `test_multi_process` runs it.

    python tests/trainer.py PROCESS COUNT PORT CHECKPOINT START SAVE END

It trains from step START, with what CHECKPOINT holds if START is not 0, to step END, and saves before step SAVE. It prints a
line of JSON for each step, and one once the checkpoint is complete.
"""

import json
import signal
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax import P
from jax.sharding import AxisType, NamedSharding
from sklearn.datasets import load_digits

import gconv

DATA, GROUPS, BATCH = 2, 2, 16
LONGEST = 180  # seconds, after which a process ends whatever became of the others and of the test


class Network(nnx.Module):
    """A dense convolution, a channel-wise one with factors of its own, batch norm and a head."""

    def __init__(self, rngs: nnx.Rngs):
        conv = gconv.nnx.GroupedConv
        self.conv = conv(1, 3, 32, 1, padding="same", rngs=rngs)
        self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.channel_wise = conv(32, 3, 1, "channel-wise", strides=2, padding="same", bias_learn_rate_factor=2, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.channel_wise(nnx.relu(self.norm(self.conv(x)))))
        return self.head(x.reshape(len(x), -1))


def make_optimizer(model: nnx.Module) -> nnx.Optimizer:
    factors = gconv.optim.factors(model)
    scaled = gconv.optim.scale_by_learn_rate_factors(factors)
    return nnx.Optimizer(model, optax.chain(gconv.optim.add_l2(1e-4, factors), optax.adam(5e-3), scaled), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def setting():
    """The mesh, and model and optimizer as they start, each array where it belongs."""
    devices = jax.devices()[: DATA * GROUPS]
    mesh = jax.make_mesh((DATA, GROUPS), ("data", "groups"), axis_types=(AxisType.Auto,) * 2, devices=devices)

    def make():
        model = Network(nnx.Rngs(0))
        return model, make_optimizer(model)

    def placed(model, optimizer):
        """The optimizer's state lies where the parameters are, whatever it consists of."""
        of_model = gconv.nnx.shardings(model, mesh)
        by_path = {path[-2:]: leaf.get_value() for path, leaf in nnx.to_flat_state(of_model)}
        replicated = NamedSharding(mesh, P())
        of_optimizer = nnx.map_state(lambda path, v: v.replace(by_path.get(path[-2:], replicated)), nnx.state(optimizer))
        return of_model, of_optimizer

    model, optimizer = nnx.eval_shape(make)
    states = jax.jit(lambda: tuple(map(nnx.state, make())), out_shardings=placed(model, optimizer))()
    nnx.update(model, states[0]), nnx.update(optimizer, states[1])
    return mesh, model, optimizer


def batch_of(step: int, mesh):
    """The step's images and labels; each process reads the rows of its devices only."""
    digits = load_digits()
    images, labels = (digits.images / 16).astype(np.float32)[..., None], digits.target
    rows = np.random.default_rng(step).permutation(len(images))[:BATCH]
    sharding = NamedSharding(mesh, P("data"))
    return tuple(
        jax.make_array_from_callback((BATCH, *a.shape[1:]), sharding, lambda index, a=a: a[rows[index[0]]])
        for a in (images, labels)
    )


def train(start: int, end: int, *, save: int | None = None, checkpoint=None, report=lambda **_: None) -> list[float]:
    """The losses of the steps from `start` to `end`."""
    mesh, model, optimizer = setting()
    with ocp.StandardCheckpointer() as checkpointer:
        if start:
            like = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
                tuple(nnx.to_pure_dict(nnx.state(part)) for part in (model, optimizer)),
            )
            for part, values in zip((model, optimizer), checkpointer.restore(checkpoint, like), strict=True):
                state = nnx.state(part)
                nnx.replace_by_pure_dict(state, values)
                nnx.update(part, state)
        losses = []
        for step in range(start, end):
            if step == save:
                checkpointer.save(checkpoint, tuple(nnx.to_pure_dict(nnx.state(part)) for part in (model, optimizer)))
                checkpointer.wait_until_finished()
                report(saved=step)
            losses.append(float(train_step(model, optimizer, *batch_of(step, mesh))))
            report(step=step, loss=losses[-1])
    assert model.channel_wise.kernel[...].sharding.spec == P(None, None, None, "groups")
    return losses


if __name__ == "__main__":
    signal.alarm(LONGEST)
    process, count, port, checkpoint, start, save, end = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", DATA * GROUPS // int(count))
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(process))
    train(
        int(start),
        int(end),
        save=int(save),
        checkpoint=checkpoint,
        report=lambda **values: print(json.dumps(values), flush=True),
    )
    jax.distributed.shutdown()
