"""Configurations of the jobs on rows: what does not go together is refused at once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.errors import ConfigError

BASE = {"data": {"path": "pairs.jsonl"}, "policy": {"model": {"path": "model"}}}


def dpo(**settings):
    return DpoConfig.model_validate({**BASE, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": []}, "at least one loss"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "one entry for each of 2"),
        ({"loss_weights": [-1.0]}, "must be at least 0"),
        ({"loss_weights": [0.0]}, "a weight above 0"),
        ({"loss_type": ["kto", "sft"]}, "kto learns from single answers"),
        ({"loss_type": ["kto"], "rpo_alpha": 0.1}, "rpo_alpha"),
        ({"loss_type": ["exo_pair"]}, "label_smoothing above 0"),
        ({"loss_type": ["simpo"], "f_divergence_type": "forward_kl"}, "reverse_kl for simpo"),
        ({"loss_type": ["hinge"], "label_smoothing": 0.1}, "must be 0 for hinge, which ignore it"),
        ({"loss_type": ["sigmoid", "ipo"], "label_smoothing": 0.1}, "must be 0 for ipo"),
        ({"reference_kind": "adapter_off"}, "lora.rank above 0"),
        ({"loss_type": ["sigmod"]}, "sigmoid"),
        ({"placement": {"policy": {"gpus_per_rank": 2}}}, "more ranks instead"),
        ({"placement": {"reference": {"share": "reference"}}}, "names itself"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        dpo(**settings)


@pytest.mark.parametrize(
    ("settings", "losses", "roles"),
    [
        ({}, {"sigmoid": 1.0}, {"policy", "reference"}),
        ({"rpo_alpha": 0.2}, {"sigmoid": 1.0, "sft": 0.2}, {"policy", "reference"}),
        (
            {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5], "rpo_alpha": 0.5},
            {"ipo": 1.0, "sft": 1.0},
            {"policy", "reference"},
        ),
        ({"loss_type": ["simpo"]}, {"simpo": 1.0}, {"policy"}),
        ({"reference_free": True}, {"sigmoid": 1.0}, {"policy"}),
    ],
)
def test_losses_and_roles_follow(settings, losses, roles):
    config = dpo(**settings)
    assert config.weighted_losses == losses
    assert set(config.groups) == roles


def test_an_epoch_holds_at_least_one_batch():
    with pytest.raises(ConfigError, match="at most the data's 10 rows"):
        dpo(epochs=1, batch_size=32).for_rows(10)
