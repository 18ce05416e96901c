"""Step 4 of a training step: scores, KL and values become token rewards, advantages, experience.

Pure, and over the whole batch at once: groups are complete and means are those of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.advantages import AdvantageInputs, estimate_advantages
from rlhf_ray.algorithms.kl import KL_ESTIMATORS
from rlhf_ray.algorithms.ragged import masked
from rlhf_ray.algorithms.ratios import is_clamped, log_ratio
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.experience.rewards import reward_parts, shape_scores, token_rewards
from rlhf_ray.experience.turns import turn_numbers, turn_rewards
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Experience, Rollout, Score

Arrays = Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class BuiltExperience:
    """A step's experience.

    Attributes:
        experience_B: Of the rollouts that are trained (`AlgorithmConfig.trains`), in their order.
        metrics: `policy/kl_ref` and `policy/kl_clamp_share`, where both policies are known.
    """

    experience_B: list[Experience]
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Flat:
    """Everything about a batch, end to end."""

    old_T: torch.Tensor
    reference_T: torch.Tensor
    values_T: torch.Tensor
    last_values_B: torch.Tensor
    mask_T: torch.Tensor
    segments_T: torch.Tensor
    turns_T: torch.Tensor
    turn_rewards_T: torch.Tensor
    groups_B: torch.Tensor


def build_experience(
    rollouts_B: Sequence[Rollout],
    scores_B: Sequence[Score],
    *,
    old_logprobs_B: Arrays | None,
    reference_logprobs_B: Arrays | None,
    values_B: Arrays | None,
    kl_coefficient: float,
    spec: ExperienceSpec,
) -> BuiltExperience:
    """Compute advantages and everything else that an update needs.

    Args:
        rollouts_B: The step's rollouts.
        scores_B: Their scores, before shaping, each with a total, in which an environment's
            rewards are; their parts count where rewards are told apart.
        old_logprobs_B: Of the policy before the update, by a pass of the trainer, float [T] each;
            None where `spec.old_logprobs` says that the engine or the update has them.
        reference_logprobs_B: Of the reference; None where the job has none.
        values_B: Of the critic, the state after the last token included, float [T + 1] each; None
            where the job has none.
        kl_coefficient: Current weight of the KL to the reference.
        spec: Estimators and their parameters.

    Raises:
        ValueError: A pass of the trainer was to be made and was not.
    """
    if spec.old_logprobs == "engine":
        old_logprobs_B = [rollout.logprobs_T for rollout in rollouts_B]
    elif spec.old_logprobs == "trainer" and old_logprobs_B is None:
        raise ValueError("old_logprobs_B must be given for old_logprobs trainer, got None")
    flat = _flatten(rollouts_B, old_logprobs_B, reference_logprobs_B, values_B)
    kl_T = KL_ESTIMATORS[spec.algorithm.kl.estimator](flat.old_T, flat.reference_T)
    in_reward = reference_logprobs_B is not None and spec.algorithm.kl.where == "reward"
    outputs = estimate_advantages(
        spec.algorithm.advantage,
        _compared(
            rollouts_B,
            scores_B,
            flat,
            kl_T=kl_T if in_reward else None,
            kl_coefficient=kl_coefficient,
            has_values=values_B is not None,
            spec=spec,
        ),
        spec.algorithm,
    )
    metrics: dict[str, float] = {}
    if reference_logprobs_B is not None and old_logprobs_B is not None:
        clamped_T = is_clamped(log_ratio(flat.old_T, flat.reference_T))
        to_reference = {
            "policy/kl_ref": metric_sums.mean_of(kl_T, flat.mask_T),
            "policy/kl_clamp_share": metric_sums.mean_of(clamped_T, flat.mask_T),
        }
        metrics = metric_sums.values(to_reference)
    advantages_T, returns_T = outputs.advantages_T, outputs.returns_T
    if returns_T is None:
        returns_T = torch.zeros_like(advantages_T)
    return BuiltExperience(
        experience_B=_split(rollouts_B, flat, advantages_T, returns_T, spec.algorithm),
        metrics=metrics,
    )


def _compared(
    rollouts_B: Sequence[Rollout],
    scores_B: Sequence[Score],
    flat: _Flat,
    *,
    kl_T: torch.Tensor | None,
    kl_coefficient: float,
    has_values: bool,
    spec: ExperienceSpec,
) -> AdvantageInputs:
    """What an estimator looks at; `kl_T` is that of the reward.

    What is shaped, and stands on a rollout's last token, is what its rewards say of it as a whole;
    the environment's stay with their turns.
    """
    shaped_B = shape_scores(
        [
            total - (rollout.environment_reward or 0.0)
            for total, rollout in zip(_totals(scores_B), rollouts_B, strict=True)
        ],
        rollouts_B,
        spec.shaping,
        max_new_tokens=spec.max_new_tokens,
    )
    algorithm = spec.algorithm
    is_trained_B = torch.tensor([algorithm.trains(r.finish_reason) for r in rollouts_B])
    inputs = AdvantageInputs(
        token_rewards_T=token_rewards(
            shaped_B,
            kl_T,
            kl_coefficient=kl_coefficient,
            mask_T=flat.mask_T,
            segments_T=flat.segments_T,
            turn_rewards_T=flat.turn_rewards_T,
        ),
        values_T=flat.values_T if has_values else None,
        last_values_B=_last_values(rollouts_B, flat, algorithm),
        mask_T=flat.mask_T,
        trained_T=flat.mask_T & is_trained_B[flat.segments_T],
        segments_T=flat.segments_T,
        groups_B=flat.groups_B,
        turns_T=flat.turns_T,
    )
    if not algorithm.tells_rewards_apart:
        return inputs
    parts = reward_parts(rollouts_B, scores_B, spec)
    return replace(
        inputs,
        rewards_BK=parts.rewards_BK,
        applies_BK=parts.applies_BK,
        weights_K=parts.weights_K,
    )


def _totals(scores_B: Sequence[Score]) -> list[float]:
    totals = [score.total for score in scores_B if score.total is not None]
    if len(totals) < len(scores_B):
        raise ValueError(f"{len(scores_B) - len(totals)} of {len(scores_B)} rows have no score")
    return totals


def _last_values(
    rollouts_B: Sequence[Rollout], flat: _Flat, algorithm: AlgorithmConfig
) -> torch.Tensor | None:
    """The critic's word on where responses were cut; 0 for those that ended."""
    if algorithm.truncated != "bootstrap":
        return None
    is_cut_B = torch.tensor([rollout.finish_reason == "length" for rollout in rollouts_B])
    return masked(flat.last_values_B, is_cut_B)


