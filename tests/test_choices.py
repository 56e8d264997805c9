"""`python -m benchmarks.tune`: it measures what can be chosen, judges in fresh rounds, and its rows can be judged again."""

import json
import math
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from benchmarks import tune
from benchmarks.cases import convolution
from benchmarks.cases.sample import CHANNELS, ELEMENTS, LEAST, MOST, sample, seen
from benchmarks.measuring.work import Prepared
from benchmarks.parts import choices
from benchmarks.peers import kernels
from benchmarks.peers.base import Problem
from gconv import backends
from gconv.backends import native

CASE = convolution.case("grouped", 2, (9, 8), 6, 4, 2, (5, 3), strides=(2, 1))


@pytest.fixture
def pretended(monkeypatch):
    """A library with three kernels, of which one is not eligible, that all compute by lax; "wide.64" is planned and chosen."""
    calls: list[str] = []

    def role(name):
        def run(first, second, geometry, *, dtype, precision, forced=""):
            calls.append(forced)
            return getattr(backends.TABLE["lax"], name)(first, second, geometry, dtype=dtype, precision=precision)

        return run

    listed = {"narrow.32": "its groups are wide", "wide.32": None, "wide.64": None}
    monkeypatch.setattr(native, "kernels", lambda role, g, dtype, batch, precision=None: listed, raising=False)
    plan = SimpleNamespace(kernel="wide.64")
    monkeypatch.setattr(native, "plan", lambda role, g, dtype, batch, precision=None, forced="": plan, raising=False)
    monkeypatch.setattr(native, "why_not", lambda *problem: None)
    monkeypatch.setattr(backends, "choose", lambda *problem: "native")
    for name in convolution.ROLES:
        monkeypatch.setattr(native, name, role(name))
    return SimpleNamespace(calls=calls, plan=plan)


def problem(role="y", dtype="float32") -> Problem:
    return Problem(CASE, role, dtype, {name: jnp.asarray(a, dtype) for name, a in CASE.arrays(dtype).items()})


# --- the cases -------------------------------------------------------------------------------------------------------


def test_the_sample_is_the_same_for_the_same_seed_and_keeps_its_bounds():
    found = sample(200, seed=3)
    assert [case.name for case in found] == [case.name for case in sample(200, seed=3)]
    assert {case.name for case in found} != {case.name for case in sample(200, seed=4)}
    assert [case.name for case in sample(20, seed=3)] == [case.name for case in found[:20]], "a longer one goes on"
    facts = [case.geometry for case in found]
    assert {g.rank for g in facts} == {1, 2, 3} and {1, 11} <= {k for g in facts for k in g.window}
    assert all(max(g.in_channels, g.out_channels) <= CHANNELS for g in facts)
    assert min(g.groups for g in facts) == 1 and any(g.groups > 1 and g.channels == g.filters == 1 for g in facts)
    assert {1, 2, 3} == {max(g.strides) for g in facts} and {1, 2, 4} == {max(g.dilation) for g in facts}
    assert min(case.batch for case in found) == 1 and 32 < max(case.batch for case in found) <= 64
    for case in found:
        assert LEAST <= case.flops / 2 <= MOST
        assert all(0 < math.prod(case.shapes[name]) <= ELEMENTS for name in "xy")
    assert min(case.flops for case in found) < 1e5 < 1e8 < max(case.flops for case in found)


def test_names_say_what_a_case_is_and_are_different():
    names = [case.name for case in seen()]
    assert names[0] == "seen 8x20x20, 64 groups 4 -> 1, 1x1" and len({*names}) == len(names)
    assert names[2] == "seen 1x28x28, 16 groups 16 -> 1, 5x5, stride 2x2"
    assert "seen 1x7x7, 1024 groups 1 -> 1, 7x7" in names


