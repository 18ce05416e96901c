"""A million things that happen to a run, in any order: what must hold of admission, holds.

    python -m benchmarks.interleavings --events 1000000 --seed 0

Runs of some hundred events, each with settings of its own: draws are admitted, accepted, rejected
and lost, steps are taken, weights published late, checkpoints saved. The run is killed, perhaps its
machine too (then decisions that were not synced are lost), perhaps its journal damaged (then others
as well, from some one on; checkpoints before are not gone back to later). It goes on from its last
checkpoint, or the one before, with what its journal holds. Which draws are accepted is chance: one
that is sampled again may be decided otherwise. At some draws scoring fails, always: they are
skipped.

What is checked: no draw is trained on weights more than `max_staleness` publications younger than
those that sampled it, nor on older ones; a step is what a straight loop makes of the decisions, and
the same whenever it is trained again from what the journal kept; in the history that remains every
draw is trained, passed over or skipped once, in order; none whose skipping the journal kept is
tried again; and a step always comes. Prints counts, and the largest staleness of a draw for each
`max_staleness`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_ray.rollouts.admission import Admission, StepDraws

LARGEST_STALENESS = 8
NUM_EVENTS_OF_A_RUN = 400


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(interleave(arguments.events, seed=arguments.seed), indent=1))
    return 0


def interleave(num_events: int, *, seed: int) -> dict[str, Any]:
    """Runs until so many events came to pass. -> what is printed.

    Raises:
        AssertionError: Something does not hold; names the run and its settings.
    """
    began_s, events, num_runs, num_replayed = time.monotonic(), Counter[str](), 0, 0
    largest = dict.fromkeys(range(LARGEST_STALENESS + 1), 0)
    while events.total() < num_events:
        run = Run(random.Random(f"{seed}/{num_runs}"))
        try:
            events += run.go(NUM_EVENTS_OF_A_RUN)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, run {num_runs}, {run.settings}: {error}") from error
        allowed = run.settings["max_staleness"]
        largest[allowed] = max(largest[allowed], run.largest_staleness)
        num_runs, num_replayed = num_runs + 1, num_replayed + run.num_replayed
    return {
        "runs": num_runs,
        "events": events.total(),
        **dict(sorted(events.items())),
        "decisions taken from the journal": num_replayed,
        "largest staleness by max_staleness": largest,
        "seconds": round(time.monotonic() - began_s, 1),
    }


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the journal holds of a draw; of several the last counts.

    Attributes:
        is_accepted: A draw that is skipped is accepted where nothing is replaced: it has its place.
    """

    draw: int
    is_accepted: bool
    is_skipped: bool
    version: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run goes on from besides its journal."""

    frontier: int = 0
    steps: int = 0


class Run:
    """One run with its restarts."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.settings: dict[str, Any] = {
            "groups_per_step": chance.randint(1, 8),
            "max_rounds": chance.randint(1, 4),
            "max_staleness": chance.randint(0, LARGEST_STALENESS),
        }
        self.rejected_share = chance.choice([0.0, chance.random(), 0.9])
        # Chance of its own: which draws they are is no event of the run.
        poison = random.Random(f"{self.settings}{self.rejected_share}")
        self.poisoned_share, self.poison = poison.choice([0.0, 0.02, 0.5]), poison.random()
        # Of a poisoned draw: scoring fails, and whoever tries it loses time.
        self.tried: set[int] = set()
        # How often each is tried; it says what it did, if anything.
        self.weights: dict[Callable[[], str | None], float] = {
            self.admit: chance.uniform(0.2, 3),
            self.decide: chance.uniform(1, 8),
            self.lose: chance.choice([0, 0.1, 1]),
            self.consume: chance.uniform(0.2, 3),
            self.publish: chance.uniform(0.1, 2),
            self.save: chance.uniform(0, 0.2),
            self.kill: chance.uniform(0, 0.2),
        }
        self.journal: list[Decision] = []
        self.num_synced = 0
        self.checkpoints = [Checkpoint()]
        self.history: list[StepDraws] = []  # of the steps that no restart has taken back
        self.ever: dict[int, StepDraws] = {}  # by step, whatever became of it
        self.largest_staleness = self.num_replayed = 0
        self.resume()

    def go(self, num_tries: int) -> Counter[str]:
        """Let chance rule. -> what happened, how often."""
        events = Counter[str]()
        for act in self.chance.choices([*self.weights], [*self.weights.values()], k=num_tries):
            if event := act():
                events[event] += 1
        self.require_progress()
        draws = [draw for step in self.history for draw in (*step.accepted, *step.rejected)]
        assert sorted(draws) == [*range(self.admission.frontier)], "draws are missing or twice"
        assert len(self.history) == self.admission.steps
        assert not self.tried & self.known_skipped, "what was skipped is tried again"
        return events

    def resume(self) -> None:
        """From the last checkpoint there is."""
        frontier, steps = self.checkpoints[-1].frontier, self.checkpoints[-1].steps
        self.admission = Admission(**self.settings, frontier=frontier, steps=steps)
        self.decisions: dict[int, Decision] = {}
        self.sampled_by: dict[int, int] = {}
        self.replay = {one.draw: one for one in self.journal if one.draw >= frontier}
        self.known_skipped = {draw for draw, one in self.replay.items() if one.is_skipped}
        self.tried.clear()
        del self.history[steps:]

    def admit(self) -> str | None:
        """Sample what may be, unless the journal has it already."""
        draws = self.admission.admit()
        if not self.settings["max_staleness"] and not self.replay.keys() >= {*draws}:
            for draw in draws:  # of a wave all or none: its requests share a batch
                self.replay.pop(draw, None)
        for draw in draws:
            self.sampled_by[draw] = self.admission.version
            if draw in self.replay:
                self.num_replayed += 1
                self.know(self.replay.pop(draw))
        return "admit" if draws else None

    def decide(self) -> str | None:
        """One of those that are sampled: journaled first, then known."""
        if not self.admission.running:
            return None
        draw = self.chance.choice(sorted(self.admission.running))
        is_skipped = draw in self.known_skipped or self.fails_at(draw)
        is_accepted = self.chance.random() >= self.rejected_share
        if is_skipped:
            is_accepted = self.settings["max_rounds"] == 1
        decision = Decision(
            draw=draw,
            is_accepted=is_accepted,
            is_skipped=is_skipped,
            version=self.sampled_by[draw],
        )
        self.journal.append(decision)
        self.know(decision)
        return "skip" if is_skipped else "accept" if is_accepted else "reject"

    def fails_at(self, draw: int) -> bool:
        """Try to score a draw."""
        if random.Random(f"{self.poison}/{draw}").random() >= self.poisoned_share:
            return False
        assert draw not in self.known_skipped, f"draw {draw} is tried again"
        self.tried.add(draw)
        return True

    def know(self, decision: Decision) -> None:
        """Only now may other draws be admitted for it."""
        self.decisions[decision.draw] = decision
        self.admission.decided(decision.draw, accepted=decision.is_accepted)

    def lose(self) -> str | None:
        """An engine dies with one of those that are sampled."""
        if not self.admission.running:
            return None
        self.admission.lost(self.chance.choice(sorted(self.admission.running)))
        return "lose"

    def consume(self) -> str | None:
        """Take a step, once all of it is decided; what was journaled is synced first."""
        if self.admission.step_draws() is None:
            return None
        expected = self.straight_step()
        step = self.admission.consume()
        assert step == expected, f"{step} is not {expected}, as a straight loop has it"
        self.num_synced = len(self.journal)
        self.history.append(step)
        number = self.admission.steps
        assert self.ever.setdefault(number, step) == step, f"step {number} was {self.ever[number]}"
        for draw in (*step.accepted, *step.rejected):
            # Step t trains the weights of version t - 1.
            staleness = number - 1 - self.decisions[draw].version
            assert 0 <= staleness <= self.settings["max_staleness"], (
                f"draw {draw}: staleness {staleness}"
            )
            self.largest_staleness = max(self.largest_staleness, staleness)
        return "consume"

    def straight_step(self) -> StepDraws:
        """Round after round, each of as many draws as are missing."""
        accepted, rejected, draw = list[int](), list[int](), self.admission.frontier
        for _ in range(self.settings["max_rounds"]):
            for _ in range(self.settings["groups_per_step"] - len(accepted)):
                assert draw in self.decisions, f"{draw} is not decided"
                (accepted if self.decisions[draw].is_accepted else rejected).append(draw)
                draw += 1
        return StepDraws(accepted=tuple(accepted), rejected=tuple(rejected))

    def publish(self) -> str | None:
        """Bring the engines the newest weights, or others that they lack."""
        version, steps = self.admission.version, self.admission.steps
        if version == steps:
            return None
        self.admission.moved_to(self.chance.randint(version + 1, steps))
        return "publish" if self.admission.version == steps else "publish late"

    def save(self) -> str | None:
        """Write a checkpoint."""
        now = Checkpoint(frontier=self.admission.frontier, steps=self.admission.steps)
        if now == self.checkpoints[-1]:
            return None
        self.checkpoints.append(now)
        return "save"

    def kill(self) -> str:
        """End the process, perhaps the machine, and go on from the disk."""
        how = self.chance.choices(["kill", "lose machine", "damage journal"], [6, 3, 1])[0]
        if how != "kill":
            num_safe = 0 if how == "damage journal" else self.num_synced
            del self.journal[self.chance.randint(num_safe, len(self.journal)) :]
        if len(self.checkpoints) > 1 and self.chance.random() < 0.2:  # the last one is torn
            del self.checkpoints[-1]
        self.resume()
        if how == "damage journal":
            # What is admitted from here on follows from decisions that are perhaps lost.
            self.num_synced, self.checkpoints = len(self.journal), self.checkpoints[-1:]
            self.ever = dict(enumerate(self.history, start=1))
        return f"{how} and resume"

    def require_progress(self) -> None:
        """From wherever it is, a step comes, once all that runs is decided."""
        steps = self.admission.steps
        while self.admission.steps == steps:
            moved = self.consume() or self.admit() or self.publish()
            assert moved or self.admission.running, f"step {steps + 1} waits for nothing"
            while self.admission.running:
                self.decide()


if __name__ == "__main__":
    sys.exit(main())
