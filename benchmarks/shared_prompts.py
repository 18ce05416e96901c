"""Seconds of an update and of a forward pass with prompts that stand once, and with one for each.

    OMP_NUM_THREADS=1 RLHF_RAY_DATA=/path/to/data python -m benchmarks.shared_prompts

A random Qwen2 of 3.35 M parameters in float32 on the CPU: GRPO with 64 prompts of 37 and of 256
tokens, 8 responses of 64 tokens each, and DPO on 64 pairs with the lengths of HH-RLHF
(helpful-base; 4 characters a token). Learners with and without take the same steps in turns;
medians of CPU seconds, their ratios, and how far apart loss and norm of the gradient are in the
first step.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.against_trl.models import SHAPE, SPECIAL, save_model, word_tokenizer
from benchmarks.gradients import process_group
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.learner.build import Spec, engine_builder, make_learner
from rlhf_ray.learner.rows import score_answers
from rlhf_ray.packing import UpdatePlan, plan_update
from rlhf_ray.shared_prompts import PromptShare, planned_tokens
from rlhf_ray.specs import PolicySpec, SupervisedSpec
from rlhf_ray.types import Experience, Prompt, Ranking, Referenced, Rollout

CPU = torch.device("cpu")
DATA = Path(os.environ.get("RLHF_RAY_DATA", "../shared/data"))
SAMPLES, NEW_TOKENS = 8, 64
VOCABULARY: int = SHAPE["vocab_size"]
CHARACTERS_PER_TOKEN, MAX_PROMPT_TOKENS = 4, 512


def main() -> None:
    """Measure the cases and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each learner; one more warms up")
    parser.add_argument("--prompts", type=int, default=64, help="of a step; fewer are quicker")
    arguments = parser.parse_args()
    num = arguments.prompts
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    print(f"{'case':<22}{'':<9}{'shared':>8}{'plain':>8}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as folder, process_group():
        path = save_model(Path(folder), word_tokenizer())
        for case in (grpo_case(path, num, 37), grpo_case(path, num, 256), _dpo(path, num)):
            seconds, difference = _measured(case, arguments.rounds)
            for name, (shared, plain) in seconds.items():
                print(f"{case.name:<22}{name:<9}{shared:>8.3f}{plain:>8.3f}{plain / shared:>7.2f}")
            print(f"{'':<22}loss and norm of the gradient differ by {difference:.1g}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A job's step.

    Attributes:
        name: In the table.
        rows: Of the step.
        spec: Of its learner, with or without.
        plan: Of a step, by the learner's configuration.
        update: Takes a step; gives its metrics.
        forward: A pass without gradients.
    """

    name: str
    rows: Sequence[Any]
    spec: Callable[[bool], Spec]
    plan: Callable[[LearnerConfig], UpdatePlan]
    update: Callable[[Any, UpdatePlan], dict[str, float]]
    forward: Callable[[Any, UpdatePlan], Any]


def _measured(case: Case, rounds: int) -> tuple[dict[str, tuple[float, float]], float]:
    """CPU seconds with and without, by what was done; and the relative difference of outcomes."""
    ways = []
    for shares in (True, False):
        spec = case.spec(shares)
        learner = make_learner(spec, engine_builder(spec, device=CPU))
        ways.append((learner, case.plan(learner.config)))
    first = [case.update(*way) for way in ways]
    taken: dict[str, tuple[list[float], list[float]]] = {"update": ([], []), "forward": ([], [])}
    for _ in range(rounds):
        for name, work in (("update", case.update), ("forward", case.forward)):
            for way, seconds in zip(ways, taken[name], strict=True):
                began = time.process_time()
                work(*way)
                seconds.append(time.process_time() - began)
    shared, plain = first
    differences = [abs(shared[n] - plain[n]) / abs(plain[n]) for n in ("loss", "grad_norm")]
    for learner, _ in ways:
        learner.close()
    medians = {name: (median(own), median(others)) for name, (own, others) in taken.items()}
    return medians, max(differences)


def _learner(path: Path, shares: bool) -> LearnerConfig:
    return LearnerConfig.model_validate({
        "model": {"path": str(path)},
        "share_prompts": shares,
        "optim": {"lr": 1e-6},
    })  # fmt: skip


def _ids(generator: np.random.Generator, num: int) -> Any:
    return generator.integers(len(SPECIAL), VOCABULARY, size=num).astype(np.int32)


def grpo_case(path: Path, num_prompts: int, num_prompt: int) -> Case:
    rows = list(_experiences(np.random.default_rng(0), num_prompts, num_prompt))
    rollouts = [row.rollout for row in rows]

    def spec(shares: bool) -> PolicySpec:
        return PolicySpec(
            learner=_learner(path, shares),
            algorithm=AlgorithmConfig.model_validate({"advantage": "grpo"}),
            temperature=1.0,
            max_new_tokens=NEW_TOKENS,
            total_steps=100,
            replay_folder="",
            seed=0,
        )

    def plan(config: LearnerConfig) -> UpdatePlan:
        shares = [PromptShare(prompt=r.draw, num_tokens=num_prompt) for r in rollouts]
        return step_plan(
            [rollout.num_tokens for rollout in rollouts],
            [NEW_TOKENS] * len(rows),
            config,
            prompts_B=shares if config.shares_prompts else None,
        )

    return Case(
        name=f"GRPO, prompts of {num_prompt}",
        rows=rows,
        spec=spec,
        plan=plan,
        update=lambda learner, plan: learner.update(rows, plan, 0.0),
        forward=lambda learner, plan: learner.logprobs(
            rollouts, plan.minibatches[0].micro_batches_by_rank
        ),
    )


def _experiences(
    generator: np.random.Generator, num_prompts: int, num_prompt: int
) -> Iterator[Experience]:
    zeros_T = np.zeros(NEW_TOKENS, dtype=np.float32)
    # A random model gives each token about the same: the ratio then is within its bounds.
    uniform_T = zeros_T - np.float32(np.log(VOCABULARY))
    for draw in range(num_prompts):
        ids_T = tuple(_ids(generator, num_prompt).tolist())
        for sample in range(SAMPLES):
            rollout = Rollout(
                prompt=Prompt(prompt_id=f"p{draw}", token_ids_T=ids_T, text=""),
                draw=draw,
                sample=sample,
                response_ids_T=_ids(generator, NEW_TOKENS),
                logprobs_T=uniform_T,
                versions_T=zeros_T.astype(np.int32),
                action_mask_T=np.ones(NEW_TOKENS, dtype=np.bool_),
                finish_reason="length",
                text="",
            )
            yield Experience(
                rollout=rollout,
                old_logprobs_T=uniform_T,
                reference_logprobs_T=uniform_T,
                values_T=zeros_T,
                advantages_T=generator.normal(size=NEW_TOKENS).astype(np.float32),
                returns_T=zeros_T,
            )


def _dpo(path: Path, num_pairs: int) -> Case:
    rows = _pairs(np.random.default_rng(0), num_pairs)
    answered = [row.row for row in rows]

    def spec(shares: bool) -> SupervisedSpec[DpoConfig]:
        learner = _learner(path, shares)
        job = DpoConfig.model_validate({"data": {"path": "unused"}, "policy": learner})
        return SupervisedSpec(job=job, total_steps=100, replay_folder="")

    def plan(config: LearnerConfig) -> UpdatePlan:
        tokens = planned_tokens(rows, shares_prompts=config.shares_prompts)
        return step_plan(tokens, [row.num_trained_tokens for row in rows], config)

    return Case(
        name="DPO, HH-RLHF",
        rows=rows,
        spec=spec,
        plan=plan,
        update=lambda learner, plan: learner.update(rows, plan),
        forward=lambda learner, plan: score_answers(
            learner.engine, answered, plan.minibatches[0].micro_batches_by_rank, learner.config
        ),
    )


def _pairs(generator: np.random.Generator, num_pairs: int) -> list[Referenced]:
    """Random tokens, as many as the data's own prompts and answers have."""
    pairs: list[Referenced] = []
    with gzip.open(DATA / "hh-rlhf/helpful-base/test.jsonl.gz", "rt") as lines:
        while len(pairs) < num_pairs:
            texts = json.loads(next(lines))
            sides = (texts["chosen"], texts["rejected"])
            chosen, rejected = (side.rpartition("\n\nAssistant:") for side in sides)
            parts = (chosen[0], chosen[2], rejected[2])
            lens = [len(part) // CHARACTERS_PER_TOKEN + 1 for part in parts]
            if chosen[0] != rejected[0] or lens[0] > MAX_PROMPT_TOKENS:
                continue
            prompt_T, *answers = (_ids(generator, num) for num in lens)
            row = Ranking(
                example_id=f"{len(pairs)}", prompt_ids_T=prompt_T, answer_ids_K=tuple(answers)
            )
            pairs.append(Referenced(row=row, reference_logps_K=(0.0, 0.0)))
    return pairs


def step_plan(
    lengths_B: Sequence[int],
    loss_tokens_B: Sequence[int],
    config: LearnerConfig,
    prompts_B: Sequence[PromptShare] | None = None,
) -> UpdatePlan:
    """All rows in one optimiser step of one rank."""
    return plan_update(
        lengths_B,
        loss_tokens_B,
        data_parallel_size=1,
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        num_minibatches=1,
        num_epochs=1,
        seed=0,
        padded=config.padded,
        prompts_B=prompts_B,
    )


if __name__ == "__main__":
    main()
