"""The report's plots: logarithmic, with the machine's limit drawn in, so that a departure from it can be seen."""

import re
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.reporting import model_plots
from benchmarks.reporting.drawing import legend, plain_numbers, plot_peer
from benchmarks.reporting.numbers import ROLES, median, part

TITLES = {
    "glance.png": "Every layer at a glance",
    "layers.png": "Time of each layer over the machine's limit",
    "models.png": "Whole models",
    "threads.png": "Threads",
    "memory.png": "Memory that a model's call adds",
    "profile.png": "Where the time of a model goes",
}


def draw(rows: list[dict], to: Path) -> list[str]:
    """Writes the plots that the rows allow, and gives their names."""
    names = []
    makers = {"glance.png": glance, "layers.png": layers, "threads.png": threads, **model_plots.MAKERS}
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
                plot_peer(axes, over, [line] * len(over), peer, line=False)
                axes.plot([statistics.geometric_mean(over)], [line], "|", color="black", markersize=16, markeredgewidth=2)
        axes.axvline(1, color="black", linestyle="--")
        axes.set(xscale="log", title=ROLES[role], xlabel="time / the machine's limit", ylim=(-0.6, 3.6))
        axes.set_yticks(range(len(peers)), peers)
        plain_numbers(axes.xaxis)
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
                plot_peer(axes, *zip(*points, strict=True), peer, line=False)
        axes.axvline(1, color="black", linestyle="--", label="limit")
        axes.set(xscale="log", title=ROLES[role], xlabel="time / limit")
        plain_numbers(axes.xaxis)
        axes.set_yticks(range(len(cases)), cases, fontsize=8)
        axes.grid(alpha=0.3)
    legend(figure, panels[0])
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
                plot_peer(axes, *zip(*shown, strict=True), peer, line=True)
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="ms")
        axes.set_xticks(x, map(str, x))
        axes.minorticks_off()
        plain_numbers(axes.yaxis)
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(axis_names) :]:
        axes.set_visible(False)
    legend(figure, panels.flat)
    figure.suptitle(f"{ROLES[role]}: one size changes, the others stay (8 x 28 x 28 x 128, depthwise 3 x 3), float32")
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
                    plot_peer(axes, *zip(*shown, strict=True), peer, line=True)
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{re.sub('_', ' ', case)}, {role}", fontsize=8)
            axes.set_xticks(x, map(str, x))
            axes.minorticks_off()
            plain_numbers(axes.yaxis)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("threads")
    for axes in panels[:, 0]:
        axes.set_ylabel("ms")
    legend(figure, panels.flat)
    return figure
