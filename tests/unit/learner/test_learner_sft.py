"""Supervised fine-tuning of a real model: transformers' loss, and one that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning import parameters_of, plan_evaluation, plan_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tiny_models import tiny
from rlhf_ray.types import SftExample


@pytest.fixture(scope="module")
def examples(stories, shared_data):
    """Beginnings of stories of many lengths; of most a first part is not trained."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    made = []
    for number in range(7):
        length = 5 + (9 * number) % 41
        token_ids_T = tokenizer(texts[number].strip())["input_ids"][:length]
        trained_T = np.arange(len(token_ids_T)) > (4 * number) % (length - 2)
        if number == 3:
            trained_T[::2] = False  # turns of a chat, say
        made.append(
            SftExample(
                example_id=f"stories:{number}",
                token_ids_T=np.array(token_ids_T, dtype=np.int32),
                trained_T=trained_T,
            )
        )
    return made


@pytest.fixture
def make_learner(make_supervised, stories):
    def make(**settings):
        return make_supervised("sft", path=stories, **{"optim": {"lr": 1e-3}, **settings})

    return make


def update(learner, examples):
    """One optimiser step over all examples."""
    plan = plan_rows(examples, padded=learner.job.policy.padded)
    assert len(plan.minibatches[0].micro_batches_by_rank[0]) > 2
    return learner.update(examples, plan)


def evaluate(learner, examples, budget=60):
    plan = plan_evaluation(examples, budget=budget, padded=learner.job.policy.padded)
    return learner.evaluate(examples, plan)


def transformers_says(stories, examples):
    """As transformers computes it from a padded batch with labels: loss, and hits of its argmax."""
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    shape = (len(examples), max(len(example.token_ids_T) for example in examples))
    token_ids_BT, attended_BT = torch.zeros(shape).long(), torch.zeros(shape).long()
    labels_BT = torch.full(shape, -100)
    for row, example in enumerate(examples):
        length = len(example.token_ids_T)
        token_ids_T = torch.from_numpy(example.token_ids_T).long()
        token_ids_BT[row, :length], attended_BT[row, :length] = token_ids_T, 1
        trained_T = torch.from_numpy(example.trained_T)
        labels_BT[row, :length] = torch.where(trained_T, token_ids_T, -100)
    with torch.no_grad():
        output = model(token_ids_BT, attention_mask=attended_BT, labels=labels_BT)
    targets = labels_BT[:, 1:]
    hits = output.logits[:, :-1].argmax(-1) == targets
    return float(output.loss), float(hits.sum() / (targets != -100).sum())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_first_loss_is_transformers_own(make_learner, stories, examples, layout):
    learner = make_learner(layout=layout)
    loss, accuracy = transformers_says(stories, examples)
    before = evaluate(learner, examples)
    updated = update(learner, examples)
    for metrics in (before.metrics, updated):
        assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
        assert metrics["nll"] == pytest.approx(loss, abs=1e-5)
        assert metrics["token_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert before.metrics["entropy"] == pytest.approx(updated["entropy"], abs=1e-5)
    for example, (outcome,) in zip(examples, before.outcomes_B, strict=True):
        assert outcome == pytest.approx(transformers_says(stories, [example])[0], abs=1e-5)
    assert updated["skipped_steps"] == 0
    assert updated["grad_norm"] > 0


def test_dynamic_fine_tuning_weighs_each_token_by_its_probability(make_learner, stories, examples):
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float64)
    total, num_tokens = 0.0, 0
    for example in examples:
        token_ids_T = torch.from_numpy(example.token_ids_T).long()
        logprobs_TV = model(token_ids_T[None]).logits[0, :-1].log_softmax(-1)
        logprobs_T = logprobs_TV.gather(-1, token_ids_T[1:, None]).squeeze(-1)
        trained_T = logprobs_T[torch.from_numpy(example.trained_T[1:])]
        total = total - (trained_T.detach().exp() * trained_T).sum()
        num_tokens += len(trained_T)
    loss = total / num_tokens
    loss.backward()
    norm = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    learner = make_learner(job={"loss_type": "dft"})
    evaluated = evaluate(learner, examples).metrics
    updated = update(learner, examples)
    # Its own loss falls with the probabilities; the likelihood beside it compares with other runs.
    nll, _ = transformers_says(stories, examples)
    for metrics in (evaluated, updated):
        assert metrics["loss"] == pytest.approx(float(loss), abs=1e-5)
        assert metrics["nll"] == pytest.approx(nll, abs=1e-5)
    assert updated["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_five_steps_lower_the_loss_and_evaluation_follows(make_learner, examples):
    learner = make_learner()
    losses = []
    for _ in range(5):
        before = evaluate(learner, examples).metrics["loss"]
        losses.append(update(learner, examples)["loss"])
        assert before == pytest.approx(losses[-1], abs=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_evaluation_changes_nothing_and_does_not_depend_on_the_split(make_learner, examples):
    learner = make_learner()
    before = parameters_of(learner)
    evaluated = [evaluate(learner, examples, budget) for budget in (1, 60, 10_000)]
    for other in evaluated[1:]:
        assert other.metrics == pytest.approx(evaluated[0].metrics, abs=1e-5)
        np.testing.assert_allclose(other.outcomes_B, evaluated[0].outcomes_B, atol=1e-5)
    for name, weight in parameters_of(learner).items():
        assert torch.equal(weight, before[name]), name
    assert learner.engine.module.training
    assert all(parameter.grad is None for parameter in learner.engine.module.parameters())


@pytest.mark.parametrize(
    "settings",
    [{}, {"layout": "padded"}, {"zero": {"stage": 3}}, {"model": {"lora": {"rank": 2}}}],
    ids=["packed", "padded", "zero 3", "lora"],
)
def test_continuations_are_what_transformers_writes_greedily(make_learner, stories, settings):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    prompts = [tokenizer(text)["input_ids"] for text in ("Once upon a time", "Lily", "The")]
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    [first, *_] = expected = [
        model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
        for ids in prompts
    ]
    learner = make_learner(**settings)
    written = learner.continuations(prompts, max_new_tokens=12, end_ids=set())
    assert written == [ids.tolist() for ids in expected]
    end = int(first[4])
    [cut] = learner.continuations(prompts[:1], max_new_tokens=12, end_ids={end})
    assert cut == first.tolist()[: first.tolist().index(end) + 1]
    long = [5] * 508  # of a context of 512
    assert len(learner.continuations([long], max_new_tokens=12, end_ids=set())[0]) == 4
    assert learner.continuations([], max_new_tokens=12, end_ids={end}) == []


def test_a_model_without_a_longest_sequence_continues_as_well(make_supervised, tmp_path):
    tiny("bloom")[0].save_pretrained(tmp_path)
    learner = make_supervised("sft", path=tmp_path)
    assert len(learner.continuations([[5, 6]], max_new_tokens=3, end_ids=())[0]) == 3
