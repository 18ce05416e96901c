"""A group that cannot be sampled or scored is tried again, then left out; or it ends the run."""

from __future__ import annotations

import pytest
from fake_groups import group_of

from rlhf_ray.config.fault_tolerance import RowFailureConfig
from rlhf_ray.errors import GroupFailed, RunError
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup
from rlhf_ray.rollouts import groups
from rlhf_ray.rollouts.groups import Sampling, Scoring, Tries
from rlhf_ray.types import Score


class FailingReward:
    """Fails as often at each draw as `fails` says, by these causes."""

    def __init__(self, **fails: list[str]) -> None:
        self.fails, self.num_asked = {int(name[1:]): list(f) for name, f in fails.items()}, 0

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        self.num_asked += 1
        if causes := self.fails.get(group.draw):
            raise GroupFailed.of(f"draw {group.draw} fails", cause=causes.pop(0))
        return tuple(Score(total=1.0, parts={"f": 1.0}) for _ in group.summaries_G)

    async def offload(self) -> None:
        """Nothing is anywhere."""


def scoring_of(reward: FailingReward, **config: object) -> Scoring:
    return Scoring(reward, Tries(RowFailureConfig.model_validate(config)))


async def test_a_group_that_fails_is_tried_again_and_says_why_it_failed():
    reward = FailingReward(d3=["hung", "raised"])
    scored = await scoring_of(reward).score(group_of(3, num_samples=2))
    assert [score.total for score in scored.scores_G] == [1.0, 1.0]
    assert (scored.failed, scored.is_skipped, reward.num_asked) == (("hung", "raised"), False, 3)


async def test_after_the_last_try_it_has_no_score_at_all():
    reward = FailingReward(d3=["crashed"] * 9)
    scored = await scoring_of(reward, retries=1).score(group_of(3, num_samples=2))
    assert [score.total for score in scored.scores_G] == [None, None]
    assert (scored.failed, scored.is_skipped, reward.num_asked) == (("crashed",) * 2, True, 2)


async def test_it_ends_the_run_where_that_is_configured():
    scoring = scoring_of(FailingReward(d3=["raised"] * 9), then="stop", retries=0)
    with pytest.raises(RunError, match=r"^draw 3 fails$") as caught:
        await scoring.score(group_of(3, num_samples=2))
    assert not isinstance(caught.value, GroupFailed)


async def test_another_failure_is_not_tried_again():
    class Broken(FailingReward):
        async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
            self.num_asked += 1
            raise RunError("the rollouts are lost")

    with pytest.raises(RunError, match="the rollouts are lost"):
        await scoring_of(reward := Broken()).score(group_of(0, num_samples=2))
    assert reward.num_asked == 1


@pytest.mark.parametrize(("share", "num_passed"), [(0.0, 0), (0.02, 2), (0.5, 50)])
async def test_too_many_of_them_end_the_run(share, num_passed):
    failing = {f"d{draw}": ["hung"] for draw in range(99)}
    scoring = scoring_of(FailingReward(**failing), retries=0, most_skipped_share=share)
    for draw in range(num_passed):
        assert (await scoring.score(group_of(draw, num_samples=2))).is_skipped
    message = (
        f"draw {num_passed} fails; {num_passed + 1} of the last {num_passed + 1} groups could not "
        rf"be sampled or scored, more than failures.row.most_skipped_share \({share:g}\) lets pass"
    )
    with pytest.raises(RunError, match=message):
        await scoring.score(group_of(num_passed, num_samples=2))


async def test_what_was_long_ago_does_not_count(monkeypatch):
    monkeypatch.setattr(groups, "WINDOW", 200)
    failing = {f"d{draw}": ["hung"] for draw in (0, 1, 2, 3, 300, 301, 302, 303, 304)}
    scoring = scoring_of(FailingReward(**failing), retries=0, most_skipped_share=0.04)
    skipped = [
        draw
        for draw in range(304)
        if (await scoring.score(group_of(draw, num_samples=2))).is_skipped
    ]
    assert skipped == [0, 1, 2, 3, 300, 301, 302, 303]


class FailingEngines:
    """Its environments fail as often at each draw as `fails` says, by these causes."""

    def __init__(self, **fails: list[str]) -> None:
        self.fails, self.asked = {int(name[1:]): list(f) for name, f in fails.items()}, []

    async def generate(self, requests, *, together=True):
        self.asked.append(([request.draw for request in requests], together))
        return [self._answer(request) for request in requests]

    async def _answer(self, request):
        if causes := self.fails.get(request.draw):
            raise GroupFailed.of(f"draw {request.draw} fails", cause=causes.pop(0))
        return group_of(request.draw, num_samples=2)


def request_of(draw: int) -> GenerationRequest:
    prompt = group_of(draw).prompt
    return GenerationRequest(
        prompt=prompt, draw=draw, seeds_G=(1, 2), temperature=1.0, max_new_tokens=8
    )


async def test_a_group_whose_environment_fails_is_sampled_again_by_itself():
    engines = FailingEngines(d1=["crashed", "hung"])
    sampling = Sampling(engines, Tries(RowFailureConfig()))
    first, second = await sampling.all([request_of(0), request_of(1)])
    assert (first.failed, second.failed) == ((), ("crashed", "hung"))
    assert len(first.summaries_G) == len(second.summaries_G) == 2
    assert engines.asked == [([0, 1], True), ([1], False), ([1], False)]


async def test_after_the_last_try_it_has_no_samples_and_nobody_scores_it():
    tries = Tries(RowFailureConfig(retries=1))
    [group] = await Sampling(FailingEngines(d1=["raised"] * 9), tries).all([request_of(1)])
    assert (group.summaries_G, group.failed) == ((), ("raised", "raised"))
    assert (group.draw, group.prompt.prompt_id) == (1, "p1")
    scored = await Scoring(reward := FailingReward(), tries).score(group)
    assert (scored.is_skipped, scored.scores_G, scored.failed) == (True, (), ())
    assert not reward.num_asked


async def test_what_environments_and_rewards_fail_at_is_counted_together():
    tries = Tries(RowFailureConfig(retries=0))
    await Sampling(FailingEngines(d1=["raised"]), tries).all([request_of(1)])
    scoring = Scoring(FailingReward(d2=["hung"], d3=["hung"]), tries)
    assert (await scoring.score(group_of(2))).is_skipped
    with pytest.raises(RunError, match="draw 3 fails; 3 of the last 3 groups could not"):
        await scoring.score(group_of(3))


async def test_an_environment_that_fails_ends_the_run_where_that_is_configured():
    sampling = Sampling(
        FailingEngines(d1=["raised"] * 9), Tries(RowFailureConfig(then="stop", retries=1))
    )
    with pytest.raises(RunError, match=r"^draw 1 fails$") as caught:
        await sampling.all([request_of(0), request_of(1)])
    assert not isinstance(caught.value, GroupFailed)
