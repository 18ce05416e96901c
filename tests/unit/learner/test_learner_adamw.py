"""Weight decay pulls at matrices alone, and is the configuration's, after a resume as well."""

from __future__ import annotations

import pytest
import torch
from learning import plan_of
from transformers import AutoModelForSequenceClassification, Trainer

from rlhf_ray.learner.optim import parameter_groups


@pytest.mark.parametrize("family", ["llama", "qwen2", "bert"])
def test_what_decays_is_what_decays_in_transformers_trainer(make_model, family):
    model = AutoModelForSequenceClassification.from_pretrained(make_model(family))
    decaying, spared = parameter_groups(model, weight_decay=0.1)
    assert (decaying["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ours = {names[id(parameter)] for parameter in decaying["params"]}
    assert ours == set(Trainer.get_decay_parameter_names(None, model))
    assert len(ours) + len(spared["params"]) == len(names)


def test_there_is_one_group_where_nothing_is_spared_and_none_of_what_is_frozen():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.LayerNorm(2))
    module[1].requires_grad_(False)
    [group] = parameter_groups(module, weight_decay=0.0)
    assert group["params"] == [module[0].weight]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_optimiser_has_the_settings_of_now(make_policy, rows, tmp_path, stage):
    zero = {"stage": stage}
    learner = make_policy(zero=zero)
    learner.update(rows, plan_of(rows), 0.0)
    learner.save(tmp_path / "saved")
    other = make_policy(zero=zero, optim={"weight_decay": 0.5, "betas": (0.8, 0.9)})
    other.load(tmp_path / "saved")
    groups = other.engine.engine.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.9)}
    other.update(rows, plan_of(rows), 0.0)
