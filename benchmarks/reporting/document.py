"""The whole report, and what of it stands on the page of measured performance."""

from collections.abc import Callable, Sequence

from benchmarks.reporting.gpu_tables import gpu_reports
from benchmarks.reporting.numbers import TARGET, mean_and_range, part, ratios, table
from benchmarks.reporting.tables import (
    about,
    beginnings,
    every_layer,
    layers_kinds,
    layers_summary,
    memory,
    missing,
    models,
    profiles,
    programs,
    targets,
    threads,
)


def report(rows: list[dict], plots: Sequence[str]) -> str:
    def section(title: str, *makers: Callable[[list[dict]], str], of: str) -> str:
        chosen = part(rows, of)
        return f"## {title}\n\n" + "\n".join(make(chosen) for make in makers) + "\n" if chosen else ""

    on_gpu, rows = [row for row in rows if "gpu" in row], [row for row in rows if "gpu" not in row]
    layers = part(rows, "layers")
    sections = [
        "# Measurements\n\nWritten by `python -m benchmarks.report` from the lines in benchmarks/results.\n",
        about(rows) if rows else "",
        section("Layers", layers_summary, layers_kinds, missing, of="layers"),
        section("Compiling, and the first call", beginnings, of="layers"),
        section("Programs of users' issues", programs, of="issues"),
        section("Whole models", targets, models, of="models"),
        section("Where the time of a training step goes", profiles, of="profile"),
        section("Peak memory of a training step", memory, of="memory"),
        section("Threads", threads, of="threads"),
        gpu_reports(on_gpu),
        "## Plots\n\n" + "\n\n".join(f"![{name}]({name})" for name in plots) + "\n" if plots else "",
        *(f"## Every layer, {dtype}\n\n" + every_layer(layers, dtype) for dtype in dict.fromkeys(r["dtype"] for r in layers)),
    ]
    return "\n".join(filter(None, sections))


def summary(rows: list[dict]) -> str:
    """What the page of measured performance shows."""
    parts = []
    if layers := part(rows, "layers"):
        sizes = f"{len({row['case'] for row in layers})} layers of real networks at their full sizes"
        parts += [f"Layers: {sizes}. More than 1: gconv is faster. PyTorch is the better of its two memory formats.\n",
                  layers_summary(layers)]  # fmt: skip
    if models_ := part(rows, "models"):
        parts += [targets(models_), table(
            ["time / gconv's time: geometric mean (range) over models", "models", *TARGET],
            [[f"{mode}, batch {batch}", len(of), *(mean_and_range(ratios(of, p)) for p in TARGET)]
             for mode, batch in dict.fromkeys((row["mode"], row["batch"]) for row in models_)
             if (of := [row for row in models_ if (row["mode"], row["batch"]) == (mode, batch)])],
        )]  # fmt: skip
    if layers:
        parts += ["Compiling and the first call, over the same layers:\n", beginnings(layers), missing(layers)]
    return "\n".join([*parts, about(rows)])


def sources(where) -> str:
    return f"Every row, programs of users' issues, memory, threads and more plots: [{where}/REPORT.md]({where}/REPORT.md)."
