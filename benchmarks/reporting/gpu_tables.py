"""The tables of what was measured on GPUs."""

import statistics

from benchmarks.reporting.numbers import fraction, ms, part, table
from benchmarks.reporting.tables import by_kind, missing, programs


def gpu_reports(rows: list[dict]) -> str:
    """A section for every GPU that was measured on."""
    return "\n".join(gpu_report([row for row in rows if row["gpu"] == name]) for name in dict.fromkeys(r["gpu"] for r in rows))


def gpu_report(rows: list[dict]) -> str:
    row, layers, issues = rows[-1], part(rows, "layers"), part(rows, "issues")
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version)
    dates = sorted({r["date"][:10] for r in rows})
    text = (
        f"## {row['gpu']}\n\nDriver {row['driver']}; {versions}, Python {row['python']}. "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(sorted({r['commit'] for r in rows}))}.\n\n"
        "Times are the device's: kernels in JAX's profiler, CUDA events around a filled queue for PyTorch; medians over turns. "
        f"Successive calls read other copies of their operands, together beyond the {row['cache'] / 2**20:g} MiB of cache.\n"
    )
    if limits := part(rows, "limits"):
        text += "\n" + gpu_limits(limits[-1]["limits"])
    if layers:
        text += "\n### The map\n\n" + "\n".join((gpu_map_summary(layers), gpu_map(layers), missing(layers)))
    if issues:
        text += "\n### Programs of users' issues\n\n" + "\n".join((programs(issues), missing(issues)))
    return text


def gpu_limits(limits: dict) -> str:
    copied = ", ".join(f"{speed / 1e9:,.0f} GB/s ({int(size) / 2**20:g} MiB)" for size, speed in limits["bandwidth"].items())
    known = ", ".join(f"{flops / 1e12:g} TFLOP/s in {dtype}" for dtype, flops in limits["flops"].items())
    return (
        f"Limits: copying, measured in the same run (read and written), {copied}; by the data sheet "
        f"{known or 'of this device, unknown FLOPs: the share is that of the bandwidth alone'}. "
        "float32 is multiplied in TF32, both libraries' default.\n"
    )


ON_GPU = ("gconv", "gconv xla", "lax", "PyTorch")


def gpu_map(rows: list[dict]) -> str:
    """For every case and role: which share of the limit each reaches."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["dtype"] != "float32", "yxw".index(row["role"]))):
        names = [name for name in row["times"] if name.startswith("PyTorch")]
        best = min(names, key=lambda name: row["times"][name]["median"]).removeprefix("PyTorch ") if names else ""
        shares = ["" if (f := fraction(row, peer)) is None else f"{f:.0%}" for peer in ON_GPU]
        lines.append([f"{row['case']} {row['role']}, {row['dtype']}, batch {row['batch']}", ms(row["least"]), *shares, best])
    return table(["share of the limit", "limit, ms", *ON_GPU, "best of PyTorch"], lines)


def gpu_map_summary(rows: list[dict]) -> str:
    """The map's medians by role, type and kind: what a rule of choice can be read off."""
    lines = []
    for words, of in by_kind(rows):
        found = [[f for row in of if (f := fraction(row, peer)) is not None] for peer in ON_GPU]
        lines.append([words, len(of), *(f"{statistics.median(values):.0%}" if values else "" for values in found)])
    return table(["share of the limit: median", "layers", *ON_GPU], lines)
