"""The screen, and the log file of a batch system."""

import io
import math

import pytest
from rich.console import Console

from rlhf_ray.metrics.console import ConsoleSink
from rlhf_ray.metrics.log import Record, Table


def shown(*, terminal, steps=(0, 1, 2), seconds=10.0, tables=()):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80)
    sink = ConsoleSink(total_steps=4, console=console)
    for step in steps:
        metrics = {"policy/loss": 0.25, "rollout/reward_mean": step / 4}
        sink.log(Record(step=step, time_s=seconds * step, metrics=metrics))
    for table in tables:
        sink.table(table)
    sink.close(failed=False)
    return screen.getvalue()


def test_without_a_terminal_a_step_is_one_plain_line():
    assert shown(terminal=False).splitlines() == [
        "step 0/4  rollout/reward_mean 0",
        "step 1/4  left 0:30  rollout/reward_mean 0.25",
        "step 2/4  left 0:20  rollout/reward_mean 0.5",
    ]


def test_a_plain_line_is_followed_by_what_is_new_to_warn_of():
    screen = io.StringIO()
    sink = ConsoleSink(total_steps=9, console=Console(file=screen, width=80))
    ill, kl = {"policy/kl_ref": 3.0}, {"policy/kl_ref": "far from the reference"}
    steps = [(ill, kl), (ill, kl), ({}, {}), (ill, kl), ({"sft/loss": math.nan}, {})]
    for step, (metrics, warnings) in enumerate(steps, start=1):
        sink.log(Record(step=step, time_s=step, metrics=metrics, warnings=warnings))
    assert [line for line in screen.getvalue().splitlines() if line.startswith("!")] == [
        "! step 1: far from the reference",
        "! step 4: far from the reference",
        "! step 5: not finite: sft/loss nan",
    ]


def test_on_a_terminal_a_step_is_a_row_and_nothing_is_drawn_over():
    text = shown(terminal=True)
    for part in ("reward", "1/4", "2/4", "0.500", "+0.25", "0:20"):
        assert part in text
    assert "\r" not in text
    assert {part[0] for part in text.split("\x1b[")[1:]} <= set("0123456789")  # colours alone
    assert all(part.split("m")[0].replace(";", "").isdigit() for part in text.split("\x1b[")[1:])


def test_a_resumed_run_estimates_from_its_own_steps():
    assert "step 3/4  left 0:10" in shown(terminal=False, steps=(2, 3))


def test_a_slow_step_among_others_does_not_change_the_estimate():
    screen = io.StringIO()
    sink = ConsoleSink(total_steps=8, console=Console(file=screen, width=80))
    for step, time_s in enumerate([0.0, 60.0, 61.0, 62.0, 63.0]):
        sink.log(Record(step=step, time_s=time_s, metrics={}))
    assert screen.getvalue().splitlines()[-1] == "step 4/8  left 0:04"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_shows_markup_as_it_is_and_cuts_long_cells(terminal):
    table = Table(
        step=2,
        name="eval",
        columns=["prompt", "score"],
        rows=[["[red]no", 0.123456], ["x" * 900, None]],
    )
    text = shown(terminal=terminal, tables=[table])
    assert "eval, step 2" in text
    assert "[red]no" in text
    assert "0.1235" in text
    assert text.count("x") < 500
