"""Where models come from: folders, memory, and other kinds of models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import memory
from rlhf_ray.models.batch import build_batch
from rlhf_ray.models.classifier import load_classifier, load_decoder
from rlhf_ray.models.heads import ValueModel
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.models.reward import RewardModel
from rlhf_ray.models.reward_statistics import read_statistics, write_statistics

CPU = torch.device("cpu")
SEQUENCES = [np.arange(3, 3 + n).astype(np.int32) for n in (9, 2, 17, 1)]


def model_config(path, **settings):
    return ModelConfig.model_validate({"path": str(path), "dtype": "float32", **settings})


@pytest.fixture(scope="module")
def scorer(make_model, tmp_path_factory):
    """A reward model on disk: a decoder with a head."""
    folder = tmp_path_factory.mktemp("scorer")
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(make_model("llama"), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def held(tmp_path):
    """`held(folder, weights)`: a path with the folder's configuration, its weights in memory."""
    provided = []

    def hold(folder, weights=None):
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        memory.provide(str(tmp_path), weights or load_file(folder / "model.safetensors"))
        provided.append(str(tmp_path))
        return tmp_path

    yield hold
    for path in provided:
        memory.forget(path)


def scores_of(lm, **settings):
    model = RewardModel(lm, **settings).eval()
    with torch.no_grad():
        layout = model.lay_out(SEQUENCES)
        return model(layout).scores_B


def weights_equal(ours, theirs):
    theirs = dict(theirs.named_parameters())
    return all(torch.equal(p, theirs[n]) for n, p in ours.named_parameters())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_held_model_is_that_of_the_folder(make_model, held, tied):
    folder = make_model("llama", tie_word_embeddings=tied)
    plain = load_causal_lm(model_config(folder), device=CPU)
    loaded = load_causal_lm(model_config(held(folder)), device=CPU)
    assert weights_equal(loaded, plain)
    assert loaded.config._attn_implementation == plain.config._attn_implementation


def test_a_held_model_gets_a_head_or_keeps_its_own(make_model, scorer, held):
    base = held(make_model("llama", tie_word_embeddings=False))
    fresh = load_classifier(model_config(base), device=CPU, head_seed=2)
    from_disk = load_classifier(
        model_config(make_model("llama", tie_word_embeddings=False)), device=CPU, head_seed=2
    )
    assert weights_equal(fresh, from_disk)
    memory.forget(str(base))
    kept = load_classifier(model_config(held(scorer)), device=CPU)
    assert torch.equal(
        scores_of(kept), scores_of(load_classifier(model_config(scorer), device=CPU))
    )


def test_held_weights_of_another_model_are_refused(make_model, held):
    folder = make_model("llama", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    path = held(folder, {**weights, "model.layers.7.mlp.up_proj.weight": torch.ones(2, 2)})
    with pytest.raises(ConfigError, match=r"another model's: model\.layers\.7"):
        load_causal_lm(model_config(path), device=CPU)
    weights.pop("model.norm.weight")
    held(folder, weights)
    with pytest.raises(ConfigError, match=r"lacks the weights model\.norm\.weight"):
        load_causal_lm(model_config(path), device=CPU)
    weights["model.norm.weight"] = torch.ones(5)
    held(folder, weights)
    with pytest.raises(ConfigError, match="cannot load a causal language model"):
        load_causal_lm(model_config(path), device=CPU)


def test_a_critic_may_start_from_a_reward_model(make_model, scorer):
    lm = load_decoder(model_config(scorer), device=CPU, seed=0)
    values = ValueModel(lm, seed=0)
    sequences = [sequence for sequence in SEQUENCES if len(sequence) > 1]
    # A value before token t is the score of the text up to t.
    batch = build_batch(
        [np.append(sequence, 1).astype(np.int32) for sequence in sequences],
        [np.array([len(sequence)]) for sequence in sequences],
        padded=False,
        device=CPU,
    )
    model = RewardModel(load_classifier(model_config(scorer), device=CPU)).eval()
    with torch.no_grad():
        wanted = model(model.lay_out(sequences)).scores_B
        torch.testing.assert_close(values(batch), wanted, atol=1e-6, rtol=0)
    fresh = ValueModel(load_decoder(model_config(make_model("llama")), device=CPU, seed=0), seed=0)
    assert fresh.value_head.bias is not None


def test_a_critic_cannot_start_from_an_encoder(tmp_path):
    config = RobertaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=44, num_labels=1,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a critic needs a decoder"):
        load_decoder(model_config(tmp_path), device=CPU, seed=0)


def test_the_head_of_a_bfloat16_model_works_in_float32(scorer):
    config = model_config(scorer, dtype="bfloat16")
    fine = scores_of(load_classifier(config, device=CPU))
    coarse = scores_of(load_classifier(config, device=CPU), float32_head=False)
    assert fine.dtype == coarse.dtype == torch.float32
    assert torch.equal(coarse, coarse.bfloat16().float())
    assert not torch.equal(fine, fine.bfloat16().float())
    torch.testing.assert_close(fine, coarse, atol=0.05, rtol=0.05)


def test_statistics_come_back_as_they_were_written(tmp_path):
    write_statistics(tmp_path, mean=0.1 + 0.2, std=1e-3)
    stored = read_statistics(tmp_path)
    assert (stored.mean, stored.std) == (0.1 + 0.2, 1e-3)
    (tmp_path / "reward_statistics.json").write_text('{"mean": 1}')
    with pytest.raises(ConfigError, match="KeyError: 'std'"):
        read_statistics(tmp_path)
