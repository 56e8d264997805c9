"""The report's words and tables, in Markdown."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks.models import profile

TORCH = ("PyTorch contiguous", "PyTorch channels_last")
OTHERS = ("lax", "nnx.Conv", "PyTorch", "ONNX Runtime", "OpenVINO")
ROLES = {"y": "convolution (y)", "x": "input gradient (x)", "w": "kernel gradient (w)"}
TARGET = {"nnx.Conv": 5.0, "PyTorch": 1.0}  # of a whole model's training step: times faster than


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def part(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["part"] == name]


def median(row: dict, peer: str) -> float | None:
    """Seconds of a peer; "PyTorch" is the best of its memory formats, on a GPU eagerly or compiled."""
    names = [name for name in row["times"] if name.startswith(peer)] if peer == "PyTorch" else (peer,)
    found = [row["times"][name]["median"] for name in names if name in row["times"]]
    return min(found) if found else None


def ratio(row: dict, peer: str) -> float | None:
    """How many times as long as gconv the peer takes."""
    theirs = median(row, peer)
    return None if theirs is None or "gconv" not in row["times"] else theirs / row["times"]["gconv"]["median"]


def ratios(rows: list[dict], peer: str) -> list[float]:
    return [r for row in rows if (r := ratio(row, peer)) is not None]


def mean_and_range(values: list[float]) -> str:
    """Geometric mean, and least and greatest."""
    if not values:
        return ""
    return f"{statistics.geometric_mean(values):.2f} ({min(values):.2g} to {max(values):.3g})"


def mean(values: list[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f}" if values else ""


def fraction(row: dict, peer: str = "gconv") -> float | None:
    """The share of the machine's limit that a peer reaches."""
    seconds = median(row, peer)
    return None if seconds is None else row["least"] / seconds


# --- about the run ---------------------------------------------------------------------------------------------------


def about(rows: list[dict]) -> str:
    """Machine, versions, limits, spread."""
    row = rows[-1]
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in row["versions"].items())
    main = [r for r in rows if not r["part"].startswith("threads")]
    dates = sorted({r["date"][:10] for r in main})
    commits = ", ".join(sorted({r["commit"] for r in main}))
    text = (
        f"Machine: {row['processor']}, {max(r['threads'] for r in main)} threads for every peer. {versions}, "
        f"Python {row['python']}. {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {commits}.\n"
    )
    if limits := part(rows, "limits"):
        text += "\n" + limits_of(limits[-1]["limits"])
    spreads = [(t["high"] - t["low"]) / t["median"] for r in rows for t in r.get("times", {}).values() if t["calls"] > 1]
    once = sum(t["calls"] == 1 and t["median"] > 10 for r in rows for t in r.get("times", {}).values())
    if spreads:
        handed_on = sum(r.get("async_dispatch", True) for r in main)
        apart = f" (but in another, its default, for {handed_on} rows marked `async_dispatch`)" if handed_on else ""
        tenth = statistics.quantiles([0.0, *spreads], n=10)[-1]
        text += (
            "\nAll peers take turns in one process, in blocks of calls with a short rest between; times are medians of warm "
            f"calls, of which the process keeps the memory and which JAX makes in the caller's thread{apart}. Spread (distance "
            f"of the quartiles over the median): at most {statistics.median(spreads):.1%} for half of {len(spreads)}, "
            f"more than {tenth:.0%} for a tenth of them. {once} slow ones (over ten seconds) were called once.\n"
        )
    return text


