"""`python -m benchmarks.chaos`: how much of a run's time is useful while its processes are killed.

PPO on stories as a user runs it, with `--restarts`. From a few steps on, a role that chance takes,
the driver among them, loses a process to SIGKILL every so many seconds. Then the run is stopped,
and goes on for two steps, which must end it well: status 0, each step once in the metrics, each
draw trained once, no process left. Prints JSON; ends with 1 where something of that does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.chaos.goodput import Kill, report
from benchmarks.chaos.roles import one_of, processes_of
from launch.run.signals import interrupt_when_stopped
from rlhf_ray.config.base import laid_over
from rlhf_ray.config.tools.yaml_file import read_yaml
from rlhf_ray.errors import EXIT_INTERRUPTED
from rlhf_ray.loops.checkpoints import CheckpointStore

STORIES = Path(__file__).parents[2] / "configs/ppo/stories-cpu.yaml"
RUN: dict[str, Any] = {
    "total_steps": 100_000,
    "checkpoint": {"every": 5, "keep": 2},
    "failures": {"actor": {"restarts": 1000, "backoff_s": 0}},
    "timeouts": {"start_s": 300, "call_s": 300},
}
# Undisturbed before the first kill, to compare with; and after the last one, to end well.
QUIET_STEPS, MORE_STEPS = 8, 2
POLL_S = 0.05
START_S, END_S = 400.0, 300.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it, and print what came of it; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="under kills")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-staleness", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the run, which stays")
    options = parser.parse_args(argv)
    interrupt_when_stopped()
    with tempfile.TemporaryDirectory(prefix="bench-chaos-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = dict(read_yaml(STORIES).values)
        del values["eval"]
        values = laid_over(values, {**RUN, "max_staleness": options.max_staleness})
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        result = measured(Killed(folder), options)
    print(json.dumps(result, indent=1))
    return int(not result["holds"])


def measured(run: Killed, options: argparse.Namespace) -> dict[str, Any]:
    """The run under kills, and its end."""
    try:
        run.start("--restarts", "1000")
        run.watch(lambda: len(run.done_s) > QUIET_STEPS, START_S)
        kills = kill_for(run, options)
        result = report(run.done_s, kills, until_s=run.now_s())
        # A driver that starts is not asked to stop.
        last = run.last_step
        run.watch(lambda: run.last_step > last, START_S)
        run.process.send_signal(signal.SIGTERM)
        stopped = run.ends()
        run.start("--total-steps", f"{run.steps()[-1] + MORE_STEPS}")
        ended = run.ends()
        wrong = [
            *([f"stopping ended with {stopped}"] if stopped != EXIT_INTERRUPTED else []),
            *([f"going on ended with {ended}"] if ended else []),
            *run.faults(),
        ]
        return {**result, "seed": options.seed, "wrong": wrong, "holds": not wrong}
    finally:
        run.close()


def kill_for(run: Killed, options: argparse.Namespace) -> list[Kill]:
    """Kill a process every so many seconds, for so many minutes; the last one has its time too."""
    chance, kills, begun_s = random.Random(options.seed), list[Kill](), run.now_s()
    for number in range(max(1, round(60 * options.minutes / options.every))):
        kills.append(run.kill(chance))
        run.watch_until(begun_s + (number + 1) * options.every)
    return kills


@dataclass
class Killed:
    """A command on a folder whose processes die.

    Attributes:
        done_s: When each of its steps was seen in the metrics for the first time, from the first.
        last_step: Of those.
    """

    folder: Path
    done_s: list[float] = field(default_factory=list)
    last_step: int = 0
    _began_s: float = 0.0
    _seen: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        """Of the run."""
        return self.folder / "run"

    def start(self, *options: str) -> None:
        """Start the command, or start it again."""
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "launch.cli", "ppo", str(self.folder / "config.yaml")),
                    *("--run-dir", str(self.run_dir), "--resume", "auto", *options),
                ],
                env={**os.environ, "HOME": str(self.folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def now_s(self) -> float:
        """Since the first step was seen."""
        return time.monotonic() - self._began_s

    def watch(self, until: Callable[[], bool], timeout_s: float) -> None:
        """Look at the steps until something holds.

        Raises:
            RuntimeError: The command ends before, or it takes too long; says what it printed last.
        """
        give_up_s = time.monotonic() + timeout_s
        while True:
            self._look()
            if until():
                return
            if self.process.poll() is not None or time.monotonic() > give_up_s:
                log = (self.folder / "log.txt").read_text()[-3000:]
                raise RuntimeError(f"after {timeout_s:g} s, status {self.process.poll()}: {log}")
            time.sleep(POLL_S)

    def watch_until(self, at_s: float) -> None:
        """Look at the steps until it is so late since the first."""
        self.watch(lambda: self.now_s() >= at_s, at_s - self.now_s() + START_S)

    def _look(self) -> None:
        steps = self.steps()
        if steps and steps[-1] > self.last_step:
            self._began_s = self._began_s or time.monotonic()
            self.done_s += [self.now_s()] * (steps[-1] - self.last_step)
            self.last_step = steps[-1]

    def steps(self) -> list[int]:
        """Those in the metrics, but for a line that is being written."""
        steps = []
        with suppress(FileNotFoundError):
            for line in (self.run_dir / "metrics.jsonl").read_text().splitlines():
                with suppress(ValueError):
                    steps.append(int(json.loads(line)["step"]))
        return steps

    def kill(self, chance: random.Random) -> Kill:
        """Kill a process of a role."""
        there: dict[str, list[psutil.Process]] = {}

        def is_there() -> bool:  # a driver may be on its way
            there.update(processes_of(psutil.Process(self.process.pid), self.run_dir))
            return bool(there)

        self.watch(is_there, START_S)
        self._remember()
        role, process = one_of(there, chance)
        process.kill()
        print(f"{self.now_s():.1f} s, step {self.last_step}: {role}", file=sys.stderr, flush=True)
        return Kill(at_s=self.now_s(), role=role)

    def _remember(self) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            self._seen[process.pid] = process

    def ends(self) -> int:
        """Its exit status."""
        self._remember()
        return self.process.wait(timeout=END_S)

    def faults(self) -> list[str]:
        """What should not be, when it has ended."""
        found = []
        if (steps := self.steps()) != [*range(len(steps))]:
            found.append(f"the metrics have the steps {steps}")
        kept = CheckpointStore(self.run_dir, keep=2).latest()
        if kept is None or kept.step != steps[-1]:
            found.append(f"the last checkpoint is {kept and kept.step}, of {steps[-1]} steps")
        else:
            num_draws = read_yaml(self.run_dir / "config.yaml").values["prompts_per_step"]
            if kept.state["frontier"] != num_draws * kept.step:
                found.append(f"{kept.state['frontier']} draws were trained in {kept.step} steps")
        _, alive = psutil.wait_procs(self._seen.values(), timeout=30)
        return found + [f"left: {process}" for process in alive]

    def close(self) -> None:
        """End it and all that is below it: what trains has a process group of its own."""
        with suppress(psutil.Error):
            self._remember()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in self._seen.values():
            with suppress(psutil.Error):
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
