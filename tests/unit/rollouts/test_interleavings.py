"""Small cuts of `benchmarks.interleavings`: it finds nothing, and would find what is wrong."""

from __future__ import annotations

import pytest

from benchmarks import interleavings
from benchmarks.interleavings import LARGEST_STALENESS, interleave
from rlhf_ray.rollouts.admission import Admission


def test_whatever_happens_to_a_run_its_steps_are_those_of_its_decisions():
    found = interleave(50_000, seed=1)
    assert found["events"] >= 50_000
    for event in ("lose", "reject", "skip", "publish late", "kill and resume"):
        assert found[event] > 300, event
    assert found["decisions taken from the journal"] > 5_000
    bound = {staleness: staleness for staleness in range(LARGEST_STALENESS + 1)}
    assert found["largest staleness by max_staleness"] == bound, "no more, and no less is reached"


class TooFar(Admission):
    """Admits one step more than it may."""

    def __init__(self, *, max_staleness, **settings):
        super().__init__(max_staleness=max_staleness + 1, **settings)


class Forgetful(Admission):
    """Does not sample again what was lost."""

    def lost(self, draw):
        self._leave(draw)


class TooSoon(Admission):
    """Takes a step whose last draw is not decided, as if it were rejected."""

    def step_draws(self):
        if self._first_undecided == self.frontier + 1 and self.running:
            self._rejected.insert(0, self._first_undecided)
            self._first_undecided += 1
        return super().step_draws()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (TooFar, r"seed 0, run \d+, {'groups_per_step': .*}: draw \d+: staleness \d"),
        (Forgetful, r"step \d+ waits for nothing"),
        (TooSoon, "is not decided"),
    ],
    ids=["too-far", "forgetful", "too-soon"],
)
def test_an_admission_that_is_wrong_is_found(monkeypatch, wrong, message):
    monkeypatch.setattr(interleavings, "Admission", wrong)
    with pytest.raises(AssertionError, match=message):
        interleave(20_000, seed=0)
