"""What a training step sends on 8, 64 and 256 devices, read off programs compiled for as many, and what that would cost.

    python -m benchmarks.scaling

Nothing is run: ResNeXt-50 (32x4d) and ConvNeXt-T are compiled for simulated devices, 32 images of 224 x 224 on each, split over
the batch alone and over batch x groups. The time of a step is then modelled from the published numbers of two machines, with
computing at its peak and either nothing of the sending hidden behind it, or as much as can be: real steps compute more slowly,
so that sending costs them less of their time than it does here.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import optax
from flax import nnx
from jax import P
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType, NamedSharding
from rich.console import Console
from rich.table import Table

import gconv
from benchmarks.measuring.collectives import Collective, collectives
from benchmarks.programs.networks import NETWORKS, PARAMETERS, gconv_layer

PAPERS = ("resnext50_32x4d", "convnext_t")
DEVICES = (8, 64, 256)
IMAGES, SIZE = 32, 224  # on each device
# Nothing is run, so nothing need be fast.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
GROUPS = (1, 4)  # devices that share each image, by its groups


@dataclass(frozen=True)
class Machine:
    """Published numbers: of one device, and of what joins it to the others.

    Attributes:
      flops: per second, in bfloat16 without sparsity.
      node: how many devices are near each other.
      near, far: bytes per second that a device sends to others of its node, and beyond.
    """

    name: str
    flops: float
    node: int
    near: float
    far: float


MACHINES = (
    # https://www.nvidia.com/en-us/data-center/h100 (SXM: 1,979 teraFLOPS with sparsity, NVLink 900 GB/s both ways together) and
    # the DGX H100 data sheet (8 GPUs, one 400 Gb/s ConnectX-7 for each).
    Machine("DGX H100", 989e12, 8, 450e9, 50e9),
    # https://cloud.google.com/tpu/docs/v5e: 197 TFLOPs, interconnect 1,600 Gb/s per chip both ways together, pods of 256 chips.
    Machine("TPU v5e", 197e12, 256, 100e9, 100e9),
)


# --- compiled, not run -----------------------------------------------------------------------------------------------


def train_step(model: nnx.Module):
    """A function of parameters, other state, images and labels: one step of gradient descent."""
    graph, *_ = nnx.split(model, nnx.Param, ...)

    def step(params, state, images, labels):
        def loss_of(params):
            model = nnx.merge(graph, params, state, copy=True)
            loss = optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()
            return loss, nnx.split(model, nnx.Param, ...)[2]

        (loss, state_), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), state_, loss

    return step


def sent(model: nnx.Module, devices: int, groups: int, size: int) -> list[Collective]:
    """The collectives of the step, compiled for so many devices, of which `groups` share each image."""
    shape = (devices // groups, groups)
    mesh = jax.make_mesh(shape, ("data", "groups"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices])
    shardings = nnx.split_state(gconv.nnx.shardings(model, mesh), nnx.Param, ...)

    def like(state, shardings):
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)

    states = map(like, nnx.split(model, nnx.Param, ...)[1:], shardings)
    batch, over = IMAGES * devices, NamedSharding(mesh, P("data"))
    images = jax.ShapeDtypeStruct((batch, size, size, 3), "float32", sharding=over)
    labels = jax.ShapeDtypeStruct((batch,), "int32", sharding=over)
    step = jax.jit(train_step(model), out_shardings=(*shardings, NamedSharding(mesh, P())))
    return collectives(step.lower(*states, images, labels).compile(QUICKLY).as_text())


def forward_flops(model: nnx.Module, size: int) -> int:
    """Of one image, in convolutions and matrix products: a multiplication and an addition are two."""
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return sum(_flops(equation) for equation in _equations(jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x))(state, image)))


def _equations(jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        inner = [p for p in equation.params.values() if isinstance(p, Jaxpr | ClosedJaxpr)]
        yield equation
        for other in inner:
            yield from _equations(other)


def _flops(equation) -> int:
    result = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name in ("grouped_conv_y", "grouped_conv_epilogue"):
        g = equation.params["geometry"]
        return 2 * result * math.prod(g.window) * g.channels
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * result * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    return 0


# --- modelled --------------------------------------------------------------------------------------------------------


def seconds(machine: Machine, devices: int, groups: int, found: list[Collective]) -> float:
    """Of sending, one collective after the other, by rings; the devices that share an image are neighbours within a node."""
    return sum(_seconds(machine, devices, groups, c) for c in found)


def _seconds(machine: Machine, devices: int, groups: int, c: Collective) -> float:
    if devices <= machine.node or c.devices <= groups:
        return c.sent / machine.near
    # Within nodes first, so that each device exchanges only its share with other nodes (as NCCL does).
    inside = max(machine.node * c.devices // devices, 1)
    shared = Collective(c.kind, c.bytes // inside, c.devices // inside)
    return Collective(c.kind, c.bytes, inside).sent / machine.near + shared.sent / machine.far


def row(name: str, model: nnx.Module, devices: int, groups: int, size: int) -> dict:
    """One line of results: what was read off the program, and what follows by the model."""
    start = time.perf_counter()
    found = sent(model, devices, groups, size)
    compiled = time.perf_counter() - start
    flops = 3 * forward_flops(model, size) * IMAGES  # backward is twice forward
    modelled = {}
    # Where several devices share an image, the layers with one group compute the same on each: no model of time for these.
    for machine in MACHINES if groups == 1 else ():
        compute, send = flops / machine.flops, seconds(machine, devices, groups, found)
        modelled[machine.name] = {
            "compute": compute,
            "send": send,
            "efficiency_hidden": compute / max(compute, send),
            "efficiency_not_hidden": compute / (compute + send),
        }
    return {
        "network": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        "devices": devices,
        "groups": groups,
        "images_per_device": IMAGES,
        "size": size,
        "collectives": Counter(c.kind for c in found),
        "bytes": sum(c.bytes for c in found),
        "sent": sum(c.sent for c in found),
        "flops": flops,
        "modelled": modelled,
        "compile_seconds": compiled,
        "jax": jax.__version__,
    }


# --- shown -----------------------------------------------------------------------------------------------------------


def show(rows: list[dict]) -> None:
    table = Table(
        title=f"One training step, {IMAGES} images per device; efficiency with sending hidden / not hidden",
        title_justify="left",
    )
    columns = ("network", "devices", "data x groups", "all-reduce", "other", "MB sent per device")
    for column in (*columns, *(machine.name for machine in MACHINES)):
        table.add_column(column, justify="right")
    for r in rows:
        found = dict(r["collectives"])
        sums = found.pop("all-reduce", 0)
        others = ", ".join(f"{n} {kind}" for kind, n in found.items()) or "0"
        modelled = (r["modelled"].get(machine.name) for machine in MACHINES)
        efficiencies = (m and f"{m['efficiency_hidden']:.0%} / {m['efficiency_not_hidden']:.0%}" for m in modelled)
        mesh = f"{r['devices'] // r['groups']} x {r['groups']}"
        table.add_row(r["network"], str(r["devices"]), mesh, str(sums), others, f"{r['sent'] / 1e6:,.1f}", *efficiencies)
    Console(width=140).print(table)


def shallow(network: type[nnx.Module]) -> type[nnx.Module]:
    """The first two stages, of one block each."""
    stages = [(*stage[:2], 1, stage[3]) if len(stage) == 4 else (stage[0], 1) for stage in network.STAGES[:2]]
    return type(network.__name__, (network,), {"STAGES": stages})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a network of two blocks on 8 devices")
    parser.add_argument("--output", type=Path, help="a file of JSON lines, beside the table")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    rows = []
    for name in PAPERS:
        network = NETWORKS[name]
        if args.quick:
            network = shallow(network)
        model = nnx.eval_shape(lambda network=network: network(gconv_layer, rngs=nnx.Rngs(0)))
        for devices in DEVICES[:1] if args.quick else DEVICES:
            rows += [row(name, model, devices, groups, 32 if args.quick else SIZE) for groups in GROUPS]
            print(f"compiled {name} for {devices} devices", flush=True)
        assert args.quick or rows[-1]["parameters"] == PARAMETERS[name]
    show(rows)
    if args.output:
        args.output.write_text("".join(json.dumps(r) + "\n" for r in rows))


if __name__ == "__main__":
    main()
