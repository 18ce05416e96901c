"""Checks that end in every way there is, for the runner's tests; its processes import them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.records import Check, Measurement, NotApplicable
from benchmarks.gpu_check.setting import Setting

SLOW_S = 4.0  # to open, longer than a check's time


def passes(setting: Setting) -> Iterator[Measurement]:
    yield Measurement(name="gap", value=1e-3, unit="nats", at_most=1e-2)
    yield Measurement(name="speed", value=2.0, at_least=1.0)


def fails(setting: Setting) -> Iterator[Measurement]:
    yield Measurement(name="gap", value=0.5, unit="nats", at_most=1e-2)


def is_no_number(setting: Setting) -> Iterator[Measurement]:
    yield Measurement(name="gap", value=float("nan"))


def raises(setting: Setting) -> Iterator[Measurement]:
    yield Measurement(name="gap", value=0.0, at_most=1e-2)
    raise ValueError("the kernel wants 64, got 8")


def measures_nothing(setting: Setting) -> Iterator[Measurement]:
    return iter(())


def does_not_apply(setting: Setting) -> Iterator[Measurement]:
    raise NotApplicable("needs a Hopper card")
    yield


def crashes(setting: Setting) -> Iterator[Measurement]:
    yield Measurement(name="before", value=1.0)
    print("about to fall over", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def exits(setting: Setting) -> Iterator[Measurement]:
    sys.exit(3)
    yield


def hangs(setting: Setting) -> Iterator[Measurement]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Measurement(name="child", value=child.pid)
    time.sleep(600)


def sees(setting: Setting) -> Iterator[Measurement]:
    """How many cards, and that CUDA would see them and no other."""
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    assert seen == ",".join(card.index for card in setting.cards)
    time.sleep(0.5)
    yield Measurement(name="cards", value=len(setting.cards), note=seen)


@contextmanager
def opened(setting: Setting) -> Iterator[Path]:
    (setting.folder / "opened").touch(exist_ok=False)
    yield setting.folder
    (setting.folder.parent / "closed").touch()


@contextmanager
def unopenable(setting: Setting) -> Iterator[Path]:
    (setting.folder.parent / "tried").touch(exist_ok=False)
    raise ValueError("no engine")
    yield setting.folder


@contextmanager
def opened_slowly(setting: Setting) -> Iterator[Path]:
    time.sleep(SLOW_S)
    yield setting.folder


def shares_what_is_slow(setting: Setting) -> Iterator[Measurement]:
    setting.shared(opened_slowly)
    yield Measurement(name="shared", value=1.0)


def hangs_behind_what_is_slow(setting: Setting) -> Iterator[Measurement]:
    setting.shared(opened_slowly)
    time.sleep(600)
    yield Measurement(name="shared", value=1.0)


def shares(setting: Setting) -> Iterator[Measurement]:
    assert setting.shared(opened) == setting.folder
    yield Measurement(name="shared", value=1.0)


def shares_what_cannot_be(setting: Setting) -> Iterator[Measurement]:
    setting.shared(unopenable)
    yield Measurement(name="shared", value=1.0)


def check(function: str, process: str = "one", **fields: Any) -> Check:
    """A check of the fake; its name is the function's."""
    defaults: dict[str, Any] = {
        "name": function,
        "holds": "nothing",
        "function": f"gpu_check_fakes:{function}",
        "process": process,
        "budget_s": 60.0,
        "on_cpu": True,
    }
    return Check(**(defaults | fields))
