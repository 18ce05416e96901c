"""The table of a run on a terminal."""

import math

import pytest

from rlhf_ray.metrics.console import HEAD_EVERY, StepTable, change, duration, number
from rlhf_ray.metrics.log import Record
from rlhf_ray.metrics.names import COLUMNS, LINE, check_names

ONLINE = {
    "rollout/reward_mean": -1234.5,
    "policy/kl_ref": 1.2345e-05,
    "policy/entropy": 0.98765,
    "rollout/response_tokens_mean": 12345.6,
    "mismatch/logprob_abs_max": 1.2e-05,
    "perf/tokens_per_s": 123456.7,
    "policy/grad_norm": 1.0,
    "time/step": 123.4,
}
SUPERVISED = {
    "dpo/loss": 0.6931,
    "rewards/accuracies": 0.5,
    "dpo/grad_norm": 169.8,
    "perf/tokens_per_s": 6076.0,
    "rewards/margins": -0.2091,
    "time/step": 2.5,
}


def lines_of(table, step, metrics, *, time_s=None, left="12h05m", warnings=None):
    time_s = 100.0 * step if time_s is None else time_s
    record = Record(step=step, time_s=time_s, metrics=metrics, warnings=warnings or {})
    return [line.plain.rstrip() for line in table.lines(record, left=left)]


@pytest.mark.parametrize(
    ("metrics", "titles"),
    [
        (ONLINE, "step reward KL entropy length mismatch tokens/s left"),
        (SUPERVISED, "step loss accuracy tokens/s grad norm margin left"),
    ],
    ids=["online", "supervised"],
)
def test_what_to_look_at_fits_80_columns_and_is_aligned(metrics, titles):
    table = StepTable(total_steps=9999, width=80)
    head, row = lines_of(table, 9998, metrics)
    assert len(head) == len(row) <= 80
    assert " ".join(head.split()) == titles
    [row] = lines_of(table, 9999, metrics)
    assert len(row) == len(head)


def test_a_wide_terminal_has_more_columns():
    [narrow, _], [wide, _] = (
        lines_of(StepTable(total_steps=60, width=width), 1, ONLINE) for width in (80, 110)
    )
    assert "grad norm" not in narrow
    assert "grad norm" in wide


def test_a_run_that_samples_ahead_says_how_old_its_tokens_are():
    """Every run measures it; where steps are sampled one by one it is 0 throughout."""
    metrics = {**ONLINE, "async/staleness_mean": 0.75}
    [head, _] = lines_of(StepTable(total_steps=60, width=100), 1, metrics)
    assert "staleness" not in head
    table = StepTable(total_steps=60, width=100)
    head, row = lines_of(table, 1, {**metrics, "async/groups_ahead": 3.0})
    assert "staleness" in head and "grad norm" in head
    assert head.index("staleness") < row.index("0.750") < head.index("staleness") + len("staleness")


def test_evaluations_stand_below_with_their_change():
    table = StepTable(total_steps=60, width=80)
    before = lines_of(table, 0, {"eval/loss": 3.45, "eval/token_accuracy": 0.074})
    assert before == ["       held out, before training: loss 3.45, accuracy 0.0740"]
    after = lines_of(table, 1, {"sft/loss": 3.4, "eval/loss": 2.95, "eval/token_accuracy": 0.1})
    assert after[-1] == "       held out: loss 2.95 -0.50, accuracy 0.100"


def test_samples_of_a_prompt_have_their_best():
    [line] = lines_of(StepTable(total_steps=60, width=80), 0, {"eval/best_of_k": 0.75})
    assert line.endswith("best of k 0.750")


def test_what_is_not_finite_is_said_each_time_and_what_is_beyond_a_limit_once_a_head():
    table = StepTable(total_steps=60, width=80)
    metrics = {"rollout/reward_mean": 0.5, "policy/kl_ref": 3.0, "policy/loss": math.nan}
    warnings = {"policy/kl_ref": "far from the reference: policy/kl_ref 3"}
    steps = range(1, 2 * HEAD_EVERY + 1)
    told = [lines_of(table, step, metrics, warnings=warnings) for step in steps]
    lines = [line.strip() for lines in told for line in lines]
    assert lines.count("! not finite: policy/loss nan") == 2 * HEAD_EVERY
    assert lines.count("! far from the reference: policy/kl_ref 3") == 2
    assert sum(line.startswith("step") for line in lines) == 2


def test_quick_steps_are_left_out_but_those_with_something_to_say():
    table = StepTable(total_steps=99, width=80)
    good, bad = {"sft/loss": 1.0}, {"sft/loss": math.inf}
    evaluated = {"sft/loss": 1.0, "eval/loss": 1.0}
    steps = [(1, good), (2, good), (3, bad), (4, good), (5, evaluated), (6, good), (99, good)]
    shown = [step for step, m in steps if lines_of(table, step, m, time_s=0.01 * step)]
    assert shown == [1, 3, 5, 99]
    assert lines_of(table, 100, good, time_s=9.0)


def test_a_head_comes_again_behind_something_else_and_with_a_new_column():
    table = StepTable(total_steps=99, width=80)
    assert len(lines_of(table, 1, {"sft/loss": 1.0})) == 2
    assert len(lines_of(table, 2, {"sft/loss": 1.0})) == 1
    table.begin()
    assert len(lines_of(table, 3, {"sft/loss": 1.0})) == 2
    assert len(lines_of(table, 4, {"sft/loss": 1.0, "time/step": 1.0})) == 2
    assert len(lines_of(table, 5, {"sft/loss": 1.0})) == 1  # its place stays empty


def test_screens_speak_of_documented_metrics():
    names = [name for column in COLUMNS for name in column.names if name != "best_of_k"]
    beside = [column.beside for column in COLUMNS if column.beside]
    check_names([*names, *beside, *LINE])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12345.6, "12,346"),
        (999.7, "1,000"),
        (1_250_000.0, "1.25M"),
        (45.12, "45.1"),
        (123.4, "123"),
        (-0.4123, "-0.412"),
        (0.0041, "0.0041"),
        (1.24e-05, "1.2e-05"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_changes_and_durations_are_short():
    assert [change(1.0, now) for now in (1.5, 0.5, 1.0, 0.9984, 31.0, math.nan)] == [
        "+0.50", "-0.50", "=", "-0.002", "+30.0", "",
    ]  # fmt: skip
    assert change(None, 1.0) == ""
    assert [duration(s) for s in (0, 59.7, 250, 7500, 400_000)] == [
        "0:00", "1:00", "4:10", "2h05m", "4d15h",
    ]  # fmt: skip
