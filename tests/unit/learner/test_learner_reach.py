"""What a model's code computes nothing with is left alone, said, and does not end a run."""

from __future__ import annotations

import logging

import pytest
import torch
from learning import parameters_of, plan_of

from benchmarks.tiny_models import tiny
from rlhf_ray.errors import ConfigError

LORA = {"rank": 2, "alpha": 4.0}


@pytest.fixture
def saved(tmp_path):
    def save(model_type):
        tiny(model_type)[0].save_pretrained(tmp_path / model_type)
        return tmp_path / model_type

    return save


def test_a_bias_that_balances_experts_is_not_trained(saved, make_policy, rows, caplog):
    with caplog.at_level(logging.WARNING):
        learner = make_policy(path=saved("ernie4_5_moe"))
    assert "computes nothing with" in caplog.text
    before = parameters_of(learner)
    for _ in range(4):
        learner.update(rows, plan_of(rows), 0.0)
    same = [n for n, p in learner.engine.module.named_parameters() if torch.equal(p, before[n])]
    assert same
    assert all(name.endswith("e_score_correction_bias") for name in same)


def test_adapters_that_the_code_reads_past_are_left_out_and_the_others_train(
    saved, make_policy, rows, caplog
):
    with caplog.at_level(logging.WARNING):
        learner = make_policy(path=saved("jamba"), model={"lora": LORA})
    assert "computes nothing with" in caplog.text
    assert ".lora_A." in caplog.text
    before = parameters_of(learner)
    trained = [n for n, p in learner.engine.module.named_parameters() if p.requires_grad]
    for _ in range(4):
        learner.update(rows, plan_of(rows), 0.0)
    after = dict(learner.engine.module.named_parameters())
    assert trained
    assert not any(torch.equal(after[name], before[name]) for name in trained)


def test_nothing_to_train_is_refused(saved, make_policy):
    lora = {**LORA, "target_modules": ["dt_proj"]}
    with pytest.raises(ConfigError, match=r"nothing can be trained: .*dt_proj"):
        make_policy(path=saved("jamba"), model={"lora": lora})


def test_stage_3_says_so_before_it_trains(saved, make_policy):
    with pytest.raises(ConfigError, match=r"indexer.*: under ZeRO stage 3"):
        make_policy(path=saved("deepseek_v32"), zero={"stage": 3})
