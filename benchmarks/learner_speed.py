"""Tokens a second of the learner, over those of a bare PyTorch loop on the same packed tokens.

    python -m benchmarks.learner_speed
    python -m benchmarks.learner_speed --cases grpo --pairs 3 --profile

A random Qwen2 of 3.35 M parameters in float32 on the CPU. GRPO: 64 prompts of 37 tokens, 8 answers
of 64 to each. SFT: 16 rows of 256 tokens, all trained. The learner's `update` has everything that a
rank does: rows to tensors, DeepSpeed, metrics, clipping, AdamW. The bare loop has its micro-batches
as tensors already, the same attention on them, `cross_entropy`, the same loss, `clip_grad_norm_`
and `torch.optim.AdamW`, and no metrics. Both take optimiser steps in turns, in one process with all
cores. The ratio is that of the medians of seconds, of the worse case; `cpu` is that of CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.against_trl.models import SPECIAL, save_model, word_tokenizer
from benchmarks.gradients import process_group
from benchmarks.shared_prompts import CPU, VOCABULARY, grpo_case, step_plan
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.cpus import usable_cores
from rlhf_ray.learner.build import engine_builder, make_learner
from rlhf_ray.learner.optim import adamw_settings, parameter_groups
from rlhf_ray.learner.rows import rollout_batch
from rlhf_ray.models.attention import PACKED_SDPA
from rlhf_ray.models.batch import TokenBatch, build_batch
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.specs import SupervisedSpec
from rlhf_ray.types import Experience, SftExample

GOAL = 0.95
# Of a turn of the learner or of the loop, seconds and CPU seconds.
Turn = tuple[float, float]


def main() -> int:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--pairs", type=int, default=7, help="turns of either")
    parser.add_argument("--prompts", type=int, default=64, help="of a step; fewer are quicker")
    parser.add_argument("--quick", action="store_true", help="one small turn, for a rehearsal")
    parser.add_argument("--profile", action="store_true", help="where the time goes, as text")
    arguments = parser.parse_args()
    pairs, prompts = (1, 4) if arguments.quick else (arguments.pairs, arguments.prompts)
    found = learner_speed(pairs, arguments.cases, prompts=prompts, profiles=arguments.profile)
    print(json.dumps(found))
    return int(not found["holds"])


def learner_speed(
    pairs: int, cases: Sequence[str] = ("grpo", "sft"), *, prompts: int = 64, profiles: bool = False
) -> dict[str, Any]:
    """The worse ratio, the goal, whether it holds, and the seconds of each turn by case."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    torch.set_num_threads(usable_cores())
    turns: dict[str, list[tuple[Turn, Turn]]] = {}
    with tempfile.TemporaryDirectory() as folder, process_group():
        path = save_model(Path(folder), word_tokenizer())
        for name in cases:
            turns[name] = list(_turns(CASES[name](path, prompts), pairs, profiles))
    ratio = min(_ratio(found, 0) for found in turns.values())
    return {
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "holds": ratio >= GOAL,
        "pairs": [
            {"case": name, "ours_s": round(ours[0], 3), "bare_s": round(bare[0], 3)}
            for name, found in turns.items()
            for ours, bare in found
        ],
        "cpu": {name: round(_ratio(found, 1), 3) for name, found in turns.items()},
    }


def _ratio(turns: Sequence[tuple[Turn, Turn]], clock: int) -> float:
    ours, bare = (median(pair[side][clock] for pair in turns) for side in (0, 1))
    return bare / ours


@dataclass(frozen=True, kw_only=True)
class Case:
    """One optimiser step of a job.

    Attributes:
        learner: With its model.
        update: Takes the step.
        batches: The same micro-batches as tensors.
        loss: Of one of them, from the log-probabilities of its scored tokens.
    """

    learner: Any
    update: Callable[[], Any]
    batches: Sequence[TokenBatch]
    loss: Callable[[int, torch.Tensor], torch.Tensor]


def _turns(case: Case, pairs: int, profiles: bool) -> Iterator[tuple[Turn, Turn]]:
    bare = _bare_loop(case)
    case.update(), bare()  # what is made at the first call
    if profiles:
        _print_profile(case.update)
        _print_profile(bare)
    for _ in range(pairs):
        yield _timed(case.update), _timed(bare)
    case.learner.close()


