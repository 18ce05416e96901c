"""One process with checks in it, watched: what it says, when it is late, how it ended."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.machine import Card
from benchmarks.gpu_check.records import Check, Measurement, Outcome

POLL_S = 0.1
# Actors and engines are ended in an orderly way within this, else with the process.
CLOSE_S = 30.0
STOP_S = 10.0
# What checks share (Ray, a policy and its engine: a minute and a half on an H100) is opened within
# this, beside the time of the check that is the first to use it.
OPEN_S = 300.0
LAST_LINES = 25
ROOT = Path(__file__).parents[2]


class CheckProcess:
    """Runs some checks, one after the other, until all are done or one of them ends it."""

    def __init__(
        self, checks: Sequence[Check], *, cards: Sequence[Card], scale: str, folder: Path
    ) -> None:
        """Start it.

        Args:
            checks: At least one.
            cards: That it may see.
            scale: A key of `SCALES`.
            folder: Of its own; it must not be there yet.
        """
        folder.mkdir(parents=True)
        self.checks, self.folder = list(checks), folder
        work = {
            "checks": [asdict(check) for check in checks],
            "cards": [asdict(card) for card in cards],
            "scale": scale,
        }
        (folder / "work.json").write_text(json.dumps(work))
        (folder / "events.jsonl").touch()
        with (folder / "output.log").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_check.worker", str(folder)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=_environment(cards),
                start_new_session=True,
            )
        self._position = 0
        self._measured: list[Measurement] = []
        self._closing = False
        self._began_s = time.monotonic()
        # Of the check whose turn it is: what was opened for it took so long, and since when.
        self._opened_s, self._opening_since_s = 0.0, math.inf

    def watch(
        self,
        tell: Callable[[Outcome], None],
        *,
        deadline_s: float,
        stopped: threading.Event,
    ) -> list[Check]:
        """Tell of each check when it is done.

        Args:
            tell: Called with each outcome.
            deadline_s: Of all checks together, by `time.monotonic()`.
            stopped: Set by whoever wants no more.

        Returns:
            The checks that did not come to their turn, because the one before ended the process.
        """
        try:
            while self.checks and not self._closing:
                gone = self.process.poll() is not None
                for event in self._events():
                    self._take(event, tell)
                if self.checks and not self._closing:
                    why = self._why_over(gone=gone, deadline_s=deadline_s, stopped=stopped)
                    if why:
                        tell(self._outcome(why))
                        return self.checks
                time.sleep(POLL_S)
            self._wait_for_end(deadline_s)
            return self.checks
        finally:
            self.end()

    def _events(self) -> list[dict[str, Any]]:
        with (self.folder / "events.jsonl").open("rb") as file:
            file.seek(self._position)
            told = file.read()
        whole = told[: told.rfind(b"\n") + 1]  # the last line may be half written
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _take(self, event: Mapping[str, Any], tell: Callable[[Outcome], None]) -> None:
        match event["event"]:
            case "measurement":
                self._measured.append(Measurement(**event["measurement"]))
            case "opening":
                self._opening_since_s = time.monotonic()
            case "opened":
                self._opened_s += time.monotonic() - self._opening_since_s
                self._opening_since_s = math.inf
            case "end":
                tell(self._outcome(event["reason"], applies=event["applies"]))
            case "closing":
                self._closing = True

    def _outcome(self, reason: str, *, applies: bool = True) -> Outcome:
        """Of the check whose turn it is; the next one's time begins."""
        now_s = time.monotonic()
        outcome = Outcome(
            check=self.checks.pop(0).name,
            seconds=now_s - self._began_s,
            measurements=tuple(self._measured),
            reason=reason,
            applies=applies,
        )
        self._measured, self._began_s, self._opened_s = [], now_s, 0.0
        failed = outcome.verdict == "failed"
        return replace(outcome, output=self._last_lines()) if failed else outcome

    def _why_over(self, *, gone: bool, deadline_s: float, stopped: threading.Event) -> str:
        """Why the check whose turn it is will not end by itself; empty where it may."""
        now_s, check = time.monotonic(), self.checks[0]
        if gone:
            return f"its process ended: {_status(self.process.returncode)}"
        if stopped.is_set():
            return "interrupted"
        if now_s > deadline_s:
            return "the time of all checks together is over"
        if now_s - self._opening_since_s > OPEN_S:
            return f"what it shares with others was not there within {OPEN_S:g} s"
        is_open = self._opening_since_s == math.inf
        if is_open and now_s - self._began_s - self._opened_s > check.budget_s:
            return f"no answer within {check.budget_s:g} s"
        return ""

    def _wait_for_end(self, deadline_s: float) -> None:
        wait_s = min(CLOSE_S, max(STOP_S, deadline_s - time.monotonic()))
        with suppress(subprocess.TimeoutExpired):  # then `end` does it
            self.process.wait(wait_s)

    def end(self) -> None:
        """End the process and its children, where they run on."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)

    def _last_lines(self) -> str:
        text = (self.folder / "output.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-LAST_LINES:])


def _environment(cards: Sequence[Card]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(card.index for card in cards),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _status(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    return f"killed by {signal.Signals(-returncode).name}"
