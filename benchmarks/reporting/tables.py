"""The report's words and tables, in Markdown."""

import statistics
from collections import Counter
from collections.abc import Iterator

from benchmarks.reporting.numbers import (
    OTHERS,
    ROLES,
    TORCH,
    fraction,
    mean,
    mean_and_range,
    median,
    ms,
    part,
    ratio,
    ratios,
    table,
)

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


# --- programs, threads -----------------------------------------------------------------------------------------------


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
