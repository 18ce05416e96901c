"""A reward model's gradient is that of plain transformers, and its export scores the same."""

from __future__ import annotations

import random
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learning import gradients_of, largest_gap, parameters_of, plan_evaluation, plan_rows
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rlhf_ray.data.examples.preferences import best_of
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.export import export_model

UNCLIPPED = {"max_grad_norm": 1e9}
ENCODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 60,
    "initializer_range": 0.2,
    "pad_token_id": 1,
    "num_labels": 1,
}


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder(**ENCODER)


def plain_scores(model, rows):
    """One sequence at a time: nothing is packed, padded or masked."""
    scores = []
    for row in rows:
        sequences = [np.concatenate([row.prompt_ids_T, ids]) for ids in row.answer_ids_K]
        token_ids = [torch.from_numpy(ids.astype(np.int64))[None] for ids in sequences]
        scores.append(torch.cat([model(input_ids=ids).logits[0] for ids in token_ids]))
    return scores


def ordered_pairs(row):
    places = range(len(row.answer_ids_K))
    return [(i, j) for i, j in combinations(places, 2) if row.order_K[i] < row.order_K[j]]


def plain_loss(scores_K, row, loss_type, centering):
    pairs, margin = ordered_pairs(row), row.margin
    gaps = torch.stack([scores_K[i] - scores_K[j] for i, j in pairs])
    sums = torch.stack([scores_K[i] + scores_K[j] for i, j in pairs])
    if loss_type == "plackett_luce":
        places = range(len(scores_K))
        worse = [[k for k in places if row.order_K[k] > row.order_K[i]] for i in places]
        rests = [scores_K[[i, *worse[i]]].logsumexp(0) - scores_K[i] for i in places]
        loss = torch.stack(rests).sum()
    else:
        loss = F.softplus(-(gaps - (margin if loss_type == "bradley_terry" else 0.0))).mean()
    return loss + centering * sums.square().mean()


