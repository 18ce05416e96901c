"""What the controller knows of rollouts that no engine sampled."""

from __future__ import annotations

from rlhf_ray.roles.groups import RolloutGroup
from rlhf_ray.types import Prompt, RolloutSummary


def group_of(draw: int, *, num_samples: int = 1) -> RolloutGroup:
    """Samples of one token each; in place of a reference to them it has the draw."""
    summaries_G = tuple(
        RolloutSummary(
            sample=sample,
            num_prompt_tokens=1,
            num_response_tokens=1,
            num_action_tokens=1,
            finish_reason="stop",
            version_min=0,
            version_max=0,
            version_sum=0,
        )
        for sample in range(num_samples)
    )
    prompt = Prompt(prompt_id=f"p{draw}", token_ids_T=(1,), text="?")
    return RolloutGroup(prompt=prompt, draw=draw, summaries_G=summaries_G, rollouts=draw)
