"""A mixture of experts: adapters on its experts, trained on two ranks, published and exported.

Its engine takes the place of the others, so this file comes after all that use one.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from jobs import TWO_RANKS_SHARED, laid_over, run_loop, weights_of
from transformers import AutoModelForCausalLM

from actors.ranks.policy import PolicyRank

ENGINE = {"rollout": {"ignore_eos": True, "stop": [], "stop_token_ids": []}}


@pytest.fixture(scope="module")
def experts(stories, make_model):
    """A random Qwen3-MoE whose experts vLLM has to pad; the stories' tokenizer."""
    return make_model(
        "qwen3_moe",
        tokenizer_of=stories,
        vocab_size=512,
        hidden_size=64,
        head_dim=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        pad_token_id=None,
    )


@pytest.mark.parametrize("lora", [0, 4], ids=["all weights", "adapters"])
def test_experts_are_published_as_they_are_trained(
    lora, experts, pool, shared_pool, make_config, tmp_path
):
    policy = {"model": {"path": str(experts), "lora": {"rank": lora}}, "optim": {"lr": 3e-3}}
    sections = {"policy": policy, "total_steps": 2}
    if lora:
        sections["placement"] = TWO_RANKS_SHARED
        policy["zero"] = {"stage": 3}
    config = make_config(tmp_path, **laid_over(ENGINE, sections))
    roles, steps = run_loop(config, shared_pool if lora else pool)
    assert max(step["mismatch/logprob_abs_max"] for step in steps) < 1e-4
    trained = weights_of(roles.policy.actors)
    before = {
        name: weight.numpy()
        for name, weight in AutoModelForCausalLM.from_pretrained(experts).state_dict().items()
    }
    name = "model.layers.0.mlp.experts.down_proj"
    ours = np.stack(
        [trained[f"{name.replace('down_proj', str(e))}.down_proj.weight"] for e in range(4)]
    )
    assert np.linalg.norm(ours - before[name]) > 1e-4 * np.linalg.norm(before[name])
    export = roles.policy.actors.call(PolicyRank.export, timeout_s=60)(
        str(tmp_path / "out"), str(experts)
    )
    asyncio.run(export)
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    np.testing.assert_array_equal(loaded[name].detach().numpy(), ours)