def plain_model(learner, path, num_labels=1):
    """The learner's model, loaded by transformers alone, in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=num_labels, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    head = {n: w for n, w in learner.lm.state_dict().items() if n.startswith("score")}
    model.load_state_dict(head, strict=False)
    return model


def gradient(make, rows, *, budget=60, layout="packed", **settings):
    learner = make("rm", optim=UNCLIPPED, layout=layout, **settings)
    metrics = learner.update(rows, plan_rows(rows, budget=budget, padded=layout == "padded"))
    return gradients_of(learner), metrics


@pytest.mark.parametrize("loss_type", ["bradley_terry", "logexp", "plackett_luce"])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_loss_and_gradient_are_plain_transformers(
    make_supervised, make_model, encoder, rankings, loss_type, kind
):
    path = encoder if kind == "encoder" else make_model("llama")
    job = {"loss_type": loss_type, "center_rewards_coefficient": 0.1}
    learner = make_supervised("rm", path=path, job=job, optim=UNCLIPPED)
    model = plain_model(learner, path)
    scores = plain_scores(model, rankings)
    losses = [
        plain_loss(scores_K, row, loss_type, 0.1)
        for scores_K, row in zip(scores, rankings, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    evaluated = learner.evaluate(rankings, plan_evaluation(rankings))
    metrics = learner.update(rankings, plan_rows(rankings))
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert evaluated.metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    for outcome, scores_K in zip(evaluated.outcomes_B, scores, strict=True):
        assert outcome == pytest.approx(scores_K.tolist(), abs=1e-5)
    theirs = {
        f"lm.{n}": torch.zeros_like(p) if p.grad is None else p.grad
        for n, p in model.named_parameters()
    }
    assert largest_gap(gradients_of(learner), theirs) < 1e-5


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("loss_type", ["bradley_terry", "logexp", "plackett_luce"])
def test_the_gradient_does_not_depend_on_split_layout_or_order(
    make_supervised, make_model, encoder, rankings, loss_type, kind
):
    path = encoder if kind == "encoder" else make_model("llama")
    settings = {"path": path, "job": {"loss_type": loss_type, "center_rewards_coefficient": 0.2}}
    whole, wanted = gradient(make_supervised, rankings, budget=10_000, **settings)
    shuffled = random.Random(0).sample(rankings, len(rankings))
    for rows, budget, layout in [
        (rankings, 1, "packed"),
        (rankings, 90, "padded"),
        (shuffled, 60, "packed"),
    ]:
        cut, metrics = gradient(make_supervised, rows, budget=budget, layout=layout, **settings)
        assert largest_gap(cut, whole) < 1e-5
        for name in ("loss", "accuracy", "margin", "reward_mean"):
            assert metrics[name] == pytest.approx(wanted[name], abs=1e-5), name


def test_metrics_are_counted_over_all_pairs(make_supervised, rankings):
    learner = make_supervised("rm")
    evaluated = learner.evaluate(rankings, plan_evaluation(rankings))
    scored = list(zip(rankings, evaluated.outcomes_B, strict=True))
    gaps = [scores[i] - scores[j] for row, scores in scored for i, j in ordered_pairs(row)]
    tiers = [(t, s) for row, scores in scored for t, s in zip(row.order_K, scores, strict=True)]
    first = [score for tier, score in tiers if tier == 0]
    rest = [score for tier, score in tiers if tier > 0]
    assert evaluated.metrics["accuracy"] == pytest.approx(np.mean(np.array(gaps) > 0))
    assert evaluated.metrics["margin"] == pytest.approx(np.mean(gaps))
    assert evaluated.metrics["reward_chosen"] == pytest.approx(np.mean(first))
    assert evaluated.metrics["reward_rejected"] == pytest.approx(np.mean(rest))
    assert evaluated.metrics["reward_mean"] == pytest.approx(np.mean([*first, *rest]))
    assert 0 <= evaluated.metrics["calibration_error"] <= 1
    other = learner.evaluate(rankings, plan_evaluation(rankings, budget=1))
    np.testing.assert_allclose(
        np.concatenate(other.outcomes_B), np.concatenate(evaluated.outcomes_B), atol=1e-5
    )


def test_single_answers_are_scored_too(make_supervised, rankings):
    learner = make_supervised("rm")
    best = [best_of(row) for row in rankings]
    wanted = [scores[0] for scores in learner.scores(rankings, plan_evaluation(rankings))]
    scores = [score for (score,) in learner.scores(best, plan_evaluation(best))]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_a_new_head_is_small_and_its_own_seeds(make_supervised, make_model):
    heads = [
        make_supervised("rm", job={"seed": seed}).lm.score.weight.detach().clone()
        for seed in (3, 3, 4)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert float(heads[0].std()) == pytest.approx(1 / 33, rel=0.4)


def test_dropout_is_off_in_training(make_supervised, encoder, rankings):
    """RoBERTa's configuration drops a tenth of everything."""
    learner = make_supervised("rm", path=encoder)
    assert learner.engine.module.training
    layout = learner.model.lay_out([row.answer_ids_K[0] for row in rankings])
    with torch.no_grad():
        assert torch.equal(learner.engine(layout).scores_B, learner.engine(layout).scores_B)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("lora", [0, 3])