def _timed(work: Callable[[], Any]) -> Turn:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began_s, time.process_time() - began_cpu_s


def _print_profile(work: Callable[[], Any]) -> None:
    with torch.profiler.profile() as profile:
        work()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def _bare_loop(case: Case) -> Callable[[], None]:
    """An optimiser step of the same model, as one writes it by hand."""
    config = case.learner.config
    lm: Any = load_causal_lm(config.model, device=CPU).train()
    lm.set_attn_implementation(PACKED_SDPA)
    optim = config.optim
    groups = parameter_groups(lm, weight_decay=optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, **adamw_settings(optim))

    def step() -> None:
        for index, batch in enumerate(case.batches):
            hidden_ND = lm.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                packing=batch.packing,
                use_cache=False,
            ).last_hidden_state[0]
            logits_TV = lm.lm_head(hidden_ND[batch.predict])
            logprobs_T = -F.cross_entropy(logits_TV, batch.targets_T, reduction="none")
            case.loss(index, logprobs_T).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _grpo(path: Path, num_prompts: int) -> Case:
    shared = grpo_case(path, num_prompts, 37)
    spec = shared.spec(True)
    learner = make_learner(spec, engine_builder(spec, device=CPU))
    plan = shared.plan(learner.config)
    parts = [[shared.rows[row] for row in rows] for rows in _micro_batches(plan)]

    def tensor(rows: Sequence[Experience], name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]))

    old = [tensor(rows, "old_logprobs_T") for rows in parts]
    advantages = [tensor(rows, "advantages_T") for rows in parts]
    num_tokens = plan.minibatches[0].num_tokens
    algorithm = spec.algorithm

    def loss(index: int, logprobs_T: torch.Tensor) -> torch.Tensor:
        ratio_T = (logprobs_T - old[index]).exp()
        clipped_T = ratio_T.clamp(1 - (algorithm.clip_low or 1), 1 + (algorithm.clip_high or 1))
        gain_T = torch.minimum(ratio_T * advantages[index], clipped_T * advantages[index])
        return -gain_T.sum() / num_tokens

    return Case(
        learner=learner,
        update=lambda: shared.update(learner, plan),
        batches=[rollout_batch([row.rollout for row in rows], learner.model) for rows in parts],
        loss=loss,
    )


def _sft(path: Path, num_prompts: int) -> Case:
    generator = np.random.default_rng(1)
    ids = generator.integers(len(SPECIAL), VOCABULARY, size=(num_prompts // 4, 256)).astype(
        np.int32
    )
    rows = [
        SftExample(example_id=f"{number}", token_ids_T=ids_T, trained_T=np.arange(len(ids_T)) > 0)
        for number, ids_T in enumerate(ids)
    ]
    job = SftConfig.model_validate({
        "data": {"path": "unused"},
        "policy": {"model": {"path": str(path)}, "optim": {"lr": 1e-6}},
    })  # fmt: skip
    spec = SupervisedSpec(job=job, total_steps=100, replay_folder="")
    learner = make_learner(spec, engine_builder(spec, device=CPU))
    config: LearnerConfig = learner.config
    trained = [row.num_trained_tokens for row in rows]
    plan = step_plan([row.num_tokens for row in rows], trained, config)
    batches = [
        build_batch(
            [rows[row].token_ids_T for row in picked],
            [np.flatnonzero(rows[row].trained_T) for row in picked],
            padded=False,
            device=CPU,
        )
        for picked in _micro_batches(plan)
    ]
    return Case(
        learner=learner,
        update=lambda: learner.update(rows, plan),
        batches=batches,
        loss=lambda _, logprobs_T: -logprobs_T.sum() / sum(trained),
    )


def _micro_batches(plan: UpdatePlan) -> Sequence[Sequence[int]]:
    """Of the only rank in the only optimiser step."""
    [minibatch] = plan.minibatches
    [micro_batches] = minibatch.micro_batches_by_rank
    return micro_batches


CASES: dict[str, Callable[[Path, int], Case]] = {"grpo": _grpo, "sft": _sft}


if __name__ == "__main__":
    raise SystemExit(main())
