"""LoRA: only adapters train, and merging them changes nothing but where the numbers are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning import SMOOTH, logprobs_of, parameters_of, plan_of
from transformers import AutoConfig, AutoModelForCausalLM, MixtralForCausalLM

from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.weights import (
    _pieces,
    adapter_weights,
    linear_adapters,
    named_weights,
    weight_infos,
)

LORA = {"lora": {"rank": 3, "alpha": 12.0}}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def path(request, make_model):
    return make_model("llama", tie_word_embeddings=request.param)


@pytest.fixture
def trained(path, make_policy, rows):
    learner = make_policy(path=path, model=LORA)
    before = parameters_of(learner)
    for _ in range(3):
        learner.update(rows, plan_of(rows), 0.0)
    return learner, before


def test_only_adapters_train(trained):
    learner, before = trained
    for name, parameter in learner.engine.module.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name


def test_a_model_of_the_merged_weights_answers_as_the_adapted_one(trained, path, rows, make_policy):
    learner, _ = trained
    adapted = logprobs_of(learner, rows)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    merged = {name: weight.clone() for name, weight in named_weights(learner.lm)}
    assert merged.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(merged, strict=False)
    for row, ours in zip(rows, adapted, strict=True):
        token_ids = [*row.rollout.prompt.token_ids_T, *row.rollout.response_ids_T.tolist()]
        with torch.no_grad():
            logprobs_TV = plain(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)
        theirs = logprobs_TV.gather(-1, torch.tensor(token_ids[1:])[:, None]).squeeze(-1)
        own_T = row.rollout.action_mask_T
        np.testing.assert_allclose(ours[own_T], theirs[-len(ours) :].numpy()[own_T], atol=1e-5)
    untrained = np.concatenate(logprobs_of(make_policy(path=path), rows))
    assert np.abs(np.concatenate(adapted) - untrained).max() > 1e-2


def test_what_is_announced_is_what_comes(trained):
    learner, _ = trained
    infos = weight_infos(learner.lm)
    weights = [
        (name, weight.dtype, tuple(weight.shape)) for name, weight in named_weights(learner.lm)
    ]
    assert [(info.name, info.dtype, info.shape) for info in infos] == weights


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
def test_every_stage_takes_the_same_steps(make_policy, rows, stage, checkpointing):
    settings = {**LORA, "gradient_checkpointing": checkpointing}
    learner = make_policy(model=settings, zero={"stage": stage}, optim=SMOOTH)
    plain = make_policy(model=LORA, optim=SMOOTH)
    before = logprobs_of(learner, rows)
    for _ in range(3):
        ours = learner.update(rows, plan_of(rows), 0.0)
        theirs = plain.update(rows, plan_of(rows), 0.0)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    after = np.concatenate(logprobs_of(learner, rows))
    np.testing.assert_allclose(after, np.concatenate(logprobs_of(plain, rows)), atol=1e-4)
    assert np.abs(after - np.concatenate(before)).max() > 1e-2


@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_on_experts_train_and_merge(make_model, make_policy, rows, stage):
    path = make_model("mixtral", num_local_experts=4)
    learner = make_policy(path=path, model=LORA, zero={"stage": stage})
    before = {name: weight.clone() for name, weight in named_weights(learner.lm)}
    for _ in range(3):
        learner.update(rows, plan_of(rows), 0.0)
    merged = {name: weight.clone() for name, weight in named_weights(learner.lm)}
    of_experts = "model.layers.1.block_sparse_moe.experts.3.w{}.weight"
    changed = ["model.layers.0.block_sparse_moe.gate.weight", *map(of_experts.format, (1, 2, 3))]
    for name in changed:
        assert (merged[name] - before[name]).norm() > 1e-3 * before[name].norm(), name
    plain = MixtralForCausalLM.from_pretrained(
        None, config=AutoConfig.from_pretrained(path), state_dict=merged
    )
    for row, ours in zip(rows, logprobs_of(learner, rows), strict=True):
        token_ids = [*row.rollout.prompt.token_ids_T, *row.rollout.response_ids_T.tolist()]
        with torch.no_grad():
            logprobs_TV = plain(torch.tensor([token_ids])).logits[0, :-1].log_softmax(-1)
        theirs = logprobs_TV.gather(-1, torch.tensor(token_ids[1:])[:, None]).squeeze(-1)
        own_T = row.rollout.action_mask_T
        np.testing.assert_allclose(ours[own_T], theirs[-len(ours) :].numpy()[own_T], atol=2e-5)


def test_a_saved_adapter_is_restored_without_its_base(make_policy, rows, tmp_path):
    learner = make_policy(model=LORA)
    learner.update(rows, plan_of(rows), 0.0)
    learner.save(tmp_path / "saved")
    other = make_policy(model=LORA)
    other.load(tmp_path / "saved")
    ours, theirs = parameters_of(other), parameters_of(learner)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    bytes_of_adapters = sum(w.nbytes for n, w in theirs.items() if "lora_" in n)
    # Weights, and two moments; the base would be several times as much.
    written = sum(path.stat().st_size for path in (tmp_path / "saved").rglob("*.pt"))
    assert written < 4 * bytes_of_adapters + 100_000


def test_adapters_apart_are_the_difference_to_the_merged_weights(trained):
    learner, _ = trained
    merged = {name: weight.clone() for name, weight in named_weights(learner.lm)}
    below = {name: w.clone() for name, w in named_weights(learner.lm, merged=False)}
    adapters = {name: w.clone() for name, w in adapter_weights(learner.lm, gathered_bytes=2000)}
    layers = {name.partition(".lora_")[0] for name in adapters}
    assert len(adapters) == 2 * len(layers) == 2 * 7 * 2
    for name, weight in merged.items():
        layer = name.removesuffix(".weight")
        if layer in layers:
            first, second = (adapters[f"{layer}.lora_{which}.weight"] for which in "AB")
            assert first.shape[0] == second.shape[1] == 3
            assert not torch.equal(weight, below[name])
            torch.testing.assert_close(below[name] + second @ first, weight)
        else:
            assert torch.equal(weight, below[name])


def test_adapters_that_no_engine_takes_apart_are_refused(make_policy, make_model):
    with pytest.raises(ConfigError, match="must be merged for a model without adapters"):
        linear_adapters(make_policy().lm)
    experts = make_policy(path=make_model("mixtral", num_local_experts=4), model=LORA)
    with pytest.raises(ConfigError, match=r"must be merged for an adapter on .*experts"):
        linear_adapters(experts.lm)


@given(sizes=st.lists(st.integers(0, 50), max_size=20), limit=st.integers(0, 100))
def test_pieces_are_as_large_as_they_may(sizes, limit):
    pieces = list(_pieces(sizes, lambda size: size, limit))
    assert [size for piece in pieces for size in piece] == sizes
    for piece, after in itertools.pairwise([*pieces, [limit + 1]]):
        assert len(piece) == 1 or sum(piece) <= limit
        assert sum(piece) + after[0] > limit
