"""The whole report, and what of it stands on the page of measured performance."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import geometric_mean

from benchmarks.reporting.gpu_tables import gpu_reports
from benchmarks.reporting.model_tables import ENGINES, glance, memory, models, profiles, profiles_summary
from benchmarks.reporting.numbers import part, ratio, ratios, table
from benchmarks.reporting.tables import (
    about,
    beginnings,
    every_layer,
    layers_kinds,
    layers_summary,
    missing,
    programs,
    threads,
)

MODEL_PARTS = ("models", "profile", "memory")
HALF = "In bfloat16, Flax's layers have that `dtype` and float32 parameters, and PyTorch's forward pass is under autocast."


def report(rows: list[dict], plots: Sequence[str]) -> str:
    def section(title: str, *makers: Callable[[list[dict]], str], of: str) -> str:
        chosen = part(rows, of)
        return f"## {title}\n\n" + "\n".join(make(chosen) for make in makers) + "\n" if chosen else ""

    on_gpu, rows = [row for row in rows if "gpu" in row], [row for row in rows if "gpu" not in row]
    layers = part(rows, "layers")
    sections = [
        "# Measurements\n\nWritten by `python -m benchmarks.report` from the lines in benchmarks/results.\n",
        about(_but_models(rows)) if rows else "",
        section("Layers", layers_summary, layers_kinds, missing, of="layers"),
        section("Compiling, and the first call", beginnings, of="layers"),
        section("Programs of users' issues", programs, of="issues"),
        section("Whole models", _about_models, partial(models, details=True), missing, of="models"),
        section("Where the time of a model goes", profiles_summary, profiles, of="profile"),
        section("Memory that a model's call adds", memory, missing, of="memory"),
        section("Threads", threads, of="threads"),
        gpu_reports(on_gpu),
        "## Plots\n\n" + "\n\n".join(f"![{name}]({name})" for name in plots) + "\n" if plots else "",
        *(f"## Every layer, {dtype}\n\n" + every_layer(layers, dtype) for dtype in dict.fromkeys(r["dtype"] for r in layers)),
    ]
    return "\n".join(filter(None, sections))


def _but_models(rows: list[dict]) -> list[dict]:
    """Whole models are measured in runs of their own, which `_about_models` tells of."""
    return [row for row in rows if row["part"] not in MODEL_PARTS] or rows


def _about_models(rows: list[dict]) -> str:
    dates, commits = sorted({row["date"][:10] for row in rows}), sorted({row["commit"] for row in rows})
    known = {name: version for row in rows for name, version in row["versions"].items() if version}  # where installed, the last
    versions = ", ".join(f"{name} {version}" for name, version in known.items())
    half = f" {HALF}" if any(row["dtype"] == "bfloat16" for row in rows) else ""
    return (
        "Unchanged models with `nnx.Conv`, images of 224 x 224 (224 steps of the Mamba block), float32: by JAX alone; with "
        "`gconv.install()` (installed); and with `gconv.fuse` besides in inference, `gconv.accelerate` in training (gconv). "
        "PyTorch is eager, the better of its two memory formats. torch.compile is in channels last, in inference with frozen "
        "weights. To the engines, the frozen programs and gconv in inference weights are constants; else they are arguments. "
        "The training step is forward, backward and SGD with momentum. JAX alone had one turn, after the "
        f"others.{half}\n\n"
        f"{rows[-1]['processor']}, {rows[-1]['threads']} threads. {versions}, Python {rows[-1]['python']}. "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(commits)}.\n"
    )


def summary(rows: list[dict]) -> str:
    """What the page of measured performance shows of layers."""
    if not (layers := part(rows, "layers")):
        return about(_but_models(rows))
    sizes = f"{len({row['case'] for row in layers})} layers of real networks at their full sizes"
    return "\n".join([
        f"Layers: {sizes}. More than 1: gconv is faster. PyTorch is the better of its two memory formats.\n",
        layers_summary(layers),
        "Compiling and the first call, over the same layers:\n",
        beginnings(layers),
        missing(layers),
        about(_but_models(rows)),
    ])  # fmt: skip


def models_summary(rows: list[dict]) -> str:
    """What the page shows of whole models."""
    times, shares, peaks = (part(rows, name) for name in MODEL_PARTS)
    text = [_about_models(times), models(times), missing(times)] if times else []
    text += ["Where the time goes, as the profilers of each tell it:\n", profiles_summary(shares)] if shares else []
    text += ["What one call adds to its process, with weights, optimizer and batch in place:\n", memory(peaks)] if peaks else []
    return "\n".join(filter(None, text))


def at_a_glance(rows: list[dict]) -> str:
    """The table of README.md and docs/index.md."""
    lines = []
    for role, words in (("y", "convolution"), ("w", "its kernel gradient")):
        if of := [row for row in part(rows, "layers") if (row["role"], row["dtype"]) == (role, "float32")]:
            found = (ratios(of, "lax"), ratios(of, "PyTorch"), [best for row in of if (best := _best_engine(row))])
            lines.append(
                [f"{words}: {len(of)} layers of real networks", *(f"{geometric_mean(f):.3g}" if f else "" for f in found)]
            )
    return table(["times as fast as", "JAX", "PyTorch", "ONNX Runtime, OpenVINO"], [*lines, *glance(rows)])


def _best_engine(row: dict) -> float | None:
    return min((r for engine in ENGINES if (r := ratio(row, engine)) is not None), default=None)


def sources(where) -> str:
    return f"Every row, programs of users' issues, threads and more plots: [the report]({where}/REPORT.md)."
