"""gconv's implementations against JAX's own convolution and gradients, on the layers of real networks, role by role.

make bench                                      everything, as JSON lines and a table
python benchmarks/layers.py --only resnext --roles w
python benchmarks/layers.py --quick             a few small layers, a few rounds: does it still run?
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import interleaved
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import gconv
from gconv import roles
from gconv.geometry import geometry

LAYERS = json.loads((Path(__file__).parent / "layers.json").read_text())["layers"]
SPATIAL = ("", "W", "HW", "DHW")


def operands(layer: dict, seed: int = 0):
    """The geometry of a layer, and random x, w, y."""
    kernel_shape = (*layer["window"], layer["in_channels"] // layer["groups"], layer["out_channels"])
    padding = layer["padding"] if isinstance(layer["padding"], str) else [tuple(p) for p in layer["padding"]]
    x_shape = (layer["batch"], *layer["spatial"], layer["in_channels"])
    _, geom = geometry(x_shape, kernel_shape, strides=layer["strides"], padding=padding, dilation=layer["dilation"])
    rng = np.random.default_rng(seed)
    shapes = {"x": x_shape, "w": kernel_shape, "y": geom.y_shape(layer["batch"])}
    return geom, {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}


def candidates(geom, arrays: dict, role: str) -> dict:
    """JAX's own way ("jax": lax.conv_general_dilated and its gradients), then each of gconv's implementations."""
    s = SPATIAL[geom.rank]
    conv = partial(
        jax.lax.conv_general_dilated,
        window_strides=geom.strides,
        padding=geom.padding,
        rhs_dilation=geom.dilation,
        dimension_numbers=(f"N{s}C", f"{s}IO", f"N{s}C"),
        feature_group_count=geom.groups,
    )
    x, w, y = (arrays[name] for name in "xwy")
    own = {
        "y": partial(jax.jit(conv), x, w),
        "x": partial(jax.jit(lambda y, w: jax.vjp(lambda x: conv(x, w), jnp.zeros_like(x))[1](y)[0]), y, w),
        "w": partial(jax.jit(lambda x, y: jax.vjp(lambda w: conv(x, w), jnp.zeros_like(w))[1](y)[0]), x, y),
    }[role]
    first, second = roles.OPERANDS[role]
    found = {"jax": own}
    for name in [None, *gconv.implementations()]:
        bind = partial(roles.bind, role, geometry=geom, dtype=x.dtype, precision=None, implementation=name)
        run = jax.jit(lambda a, b, bind=bind: bind({first: a, second: b}))
        found[name or "automatic"] = partial(run, arrays[first], arrays[second])
    return found


def check(found: dict) -> None:
    """What is compared must be the same: every candidate against JAX's own."""
    expected = found["jax"]()
    for name, run in found.items():
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(run(), expected, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def environment() -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def table(rows: list[dict]) -> Table:
    """Ratios of JAX's own time, so that more is better, and their geometric means."""
    names = [n for n in rows[0]["times"] if n != "jax"]
    result = Table("layer", "role", "jax, ms", *(f"{n}, x" for n in names), title="JAX's own time / gconv's, float32")
    for role in roles.OPERANDS:
        ratios: dict[str, list[float]] = {n: [] for n in names}
        for row in (r for r in rows if r["role"] == role):
            base = row["times"]["jax"]["median"]
            for n in names:
                ratios[n].append(base / row["times"][n]["median"])
            result.add_row(row["layer"], role, f"{base * 1e3:.2f}", *(f"{ratios[n][-1]:.2f}" for n in names))
        if any(ratios.values()):
            means = (statistics.geometric_mean(ratios[n]) for n in names)
            result.add_row("geometric mean", role, "", *(f"{m:.1f}" for m in means), style="bold", end_section=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--roles", default="yxw")
    parser.add_argument("--candidates", nargs="+", help="only these, such as: jax automatic")
    parser.add_argument("--seconds", type=float, default=4.0, help="per layer and role, after the first calls")
    parser.add_argument("--quick", action="store_true", help="few layers, small, one round, results compared")
    parser.add_argument("--output", type=Path, help="append JSON lines here")
    args = parser.parse_args()
    layers = [layer for layer in LAYERS if args.only in layer["name"]]
    if args.quick:  # few, and small
        args.seconds, layers = 0.0, [{**layer, "batch": 1, "spatial": [9] * len(layer["spatial"])} for layer in layers[::9]]
    facts, rows = environment(), []
    print(json.dumps(facts))
    for layer in tqdm(layers, file=sys.stderr):
        geom, arrays = operands(layer)
        for role in args.roles:
            found = candidates(geom, arrays, role)
            found = {name: run for name, run in found.items() if name in (args.candidates or found)}
            if args.quick:
                check(found)
            times = interleaved(found, seconds=args.seconds)
            rows.append({**facts, "layer": layer["name"], "batch": layer["batch"], "role": role, "times": times})
            if args.output:
                with args.output.open("a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
    Console(width=110).print(table(rows))


if __name__ == "__main__":
    main()
