"""Step 4 of a training step: scores, KL and values become token rewards, advantages, experience.

Pure, and over the whole batch at once: groups are complete and means are those of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.advantages import ADVANTAGES, AdvantageInputs, AdvantageParams
from rlhf_ray.algorithms.correction import CORRECTIONS, CorrectionInputs, CorrectionParams
from rlhf_ray.algorithms.kl import KL_ESTIMATORS
from rlhf_ray.algorithms.ragged import own
from rlhf_ray.algorithms.ratios import is_clamped
from rlhf_ray.algorithms.token_rewards import token_rewards
from rlhf_ray.algorithms.whitening import whiten
from rlhf_ray.loops.shaped_scores import shape_scores
from rlhf_ray.specs import AssemblySpec
from rlhf_ray.types import Experience, Rollout

Arrays = Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """A step's experience.

    Attributes:
        experience_B: In the order of the rollouts.
        metrics: `mismatch/*` and `policy/kl_ref`.
    """

    experience_B: list[Experience]
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _Flat:
    """Everything about a batch, end to end."""

    old_T: torch.Tensor
    reference_T: torch.Tensor
    values_T: torch.Tensor
    behaviour_T: torch.Tensor
    mask_T: torch.Tensor
    segments_T: torch.Tensor
    groups_B: torch.Tensor


def assemble(
    rollouts_B: Sequence[Rollout],
    scores_B: Sequence[float],
    *,
    old_logprobs_B: Arrays,
    reference_logprobs_B: Arrays | None,
    values_B: Arrays | None,
    kl_coefficient: float,
    spec: AssemblySpec,
) -> Assembly:
    """Compute advantages and everything else that an update needs.

    Args:
        rollouts_B: The step's rollouts.
        scores_B: Their scores, before shaping.
        old_logprobs_B: Of the trainer's policy before the update; float [T] each.
        reference_logprobs_B: Of the reference; None where the job has none.
        values_B: Of the critic; None where the job has none.
        kl_coefficient: Current weight of the KL to the reference.
        spec: Estimators and their parameters.
    """
    flat = _flatten(rollouts_B, old_logprobs_B, reference_logprobs_B, values_B)
    algorithm = spec.algorithm
    kl_T = KL_ESTIMATORS[algorithm.kl.estimator](flat.old_T, flat.reference_T)
    in_reward = reference_logprobs_B is not None and algorithm.kl.where == "reward"
    rewards_T = token_rewards(
        shape_scores(scores_B, rollouts_B, spec.shaping, max_new_tokens=spec.max_new_tokens),
        kl_T if in_reward else None,
        kl_coefficient=kl_coefficient,
        mask_T=flat.mask_T,
        segments_T=flat.segments_T,
    )
    outputs = ADVANTAGES[algorithm.advantage](
        AdvantageInputs(
            token_rewards_T=rewards_T,
            values_T=flat.values_T if values_B is not None else None,
            mask_T=flat.mask_T,
            segments_T=flat.segments_T,
            groups_B=flat.groups_B,
        ),
        AdvantageParams(gamma=algorithm.gamma, lam=algorithm.lam),
    )
    advantages_T = outputs.advantages_T
    if algorithm.whiten_advantages:
        advantages_T = whiten(advantages_T, flat.mask_T)
    correction = CORRECTIONS[algorithm.correction.kind](
        CorrectionInputs(
            old_logprobs_T=flat.old_T, behaviour_logprobs_T=flat.behaviour_T, mask_T=flat.mask_T
        ),
        CorrectionParams(cap=algorithm.correction.cap, low=algorithm.correction.low),
    )
    metrics = {f"mismatch/{k}": v for k, v in metric_sums.values(correction.metrics).items()}
    if reference_logprobs_B is not None:
        clamped_T = is_clamped(flat.old_T - flat.reference_T)
        to_reference = {
            "policy/kl_ref": metric_sums.mean_of(kl_T, flat.mask_T),
            "policy/kl_clamp_share": metric_sums.mean_of(clamped_T, flat.mask_T),
        }
        metrics |= metric_sums.values(to_reference)
    returns_T = outputs.returns_T if outputs.returns_T is not None else torch.zeros_like(rewards_T)
    return Assembly(
        experience_B=_split(rollouts_B, flat, advantages_T, returns_T, correction.weights_T),
        metrics=metrics,
    )


def _flatten(
    rollouts_B: Sequence[Rollout],
    old_logprobs_B: Arrays,
    reference_logprobs_B: Arrays | None,
    values_B: Arrays | None,
) -> _Flat:
    lens = [len(rollout.response_ids_T) for rollout in rollouts_B]
    mask_T = torch.from_numpy(np.concatenate([rollout.own_T for rollout in rollouts_B]))
    zeros = [np.zeros(n, dtype=np.float32) for n in lens]

    def joined(arrays: Arrays) -> torch.Tensor:
        return own(torch.from_numpy(np.concatenate(list(arrays))), mask_T)

    return _Flat(
        old_T=joined(old_logprobs_B),
        reference_T=joined(reference_logprobs_B if reference_logprobs_B is not None else zeros),
        values_T=joined(values_B if values_B is not None else zeros),
        behaviour_T=joined([rollout.logprobs_T for rollout in rollouts_B]),
        mask_T=mask_T,
        segments_T=torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens)),
        groups_B=torch.tensor([rollout.draw for rollout in rollouts_B]),
    )


def _split(
    rollouts_B: Sequence[Rollout],
    flat: _Flat,
    advantages_T: torch.Tensor,
    returns_T: torch.Tensor,
    correction_T: torch.Tensor,
) -> list[Experience]:
    ends = np.cumsum([len(rollout.response_ids_T) for rollout in rollouts_B])[:-1]
    columns = [
        np.split(tensor.numpy().astype(np.float32, copy=False), ends)
        for tensor in (
            flat.old_T, flat.reference_T, flat.values_T, advantages_T, returns_T, correction_T
        )
    ]  # fmt: skip
    return [
        Experience(
            rollout=rollout,
            old_logprobs_T=old,
            reference_logprobs_T=reference,
            values_T=values,
            advantages_T=advantages,
            returns_T=returns,
            correction_T=correction,
        )
        for rollout, old, reference, values, advantages, returns, correction in zip(
            rollouts_B, *columns, strict=True
        )
    ]
