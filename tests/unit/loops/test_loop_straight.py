"""At staleness 0 the loop is the straight one: the same calls, requests and weights, in order."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
from fake_companies import HashedCompany
from fake_sink import FakeSink
from fakes import make_config, make_prompts
from straight_loop import straight_loop

from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog

# Side by side in the loop, in any order.
BESIDE = {
    **dict.fromkeys(("policy.logprobs", "reference.logprobs", "value.values"), 1),
    **dict.fromkeys(("policy.update", "value.update"), 2),
}


def in_order(calls):
    """Calls that are made side by side, sorted; scoring, which is beside many, comes last."""
    num_scored = calls.count("reward.score")
    calls = [call for call in calls if call != "reward.score"]
    runs = [list(run) for _, run in groupby(calls, key=lambda call: BESIDE.get(call, call))]
    return [call for run in runs for call in sorted(run)], num_scored


@pytest.mark.parametrize(
    "dynamic",
    [{}, {"enabled": True, "max_rounds": 1}, {"enabled": True, "max_rounds": 3}],
    ids=["plain", "one round", "three rounds"],
)
@pytest.mark.parametrize("easy", [0, 3, 7], ids=["all differ", "few are alike", "most are alike"])
async def test_the_loop_asks_what_the_straight_loop_asks(tmp_path, dynamic, easy):
    config = make_config(
        tmp_path,
        total_steps=5,
        data={"path": "x", "shuffle": False},
        algorithm={"dynamic_sampling": dynamic},
        empty_steps_to_stop=9,
    )
    prompts = make_prompts(9)
    alike = {prompt.prompt_id for prompt in prompts[:easy]} if dynamic else set()

    def score(prompt_id, sample):
        return 1.0 if prompt_id in alike else float(sample)

    oracle = HashedCompany(config, score)
    await straight_loop(config, oracle.roles(), prompts)
    company = HashedCompany(config, score, delays=random.Random(easy))
    loop = OnlineLoop(
        config,
        company.roles(),
        prompts,
        Evaluation(config, []),
        MetricsLog([FakeSink()]),
    )
    await loop.run(None)
    assert company.requests == oracle.requests
    end = ["rollout.sleep@2", "policy.save", "value.save", "rollout.sleep@2"]
    assert in_order(company.calls) == in_order([*oracle.calls, *end])
    assert company.weights == oracle.weights != ""
