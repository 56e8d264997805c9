"""From JSON lines to a report: REPORT.md with every row, plots, and the summary on the page of measured performance.

python -m benchmarks.report                      all results but quick ones; a repeated measurement replaces the older one
python -m benchmarks.report FILE ... --to DIRECTORY
python -m benchmarks.report --page               also rewrites docs/performance.md between its two markers
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.reporting import document, plots

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
IDENTITY = ("part", "case", "role", "dtype", "mode", "batch", "size", "axis", "value", "threads", "gpu")
HEADLINE = "layers.png"  # the plot that the page shows


def load(files: Iterable[Path], *, quick: bool = False) -> list[dict]:
    """The rows of the files; of two with the same identity, the later one."""
    rows: dict[tuple, dict] = {}
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if "part" in row and row["quick"] <= quick:
                key = tuple(row.get(name) for name in IDENTITY)
                rows.pop(key, None)
                rows[key] = row
    return list(rows.values())


def rewrite(page: str, section: str) -> str:
    """The page with `section` between the markers."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must hold {BEGIN} and {END} once each.")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{section.strip()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="by default all in benchmarks/results")
    parser.add_argument("--to", type=Path, default=HERE / "report", help="directory for REPORT.md and plots")
    parser.add_argument("--quick", action="store_true", help="quick results too: to try the report, not to publish")
    parser.add_argument("--page", action="store_true", help="rewrite the section of docs/performance.md as well")
    args = parser.parse_args()
    rows = load(args.files or sorted((HERE / "results").glob("*.jsonl")), quick=args.quick)
    if not rows:
        parser.error("no results: run `python -m benchmarks` first")
    shutil.rmtree(args.to, ignore_errors=True)
    args.to.mkdir(parents=True)
    names = plots.draw([row for row in rows if "gpu" not in row], args.to)
    (args.to / "REPORT.md").write_text(document.report(rows, names))
    print(f"{len(rows)} rows: {args.to / 'REPORT.md'} and {len(names)} plots")
    if args.page:
        where = Path("..") / args.to.resolve().relative_to(HERE.parent)
        image = f"![{plots.TITLES[HEADLINE]}]({where / HEADLINE})" if HEADLINE in names else ""
        summary = document.summary([row for row in rows if "gpu" not in row])
        PAGE.write_text(rewrite(PAGE.read_text(), f"{summary}\n{image}\n\n{document.sources(where)}"))
        print(f"{PAGE}: rewritten between its markers")


if __name__ == "__main__":
    main()
