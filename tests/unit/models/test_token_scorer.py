"""Log-probabilities of scored tokens: packed, padded and plain transformers agree."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.batch import build_batch
from rlhf_ray.models.check import settle
from rlhf_ray.models.heads import TokenScorer, ValueModel
from rlhf_ray.models.load import load_causal_lm

CPU = torch.device("cpu")
LENGTHS = (17, 1, 30, 9, 2)

# Everything that one family does and another does not.
FAMILIES = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "biased": ("qwen2", {}),
    "norms of queries and keys": ("qwen3", {"head_dim": 16}),
    "sliding window": ("mistral", {"sliding_window": 4}),
    "scaled logits": ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "multiplied logits": ("cohere", {"logit_scale": 0.25}),
}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request, make_model):
    model_type, settings = FAMILIES[request.param]
    return make_model(model_type, **settings)


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    return [generator.integers(3, 61, size=n).astype(np.int32) for n in LENGTHS]


def load(folder, **settings):
    return load_causal_lm(ModelConfig(path=str(folder), dtype="float32", **settings), device=CPU)


def scored_from(sequences, first=1):
    return [np.arange(min(first, len(s)), len(s)) for s in sequences]


def plain(folder, sequences, temperature=1.0):
    """Log-probabilities and entropies of all tokens but the first: float64 from eager attention."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    rows = []
    for sequence in sequences:
        token_ids = torch.from_numpy(sequence.astype(np.int64))[None]
        with torch.no_grad():
            logprobs_TV = (model(token_ids).logits[0, :-1] / temperature).log_softmax(-1)
        entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
        rows.append((logprobs_TV.gather(-1, token_ids[0, 1:, None]).squeeze(-1), entropy_T))
    return [torch.cat(part) for part in zip(*rows, strict=True)]


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_are_those_of_plain_transformers(family, sequences, padded, temperature):
    scorer = TokenScorer(load(family), temperature=temperature, chunk_tokens=7)
    batch = build_batch(sequences, scored_from(sequences), padded=padded, device=CPU)
    with torch.no_grad():
        scores = scorer(batch, with_entropy=True)
        logprobs_T, entropy_T = scores.logprobs_T, scores.entropy_T
    wanted_logprobs_T, wanted_entropy_T = plain(family, sequences, temperature)
    torch.testing.assert_close(logprobs_T.double(), wanted_logprobs_T, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy_T.double(), wanted_entropy_T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_only_the_tokens_that_are_asked_for_are_scored(make_model, sequences, padded):
    folder = make_model("llama", tie_word_embeddings=True)
    scorer = TokenScorer(load(folder), temperature=1.0, chunk_tokens=4096)
    batch = build_batch(sequences, scored_from(sequences, first=6), padded=padded, device=CPU)
    with torch.no_grad():
        scores = scorer(batch)
        logprobs_T, entropy_T = scores.logprobs_T, scores.entropy_T
    wanted_T, _ = plain(folder, sequences)
    rows = torch.split(wanted_T, [n - 1 for n in LENGTHS])
    torch.testing.assert_close(
        logprobs_T.double(), torch.cat([row[5:] for row in rows]), atol=1e-5, rtol=0
    )
    assert entropy_T is None
    assert batch.segments_T.tolist() == [0] * 11 + [2] * 24 + [3] * 3


def test_a_batch_without_sequences_scores_nothing_and_still_has_a_gradient(make_model):
    scorer = TokenScorer(load(make_model("llama")), temperature=1.0, chunk_tokens=4)
    batch = build_batch([], [], padded=False, device=CPU)
    logprobs_T = scorer(batch).logprobs_T
    assert logprobs_T.shape == (0,)
    logprobs_T.sum().backward()
    assert all(torch.all(p.grad == 0) for p in scorer.parameters())


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_gradient_checkpointing_changes_no_gradient(make_model, sequences, padded):
    folder = make_model("llama", tie_word_embeddings=False)
    gradients = []
    for checkpointing in (False, True):
        lm = load(folder, gradient_checkpointing=checkpointing)
        lm.train()
        assert lm.is_gradient_checkpointing is checkpointing
        scorer = TokenScorer(lm, temperature=1.0, chunk_tokens=16)
        batch = build_batch(sequences, scored_from(sequences), padded=padded, device=CPU)
        logprobs_T = scorer(batch).logprobs_T
        logprobs_T.mean().backward()
        gradients.append({name: p.grad for name, p in scorer.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_values_are_the_heads_of_hidden_states_before_each_token(make_model, sequences):
    folder = make_model("llama", tie_word_embeddings=False)
    plain_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = ValueModel(load(folder), seed=3)
    assert model.value_head.bias.item() == 0
    assert model.value_head.weight.std().item() == pytest.approx(1 / 33, rel=0.4)
    wanted = []
    for sequence in sequences:
        token_ids = torch.from_numpy(sequence.astype(np.int64))[None]
        with torch.no_grad():
            hidden_TD = plain_model.model(token_ids).last_hidden_state[0, :-1]
            wanted.append(model.value_head(hidden_TD).squeeze(-1))
    for padded in (False, True):
        batch = build_batch(sequences, scored_from(sequences), padded=padded, device=CPU)
        with torch.no_grad():
            torch.testing.assert_close(model(batch), torch.cat(wanted), atol=1e-5, rtol=0)
    again, other = ValueModel(load(folder), seed=3), ValueModel(load(folder), seed=4)
    assert torch.equal(again.value_head.weight, model.value_head.weight)
    assert not torch.equal(other.value_head.weight, model.value_head.weight)


def test_values_of_a_bfloat16_model_come_from_a_float32_product(make_model, sequences):
    lm = AutoModelForCausalLM.from_pretrained(make_model("llama"), dtype=torch.bfloat16)
    model = ValueModel(lm, seed=3)
    assert model.value_head.weight.dtype is torch.bfloat16
    hidden_TD = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        values_T = model.value_head(hidden_TD).squeeze(-1)
        exact_T = hidden_TD.double() @ model.value_head.weight[0].double()
        torch.testing.assert_close(values_T, exact_T.float(), atol=1e-6, rtol=1e-6)
        batch = build_batch(sequences, scored_from(sequences), padded=True, device=CPU)
        assert model(batch).dtype is torch.float32


def test_a_capped_attention_is_transformers_own(make_model, sequences):
    folder = make_model("gemma2", head_dim=8, attn_logit_softcapping=0.2)
    config = ForwardConfig(model=ModelConfig(path=str(folder), dtype="float32"))
    scorer = TokenScorer(load(folder), temperature=1.0, chunk_tokens=16)
    settle(scorer, config, CPU)
    batch = build_batch(sequences, scored_from(sequences), padded=scorer.padded, device=CPU)
    with torch.no_grad():
        logprobs_T = scorer(batch).logprobs_T
    wanted_T, _ = plain(folder, sequences)
    torch.testing.assert_close(logprobs_T.double(), wanted_T, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="packed_sdpa knows nothing of softcap"):
        settle(scorer, config.model_copy(update={"layout": "packed"}), CPU)


def test_an_unreadable_model_is_an_error_for_the_user(tmp_path):
    with pytest.raises(ConfigError, match="cannot load a causal language model from"):
        load(tmp_path)


def test_a_file_of_weights_that_was_cut_short_is_an_error_for_the_user(make_model, tmp_path):
    shutil.copytree(make_model("llama"), tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot load a causal language model from"):
        load(tmp_path)


def test_flash_attention_by_name_needs_a_gpu(make_model):
    with pytest.raises(ConfigError, match="set packed_sdpa or auto"):
        load(make_model("llama"), attention="flash_attention_2")