# --- the candidates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", convolution.ROLES)
def test_every_eligible_kernel_is_a_candidate_and_runs_by_force(role, pretended):
    found = kernels.candidates(problem(role))
    assert {*found} == {"native wide.32", "native wide.64", "xla", "lax"}
    found["native wide.32"](problem(role))
    assert pretended.calls == ["wide.32"]
    assert isinstance(found["xla"](problem(role)), Prepared)


def test_what_is_planned_runs_as_it_does_for_users(pretended):
    kernels.candidates(problem())["native wide.64"](problem())
    assert pretended.calls == [""]
    pretended.plan.kernel = "narrow.32"
    with pytest.raises(RuntimeError, match="plans native narrow.32 .* not eligible"):
        kernels.candidates(problem())


def test_what_is_chosen_is_named_like_a_candidate(pretended, monkeypatch):
    assert kernels.chosen("y", CASE.geometry, "float32", 2) == "native wide.64"
    monkeypatch.setattr(backends, "choose", lambda *problem: "xla")
    assert kernels.chosen("y", CASE.geometry, "float32", 2) == "xla"


# --- the rounds ------------------------------------------------------------------------------------------------------


@pytest.fixture
def turns(monkeypatch):
    """Pretended turns: each call of `interleaved` takes the next of `medians`, and says who took part for how long."""
    medians, asked = [], []

    def interleaved(runs, *, rounds, seconds):
        asked.append(({*runs}, rounds, seconds))
        given = medians.pop(0)
        return {name: {"median": given[name]} for name in runs}

    monkeypatch.setattr(choices, "interleaved", interleaved)
    return SimpleNamespace(medians=medians, asked=asked)


WORK = {name: Prepared(lambda: None, lambda: None) for name in "abcd"}


def test_the_winner_is_judged_in_rounds_that_did_not_select_it(turns):
    turns.medians += [{"a": 9.36, "b": 9.0, "c": 10.0}]
    judged = choices.judge(WORK, "a", {"a": 10.0, "b": 8.0, "c": 9.0, "d": 9.3}, 1.0, quick=False)
    assert turns.asked == [({"a", "b", "c"}, choices.FINAL_ROUNDS, 1.0)], "of the finalists: d is not near"
    assert judged["winner"] == "b" and judged["regret"] == 1.04 and not judged["again"]


def test_a_regret_is_measured_again_and_the_second_counts(turns):
    turns.medians += [{"a": 12.0, "b": 10.0}, {"a": 10.1, "b": 10.0}]
    judged = choices.judge(WORK, "a", {"a": 12.0, "b": 10.0}, 1.0, quick=False)
    assert turns.asked[1] == ({"a", "b"}, choices.LONGER * choices.FINAL_ROUNDS, choices.LONGER)
    assert judged["again"] and judged["regret"] == 1.01 and judged["judged"] == {"a": 10.1e6, "b": 10e6}


def test_a_winner_by_chance_costs_nothing(turns):
    turns.medians += [{"a": 10.0, "b": 11.0}]
    judged = choices.judge(WORK, "a", {"a": 10.0, "b": 9.0}, 1.0, quick=False)
    assert judged["winner"] == "b" and judged["regret"] == 1 and not judged["again"]
    assert choices.judge(WORK, "a", {"a": 9.0, "b": 9.1}, 1.0, quick=False)["regret"] == 1
    assert len(turns.asked) == 1, "who is both chosen and best is not judged"


def test_the_hopeless_take_no_turns_but_what_is_chosen_does(turns, monkeypatch):
    monkeypatch.setattr(choices, "WALL", SimpleNamespace(once=lambda run: run()))
    single = {"a": [9.0, 1e-3, 2e-3], "b": [30e-3], "c": [40e-3], "d": []}  # what further calls take
    work = {name: Prepared(lambda left=left: left.pop(0), lambda: None) for name, left in single.items()}
    turns.medians += [{"a": 1.1e-3, "b": 31e-3}]
    times = choices.select(work, {"a": 0.04, "b": 0.2, "c": 0.2, "d": 2.0}, "b", 1.0, rounds=3)
    assert turns.asked == [({"a", "b"}, 3, 1.0)] and not any(single.values()), "short ones are called more often"
    assert times == {"a": 1.1e-3, "b": 31e-3, "c": 40e-3, "d": 2.0}


