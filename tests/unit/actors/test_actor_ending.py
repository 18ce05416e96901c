"""What ends a response: what the configuration names, and what ends a turn."""

from __future__ import annotations

from actors.engines.sampling import Ending
from rlhf_ray.config.rollout import RolloutConfig


def test_the_configurations_tokens_and_those_that_end_a_turn_end_a_response():
    ending = Ending.of(RolloutConfig(stop=["."], stop_token_ids=[7, 3]), (2, 3))
    assert ending.token_ids == [2, 3, 7]
    assert ending.stop == (".",)
    assert Ending().token_ids == []


def test_with_ignore_eos_the_configurations_alone_do():
    ending = Ending.of(RolloutConfig(stop_token_ids=[7], ignore_eos=True), (2, 3))
    assert ending.token_ids == [7]
