"""From JSON lines to a report: REPORT.md with every row, plots, and what of them stands on pages.

python -m benchmarks.report                      all results but quick ones; a repeated measurement replaces the older one
python -m benchmarks.report FILE ... --to DIRECTORY
python -m benchmarks.report --page               also rewrites the pages between their markers
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.reporting import document, plots

HERE = Path(__file__).parent
ROOT = HERE.parent
# The sections that are made from rows: between two such markers.
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"
PAGES = {"docs/performance.md": ("benchmarks", "models"), "docs/index.md": ("glance",), "README.md": ("glance",)}
WHERE = Path("../benchmarks/report")  # from docs
IDENTITY = ("part", "case", "role", "dtype", "mode", "batch", "size", "axis", "value", "threads", "gpu")


def published() -> list[Path]:
    """The files of which the pages are made: those of whole models, which are measured by themselves, replace older rows."""
    return [*sorted((HERE / "results").glob("*.jsonl")), *sorted((HERE / "results" / "models").glob("*.jsonl"))]


def load(files: Iterable[Path], *, quick: bool = False) -> list[dict]:
    """The rows of the files; of two with the same identity, the later one."""
    rows: dict[tuple, dict] = {}
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if file.parent.name == "models" and row.get("part") not in document.MODEL_PARTS:
                continue  # the limits of that run, which are not those of the layers'
            if "part" in row and row["quick"] <= quick:
                if row["part"] in document.MODEL_PARTS:
                    row.setdefault("mode", "training")  # until 2026-11-25 nothing else was profiled
                    row.setdefault("dtype", "float32")  # rows that do not say it
                key = tuple(row.get(name) for name in IDENTITY)
                rows.pop(key, None)
                rows[key] = row
    return list(rows.values())


def sections(rows: list[dict]) -> dict[str, str]:
    """The text between the markers of each name."""
    rows = [row for row in rows if "gpu" not in row]
    plot = lambda name: f"![{plots.TITLES[name]}]({WHERE / name})"
    return {
        "benchmarks": f"{document.summary(rows)}\n{plot('layers.png')}\n\n{document.sources(WHERE)}\n",
        "models": f"{document.models_summary(rows)}\n{plot('models.png')}\n\n{plot('memory.png')}\n\n{plot('profile.png')}",
        "glance": document.at_a_glance(rows),
    }


def rewrite(page: str, name: str, section: str) -> str:
    """The page with `section` between the markers of a name."""
    begin, end = BEGIN.format(name), END.format(name)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must hold {begin} and {end} once each.")
    head, rest = page.split(begin)
    return f"{head}{begin}\n{section.strip()}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="by default those in benchmarks/results and its folder models")
    parser.add_argument("--to", type=Path, default=HERE / "report", help="directory for REPORT.md and plots")
    parser.add_argument("--quick", action="store_true", help="quick results too: to try the report, not to publish")
    parser.add_argument("--page", action="store_true", help=f"rewrite sections of {', '.join(PAGES)} as well")
    args = parser.parse_args()
    rows = load(args.files or published(), quick=args.quick)
    if not rows:
        parser.error("no results: run `python -m benchmarks` first")
    shutil.rmtree(args.to, ignore_errors=True)
    args.to.mkdir(parents=True)
    names = plots.draw([row for row in rows if "gpu" not in row], args.to)
    (args.to / "REPORT.md").write_text(document.report(rows, names))
    print(f"{len(rows)} rows: {args.to / 'REPORT.md'} and {len(names)} plots")
    if args.page:
        made = sections(rows)
        for page, inside in PAGES.items():
            text = (ROOT / page).read_text()
            for name in inside:
                text = rewrite(text, name, made[name])
            (ROOT / page).write_text(text)
            print(f"{page}: rewritten between its markers")


if __name__ == "__main__":
    main()