def test_a_candidate_that_computes_something_else_is_an_error(pretended, monkeypatch):
    right = native.w
    monkeypatch.setattr(native, "w", lambda *operands, forced="", **options: right(*operands, **options) * (2 if forced else 1))
    with pytest.raises(AssertionError, match="native wide.* differs from native wide"):
        choices.measured(problem("w"), 0.1, quick=True)


# --- the rows --------------------------------------------------------------------------------------------------------


def row(**changes) -> dict:
    us = {"native wide.64": 30.0, "native wide.32": 24.0, "xla": 50.0}
    judged = {"native wide.64": 33.0, "native wide.32": 30.0}
    facts = {"case": "a", "role": "y", "dtype": "float32", "chosen": "native wide.64", "winner": "native wide.32"}
    return facts | {"us": us, "judged": judged, "regret": 1.1} | changes


def test_a_row_tells_what_any_choice_costs():
    assert choices.regret_of(row(), "native wide.64") == pytest.approx(1.1)
    assert choices.regret_of(row(), "native wide.32") == 1
    assert choices.regret_of(row(), "xla") == pytest.approx(50 / 24), "of the first rounds, as it was no finalist"
    assert choices.regret_of(row(), "native narrow.32") == float("inf")
    assert choices.best(row()) == 30 and choices.best(row(judged={})) == 24


def test_small_work_may_be_chosen_badly():
    bad = row(regret=1.4)
    small = bad | {"judged": {"native wide.64": 21.0, "native wide.32": 15.0}}
    assert tune.violations([row(), bad, small]) == [bad]


def test_a_measured_row_holds_its_problem(pretended):
    measured = json.loads(json.dumps(choices.measured(problem("x"), 0.1, quick=True)))
    assert choices.case_of(measured) == CASE and hash(choices.case_of(measured).geometry) == hash(CASE.geometry)
    assert measured["chosen"] == "native wide.64" and measured["regret"] >= 1 and measured["flops"] == CASE.flops
    assert {*measured["us"]} == {"native wide.32", "native wide.64", "xla", "lax"}


# --- the command -----------------------------------------------------------------------------------------------------


def run(monkeypatch, capsys, *options) -> str:
    monkeypatch.setattr(tune.machine, "keep_memory", lambda: False)
    monkeypatch.setattr("sys.argv", ["tune", "--quick", *map(str, options)])
    tune.main()
    return capsys.readouterr().out


def test_the_command(pretended, monkeypatch, capsys, tmp_path):
    file = tmp_path / "rows" / "a.jsonl"
    out = run(monkeypatch, capsys, "--only", "seen", "--roles", "yw", "--output", file)
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(found) == 12 and {"processor", "family", "instruction_set", "threads", "versions", "date"} <= {*found[0]}
    assert "geometric mean" in out and "of 12 rows" in out and "native wide.64" in out and "not measured" not in out
    again = run(monkeypatch, capsys, "--show", file)
    assert out.endswith(again) and "of 12 rows" in again


def test_an_interrupt_keeps_what_was_measured(pretended, monkeypatch, capsys, tmp_path):
    measured, calls = choices.measured, []

    def interrupted(*problem, **options):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return measured(*problem, **options)

    monkeypatch.setattr(choices, "measured", interrupted)
    out = run(monkeypatch, capsys, "--only", "seen", "--roles", "y", "--output", tmp_path / "a.jsonl")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
    assert "interrupted\n4 of 6 rows were not measured" in out and "of 2 rows" in out


def test_the_seconds_are_those_of_all(pretended, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tune.choices, "measured", lambda *problem, **options: pytest.fail("no time is left"))
    out = run(monkeypatch, capsys, "--seconds", 0, "--only", "seen", "--roles", "y", "--output", tmp_path / "a.jsonl")
    assert "6 of 6 rows were not measured" in out
