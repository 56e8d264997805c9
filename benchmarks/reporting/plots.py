"""The report's plots: logarithmic, with the machine's limit drawn in, so that a departure from it can be seen.

Colours are Okabe and Ito's, which the colour-blind can tell apart; each peer has a marker of its own as well.
"""

import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.reporting.numbers import ROLES, median, part

STYLES = {  # colour, marker
    "gconv": ("#0072B2", "o"),
    "PyTorch": ("#D55E00", "s"),
    "ONNX Runtime": ("#009E73", "^"),
    "OpenVINO": ("#CC79A7", "v"),
    "lax": ("#E69F00", "D"),
    "nnx.Conv": ("#56B4E9", "x"),
}
TITLES = {
    "glance.png": "Every layer at a glance",
    "layers.png": "Time of each layer over the machine's limit",
    "models.png": "Whole models",
    "threads.png": "Threads",
    "memory.png": "Peak memory of a training step",
}


def draw(rows: list[dict], to: Path) -> list[str]:
    """Writes the plots that the rows allow, and gives their names."""
    names = []
    makers = {"glance.png": glance, "layers.png": layers, "models.png": models, "threads.png": threads, "memory.png": memory}
    for name, make in makers.items():
        if figure := make(rows):
            names.append(name)
            _save(figure, to / name)
    for role in ROLES:
        if figure := sweeps(rows, role):
            names.append(f"sweeps-{role}.png")
            _save(figure, to / names[-1])
    return names


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _plot(axes, x, y, peer: str, *, line: bool) -> None:
    colour, marker = STYLES[peer]
    axes.plot(x, y, marker, color=colour, linestyle="-" if line else "none", label=peer, markersize=5, alpha=0.9)


def _plain_numbers(axis) -> None:
    """Ticks of a logarithmic axis as numbers: 0.1, 1, 20."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def glance(rows: list[dict]):
    """A line for each peer, a dot for each float32 layer, a bar at their geometric mean: what the README shows."""
    of = [row for row in part(rows, "layers") if row["dtype"] == "float32"]
    if not of:
        return None
    roles = [role for role in ROLES if any(row["role"] == role for row in of)]
    shared = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, panels = plt.subplots(1, len(roles), figsize=(9.6, 1.9), **shared)
    peers = ("lax", "ONNX Runtime", "PyTorch", "gconv")
    for axes, role in zip(panels[0], roles, strict=True):
        for line, peer in enumerate(peers):
            over = [median(row, peer) / row["least"] for row in of if row["role"] == role and median(row, peer) is not None]
            if over:
                _plot(axes, over, [line] * len(over), peer, line=False)
                axes.plot([statistics.geometric_mean(over)], [line], "|", color="black", markersize=16, markeredgewidth=2)
        axes.axvline(1, color="black", linestyle="--")
        axes.set(xscale="log", title=ROLES[role], xlabel="time / the machine's limit", ylim=(-0.6, 3.6))
        axes.set_yticks(range(len(peers)), peers)
        _plain_numbers(axes.xaxis)
        axes.grid(alpha=0.3)
    return figure


def layers(rows: list[dict]):
    """Each float32 layer's time over its limit, one panel per role."""
    of = [row for row in part(rows, "layers") if row["dtype"] == "float32"]
    if not of:
        return None
    cases = list(dict.fromkeys(row["case"] for row in of))[::-1]
    roles = [role for role in ROLES if any(row["role"] == role for row in of)]
    figure, panels = plt.subplots(
        1, len(roles), figsize=(4.2 * len(roles) + 1, 1.6 + 0.26 * len(cases)), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, role in zip(panels[0], roles, strict=True):
        for peer in ("lax", "OpenVINO", "ONNX Runtime", "PyTorch", "gconv"):
            points = [(median(row, peer) / row["least"], cases.index(row["case"])) for row in of
                      if row["role"] == role and median(row, peer) is not None]  # fmt: skip
            if points:
                _plot(axes, *zip(*points, strict=True), peer, line=False)
        axes.axvline(1, color="black", linestyle="--", label="limit")
        axes.set(xscale="log", title=ROLES[role], xlabel="time / limit")
        _plain_numbers(axes.xaxis)
        axes.set_yticks(range(len(cases)), cases, fontsize=8)
        axes.grid(alpha=0.3)
    _legend(figure, panels[0])
    figure.suptitle(f"{TITLES['layers.png']}, float32, {of[0]['threads']} threads")
    return figure


def sweeps(rows: list[dict], role: str):
    """Time against one size at a time, with the limit."""
    of = [row for row in part(rows, "sweeps") if row["role"] == role]
    axis_names = list(dict.fromkeys(row["axis"] for row in of))
    if not axis_names:
        return None
    columns = min(3, len(axis_names))
    lines = -(-len(axis_names) // columns)
    size = (4.2 * columns, 3.4 * lines + 0.8)
    figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, name in zip(panels.flat, axis_names, strict=False):
        points = sorted((row for row in of if row["axis"] == name), key=lambda row: row["value"])
        x = [row["value"] for row in points]
        axes.plot(x, [row["least"] * 1e3 for row in points], "k--", label="limit")
        for peer in ("lax", "OpenVINO", "ONNX Runtime", "PyTorch", "gconv"):
            shown = [(row["value"], median(row, peer) * 1e3) for row in points if median(row, peer) is not None]
            if shown:
                _plot(axes, *zip(*shown, strict=True), peer, line=True)
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="ms")
        axes.set_xticks(x, map(str, x))
        axes.minorticks_off()
        _plain_numbers(axes.yaxis)
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(axis_names) :]:
        axes.set_visible(False)
    _legend(figure, panels.flat)
    figure.suptitle(f"{ROLES[role]}: one size changes, the others stay (8 x 28 x 28 x 128, depthwise 3 x 3), float32")
    return figure