def _flatten(
    rollouts_B: Sequence[Rollout],
    old_logprobs_B: Arrays | None,
    reference_logprobs_B: Arrays | None,
    values_B: Arrays | None,
) -> _Flat:
    lens = [len(rollout.response_ids_T) for rollout in rollouts_B]
    mask_T = torch.from_numpy(np.concatenate([rollout.action_mask_T for rollout in rollouts_B]))
    zeros = [np.zeros(n, dtype=np.float32) for n in lens]

    def joined(arrays: Arrays | None) -> torch.Tensor:
        return masked(torch.from_numpy(np.concatenate(list(arrays or zeros))), mask_T)

    return _Flat(
        old_T=joined(old_logprobs_B),
        reference_T=joined(reference_logprobs_B),
        values_T=joined([values[:-1] for values in values_B] if values_B is not None else None),
        last_values_B=torch.tensor(
            [float(values[-1]) for values in values_B]
            if values_B is not None
            else [0.0] * len(lens)
        ),
        mask_T=mask_T,
        segments_T=torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens)),
        turns_T=torch.from_numpy(np.concatenate([turn_numbers(r) for r in rollouts_B])),
        turn_rewards_T=torch.from_numpy(np.concatenate([turn_rewards(r) for r in rollouts_B])),
        groups_B=torch.tensor([rollout.draw for rollout in rollouts_B]),
    )


def _split(
    rollouts_B: Sequence[Rollout],
    flat: _Flat,
    advantages_T: torch.Tensor,
    returns_T: torch.Tensor,
    algorithm: AlgorithmConfig,
) -> list[Experience]:
    ends = np.cumsum([len(rollout.response_ids_T) for rollout in rollouts_B])[:-1]
    columns = [
        np.split(tensor.numpy().astype(np.float32, copy=False), ends)
        for tensor in (flat.old_T, flat.reference_T, flat.values_T, advantages_T, returns_T)
    ]
    return [
        Experience(
            rollout=rollout,
            old_logprobs_T=old,
            reference_logprobs_T=reference,
            values_T=values,
            advantages_T=advantages,
            returns_T=returns,
        )
        for rollout, old, reference, values, advantages, returns in zip(
            rollouts_B, *columns, strict=True
        )
        if algorithm.trains(rollout.finish_reason)
    ]
