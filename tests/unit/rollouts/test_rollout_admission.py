"""No draw is older than allowed, steps are a function of decisions, and a step always comes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from rlhf_ray.rollouts.admission import Admission, StepDraws


def in_rounds(accepts, start, *, groups_per_step, max_rounds):
    """The straight way: a round asks for as many as are missing. -> the draws of the step."""
    accepted, rejected, draw = [], [], start
    for _ in range(max_rounds):
        for _ in range(groups_per_step - len(accepted)):
            (accepted if accepts(draw) else rejected).append(draw)
            draw += 1
    return StepDraws(accepted=tuple(accepted), rejected=tuple(rejected))


class AnyOrder(RuleBasedStateMachine):
    """Draws are decided, lost and trained in any order; engines are late with their versions.

    The run may be killed: from frontier and steps alone it goes on, and samples again what it had.
    """

    @initialize(
        groups_per_step=st.integers(1, 5),
        max_rounds=st.integers(1, 4),
        max_staleness=st.integers(0, 3),
        reject_every=st.integers(2, 9),
        seed=st.integers(0, 1000),
    )
    def begin(self, reject_every, seed, **settings):
        self.settings = settings
        self.accepts = lambda draw: (draw * 7919 + seed) % 11 % reject_every > 0
        self.admission = Admission(**settings)
        self.admitted_at: dict[int, int] = {}
        self.saved = (0, 0)

    @rule()
    def admit(self):
        for draw in self.admission.admit():
            self.admitted_at[draw] = self.admission.version

    def one_of_running(self, data):
        return data.draw(st.sampled_from(sorted(self.admission.running)))

    @precondition(lambda self: self.admission.running)
    @rule(data=st.data())
    def decide(self, data):
        draw = self.one_of_running(data)
        self.admission.decided(draw, accepted=self.accepts(draw))

    @precondition(lambda self: self.admission.running)
    @rule(data=st.data())
    def lose(self, data):
        self.admission.lost(self.one_of_running(data))

    @precondition(lambda self: self.admission.step_draws() is not None)
    @rule()
    def train(self):
        expected = in_rounds(
            self.accepts,
            self.admission.frontier,
            groups_per_step=self.settings["groups_per_step"],
            max_rounds=self.settings["max_rounds"],
        )
        assert self.admission.consume() == expected, "whatever the order of decisions was"
        for draw in (*expected.accepted, *expected.rejected):
            # Step t trains the weights of version t - 1.
            staleness = self.admission.steps - 1 - self.admitted_at[draw]
            assert staleness <= self.settings["max_staleness"]

    @precondition(lambda self: self.admission.version < self.admission.steps)
    @rule()
    def publish(self):
        self.admission.moved_to(self.admission.version + 1)

    @rule()
    def save(self):
        self.saved = (self.admission.frontier, self.admission.steps)

    @rule()
    def kill_and_resume(self):
        frontier, steps = self.saved
        self.admission = Admission(**self.settings, frontier=frontier, steps=steps)

    def teardown(self):
        """From wherever it is, a step comes once everything that runs is decided."""
        if not hasattr(self, "admission"):
            return
        steps = self.admission.steps
        while self.admission.steps == steps:
            if self.admission.version < self.admission.steps:
                self.publish()
            self.admit()
            assert self.admission.running or self.admission.step_draws() is not None, "it waits"
            for draw in sorted(self.admission.running, reverse=True):
                self.admission.decided(draw, accepted=self.accepts(draw))
            if self.admission.step_draws() is not None:
                self.train()


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase


@given(
    rejected=st.sets(st.integers(0, 40)),
    groups_per_step=st.integers(1, 6),
    max_rounds=st.integers(1, 4),
)
def test_without_staleness_a_wave_is_a_round(rejected, groups_per_step, max_rounds):
    """Each asks for as many as are still missing, and no more once the rounds are used up."""
    admission = Admission(groups_per_step=groups_per_step, max_rounds=max_rounds)
    for step in range(3):
        admission.moved_to(step)
        num_missing, num_rounds = groups_per_step, 0
        while draws := admission.admit():
            assert len(draws) == num_missing
            num_rounds += 1
            for draw in draws:
                assert not admission.admit(), "requests of a wave share a batch"
                admission.decided(draw, accepted=draw not in rejected)
                num_missing -= draw not in rejected
        assert num_missing == 0 or num_rounds == max_rounds
        taken = admission.consume()
        assert len(taken.accepted) == groups_per_step - num_missing
        assert not admission.admit(), "the engines do not have these weights yet"


def test_with_staleness_steps_ahead_are_sampled_while_one_is_trained():
    admission = Admission(groups_per_step=2, max_staleness=1)
    assert admission.admit() == [0, 1, 2, 3]
    admission.decided(3, accepted=True)
    admission.decided(1, accepted=True)
    assert admission.admit() == []
    assert admission.step_draws() is None, "the first draw holds the step up"
    admission.decided(0, accepted=True)
    assert admission.consume() == StepDraws(accepted=(0, 1), rejected=())
    assert admission.admit() == [], "taken, but not published"
    admission.moved_to(1)
    assert admission.admit() == [4, 5]


def test_a_rejected_draw_makes_room_for_another_only_while_there_are_rounds():
    for max_rounds, more in ((1, []), (2, [2])):
        admission = Admission(groups_per_step=2, max_rounds=max_rounds, max_staleness=0)
        assert admission.admit() == [0, 1]
        admission.decided(0, accepted=False)
        admission.decided(1, accepted=True)
        assert admission.admit() == more


def test_what_is_lost_comes_before_what_is_new():
    admission = Admission(groups_per_step=2, max_rounds=2, max_staleness=1)
    assert admission.admit() == [0, 1, 2, 3]
    admission.lost(1)
    admission.decided(0, accepted=False)
    assert admission.admit() == [1, 4]


def test_nothing_is_decided_that_is_not_sampled():
    admission = Admission(groups_per_step=2)
    with pytest.raises(AssertionError, match="draw 0 is not being sampled"):
        admission.decided(0, accepted=True)
    admission.admit()
    with pytest.raises(AssertionError, match="draws of step 1 are not decided"):
        admission.consume()


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("groups_per_step", 0, 1),
        ("max_rounds", 0, 1),
        ("max_staleness", -1, 0),
    ],
)
def test_numbers_that_are_too_small_are_named(name, value, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {value}"):
        Admission(**{"groups_per_step": 2, name: value})


def test_a_draw_may_be_sampled_by_what_comes_before_the_first_step_that_it_may_be_in():
    admission = Admission(groups_per_step=4, frontier=20, steps=5)
    assert [admission.newest_version(draw) for draw in (20, 23, 24, 27, 28)] == [5, 5, 6, 6, 7]
    # With all rounds a step takes 12 draws.
    refilled = Admission(groups_per_step=4, max_rounds=3, frontier=20, steps=5)
    assert [refilled.newest_version(draw) for draw in (20, 31, 32)] == [5, 5, 6]