def models(rows: list[dict]):
    """Milliseconds of inference and training steps of whole models."""
    of = part(rows, "models")
    if not of:
        return None
    works = list(dict.fromkeys((row["mode"], row["batch"]) for row in of))
    cases = list(dict.fromkeys(row["case"] for row in of))[::-1]
    size = (4 * len(works) + 1, 3.4)
    figure, panels = plt.subplots(1, len(works), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (mode, batch) in zip(panels[0], works, strict=True):
        for peer in ("nnx.Conv", "PyTorch", "gconv"):
            points = [(median(row, peer) * 1e3, cases.index(row["case"])) for row in of
                      if (row["mode"], row["batch"]) == (mode, batch) and median(row, peer) is not None]  # fmt: skip
            if points:
                _plot(axes, *zip(*points, strict=True), peer, line=False)
        axes.set(xscale="log", title=f"{mode}, batch {batch}", xlabel="ms")
        _plain_numbers(axes.xaxis)
        axes.set_yticks(range(len(cases)), cases)
        axes.grid(alpha=0.3)
    _legend(figure, panels[0])
    figure.suptitle(f"Whole models, images of {of[0]['size']} x {of[0]['size']}, float32, {of[0]['threads']} threads")
    return figure


def threads(rows: list[dict]):
    """Time against threads, with what perfect scaling of gconv's one thread would give."""
    of = part(rows, "threads")
    cases = list(dict.fromkeys(row["case"] for row in of))
    if len({row["threads"] for row in of}) < 2:
        return None
    figure, panels = plt.subplots(
        len(cases), len(ROLES), figsize=(10, 2.3 * len(cases) + 0.8), sharex=True, squeeze=False, layout="constrained"
    )
    for line, case in zip(panels, cases, strict=True):
        for axes, role in zip(line, ROLES, strict=True):
            points = sorted((r for r in of if (r["case"], r["role"]) == (case, role)), key=lambda r: r["threads"])
            if not points:
                continue
            x = [row["threads"] for row in points]
            axes.plot(x, [row["least"] * 1e3 for row in points], "k--", label="limit")
            for peer in ("lax", "ONNX Runtime", "PyTorch", "gconv"):
                shown = [(row["threads"], median(row, peer) * 1e3) for row in points if median(row, peer) is not None]
                if shown:
                    _plot(axes, *zip(*shown, strict=True), peer, line=True)
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{re.sub('_', ' ', case)}, {role}", fontsize=8)
            axes.set_xticks(x, map(str, x))
            axes.minorticks_off()
            _plain_numbers(axes.yaxis)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("threads")
    for axes in panels[:, 0]:
        axes.set_ylabel("ms")
    _legend(figure, panels.flat)
    return figure


def memory(rows: list[dict]):
    """What one training step adds to the process's peak."""
    of = part(rows, "memory")
    if not of:
        return None
    figure, panels = plt.subplots(1, len(of), figsize=(5.2 * len(of), 2.8), squeeze=False, layout="constrained")
    for axes, row in zip(panels[0], of, strict=True):
        names = list(row["peaks"])[::-1]
        added = [(row["peaks"][name]["peak"] - row["peaks"][name]["before"]) / 2**20 for name in names]
        bars = axes.barh(names, added, color=["#0072B2" if name.startswith("gconv") else "#999999" for name in names])
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
        axes.set(title=f"{row['case']}, batch {row['batch']}", xlabel="MiB that a training step adds")
        axes.margins(x=0.15)
    return figure


def _legend(figure, panels) -> None:
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [name for name in ("gconv", "PyTorch", "ONNX Runtime", "OpenVINO", "lax", "nnx.Conv", "limit") if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=len(order))
