"""What gconv chooses, by recorded measurements: when they were made, and today. Nothing is timed here.

The rows come from `python -m benchmarks.tune`; they lie in benchmarks/results/tune, a file for each machine.
"""

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import tune
from benchmarks.parts import choices
from benchmarks.peers import kernels
from gconv import native

FILES = sorted(tune.RESULTS.glob("*.jsonl"))
MEASURE = "python -m benchmarks.tune measures, and its file is committed"


def rows(file: Path) -> list[dict]:
    """The rows of a file; of two of the same case, role and type the later one."""
    found = [row for row in map(json.loads, file.read_text().splitlines()) if not row["quick"]]
    return [*{(row["case"], row["role"], row["dtype"]): row for row in found}.values()]


def test_there_are_recorded_rows():
    assert FILES, f"{tune.RESULTS} holds no rows: {MEASURE}"
    assert all(len(rows(file)) >= 100 for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_recorded_choices_were_good(file):
    found = rows(file)
    assert statistics.geometric_mean(row["regret"] for row in found) <= tune.MEAN
    assert not [(row["case"], row["role"], row["chosen"], row["winner"], row["regret"]) for row in tune.violations(found)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_todays_choices_are_good_by_recorded_times(file):
    """A rule that changed may choose another candidate: its recorded time must be close to the best as well."""
    found = rows(file)
    # The rows are of float32, which is planned alike with and without the products of pairs of bfloat16.
    assert {row["dtype"] for row in found} == {"float32"}
    measured_on, here = (
        (family, (instructions or "").removesuffix("_bf16"))
        for family, instructions in (
            (found[0]["family"], found[0]["instruction_set"]),
            (tune.family(), native.instruction_set()),
        )
    )
    if measured_on != here:
        pytest.skip(f"measured on {measured_on}; here kernels are planned for {here}")
    today = [{**row, "chosen": choice(row)} for row in found]
    today = [{**row, "regret": choices.regret_of(row, row["chosen"])} for row in today]
    unknown = [(row["case"], row["role"], row["chosen"]) for row in today if row["chosen"] not in row["us"]]
    assert not unknown, f"chosen today and not measured: {unknown[:5]}; {MEASURE}"
    bad = [(row["case"], row["role"], row["chosen"], row["winner"], row["regret"]) for row in tune.violations(today)]
    assert not bad and statistics.geometric_mean(row["regret"] for row in today) <= tune.MEAN


def choice(row: dict) -> str:
    case = choices.case_of(row)
    return kernels.chosen(row["role"], case.geometry, row["dtype"], case.batch)
