"""Thirty steps beside TRL's trainers: same model, rows, order and hyper-parameters, same losses."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from learning import hosted, plan_evaluation, plan_rows
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

trl = pytest.importorskip("trl", minversion="1.16")
from datasets import Dataset  # noqa: E402

from rlhf_ray.config.learners import ReferenceConfig  # noqa: E402
from rlhf_ray.learner.export import export_model  # noqa: E402
from rlhf_ray.learner.weights import named_weights  # noqa: E402
from rlhf_ray.specs import ReferenceSpec  # noqa: E402
from rlhf_ray.types import Ranking, Referenced, SftExample  # noqa: E402

STEPS, BATCH = 30, 8
# About a gradient's size: with less, rounding of one near 0 becomes a whole step of Adam's, on one
# processor or another.
EPS = 1e-3
LR = {"sft": 5e-4, "rm": 1e-3, "dpo": 3e-4}


@pytest.fixture(scope="module")
def story_pairs(stories, shared_data):
    """Beginnings of real stories, each with its own end and, as the worse, another story's."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    texts = (shared_data / "text/tinystories_sample.txt").read_text().split("<|endoftext|>")
    texts = [text.strip() for text in texts if len(text) > 400][: STEPS * BATCH]
    token_ids = [np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in texts]
    assert len(token_ids) == STEPS * BATCH
    made = []
    for number, action_mask_T in enumerate(token_ids):
        border, other_T = 8 + number % 9, token_ids[number - 1]
        lens = (12 + (7 * number) % 23, 12 + (5 * number) % 17)
        made.append(
            Ranking(
                example_id=f"stories:{number}",
                prompt_ids_T=action_mask_T[:border],
                answer_ids_K=(
                    action_mask_T[border : border + lens[0]],
                    other_T[border : border + lens[1]],
                ),
            )
        )
    return made


@pytest.fixture
def make_learner(make_supervised, stories):
    def make(name, *, weight_decay=0.0, **job):
        optim = {
            "lr": LR[name],
            "schedule": "linear",
            "betas": (0.9, 0.98),
            "eps": EPS,
            "max_grad_norm": 0.5,
            "weight_decay": weight_decay,
        }
        settings = {"max_tokens_per_micro_batch": 150, "logits_chunk_tokens": 64}
        learner = make_supervised(name, path=stories, job=job, optim=optim, **settings)
        learner.engine.total_steps = STEPS
        return learner

    return make


@pytest.fixture
def their_settings(tmp_path):
    """What the three trainers are given."""
    return {
        "output_dir": str(tmp_path / "trl"),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "lr_scheduler_type": "linear",
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": EPS,
        "max_grad_norm": 0.5,
        "optim": "adamw_torch",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "max_length": None,
    }


def recording(trainer_class):
    """The trainer with the loss of every step, rows in their order, and rows that are tokens."""

    class Recording(trainer_class):
        def compute_loss(self, *args, **keywords):
            loss = super().compute_loss(*args, **keywords)
            self.__dict__.setdefault("losses", []).append(float(loss))
            return loss

        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset, *args, **keywords):
            return dataset

    return Recording


def their_run(trainer_class, model, args, rows, tokenizer, **keywords):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name)
        trainer = recording(trainer_class)(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            **keywords,
        )
        trainer.train()
    return trainer.losses, dict(trainer.model.named_parameters())


def our_run(learner, rows):
    """Losses, weights after the run, and how far each has gone."""
    start, losses = weights_of(learner), []
    for step in range(STEPS):
        some = rows[step * BATCH : (step + 1) * BATCH]
        plan = plan_rows([getattr(row, "row", row) for row in some], budget=150)
        assert len(plan.minibatches[0].micro_batches_by_rank[0]) > 1
        losses.append(learner.update(some, plan)["loss"])
    weights = weights_of(learner)
    return losses, weights, {name: (weights[name] - start[name]).norm() for name in start}


def weights_of(learner):
    return {name: weight.clone() for name, weight in named_weights(learner.lm)}