def test_an_export_scores_as_the_learner(
    make_supervised, make_model, encoder, stories, rankings, tmp_path, kind, lora
):
    path = encoder if kind == "encoder" else make_model("llama")
    learner = make_supervised("rm", path=path, model={"lora": {"rank": lora}})
    before = parameters_of(learner)
    for _ in range(4):
        learner.update(rankings, plan_rows(rankings))
    after = parameters_of(learner)
    for name, weight in after.items():
        is_head = ".score." in name or ".classifier." in name
        trained = not lora or is_head or "lora_" in name
        # No loss of pairs sees a bias that all scores have.
        trained = trained and not name.endswith("out_proj.bias")
        assert torch.equal(weight, before[name]) != trained, name
    outcomes = learner.evaluate(rankings, plan_evaluation(rankings)).outcomes_B
    export_model(learner.lm, tmp_path / "export", str(stories), write=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    assert model.config.num_labels == 1
    with torch.no_grad():
        for outcome, scores_K in zip(outcomes, plain_scores(model, rankings), strict=True):
            assert outcome == pytest.approx(scores_K.tolist(), abs=1e-5)
    again = make_supervised("rm", path=tmp_path / "export")
    reloaded = again.evaluate(rankings, plan_evaluation(rankings)).outcomes_B
    np.testing.assert_allclose(np.concatenate(reloaded), np.concatenate(outcomes), atol=1e-5)


def test_transformers_scores_padded_batches_of_an_export_alike(
    make_supervised, stories, rankings, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    learner = make_supervised("rm", path=stories)
    learner.update(rankings, plan_rows(rankings))
    outcomes = learner.evaluate(rankings, plan_evaluation(rankings)).outcomes_B
    export_model(learner.lm, tmp_path / "export", str(stories), write=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    sequences = [
        {"input_ids": [*row.prompt_ids_T.tolist(), *ids.tolist()]}
        for row in rankings
        for ids in row.answer_ids_K
    ]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        with torch.no_grad():
            scores = model(**tokenizer.pad(sequences, return_tensors="pt")).logits[:, 0]
        np.testing.assert_allclose(scores.numpy(), np.concatenate(outcomes), atol=1e-4)


def test_a_masked_language_model_becomes_a_reward_model(make_supervised, tmp_path, rankings):
    torch.manual_seed(0)
    settings = {name: value for name, value in ENCODER.items() if name != "num_labels"}
    BertForMaskedLM(BertConfig(**settings)).save_pretrained(tmp_path)
    learner = make_supervised("rm", path=tmp_path, optim={"lr": 3e-3})
    losses = [learner.update(rankings, plan_rows(rankings))["loss"] for _ in range(20)]
    assert losses[-1] < losses[0] - 0.2


def test_a_checkpoint_without_all_weights_is_refused(make_supervised, make_model, tmp_path):
    shutil.copytree(make_model("llama"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    assert lost.numel() > 0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for job in ("rm", "sft"):
        with pytest.raises(ConfigError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj"):
            make_supervised(job, path=tmp_path)


def test_experts_are_balanced_over_real_tokens(make_supervised, make_model, rankings):
    path = make_model("mixtral", num_local_experts=4, num_experts_per_tok=2, pad_token_id=None)
    job = {"router_aux_loss_coef": 0.5}
    learner = make_supervised("rm", path=path, job=job, optim=UNCLIPPED)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    logits_NE = []
    for row in rankings:
        for ids in row.answer_ids_K:
            token_ids = torch.from_numpy(np.concatenate([row.prompt_ids_T, ids]).astype(np.int64))
            output = model(token_ids[None], output_router_logits=True)
            logits_NE.append(output.router_logits)
    joined = tuple(torch.cat(layer) for layer in zip(*logits_NE, strict=True))
    wanted = float(load_balancing_loss_func(joined, 4, 2))
    plain = make_supervised("rm", path=path, optim=UNCLIPPED)
    loss = plain.update(rankings, plan_rows(rankings))["loss"]
    metrics = learner.update(rankings, plan_rows(rankings, budget=10_000))
    assert metrics["aux_loss"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["loss"] == pytest.approx(loss + 0.5 * wanted, rel=1e-5)
    padded = make_supervised("rm", path=path, job=job, layout="padded", optim=UNCLIPPED)
    metrics = padded.update(rankings, plan_rows(rankings, budget=10_000, padded=True))
    assert metrics["aux_loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_model_without_experts_has_nothing_to_balance(make_supervised):
    with pytest.raises(ConfigError, match="router_aux_loss_coef must be 0 for llama"):
        make_supervised("rm", job={"router_aux_loss_coef": 0.1})


def test_forty_steps_learn_the_order(make_supervised, rankings):
    learner = make_supervised("rm", optim={"lr": 3e-3})
    metrics = [learner.update(rankings, plan_rows(rankings)) for _ in range(40)]
    assert metrics[-1]["accuracy"] == 1.0
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_bfloat16_weights_train_with_a_float32_head(
    make_supervised, make_model, encoder, rankings, kind
):
    path = encoder if kind == "encoder" else make_model("llama")
    learner = make_supervised("rm", path=path, model={"dtype": "bfloat16"}, optim={"lr": 3e-3})
    losses = [learner.update(rankings, plan_rows(rankings))["loss"] for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1
