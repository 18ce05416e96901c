"""What a row of the table says of an algorithm is what its function does."""

from typing import Any

import pytest
import torch
from alg_batches import make_batch, policy_case, random_masks
from pydantic import ValidationError

from rlhf_ray.algorithms.advantages import (
    ADVANTAGES,
    AdvantageInputs,
    estimate_advantages,
)
from rlhf_ray.algorithms.correction import CORRECTIONS, CorrectionInputs
from rlhf_ray.algorithms.ragged import positions
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig, CorrectionConfig, KlConfig
from rlhf_ray.config.base import Config
from rlhf_ray.config.dpo import PreferenceLossConfig
from rlhf_ray.config.online import OnlineConfig

GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 2])
BATCH = make_batch(random_masks(1), 1, torch.float64, scale=2.0)


def advantages(name: str, **changes: Any) -> torch.Tensor:
    params = AlgorithmConfig.model_validate(
        {"advantage": name, "gamma": 0.97, "lam": 0.9, **changes}
    )
    rewards_BK = torch.linspace(-1.0, 1.0, 14, dtype=torch.float64).view(7, 2).square()
    inputs = AdvantageInputs(
        token_rewards_T=BATCH.returns_T,
        values_T=BATCH.values_T,
        mask_T=BATCH.mask_T,
        segments_T=BATCH.segments_T,
        groups_B=GROUPS,
        rewards_BK=rewards_BK,
        applies_BK=torch.ones_like(rewards_BK, dtype=torch.bool),
        weights_K=torch.ones(2, dtype=torch.float64),
        turns_T=positions(BATCH.segments_T) // 2,
    )
    return estimate_advantages(name, inputs, params).advantages_T


@pytest.mark.parametrize("name", ADVANTAGES)
def test_an_advantage_looks_at_what_its_row_says(name: str) -> None:
    row, plain_T = table.ADVANTAGES[name], advantages(name)
    assert torch.equal(advantages(name, gamma=0.5), plain_T) != row.discounts
    assert torch.equal(advantages(name, turn_share=0.9), plain_T) != row.compares_turns
    assert torch.equal(advantages(name, whiten_advantages=True), plain_T) == row.whitens
    algorithm = AlgorithmConfig.model_validate({"advantage": name})
    config = OnlineConfig.model_validate(
        {
            "run_dir": "run",
            "total_steps": 1,
            "data": {"path": "prompts"},
            "policy": {"model": {"path": "model"}},
            "reward": {"functions": [{"path": "scorers:score"}]},
            "algorithm": algorithm,
        }
    )
    assert config.uses_value == (table.ADVANTAGES[name].needs_values)
    assert config.smallest_group == (2 if row.needs_groups else 1)
    assert algorithm.tells_rewards_apart == row.needs_parts


CHANGES = {
    "clip_low": 0.05,
    "clip_high": 0.05,
    "dual_clip": 1.1,
    "sapo_temperature_positive": 3.0,
    "sapo_temperature_negative": 3.0,
}


@pytest.mark.parametrize("name", table.POLICY_LOSSES)
def test_a_policy_loss_looks_at_the_keys_of_its_row(name: str) -> None:
    batches = [make_batch(random_masks(seed), seed, torch.float64, scale=2.0) for seed in range(4)]

    def losses(**change: float) -> torch.Tensor:
        case = policy_case(name, **{"dual_clip": 0.0, **change})
        return torch.cat([case(batch).loss_T for batch in batches])

    plain_T = losses()
    looked_at = {
        key for key, value in CHANGES.items() if not torch.equal(losses(**{key: value}), plain_T)
    }
    assert looked_at == set(table.POLICY_LOSSES[name].keys)


@pytest.mark.parametrize("name", table.CORRECTIONS)
def test_a_correction_looks_at_the_keys_of_its_row(name: str) -> None:
    inputs = CorrectionInputs(
        old_logprobs_T=BATCH.logprobs_T,
        behaviour_logprobs_T=BATCH.old_logprobs_T,
        mask_T=BATCH.mask_T,
        segments_T=BATCH.segments_T,
        num_sequences=len(BATCH.lens_B),
        level="token",
    )
    plain = CorrectionConfig(cap=3.0, low=0.1)
    weights_T = CORRECTIONS[name](inputs, plain).weights_T
    looked_at = {
        key
        for key, value in {"cap": 1.1, "low": 0.9}.items()
        if not torch.equal(
            CORRECTIONS[name](inputs, plain.model_copy(update={key: value})).weights_T, weights_T
        )
    }
    assert looked_at == set(table.CORRECTIONS[name])


@pytest.mark.parametrize(
    ("section", "name", "bad"),
    [
        (AlgorithmConfig, "gamma", 1.1),
        (AlgorithmConfig, "lam", -0.1),
        (AlgorithmConfig, "clip_low", -0.1),
        (AlgorithmConfig, "clip_high", float("nan")),
        (AlgorithmConfig, "sapo_temperature_positive", 0.0),
        (AlgorithmConfig, "sapo_temperature_negative", -1.0),
        (AlgorithmConfig, "value_clip", 0.0),
        (CorrectionConfig, "cap", 0.5),
        (CorrectionConfig, "low", 1.5),
        (KlConfig, "coefficient", -0.1),
        (KlConfig, "target", 0.0),
        (KlConfig, "horizon", 0),
        (PreferenceLossConfig, "beta", 0.0),
        (PreferenceLossConfig, "discopop_tau", -1.0),
        (PreferenceLossConfig, "label_smoothing", 0.5),
        (PreferenceLossConfig, "simpo_gamma", -0.1),
        (PreferenceLossConfig, "desirable_weight", 0.0),
        (PreferenceLossConfig, "undesirable_weight", 0.0),
    ],
)
def test_parameters_of_losses_are_refused_out_of_range(
    section: type[Config], name: str, bad: float
) -> None:
    with pytest.raises(ValidationError) as refused:
        section(**{name: bad})
    assert (name,) in {error["loc"] for error in refused.value.errors()}


def test_the_configuration_refuses_a_dual_clip_of_one() -> None:
    with pytest.raises(
        ValidationError, match=r"dual_clip must be above 1, or 0 for none, got 1\.0"
    ):
        AlgorithmConfig(advantage="gae", dual_clip=1.0)
