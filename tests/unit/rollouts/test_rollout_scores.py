"""A group that cannot be scored is tried again, then left out and counted; or it ends the run."""

from __future__ import annotations

import pytest
from fake_groups import group_of

from rlhf_ray.config.fault_tolerance import RowFailureConfig
from rlhf_ray.errors import GroupFailed, RunError
from rlhf_ray.roles.groups import RolloutGroup
from rlhf_ray.rollouts import groups
from rlhf_ray.rollouts.groups import Scoring
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
    return Scoring(reward, RowFailureConfig.model_validate(config))


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
        rf"be scored, more than failures.row.most_skipped_share \({share:g}\) lets pass"
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
