"""Nothing is dropped out in training but by adapters, and checkpointing stays what it is."""

from __future__ import annotations

import pytest
import torch

from benchmarks.tiny_models import tiny
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.models import LoraConfig, ModelConfig
from rlhf_ray.models import attention
from rlhf_ray.models.batch import build_batch
from rlhf_ray.models.check import settle
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import with_adapter
from rlhf_ray.models.modes import checkpoint_layers

CPU = torch.device("cpu")
# Dropout of functions and of modules, layers that are left out, routers that jitter.
RANDOM = {
    "opt": {"dropout": 0.5, "layerdrop": 0.5},
    "gpt_bigcode": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5},
    "bart": {"dropout": 0.5, "decoder_layerdrop": 0.5},
    "phimoe": {"input_jitter_noise": 0.2, "router_jitter_noise": 0.2},
    "llama": {"attention_dropout": 0.5},
}


def scorer_of(lm):
    attention.register()
    scorer = TokenScorer(lm, temperature=1.0, chunk_tokens=16)
    settle(scorer, ForwardConfig(), CPU)
    return scorer


def gradients_of(scorer, sequences):
    batch = build_batch(
        sequences, [torch.arange(1, len(s)).numpy() for s in sequences],
        padded=scorer.padded, device=CPU,
    )  # fmt: skip
    scorer.zero_grad()
    scorer(batch).logprobs_T.sum().backward()
    return {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}


@pytest.fixture
def sequences():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 160, (n,), generator=generator).int().numpy() for n in (7, 19, 4)]


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_takes_the_gradient_of_the_whole_model(family, checkpointing, sequences):
    lm, config = tiny(family, **RANDOM[family])
    scorer = scorer_of(lm)
    wanted = gradients_of(scorer.eval(), sequences)
    if checkpointing:
        checkpoint_layers(lm, use_reentrant=False)
    scorer.train()
    assert scorer.training
    calls = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: calls.append(x.numel()) or x, lambda x: x
    ):
        got = gradients_of(scorer, sequences)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4)
    for name, value in RANDOM[family].items():
        assert getattr(config, name) == value, "the export says what the family said"


def test_checkpointing_keeps_less(sequences):
    lm, _ = tiny("llama")
    scorer = scorer_of(lm).train()

    def num_kept():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(1) or x, lambda x: x):
            gradients_of(scorer, sequences)
        return len(kept)

    plain = num_kept()
    checkpoint_layers(lm, use_reentrant=False)
    scorer.train()
    assert all(layer.training for layer in lm.model.layers)
    assert num_kept() < plain / 2


def test_the_dropout_of_adapters_is_as_configured(sequences):
    lm, _ = tiny("llama", attention_dropout=0.5)
    lora = LoraConfig(rank=2, dropout=0.5)
    scorer = scorer_of(with_adapter(lm, ModelConfig(path="unused", lora=lora)))
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
        scorer.train()
        one, two = (torch.cat(scorer.outcomes(sequences)) for _ in range(2))
        scorer.eval()
        three, four = (torch.cat(scorer.outcomes(sequences)) for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(three, four)
