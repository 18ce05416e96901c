"""Supervised fine-tuning of a real model: transformers' loss, and one that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning import parameters_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config.base import LearnerConfig
from rlhf_ray.data.packing import plan_forward, plan_update
from rlhf_ray.learner.sft import SftLearner
from rlhf_ray.specs import SftSpec
from rlhf_ray.types import SftExample

BUDGET = 60  # several micro-batches of the examples below


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
def make_learner(stories, tmp_path):
    learners = []

    def make(**settings):
        learner = {
            "model": {"path": str(stories), "dtype": "float32"},
            "optim": {"lr": 1e-3},
            "logits_chunk_tokens": 16,
            **settings,
        }
        spec = SftSpec(
            learner=LearnerConfig.model_validate(learner),
            total_steps=10,
            replay_folder=str(tmp_path / "skipped"),
            seed=0,
        )
        learners.append(SftLearner(spec, device=torch.device("cpu")))
        return learners[-1]

    yield make
    for learner in learners:
        learner.close()


def update(learner, examples):
    """One optimiser step over all examples."""
    plan = plan_update(
        [len(example.token_ids_T) for example in examples],
        [int(example.trained_T.sum()) for example in examples],
        num_ranks=1,
        max_tokens_per_micro_batch=BUDGET,
        num_minibatches=1,
        num_epochs=1,
        seed=0,
        padded=learner.spec.learner.padded,
    )
    assert len(plan.minibatches[0].micro_batches_by_rank[0]) > 2
    return learner.update(examples, plan)


def evaluate(learner, examples, budget=BUDGET):
    lengths = [len(example.token_ids_T) for example in examples]
    plan = plan_forward(
        lengths,
        num_ranks=1,
        max_tokens_per_micro_batch=budget,
        padded=learner.spec.learner.padded,
    )
    return learner.evaluate(examples, plan)


def transformers_loss(stories, examples):
    """As transformers computes it from a padded batch with labels."""
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
        return float(model(token_ids_BT, attention_mask=attended_BT, labels=labels_BT).loss)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_first_loss_is_transformers_own(make_learner, stories, examples, layout):
    learner = make_learner(layout=layout)
    expected = transformers_loss(stories, examples)
    assert evaluate(learner, examples) == pytest.approx(expected, abs=1e-5)
    updated = update(learner, examples)
    assert updated["loss"] == pytest.approx(expected, abs=1e-5)
    assert updated["skipped_steps"] == 0
    assert updated["grad_norm"] > 0


def test_five_steps_lower_the_loss_and_evaluation_follows(make_learner, examples):
    learner = make_learner()
    losses = []
    for _ in range(5):
        before = evaluate(learner, examples)
        losses.append(update(learner, examples)["loss"])
        assert before == pytest.approx(losses[-1], abs=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_evaluation_changes_nothing_and_does_not_depend_on_the_split(make_learner, examples):
    learner = make_learner()
    before = parameters_of(learner)
    losses = [evaluate(learner, examples, budget) for budget in (1, BUDGET, 10_000)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    for name, weight in parameters_of(learner).items():
        assert torch.equal(weight, before[name]), name
    assert learner.engine.module.training
    assert all(parameter.grad is None for parameter in learner.engine.module.parameters())