def limits_of(limits: dict) -> str:
    speeds = {int(size): speed for size, speed in limits["bandwidth"].items()}
    sizes = sorted(speeds)
    shown = ", ".join(f"{speeds[size] / 1e9:.0f} GB/s ({size / 2**20:g} MiB)" for size in sizes[:: max(1, len(sizes) // 4)])
    peaks = ", ".join(
        f"{flops / 1e9:.0f} GFLOP/s in {dtype} (a matrix product of {limits['flops_by'][dtype]})"
        for dtype, flops in limits["flops"].items()
    )
    return (
        f"Limits measured in the same run: copying (read and written) {shown}; multiply-add peak "
        f"{peaks}. The limit of a case is the greater of bytes / "
        "bandwidth at that size and FLOPs / peak. A kernel gradient, which hardly writes, may come out above "
        "100 %, and so may a window of 3 x 3 in wide groups, which takes fewer FLOPs than its definition.\n"
    )


def missing(rows: list[dict]) -> str:
    """Who is missing where, and why."""
    reasons: dict[tuple[str, str], int] = Counter((peer, why) for row in rows for peer, why in row.get("missing", {}).items())
    if not reasons:
        return ""
    lines = [f"- {peer}: {why} ({count} {'rows' if count > 1 else 'row'})" for (peer, why), count in sorted(reasons.items())]
    return "Missing:\n\n" + "\n".join(lines) + "\n"


# --- layers ----------------------------------------------------------------------------------------------------------


def layers_summary(rows: list[dict]) -> str:
    """Geometric means over the layers, by type and role."""
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        for role, words in ROLES.items():
            of = [row for row in rows if (row["dtype"], row["role"]) == (dtype, role)]
            if of:
                reached = statistics.median(f for row in of if (f := fraction(row)) is not None)
                lines.append([f"{words}, {dtype}", len(of), f"{reached:.0%}", *(mean_and_range(ratios(of, p)) for p in OTHERS)])
    return table(["time / gconv's time: geometric mean (range)", "layers", "of the limit (median)", *OTHERS], lines)


def layers_kinds(rows: list[dict]) -> str:
    """The same, depthwise apart from grouped."""
    lines = [[words, len(of), *(mean(ratios(of, p)) for p in OTHERS)] for words, of in by_kind(rows)]
    return table(["time / gconv's time: geometric mean", "layers", *OTHERS], lines)


def by_kind(rows: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """The rows of each role, type and kind, and their name."""
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        for role, words in ROLES.items():
            for kind, is_kind in (("depthwise", True), ("grouped", False)):
                of = [row for row in rows if (row["dtype"], row["role"]) == (dtype, role) and (row["channels"] == 1) == is_kind]
                if of:
                    yield f"{words}, {dtype}, {kind}", of


def every_layer(rows: list[dict], dtype: str) -> str:
    own = [name for row in rows for name in row["times"] if name.startswith("gconv ")]
    names = [*dict.fromkeys(own), "lax", "nnx.Conv", *TORCH, "ONNX Runtime", "OpenVINO"]
    lines = []
    for row in sorted((r for r in rows if r["dtype"] == dtype), key=lambda r: "yxw".index(r["role"])):
        if (t := row["times"].get("gconv")) is None:
            continue
        head = [f"{row['case']} {row['role']}", ms(row["least"]), ms(t["median"]), f"{fraction(row):.0%}"]
        spread = f"{(t['high'] - t['low']) / t['median']:.0%}"
        lines.append(
            [*head, spread, ms(t["compile"]), ms(t["compile"] + t["first"]), *(ms(median(row, name)) for name in names)]
        )
    return table(["ms", "limit", "gconv", "of limit", "spread", "compile", "first call", *names], lines)


def beginnings(rows: list[dict]) -> str:
    """Compile and first-call times: what a user meets first."""
    lines = []
    for name in dict.fromkeys(name for row in rows for name in row["times"]):
        times = [row["times"][name] for row in rows if name in row["times"]]
        compiles, firsts = ([f(t) for t in times] for f in (lambda t: t["compile"], lambda t: t["compile"] + t["first"]))
        lines.append([name, len(times), *(ms(f(v)) for v in (compiles, firsts) for f in (statistics.median, max))])
    head = ["ms", "measurements", "compile, median", "compile, longest", "first call with it, median", "longest"]
    return table(head, lines)


# --- programs, models, memory ----------------------------------------------------------------------------------------


def programs(rows: list[dict]) -> str:
    lines = []
    for row in (row for row in rows if "gconv" in row["times"]):
        ours, size = row["times"]["gconv"], "" if row["scaled"] == 1 else f", size / {row['scaled']}"
        times = [ms(ours["median"]), ms(median(row, "lax")), ms(median(row, "PyTorch"))]
        factors = [f"{r:.2f}" if (r := ratio(row, peer)) else "" for peer in ("lax", "PyTorch")]
        start = [ms(ours["compile"]), ms(ours["compile"] + ours["first"])]
        lines.append([f"[{row['case']}]({row['url']}), {row['dtype']}{size}", *times, *factors, *start])
    return table(
        ["ms", "gconv", "as written (lax)", "PyTorch", "lax / gconv", "PyTorch / gconv", "compile", "first call"], lines
    )


def models(rows: list[dict]) -> str:
    lines = []
    for mode, batch in dict.fromkeys((row["mode"], row["batch"]) for row in rows):
        of = [row for row in rows if (row["mode"], row["batch"]) == (mode, batch)]
        for row in of:
            ours = row["times"]["gconv"]
            times = [ms(median(row, peer)) for peer in ("gconv", "nnx.Conv", *TORCH)]
            factors = [f"{r:.2f}" if (r := ratio(row, peer)) else "" for peer in TARGET]
            spread = f"{(ours['high'] - ours['low']) / ours['median']:.0%}"
            start = [ms(ours["compile"]), ms(ours["compile"] + ours["first"])]
            lines.append([f"{row['case']} {mode}, batch {batch}", *times, *factors, f"{fraction(row):.0%}", spread, *start])
        lines.append(
            [f"**geometric mean, {mode}, batch {batch}**", *[""] * 4, *(mean(ratios(of, p)) for p in TARGET), *[""] * 4]
        )
    names = ["gconv", "nnx.Conv", *TORCH]
    head = ["ms", *names, *(f"{peer} / gconv" for peer in TARGET), "of the peak", "spread", "compile", "first call"]
    return table(head, lines)


def targets(rows: list[dict]) -> str:
    """Whether the training step meets its targets."""
    steps = [row for row in rows if row["mode"] == "training"]
    if not steps:
        return ""
    found = []
    for peer, least in TARGET.items():
        if values := ratios(steps, peer):
            reached = statistics.geometric_mean(values)
            verdict = "met" if reached >= least else "missed"
            found.append(f"{reached:.2f} times as fast as {peer} (target {least:g}: {verdict})")
    return f"A training step, in geometric mean over {len(steps)} models, is {' and '.join(found)}.\n"


def profiles(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        for peer, kinds in row["kinds"].items():
            total = sum(kinds.values())
            shares = (f"{ms(kinds[kind])} ({kinds[kind] / total:.0%})" for kind in profile.KINDS)
            lines.append([f"{row['case']}, batch {row['batch']}, {peer}", *shares])
    return table(["ms summed over threads (share), one training step", *profile.KINDS], lines)


def memory(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        for peer, peak in row["peaks"].items():
            mb = [f"{value / 2**20:,.0f}" for value in (peak["before"], peak["peak"], peak["peak"] - peak["before"])]
            lines.append([f"{row['case']}, batch {row['batch']}, {peer}", *mb])
    return table(["MiB", "before the step", "peak", "the step added"], lines)


def threads(rows: list[dict]) -> str:
    """Speed-up from one thread to more."""
    lines = []
    counts = sorted({row["threads"] for row in rows})
    at = {(row["case"], row["role"], row["threads"]): row for row in rows}
    for case, role in dict.fromkeys((row["case"], row["role"]) for row in rows):
        of = [at.get((case, role, n)) for n in counts]
        for peer in ("gconv", "lax", "PyTorch", "ONNX Runtime"):
            times = [None if row is None else median(row, peer) for row in of]
            if None not in times:
                lines.append([f"{case} {role}, {peer}", *map(ms, times), *(f"{times[0] / t:.2f}" for t in times[1:])])
    return table(["ms", *(f"{n} thr." for n in counts), *(f"speed-up on {n}" for n in counts[1:])], lines)


# --- GPUs ------------------------------------------------------------------------------------------------------------


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


# --- the whole -------------------------------------------------------------------------------------------------------


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
