"""Runs checks on the cards of a machine, and tells of each as it is done."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from benchmarks.gpu_check.machine import Card, Machine, used_gb, wait_until_free
from benchmarks.gpu_check.process import CheckProcess
from benchmarks.gpu_check.records import Check, Outcome

# Side by side, as far as there are cards: each process needs some cores for itself.
MOST_LANES = 4


class Runner:
    """Runs checks.

    Attributes:
        outcomes: So far, by the names of the checks.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        folder: Path,
        scale: str,
        total_s: float,
        tell: Callable[[Outcome], None],
    ) -> None:
        """Nothing runs yet.

        Args:
            machine: Whose cards are used.
            folder: For what checks write and print; empty.
            scale: A key of `SCALES`.
            total_s: That all checks have together.
            tell: Called with each outcome, one at a time.
        """
        self.machine, self.folder, self.scale = machine, folder, scale
        self.outcomes: dict[str, Outcome] = {}
        self._tell, self._lock = tell, threading.Lock()
        self._stopped = threading.Event()
        self._deadline_s = time.monotonic() + total_s
        self._num_processes = 0

    def run(self, checks: Sequence[Check]) -> None:
        """All of them: those of one card side by side, then those of several.

        On an interrupt the checks that are left fail as such, and it is raised again.
        """
        rehearsal = self.scale == "rehearsal"
        fitting = []
        for check in checks:
            if why := self.machine.why_not(check, rehearsal=rehearsal):
                self._done(Outcome(check=check.name, seconds=0.0, reason=why, applies=False))
            else:
                fitting.append(check)
        try:
            self._run_side_by_side([check for check in fitting if check.num_cards == 1])
            for group in _processes([check for check in fitting if check.num_cards > 1]):
                most = max(check.num_cards for check in group)
                self._run_process(group, self.machine.cards[:most])
        finally:
            interrupted = self._stopped.is_set() or not self._is_over()
            why = "interrupted" if interrupted else "the time of all checks together was over"
            for check in fitting:
                if check.name not in self.outcomes:
                    self._done(Outcome(check=check.name, seconds=0.0, reason=f"not run: {why}"))

    def _run_side_by_side(self, checks: Sequence[Check]) -> None:
        groups = deque(_processes(checks))
        lanes: list[tuple[Card, ...]] = [(card,) for card in self.machine.cards] or [()]

        def run_lane(cards: tuple[Card, ...]) -> None:
            while True:
                try:
                    group = groups.popleft()
                except IndexError:
                    return
                self._run_process(group, cards)

        with ThreadPoolExecutor(MOST_LANES) as pool:
            futures = [pool.submit(run_lane, cards) for cards in lanes[:MOST_LANES]]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stopped.set()
                raise

    def _run_process(self, checks: Sequence[Check], cards: Sequence[Card]) -> None:
        """One process; where a check ends it, another one for those behind."""
        left = list(checks)
        before_gb = {card: used_gb(card) for card in cards}
        while left and not self._is_over():
            with self._lock:
                self._num_processes += 1
                folder = self.folder / f"{self._num_processes:02d}-{left[0].name}"
            process = CheckProcess(left, cards=cards, scale=self.scale, folder=folder)
            left = process.watch(self._done, deadline_s=self._deadline_s, stopped=self._stopped)
            wait_until_free(before_gb)

    def _is_over(self) -> bool:
        return self._stopped.is_set() or time.monotonic() > self._deadline_s

    def _done(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[outcome.check] = outcome
            self._tell(outcome)


def _processes(checks: Sequence[Check]) -> list[list[Check]]:
    """Checks that share a process, in the order of the first of each."""
    order = {name: n for n, name in enumerate(dict.fromkeys(c.process for c in checks))}
    together = sorted(checks, key=lambda check: order[check.process])
    return [list(group) for _, group in groupby(together, key=lambda check: check.process)]
