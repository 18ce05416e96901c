"""The arithmetic of an update: as PyTorch counts it, and as prime-rl publishes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.tiny_models import tiny
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.learner.work import update_flops
from rlhf_ray.metrics.usage import UpdateFlops, attended_pairs, peak_flops, update_mfu
from rlhf_ray.models.load import load_causal_lm

CPU = torch.device("cpu")
NUM_TOKENS = 24


def sizes(model):
    """Of the matrices, the vocabulary product's and tables apart."""
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and "embed" not in name and "lm_head" not in name
    }


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_products_are_those_that_pytorch_counts(family):
    """Of a pass forward and backward; eager attention computes what causality then hides."""
    model, _ = tiny(family)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        row = torch.arange(3, 3 + NUM_TOKENS)[None]
        model(input_ids=row, use_cache=False).logits.sum().backward()
    aten, counts = torch.ops.aten, counter.get_flop_counts()["Global"]
    flops = update_flops(model)
    of_matrices = counts[aten.mm] + counts.get(aten.addmm, 0)
    assert NUM_TOKENS * (flops.per_token + flops.per_scored_token) == of_matrices
    assert NUM_TOKENS**2 * sum(flops.per_pair.values()) == counts[aten.bmm]


@given(length=st.integers(1, 40), window=st.none() | st.integers(1, 50))
def test_a_pair_is_a_token_and_one_that_it_sees(length, window):
    row, column = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
    seen = (column <= row) & (row - column < (window or length))
    assert attended_pairs(length, window) == seen.sum()


def test_windows_and_other_layers_than_attention_attend_to_less():
    mistral, _ = tiny("mistral", sliding_window=8)
    gemma, _ = tiny("gemma3_text", sliding_window=8)
    hybrid, _ = tiny("qwen3_next")
    a_layer = 6.0 * 2 * (32 + 32)  # 2 heads of 32
    assert update_flops(mistral).per_pair == {8: 2 * a_layer}
    assert update_flops(gemma).per_pair == {8: a_layer, None: a_layer}
    assert update_flops(hybrid).per_pair == {None: a_layer}
    latent, _ = tiny("deepseek_v3", v_head_dim=20)
    assert update_flops(latent).per_pair == {None: 2 * 6.0 * 2 * (16 + 16 + 20)}


def test_sequences_cost_by_their_own_lengths_and_prompts_no_vocabulary():
    flops = UpdateFlops(per_token=10.0, per_scored_token=100.0, per_pair={None: 1000.0, 2: 1.0})
    pairs, windowed = (1 + 2 + 3) + (1 + 2 + 3 + 4), (1 + 2 + 2) + (1 + 2 + 2 + 2)
    expected = 10 * 7 + 100 * 5 + 1000 * pairs + windowed
    assert flops.of([3, 4], num_scored=5) == expected


@pytest.mark.parametrize(
    ("length", "tokens_per_s", "published"), [(16384, 11_900, 0.111), (65536, 10_150, 0.268)]
)
def test_prime_rls_speed_comes_to_the_utilisation_that_it_publishes(
    length, tokens_per_s, published
):
    """Qwen3-0.6B on an H100: its `benchmarks/results/BENCHMARKS.md`, of sequences of full length.

    It takes all pairs of tokens where half are seen, and heads of 64 where they are of 128.
    """
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    share = update_mfu(
        num_flops=update_flops(model).of([length], num_scored=length),
        seconds=length / tokens_per_s,
        num_devices=1,
        peak=peak_flops("NVIDIA H100 80GB HBM3"),
    )
    assert share == pytest.approx(published, abs=5e-4)


def test_frozen_weights_cost_4_and_adapters_6(make_model):
    path = make_model("llama")
    config = ModelConfig.model_validate({"path": str(path), "lora": {"rank": 2}})
    lm = load_causal_lm(config, device=CPU)
    of_adapters = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    of_base = sum(sizes(AutoModelForCausalLM.from_pretrained(path)).values())
    assert 0 < of_adapters < of_base
    flops = update_flops(lm)
    assert flops.per_token == 4 * of_base + 6 * of_adapters
    assert flops.per_scored_token == 4 * lm.get_output_embeddings().weight.numel()


def test_of_experts_those_count_that_a_token_visits(make_model):
    path = make_model("mixtral", num_local_experts=4, num_experts_per_tok=1)
    model = AutoModelForCausalLM.from_pretrained(path)
    of_experts = sum(size for name, size in sizes(model).items() if ".experts." in name)
    others = sum(sizes(model).values()) - of_experts
    assert of_experts > 0
    assert update_flops(model).per_token == pytest.approx(6 * (others + of_experts / 4))


@pytest.mark.parametrize("family", ["granitemoe", "jetmoe", "deepseek_v3", "qwen2_moe"])
def test_experts_count_alike_whatever_a_family_calls_them(family):
    model, _ = tiny(family)
    assert model.config.num_experts_per_tok == 2
    stacks = [p.numel() for p in model.parameters() if p.ndim == 3 and p.shape[0] == 4]
    assert sum(stacks) > 0
    others = sum(sizes(model).values()) - sum(stacks)
    assert update_flops(model).per_token == pytest.approx(6 * (others + sum(stacks) / 2))


def test_utilisation_is_the_share_of_all_devices_peak():
    share = update_mfu(num_flops=6e12, seconds=2.0, num_devices=3, peak=1e12)
    assert share == pytest.approx(1.0)


def test_a_cards_peak_goes_by_the_whole_of_its_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 NVL") == 835e12
    assert peak_flops("cpu") is None
