"""Two builds of the kernels side by side in one process, on the layers of real networks.

    python -m benchmarks.compare OLD.so NEW.so
    python -m benchmarks.compare OLD.so NEW.so --only resnext --roles w --dtypes float32 bfloat16

The builds take turns, as everything that is measured does, and their results are compared. A row whose ratio departs from 1 by
more than 3 % is measured again, three times as long, and the second measurement counts: a departure that was chance goes away,
in either direction. Ratios are old / new, so that more than 1 is an improvement.
"""

import argparse
import json
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cases.convolution import Case, small
from benchmarks.cases.layers import layers
from benchmarks.measuring import machine
from benchmarks.measuring.stopwatch import interleaved
from benchmarks.measuring.work import TOLERANCES, compare
from benchmarks.parts.common import wanted
from benchmarks.peers.base import Problem
from benchmarks.peers.builds import TYPES, Build

ROUNDS, SLOW = 15, 10.0
DEPARTURE = 0.03  # of a ratio from 1: measured again
LONGER = 3


def measured(builds: dict[str, Build], problem: Problem, seconds: float, *, rounds: int = ROUNDS) -> dict:
    """A row: the times of both builds, the ratio of their medians, and whether the results are the same to the last bit."""
    prepared = {name: build(problem) for name, build in builds.items()}
    results = {name: work.result() for name, work in prepared.items()}
    compare(results, TOLERANCES.get(problem.dtype, TOLERANCES["bfloat16"]))
    runs = {name: work.run for name, work in prepared.items()}
    times, again = interleaved(runs, rounds=rounds, seconds=seconds, once_over=SLOW), False
    if rounds > 1 and abs(_ratio(times) - 1) > DEPARTURE:
        times, again = interleaved(runs, rounds=LONGER * rounds, seconds=LONGER * seconds, once_over=SLOW), True
    return {
        "part": "builds",
        "case": problem.case.name,
        "batch": problem.case.batch,
        "role": problem.role,
        "dtype": problem.dtype,
        "flops": problem.case.flops,
        "times": times,
        "ratio": _ratio(times),
        "again": again,
        "same_bits": bool(np.array_equal(*results.values(), equal_nan=True)),
    }


def _ratio(times: dict[str, dict]) -> float:
    return times["old"]["median"] / times["new"]["median"]


def show(rows: list[dict], console: Console) -> None:
    """Every row, then the whole by role and type."""
    table = Table(title="old / new: more than 1 is faster now", title_justify="left")
    for column in ("layer", "role", "type", "old, us", "new, us", "ratio", "spread", "again", "results"):
        table.add_column(column, justify="left" if column in ("layer", "role", "type", "results") else "right")
    for row in rows:
        spread = max((t["high"] - t["low"]) / t["median"] for t in row["times"].values())
        times = (f"{row['times'][name]['median'] * 1e6:,.1f}" for name in ("old", "new"))
        marks = ("yes" if row["again"] else "", "same bits" if row["same_bits"] else "close")
        ratio = f"{row['ratio']:.3f}"
        table.add_row(row["case"], row["role"], row["dtype"], *times, ratio, f"{spread:.0%}", *marks)
    console.print(table)
    for dtype, role in dict.fromkeys((row["dtype"], row["role"]) for row in rows):
        console.print(f"{dtype}, role {role}: {_mean([r for r in rows if (r['dtype'], r['role']) == (dtype, role)])}")
    least = min(rows, key=lambda row: row["ratio"])
    console.print(f"all: {_mean(rows)}; least {least['ratio']:.3f} ({least['case']} {least['role']}, {least['dtype']})")


def _mean(rows: list[dict]) -> str:
    ratios = [row["ratio"] for row in rows]
    under = sum(ratio < 0.95 for ratio in ratios)
    return f"geometric mean {statistics.geometric_mean(ratios):.3f} of {len(rows)} rows, {under} under 0.95"


def chosen(only: list[str], *, quick: bool) -> list[Case]:
    """The layers by name; in quick mode few and small ones."""
    found = [case for case in layers() if wanted(case.name, only)]
    return [small(case) for case in found[::9]] if quick else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a built library, libgconv.so")
    parser.add_argument("new", type=Path, help="another one; the same twice shows the noise")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="layers whose name contains one of these")
    parser.add_argument("--roles", default="yxw", help="y: forward, x: input gradient, w: kernel gradient")
    parser.add_argument("--dtypes", nargs="+", choices=TYPES, default=["float32"])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row, at most about (2)")
    parser.add_argument("--quick", action="store_true", help="few and small layers, each once: to try the command")
    parser.add_argument("--output", type=Path, help="a file of JSON lines to append to, beside the table")
    args = parser.parse_args()
    if "float64" in args.dtypes:
        jax.config.update("jax_enable_x64", True)
    facts = machine.begin()
    try:
        builds = {name: Build(name, path) for name, path in (("old", args.old), ("new", args.new))}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    console = Console(width=140)
    for name, build in builds.items():
        console.print(f"{name}: interface {build.interface}, {build.instruction_set}")
    work = [(case, dtype, role) for case in chosen(args.only, quick=args.quick) for dtype in args.dtypes for role in args.roles]
    if not work:
        parser.error(f"no layer's name contains any of {args.only}")
    rows: list[dict] = []
    try:
        for case, dtype, role in track(work, console=Console(stderr=True), description="measuring"):
            # On the device already, so that the builds read the same memory, however it is aligned.
            arrays = {name: jnp.asarray(a, dtype) for name, a in case.arrays(dtype).items()}
            problem = Problem(case, role, dtype, arrays)
            rows.append(measured(builds, problem, args.seconds, rounds=1 if args.quick else ROUNDS))
            if args.output:
                with args.output.open("a") as lines:
                    lines.write(json.dumps(facts | {"quick": args.quick} | rows[-1]) + "\n")
    except KeyboardInterrupt:
        console.print("interrupted: what has been measured so far")
    if rows:
        show(rows, console)


if __name__ == "__main__":
    main()
