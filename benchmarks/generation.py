"""Tokens a second of the rollout role, over those of vLLM alone on the same requests.

    python -m benchmarks.generation --pairs 5

A random Qwen2 of 3.35 M parameters in float32 on the CPU answers 64 prompts of 37 tokens, 8 samples
each, with 64 tokens and their log-probabilities. Ours is asked as a training step asks: through
Ray, with a seed a sample, answered in groups; vLLM's `LLM.generate` in a process of its own,
without seeds, with the threads that it chooses. Both stay up and take turns, each time with other
prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from actors.engines.fleet import Fleet
from actors.engines.replica_set import ReplicaSet
from actors.engines.replica_spec import ReplicaSpec
from actors.engines.samples import Ending
from actors.engines.spec import engine_arguments
from actors.pool.pool import Pool
from actors.roles.engines import engine_spec
from benchmarks.against_trl.models import SHAPE, SPECIAL, TOKENIZER, save_model, word_tokenizer
from benchmarks.against_trl.turns import REST_S
from launch.run.cluster import connected
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.feed import sample_all
from rlhf_ray.types import Prompt

GOAL = 0.95
PROMPTS, PROMPT_TOKENS, SAMPLES, NEW_TOKENS = 64, 37, 8, 64
# What vLLM alone is told as well; all else is its own choice.
SAME = ("model", "tokenizer", "dtype", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes")
START_S, ROUND_S, END_S = 240.0, 120.0, 10.0

# Asks for answers to a round's prompts; gives seconds.
Generate = Callable[[Sequence[tuple[int, ...]]], float]


def generation(pairs: int) -> dict[str, Any]:
    """The ratio (median over `pairs` turns of either), the goal, whether it holds, each turn's."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder))
        with _rollout_role(config) as ours, _vllm_alone(config) as theirs:
            turns = [_pair(ours, theirs, _prompts(number)) for number in range(pairs + 1)][1:]
    ratio = median(turn["ratio"] for turn in turns)
    return {"ratio": ratio, "goal": GOAL, "holds": ratio >= GOAL, "pairs": turns}


def _pair(ours: Generate, theirs: Generate, prompts: Sequence[tuple[int, ...]]) -> dict[str, float]:
    time.sleep(REST_S)
    ours_s = ours(prompts)
    time.sleep(REST_S)
    vllm_s = theirs(prompts)
    return {
        "ratio": round(vllm_s / ours_s, 3),
        "vllm_s": round(vllm_s, 2),
        "ours_s": round(ours_s, 2),
    }


def _prompts(number: int) -> list[tuple[int, ...]]:
    ids = np.random.default_rng(number).integers(
        len(SPECIAL), SHAPE["vocab_size"], size=(PROMPTS, PROMPT_TOKENS)
    )
    return [tuple(row) for row in ids.tolist()]


def _config(folder: Path) -> GrpoConfig:
    model = save_model(folder / "model", word_tokenizer())
    return GrpoConfig.model_validate({
        "run_dir": str(folder / "run"),
        "data": {"path": "unused"},
        "policy": {"model": {"path": str(model), "tokenizer": str(model / TOKENIZER)}},
        "rollout": {"max_new_tokens": NEW_TOKENS, "max_num_seqs": PROMPTS * SAMPLES},
        "reward": {"functions": [{"path": "rlhf_ray.rewards.gsm8k:correct_answer"}]},
        "placement": {"rollout": {"cpus_per_rank": os.cpu_count() or 1}},
        "timeouts": {"start_s": START_S, "call_s": ROUND_S},
    })  # fmt: skip


@contextmanager
def _rollout_role(config: GrpoConfig) -> Iterator[Generate]:
    groups = {"rollout": config.groups["rollout"]}
    engine = engine_spec(config)
    assert engine is not None
    with connected(config, groups), asyncio.Runner() as loop:
        pool = Pool("generation", config.timeouts)
        try:
            pool.place(groups)
            role = ReplicaSet(
                loop.run(pool.start("rollout", ReplicaSpec(engine=engine))),
                Ending(ignore_eos=True),
                timeout_s=ROUND_S,
                sleeps=False,
                seats=config.rollout.max_num_seqs,
                fleet=Fleet.with_own_weights(config.placement.rollout.ranks),
            )

            def generate(prompts: Sequence[tuple[int, ...]]) -> float:
                began_s = time.monotonic()
                groups = loop.run(sample_all(role, _requests(prompts)))
                seconds = time.monotonic() - began_s
                num_tokens = sum(s.num_response_tokens for g in groups for s in g.summaries_G)
                assert num_tokens == len(prompts) * SAMPLES * NEW_TOKENS
                return seconds

            yield generate
        finally:
            loop.run(pool.close())


def _requests(prompts: Sequence[tuple[int, ...]]) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt=Prompt(prompt_id=f"p{draw}", token_ids_T=ids_T, text=""),
            draw=draw,
            seeds_G=tuple(range(draw * SAMPLES, (draw + 1) * SAMPLES)),
            temperature=1.0,
            max_new_tokens=NEW_TOKENS,
        )
        for draw, ids_T in enumerate(prompts)
    ]


@contextmanager
def _vllm_alone(config: GrpoConfig) -> Iterator[Generate]:
    spec = engine_spec(config)
    assert spec is not None
    told = engine_arguments(spec)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, {name: told[name] for name in SAME}))
    process.start()

    def answer(timeout_s: float) -> float:
        if not here.poll(timeout_s):
            raise TimeoutError(f"vLLM alone gave no answer in {timeout_s:.0f} s")
        return float(here.recv())

    def generate(prompts: Sequence[tuple[int, ...]]) -> float:
        here.send(prompts)
        return answer(ROUND_S)

    try:
        answer(START_S)
        yield generate
    finally:
        with suppress(OSError):
            here.send(None)
        process.join(2 * END_S)
        if process.is_alive():
            process.kill()  # its engine ends when it finds itself alone


def _serve(asked: Connection, arguments: dict[str, Any]) -> None:
    """VLLM alone: seconds of each list of prompts, until there is none."""
    os.environ.pop("OMP_NUM_THREADS", None)
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)
    params = SamplingParams(
        logprobs=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, flat_logprobs=True
    )
    asked.send(0.0)
    while prompts := asked.recv():
        requests: Any = [{"prompt_token_ids": list(ids)} for ids in prompts for _ in range(SAMPLES)]
        began_s = time.monotonic()
        llm.generate(requests, params, use_tqdm=False)
        asked.send(time.monotonic() - began_s)
    llm.llm_engine.engine_core.shutdown(END_S)  # by itself it may wait for its worker for ever


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5, help="turns of either; one more warms up")
    print(json.dumps(generation(parser.parse_args().pairs)))


if __name__ == "__main__":
    main()
