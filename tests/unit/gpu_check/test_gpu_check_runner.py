"""The runner of `make gpu-check`: whatever fails is seen, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from gpu_check_fakes import SLOW_S, check

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import process
from benchmarks.gpu_check.machine import Card, Machine, parse_cards, visible
from benchmarks.gpu_check.records import Measurement, Outcome
from benchmarks.gpu_check.report import limit_of, line_of, value_of
from benchmarks.gpu_check.runner import Runner

HERE = Path(__file__).parent


def machine_of(num_cards, memory_gb=80.0):
    cards = [
        Card(
            index=str(number),
            uuid=f"GPU-{number}",
            name="NVIDIA H100",
            memory_gb=memory_gb,
            used_gb=0.0,
            driver="580.1",
        )
        for number in range(num_cards)
    ]
    return Machine(
        cards=tuple(cards),
        versions={"torch": "2.13.0", "vllm": "0.32.0"},
        cuda="13.0",
        python="3.11.7",
        num_cpus=16,
        commit="abc1234",
    )


@pytest.fixture(autouse=True)
def processes_find_the_fakes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def outcomes_of(tmp_path):
    """`outcomes_of(checks, num_cards=0)`: by name, in the order in which they were told."""

    def run(checks, *, num_cards=0, total_s=120.0, memory_gb=80.0):
        told = []
        runner = Runner(
            machine_of(num_cards, memory_gb),
            folder=tmp_path / "work",
            scale="card" if num_cards else "rehearsal",
            total_s=total_s,
            tell=told.append,
        )
        runner.run(checks)
        assert len(told) == len(checks)
        return {outcome.check: outcome for outcome in told}

    return run


def test_what_checks_share_is_opened_beside_the_time_of_the_first(outcomes_of):
    checks = [
        check("shares_what_is_slow", budget_s=3.0),
        check("hangs_behind_what_is_slow", process="two", budget_s=3.0),
    ]
    slow, hangs = outcomes_of(checks).values()
    assert slow.verdict == "passed" and slow.seconds > SLOW_S
    assert hangs.reason == "no answer within 3 s"
    assert hangs.seconds > 3.0 + SLOW_S - 2 * process.POLL_S  # both ends are seen at a poll


def test_what_is_not_opened_in_time_fails(outcomes_of, monkeypatch):
    monkeypatch.setattr(process, "OPEN_S", 0.5)
    [slow] = outcomes_of([check("shares_what_is_slow")]).values()
    assert slow.reason == "what it shares with others was not there within 0.5 s"


def test_every_way_to_fail_is_seen_and_the_checks_behind_it_run_on(outcomes_of):
    names = (
        "passes", "fails", "is_no_number", "raises", "measures_nothing", "does_not_apply",
        "crashes", "exits", "passes_again",
    )  # fmt: skip
    checks = [check(name.removesuffix("_again"), name=name) for name in names]
    outcomes = outcomes_of(checks)
    assert list(outcomes) == list(names)
    verdicts = {name: outcome.verdict for name, outcome in outcomes.items()}
    good = {"passes": "passed", "passes_again": "passed", "does_not_apply": "not applicable"}
    assert verdicts == {name: good.get(name, "failed") for name in names}
    assert outcomes["does_not_apply"].reason == "needs a Hopper card"
    assert outcomes["raises"].reason == "ValueError: the kernel wants 64, got 8"
    assert outcomes["raises"].measurements[0].name == "gap"
    assert "in raises" in outcomes["raises"].output
    assert outcomes["crashes"].reason == "its process ended: killed by SIGKILL"
    assert outcomes["crashes"].measurements == (Measurement(name="before", value=1.0),)
    assert outcomes["crashes"].output.endswith("about to fall over")
    assert outcomes["exits"].reason == "its process ended: exit status 3"
    assert outcomes["passes"].output == ""


def test_one_that_hangs_is_cut_with_all_that_it_started(outcomes_of):
    outcomes = outcomes_of([check("hangs", budget_s=3.0), check("passes")])
    assert outcomes["hangs"].reason == "no answer within 3 s"
    assert outcomes["hangs"].verdict == "failed"
    assert 3.0 <= outcomes["hangs"].seconds < 15.0
    assert outcomes["passes"].verdict == "passed"
    child = int(outcomes["hangs"].measurements[0].value)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_what_has_no_time_left_is_a_failure_and_says_so(outcomes_of):
    checks = [check("hangs"), check("passes"), check("sees", process="other")]
    outcomes = outcomes_of(checks, total_s=3.0)
    assert outcomes["hangs"].reason == "the time of all checks together is over"
    for name in ("passes", "sees"):
        assert outcomes[name].verdict == "failed"
        assert outcomes[name].reason == "not run: the time of all checks together was over"


def test_a_check_sees_the_cards_that_it_needs_and_no_other(outcomes_of):
    checks = [
        *(check("sees", name=f"alone{n}", process=f"alone{n}") for n in range(4)),
        check("sees", name="pair", process="pair", num_cards=2),
        check("sees", name="four", process="four", num_cards=4),
    ]
    began_s = time.monotonic()
    outcomes = outcomes_of(checks, num_cards=2)
    alone = [outcomes[f"alone{n}"] for n in range(4)]
    assert {outcome.measurements[0].note for outcome in alone} == {"0", "1"}
    assert all(outcome.measurements[0].value == 1 for outcome in alone)
    assert outcomes["pair"].measurements[0].note == "0,1"
    assert outcomes["four"].verdict == "not applicable"
    assert outcomes["four"].reason == "needs 4 cards, 2 here"
    assert time.monotonic() - began_s < 60.0


def test_a_card_that_is_too_small_or_a_package_that_is_missing_is_no_failure(outcomes_of):
    outcomes = outcomes_of(
        [
            check("passes", name="large", memory_gb=40.0),
            check("passes", name="package", packages=("no_such_package",)),
        ],
        num_cards=1,
        memory_gb=22.3,
    )
    assert outcomes["large"].reason == "needs 40 GB a card, 22.3 here"
    assert outcomes["package"].reason == "needs the package no_such_package"
    assert {outcome.verdict for outcome in outcomes.values()} == {"not applicable"}


def test_what_checks_share_is_opened_once_and_closed(outcomes_of, tmp_path):
    outcomes = outcomes_of(
        [
            check("shares"),
            check("shares", name="again"),
            check("shares_what_cannot_be", process="two"),
            check("shares_what_cannot_be", name="tried_again", process="two"),
        ]
    )
    assert outcomes["shares"].verdict == outcomes["again"].verdict == "passed"
    assert (tmp_path / "work" / "closed").exists()
    assert outcomes["shares_what_cannot_be"].reason == "ValueError: no engine"
    assert outcomes["tried_again"].reason.startswith("RuntimeError: unopenable failed for an")


@pytest.mark.parametrize(
    ("names", "status", "verdict"),
    [
        (("passes",), 0, "passed"),
        (("passes", "does_not_apply"), 0, "passed"),
        (("does_not_apply",), 0, "not applicable"),
        (("passes", "crashes", "does_not_apply"), 1, "failed"),
    ],
)
def test_the_exit_status_is_1_where_a_check_failed(names, status, verdict, tmp_path, capsys):
    file = tmp_path / "kept" / "check.json"
    checks = [check(name) for name in names]
    assert command.run(checks, scale="rehearsal", file=file, total_s=60.0) == status
    kept = json.loads(file.read_text())
    assert kept["verdict"] == verdict
    assert [entry["check"] for entry in kept["checks"]] == list(names)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(f"gpu-check rehearsal: {verdict} | ")
    if "crashes" in names:
        assert "(failed: crashes)" in printed.splitlines()[-1]
        assert "about to fall over" in printed


SCRIPT = """
import sys
from pathlib import Path
from gpu_check_fakes import SLOW_S, check
from benchmarks.gpu_check.__main__ import run
from launch.run.signals import interrupt_when_stopped
interrupt_when_stopped()
checks = [check("passes"), check("hangs"), check("sees", process="other")]
sys.exit(run(checks, scale="rehearsal", file=Path(sys.argv[1]), total_s=60.0))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_loses_nothing(tmp_path, number):
    file = tmp_path / "check.json"
    path = os.pathsep.join([str(HERE), str(HERE.parents[2])])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(file)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 60.0
    while not file.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert json.loads(file.read_text())["verdict"] == "passed"  # after the first check already
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = {entry["check"]: entry for entry in json.loads(file.read_text())["checks"]}
    assert kept["passes"]["verdict"] == "passed"
    assert kept["hangs"]["reason"] == "interrupted"
    assert kept["sees"]["reason"] == "not run: interrupted"
    assert "(failed: hangs, sees)" in output.splitlines()[-1]


