"""Preference losses through a model: plain transformers' gradient, however the step is cut."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from learning import (
    SMOOTH,
    gradients_of,
    hosted,
    largest_gap,
    parameters_of,
    plan_evaluation,
    plan_rows,
)
from transformers import AutoModelForCausalLM

from rlhf_ray.algorithms.preference_losses import PAIR_LOSSES, LabelledInputs, PairInputs, kto
from rlhf_ray.config.algorithm_table import PREFERENCE_LOSSES
from rlhf_ray.config.learners import ReferenceConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.specs import ReferenceSpec

UNCLIPPED = {"max_grad_norm": 1e9}
JOBS = {
    **{name: {"loss_type": [name]} for name in PAIR_LOSSES},
    **{
        name: {"loss_type": [name], "label_smoothing": 0.1}
        for name in PAIR_LOSSES
        if PREFERENCE_LOSSES[name].smooths
    },
    "mix": {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2], "rpo_alpha": 0.5},
    "coupled mix": {"loss_type": ["aot", "hinge"], "loss_weights": [0.7, 0.4], "rpo_alpha": 0.1},
    "forward kl": {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"},
    "reference free": {"loss_type": ["sigmoid"], "reference_free": True},
    "kto": {"loss_type": ["kto"], "desirable_weight": 1.5, "undesirable_weight": 0.7},
}


@pytest.fixture(params=JOBS, ids=str)
def job(request):
    return JOBS[request.param]


@pytest.fixture
def rows(job, pairs, labelled):
    rows = labelled if job["loss_type"] == ["kto"] else pairs
    if job.get("reference_free"):
        rows = [replace(row, reference_logps_K=(0.0, 0.0)) for row in rows]
    return rows


def plan_of(rows, **settings):
    return plan_rows([row.row for row in rows], **settings)


def plain_sums(model, rows):
    """Sum of log-probabilities of each answer, one sequence at a time: [B, 2]."""
    sums = []
    for row in rows:
        for ids in row.row.answer_ids_K:
            sequence = np.concatenate([row.row.prompt_ids_T, ids]).astype(np.int64)
            token_ids = torch.from_numpy(sequence)
            logprobs_TV = model(token_ids[None]).logits[0, :-1].log_softmax(-1)
            logprobs_T = logprobs_TV.gather(-1, token_ids[1:, None]).squeeze(-1)
            sums.append(logprobs_T[-len(ids) :].sum())
    return torch.stack(sums).view(-1, 2)


def plain_loss(learner, rows, sums_BK):
    references_BK = torch.tensor([row.reference_logps_K for row in rows], dtype=torch.float64)
    if learner.job.loss_type == ["kto"]:
        z0 = (sums_BK - references_BK)[:, 1].mean().clamp(min=0).detach()
        inputs = LabelledInputs(
            logps_B=sums_BK[:, 0],
            reference_logps_B=references_BK[:, 0],
            mismatch_kl=z0,
            desirable_B=torch.tensor([row.row.desirable for row in rows]),
        )
        return kto(inputs, learner.objective.params).mean()
    lens_BK = torch.tensor([[len(ids) for ids in row.row.answer_ids_K] for row in rows])
    inputs = PairInputs(
        chosen_logps_B=sums_BK[:, 0],
        rejected_logps_B=sums_BK[:, 1],
        reference_chosen_logps_B=references_BK[:, 0],
        reference_rejected_logps_B=references_BK[:, 1],
        chosen_lens_B=lens_BK[:, 0],
        rejected_lens_B=lens_BK[:, 1],
        num_pairs=len(rows),
        num_chosen_tokens=int(lens_BK[:, 0].sum()),
    )
    weights = learner.job.weighted_losses
    losses = [
        w * PAIR_LOSSES[name](inputs, learner.objective.params) for name, w in weights.items()
    ]
    return sum(losses).mean()


def gradient(make, rows, job, *, budget=60, layout="packed", **settings):
    learner = make("dpo", job=job, optim=UNCLIPPED, layout=layout, **settings)
    metrics = learner.update(rows, plan_of(rows, budget=budget, padded=layout == "padded"))
    return gradients_of(learner), metrics


def test_loss_and_gradient_are_plain_transformers(make_supervised, make_model, rows, job):
    learner = make_supervised("dpo", job=job, optim=UNCLIPPED)
    model = AutoModelForCausalLM.from_pretrained(
        make_model("llama"), dtype=torch.float64, attn_implementation="eager"
    )
    sums_BK = plain_sums(model, rows)
    loss = plain_loss(learner, rows, sums_BK)
    loss.backward()
    evaluated = learner.evaluate(rows, plan_evaluation([row.row for row in rows]))
    metrics = learner.update(rows, plan_of(rows))
    assert metrics["skipped_steps"] == 0
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5, abs=1e-6)
    for name in evaluated.metrics:
        assert evaluated.metrics[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-5), name
    rewards_BK = learner.job.beta * (
        sums_BK.detach() - torch.tensor([row.reference_logps_K for row in rows])
    )
    width = len(evaluated.outcomes_B[0])
    np.testing.assert_allclose(evaluated.outcomes_B, rewards_BK[:, :width].numpy(), atol=1e-4)
    theirs = {f"lm.{name}": parameter.grad for name, parameter in model.named_parameters()}
    assert largest_gap(gradients_of(learner), theirs) < 1e-5


def test_the_gradient_does_not_depend_on_split_layout_or_order(make_supervised, rows, job):
    whole, wanted = gradient(make_supervised, rows, job, budget=10_000)
    shuffled = random.Random(0).sample(rows, len(rows))
    for some, budget, layout in [
        (rows, 1, "packed"),
        (rows, 80, "padded"),
        (shuffled, 60, "packed"),
    ]:
        cut, metrics = gradient(make_supervised, some, job, budget=budget, layout=layout)
        assert largest_gap(cut, whole) < 1e-5
        for name, value in wanted.items():
            assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_coupled_losses_would_show_if_they_were_cut(make_supervised, pairs):
    """What the cut invariance of AOT rests on: its loss of two halves is not that of the whole."""
    assert PREFERENCE_LOSSES["aot"].is_coupled
    whole, _ = gradient(make_supervised, pairs, JOBS["aot"])
    learner = make_supervised("dpo", job=JOBS["aot"], optim=UNCLIPPED)
    learner.objective.ahead = None
    learner.update(pairs, plan_of(pairs, budget=1))
    assert largest_gap(gradients_of(learner), whole) > 1e-2


def test_metrics_bear_trls_names(make_supervised, pairs, labelled):
    names = {
        *("loss", "grad_norm", "lr", "skipped_steps", "skipped_in_a_row"),
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"),
        "logps/rejected",
    }
    metrics = make_supervised("dpo").update(pairs, plan_of(pairs))
    assert names | {"rewards/accuracies"} <= metrics.keys()
    margin = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    assert metrics["rewards/margins"] == pytest.approx(margin, abs=1e-5)
    metrics = make_supervised("dpo", job=JOBS["kto"]).update(labelled, plan_of(labelled))
    assert names | {"kl"} <= metrics.keys()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_without_its_adapter_the_policy_is_the_reference(
    make_supervised, make_model, pairs, labelled, stage
):
    reference = hosted(
        ReferenceSpec(
            reference=ReferenceConfig.model_validate(
                {"model": {"path": str(make_model("llama")), "dtype": "float32"}}
            ),
            temperature=1.0,
        )
    )
    answers = [row.row for row in (*pairs, *labelled)]
    plan = plan_evaluation(answers)
    wanted = reference.answer_logps(answers, plan)
    lora = {"lora": {"rank": 3, "alpha": 12.0}}
    learner = make_supervised("dpo", model=lora, zero={"stage": stage}, optim=SMOOTH)
    for _ in range(3):
        np.testing.assert_allclose(learner.answer_logps(answers, plan), wanted, atol=1e-4)
        metrics = learner.update(pairs, plan_of(pairs))
    started = np.array([row.reference_logps_K for row in pairs])[:, 0].mean()
    assert abs(metrics["logps/chosen"] - started) > 1e-2
    assert all(p.requires_grad == ("lora_" in n) for n, p in learner.lm.named_parameters())


def test_the_reference_sums_each_answers_tokens(make_model, pairs, labelled):
    spec = ReferenceSpec(
        reference=ReferenceConfig.model_validate(
            {"model": {"path": str(make_model("llama")), "dtype": "float32"}}
        ),
        temperature=1.0,
    )
    reference = hosted(spec)
    model = AutoModelForCausalLM.from_pretrained(make_model("llama"), dtype=torch.float64)
    for rows in (pairs, labelled):
        with torch.no_grad():
            wanted = plain_sums(model, rows)
        plan = plan_evaluation([row.row for row in rows])
        sums = reference.answer_logps([row.row for row in rows], plan)
        order = [row for picked in plan[0] for row in picked]
        assert len(plan[0]) > 2
        np.testing.assert_allclose(sums, wanted[order].numpy(), atol=1e-4)


def test_experts_may_be_balanced_too(make_supervised, make_model, pairs):
    path = make_model("mixtral", num_local_experts=4, num_experts_per_tok=2, pad_token_id=None)
    plain = make_supervised("dpo", path=path)
    balanced = make_supervised("dpo", path=path, job={"router_aux_loss_coef": 0.5})
    plan = plan_of(pairs, budget=10_000)
    # The load-balancing loss is at least 1 where tokens and probabilities are spread alike.
    assert balanced.update(pairs, plan)["loss"] > plain.update(pairs, plan)["loss"] + 0.4
    with pytest.raises(ConfigError, match="router_aux_loss_coef must be 0 for llama"):
        make_supervised("dpo", job={"router_aux_loss_coef": 0.5})


def test_a_step_of_bad_numbers_is_skipped_whole(make_supervised, pairs):
    for name in ("sigmoid", "aot"):
        learner = make_supervised("dpo", job={"loss_type": [name]})
        before = parameters_of(learner)
        bad = [replace(pairs[0], reference_logps_K=(float("nan"), 0.0)), *pairs[1:]]
        assert learner.update(bad, plan_of(bad))["skipped_steps"] == 1
        for parameter, weight in parameters_of(learner).items():
            assert torch.equal(weight, before[parameter]), parameter


def test_thirty_steps_part_the_answers(make_supervised, pairs):
    learner = make_supervised("dpo", optim={"lr": 3e-3})
    metrics = [learner.update(pairs, plan_of(pairs)) for _ in range(30)]
    assert metrics[-1]["rewards/accuracies"] == 1.0
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3