def check(what, ours, theirs, capsys):
    (our_losses, our_weights, moved), (their_losses, their_weights) = ours, theirs
    assert len(our_losses) == len(their_losses) == STEPS
    gaps = [abs(a - b) for a, b in zip(our_losses, their_losses, strict=True)]
    distances = {
        name: float((our_weights[name] - weight.detach()).norm() / moved[name])
        for name, weight in their_weights.items()
    }
    assert our_weights.keys() == their_weights.keys()
    gap = np.max(gaps)  # no number stays none, unlike in Python's max
    worst = [*distances][np.argmax([*distances.values()])]
    with capsys.disabled():
        print(
            f"\n{what}: loss {our_losses[0]:.4f} -> {our_losses[-1]:.4f}, largest gap of a step "
            f"{gap:.1e}; weights differ most in {worst}, by {distances[worst]:.1e} of its way"
        )
    assert gap < 1e-5
    assert distances[worst] < 1e-3


@pytest.mark.parametrize(("loss_type", "weight_decay"), [("nll", 0.0), ("nll", 0.1), ("dft", 0.0)])
def test_sft(make_learner, stories, story_pairs, their_settings, capsys, loss_type, weight_decay):
    learner = make_learner("sft", weight_decay=weight_decay, loss_type=loss_type)
    examples = [
        SftExample(
            example_id=row.example_id,
            token_ids_T=np.concatenate([row.prompt_ids_T, row.answer_ids_K[0]]),
            trained_T=np.arange(row.num_tokens - len(row.prompt_ids_T) - len(row.answer_ids_K[1]))
            >= len(row.prompt_ids_T),
        )
        for row in story_pairs
    ]
    rows = [
        {
            "input_ids": row.token_ids_T.tolist(),
            "labels": np.where(row.trained_T, row.token_ids_T, -100).tolist(),
        }
        for row in examples
    ]
    args = trl.SFTConfig(
        **their_settings,
        learning_rate=LR["sft"],
        weight_decay=weight_decay,
        loss_type=loss_type,
        packing=False,
    )
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    theirs = their_run(trl.SFTTrainer, model, args, rows, tokenizer)
    check(
        f"SFT, {loss_type}, weight decay {weight_decay}", our_run(learner, examples), theirs, capsys
    )


def test_reward(make_learner, stories, story_pairs, their_settings, capsys, tmp_path):
    learner = make_learner("rm", center_rewards_coefficient=0.01)
    export_model(learner.lm, tmp_path / "start", str(stories), write=True)
    pairs = [replace(row, margin=0.1 * (n % 3)) for n, row in enumerate(story_pairs)]
    rows = [
        {
            "chosen_ids": [*row.prompt_ids_T.tolist(), *row.answer_ids_K[0].tolist()],
            "rejected_ids": [*row.prompt_ids_T.tolist(), *row.answer_ids_K[1].tolist()],
            "margin": row.margin,
        }
        for row in pairs
    ]
    args = trl.RewardConfig(
        **their_settings, learning_rate=LR["rm"], center_rewards_coefficient=0.01
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "start", dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(stories)
    theirs = their_run(trl.RewardTrainer, model, args, rows, tokenizer)
    check("reward model", our_run(learner, pairs), theirs, capsys)


@pytest.mark.parametrize("loss_type", ["sigmoid", "aot"])
def test_dpo(make_learner, stories, story_pairs, their_settings, capsys, loss_type):
    learner = make_learner("dpo", loss_type=[loss_type], beta=0.2)
    spec = {"model": {"path": str(stories), "dtype": "float32"}}
    reference = hosted(
        ReferenceSpec(reference=ReferenceConfig.model_validate(spec), temperature=1.0)
    )
    plan = plan_evaluation(story_pairs, budget=500)
    sums = reference.answer_logps(story_pairs, plan)
    by_row = dict(zip([row for picked in plan[0] for row in picked], sums, strict=True))
    ours = [
        Referenced(row=row, reference_logps_K=by_row[number])
        for number, row in enumerate(story_pairs)
    ]
    rows = [
        {
            "prompt_ids": row.prompt_ids_T.tolist(),
            "chosen_ids": row.answer_ids_K[0].tolist(),
            "rejected_ids": row.answer_ids_K[1].tolist(),
        }
        for row in story_pairs
    ]
    args = trl.DPOConfig(**their_settings, learning_rate=LR["dpo"], loss_type=[loss_type], beta=0.2)
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    theirs = their_run(trl.DPOTrainer, model, args, rows, tokenizer, ref_model=copy.deepcopy(model))
    check(f"DPO, {loss_type}", our_run(learner, ours), theirs, capsys)