def test_without_a_card_nothing_applies_and_that_is_no_failure(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--json", str(tmp_path / "check.json")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "No NVIDIA GPU is here" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("gpu-check: not applicable | ")
    kept = json.loads((tmp_path / "check.json").read_text())
    assert {entry["verdict"] for entry in kept["checks"]} == {"not applicable"}


def test_the_last_line_has_all_that_a_bug_report_needs():
    outcomes = [
        Outcome(check="ipc", seconds=1.0, measurements=(Measurement(name="a", value=1.0),)),
        Outcome(check="nccl", seconds=2.0, reason="no answer within 90 s"),
        Outcome(check="4-bit", seconds=0.0, reason="no bitsandbytes", applies=False),
    ]
    line = line_of(outcomes, machine=machine_of(2), scale="card", seconds=431.2)
    assert line == (
        "gpu-check: failed | 1 passed, 1 failed, 1 not applicable (failed: nccl) | "
        "2 x NVIDIA H100, driver 580.1, CUDA 13.0, Python 3.11.7 | "
        "torch 2.13.0, vllm 0.32.0, commit abc1234 | 431 s"
    )


def test_a_limit_is_kept_at_its_bound_and_shown_in_words():
    exact = Measurement(name="share", value=0.95, unit="of planned", at_least=0.95, at_most=1.3)
    assert exact.is_within
    assert (value_of(exact), limit_of(exact)) == ("0.95 of planned", "at least 0.95, at most 1.3")
    assert value_of(Measurement(name="speed", value=123456.7, unit="tokens/s")) == (
        "123,457 tokens/s"
    )
    for value in (0.949, 1.31, float("nan"), float("inf")):
        assert not Measurement(name="share", value=value, at_least=0.95, at_most=1.3).is_within


def test_cards_are_read_as_nvidia_smi_prints_them():
    text = (
        "0, GPU-aa11, NVIDIA H100 80GB HBM3, 81559, 1024, 580.65.06\n"
        "1, GPU-bb22, NVIDIA H100 80GB HBM3, 81559, 3, 580.65.06\n"
    )
    first, second = parse_cards(text)
    assert (first.index, first.name, first.driver) == ("0", "NVIDIA H100 80GB HBM3", "580.65.06")
    assert first.memory_gb == pytest.approx(79.65, abs=0.01)
    assert first.used_gb == 1.0
    assert visible([first, second], None) == [first, second]
    assert visible([first, second], "1,0") == [second, first]
    assert visible([first, second], "GPU-bb") == [second]
    assert visible([first, second], "0,7,1") == [first]
    assert visible([first, second], "") == []
