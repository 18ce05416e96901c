"""What of `make gpu-check` a CPU can show: its cheap checks pass here, and see what is wrong."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
from transformers import AttentionInterface

from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.records import overall
from benchmarks.gpu_check.runner import Runner
from benchmarks.gpu_check.scale import REHEARSAL, SCALES
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects import kernels
from benchmarks.gpu_check.subjects.agreement import agreement

CHEAP = ("kernels", "mfu-4k", "mfu-64k")


def test_cheap_checks_pass_in_a_rehearsal(tmp_path):
    runner = Runner(
        Machine.here(),
        folder=tmp_path / "work",
        scale="rehearsal",
        total_s=280.0,
        tell=lambda outcome: None,
    )
    runner.run([check for check in CHECKS if check.name in CHEAP])
    outcomes = list(runner.outcomes.values())
    assert [outcome.check for outcome in outcomes] == list(CHEAP)
    assert overall(outcomes) == "passed", outcomes


@pytest.fixture
def setting(tmp_path):
    made = Setting(scale=REHEARSAL, cards=(), folder=tmp_path)
    yield made
    made.close()


def worst(setting):
    found = list(kernels.check_kernels(setting))
    assert found
    return [measurement.name for measurement in found if not measurement.is_within]


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        ({"sliding_window": None}, ["output", "gradients"]),
        ({"scaling": 1.0}, ["output", "gradients"]),
        ({"packing": None}, ["output", "gradients", "packed against one by one"]),
    ],
    ids=lambda case: next(iter(case)),
)
def test_a_kernel_that_ignores_what_it_is_told_is_seen(setting, monkeypatch, broken, seen):
    kernels.attention.register()
    functions = AttentionInterface._global_mapping
    right = functions["packed_sdpa"]

    def wrong(*arguments, **keywords):
        return right(*arguments, **{**keywords, **broken})

    monkeypatch.setitem(functions, "packed_sdpa", wrong)
    monkeypatch.setattr(kernels.attention, "register", lambda: None)
    assert worst(setting) == [
        f"packed_sdpa in {dtype}: {what}, relative error"
        for dtype in ("float32", "bfloat16")
        for what in seen
    ]


def test_every_check_is_there_and_those_of_a_process_stand_for_one_kind_of_machine():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        module, _, name = check.function.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), check.name
        together = [other for other in CHECKS if other.process == check.process]
        assert len({other.num_cards for other in together}) == 1, check.process
    assert set(SCALES) == {"card", "rehearsal"}


@pytest.mark.parametrize("theirs", [0.2, math.nan])
def test_engines_that_say_something_else_or_no_number_do_not_agree(theirs):
    ours = [np.zeros(8, dtype=np.float32)]
    assert all(one.is_within for one in agreement(ours, ours, "bfloat16"))
    found = list(agreement(ours, [np.full(8, theirs, dtype=np.float32)], "bfloat16"))
    assert not found[0].is_within
    assert found[0].name == "engine and trainer in bfloat16 differ by, mean"
