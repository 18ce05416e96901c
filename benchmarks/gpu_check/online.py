"""Policy and engines of a job on a pool of their own, for checks that share them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from actors.cluster.role_handle import RoleHandle
from actors.engines.rollout import RolloutReplica
from actors.pool.pool import Pool
from actors.roles.job_pool import JobPool
from actors.roles.start import RANKS, role_specs, start_actors
from benchmarks.gpu_check.machine import used_gb
from benchmarks.gpu_check.models import TOKENIZER, device_of, make_model, random_ids, write_prompts
from benchmarks.gpu_check.scale import Shape
from benchmarks.gpu_check.setting import Setting
from launch.run.cluster import connected
from rlhf_ray.config.base import laid_over
from rlhf_ray.config.online import GrpoConfig, OnlineConfig
from rlhf_ray.jobs.online import PPO
from rlhf_ray.loops.publication import publish
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.roles.reports import Publication
from rlhf_ray.types import Prompt, Rollout

T = TypeVar("T")

DEADLINES = {"place_s": 60, "start_s": 240, "call_s": 120, "publish_s": 60, "reward_s": 30}
# Of no bytes: vLLM's CPU kernels keep weights in a form of their own, beside an empty parameter.
EMPTY = hashlib.sha256().hexdigest()
# Also where there are fewer: a later job on the same pool may have more roles, by turns.
LOGICAL_CPUS = 16
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 48, 64
# Where the roles live, by name; on the CPU none has a card.
ON_ONE_CARD = {
    "policy": {"gpus_per_rank": 1},
    "value": {"share": "policy", "gpus_per_rank": 1},
    "reference": {"share": "policy", "gpus_per_rank": 1},
    "rollout": {"share": "policy", "gpus_per_rank": 1},
}
APART = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_rank": 1}}
TENSOR_PARALLEL = {
    "policy": {"ranks": 2, "gpus_per_rank": 1},
    "rollout": {"share": "policy", "gpus_per_rank": 2},
}
TENSOR_PARALLEL_APART = {"policy": {"gpus_per_rank": 1}, "rollout": {"gpus_per_rank": 2}}


async def publish_to_all(roles: Roles, version: int) -> Publication:
    """A publication that goes to every engine, whatever another check has published."""
    rollout: Any = roles.rollout
    rollout.forget()
    return await publish(roles, version)


@dataclass(kw_only=True)
class Online:
    """A policy that is connected to its engines; the process' own loop drives them.

    Attributes:
        loaded: Digests of the engines' weights as vLLM's own loader read them.
        process_gb: Used of the first card while the policy's process was alone there, without a
            model.
    """

    config: OnlineConfig
    pool: Pool
    roles: Roles
    loop: asyncio.Runner
    loaded: Mapping[str, str]
    process_gb: float

    def run(self, work: Awaitable[T]) -> T:
        """Do it on the loop that the actors were started on."""

        async def awaited() -> T:
            return await work

        return self.loop.run(awaited())

    def on_ranks(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each rank of the policy answers."""
        timeout_s = self.config.timeouts.call_s
        return self.run(self.roles.policy.actors.call(method, timeout_s=timeout_s)(*arguments))

    def on_engines(self, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each engine's actor answers."""
        timeout_s = self.config.timeouts.call_s
        return self.run(self.roles.rollout.actors.call(method, timeout_s=timeout_s)(*arguments))

    def inside(self, role: Any, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(actor, *arguments)` returns in each actor of a role."""
        refs = [actor.__ray_call__.remote(function, *arguments) for actor in role.actors.actors]
        timeout_s = self.config.timeouts.call_s
        return self.run(role.actors.answers(refs, function.__name__, timeout_s=timeout_s))


def online_config(
    setting: Setting,
    placement: Mapping[str, Any],
    *,
    kind: type[OnlineConfig] = GrpoConfig,
    shape: Shape | None = None,
    dtype: str = "auto",
    **sections: Any,
) -> Any:
    """A small job on a model of a shape; `sections` are laid over it."""
    scale, shape = setting.scale, shape or setting.scale.small
    model = make_model(
        setting.folder / shape.family,
        shape,
        device=device_of(scale),
        dtype=torch.bfloat16 if scale.on_gpu else torch.float32,
    )
    prompts = setting.folder / f"{shape.family}-prompts.jsonl"
    write_prompts(prompts, shape, num_prompts=PROMPTS, num_tokens=PROMPT_TOKENS)
    values = {
        "run_dir": str(setting.folder / "run"),
        "total_steps": 2,
        "prompts_per_step": 8,
        "samples_per_prompt": 2,
        "data": {"path": str(prompts)},
        "policy": {
            "model": {"path": str(model), "tokenizer": str(model / TOKENIZER), "dtype": dtype},
            "optim": {"lr": 1e-4},
        },
        "rollout": {
            "dtype": dtype,
            "max_new_tokens": NEW_TOKENS,
            "max_model_len": 2 * (PROMPT_TOKENS + NEW_TOKENS),
            "max_num_seqs": 64,
            "gpu_memory_share": scale.gpu_memory_share,
            "kv_cache_gb": 0.25,
            "enforce_eager": True,
        },
        "reward": {
            "functions": [
                {"path": "rlhf_ray.rewards.contains:contains_word", "arguments": {"word": "w7"}}
            ]
        },
        "placement": placement if scale.on_gpu else {},
        "timeouts": DEADLINES,
        "ray": {"num_cpus": LOGICAL_CPUS},
    }
    return kind.model_validate(laid_over(values, sections))


@contextmanager
def opened(setting: Setting, config: OnlineConfig) -> Iterator[Online]:
    """Ray on this machine, the roles on it, the policy's weights not yet published."""
    with connected(config, config.groups), asyncio.Runner() as loop:
        pool = Pool("gpu-check", config.timeouts)
        data, specs = PPO.load(config), role_specs(config.groups, config)
        try:
            pool.place(config.groups)
            loop.run(pool.start("policy", RANKS["policy"]))
            process_gb = used_gb(setting.cards[0]) if setting.cards else 0.0
            actors = loop.run(start_actors(pool, config.groups, specs))
            loaded = loop.run(digests_of(actors["rollout"], config.timeouts.call_s))
            yield Online(
                config=config,
                pool=pool,
                roles=loop.run(PPO.start(config, data, JobPool(pool, config))),
                loop=loop,
                loaded=loaded,
                process_gb=process_gb,
            )
        finally:
            loop.run(pool.close())


async def digests_of(engines: RoleHandle[Any], timeout_s: float) -> dict[str, str]:
    """Of each weight as each worker of each engine holds it."""
    ask = engines.call(RolloutReplica.ask_workers, timeout_s=timeout_s)
    digests = await ask("compute_weight_checksums")
    return {
        f"{engine}:{name}": digest
        for engine, workers in enumerate(digests)
        for worker in workers
        for name, digest in worker.items()
        if digest != EMPTY
    }


def cache_tokens_of(online: Online) -> int:
    """That the first engine's cache has room for."""
    [first, *_] = online.inside(online.roles.rollout, _cache_tokens)
    return int(first)


def _cache_tokens(replica: Any) -> int:
    cache = replica.engine.vllm_config.cache_config
    return cache.num_gpu_blocks * cache.block_size


def on_one_card(setting: Setting) -> AbstractContextManager[Online]:
    """Policy and engine share a card."""
    return opened(setting, online_config(setting, ON_ONE_CARD))


def apart(setting: Setting) -> AbstractContextManager[Online]:
    """Each has a card."""
    return opened(setting, online_config(setting, APART))


def tensor_parallel(setting: Setting) -> AbstractContextManager[Online]:
    """Two ranks under ZeRO-3, and one engine over both of their cards."""
    policy = {"zero": {"stage": 3}}
    return opened(setting, online_config(setting, TENSOR_PARALLEL, policy=policy))


def tensor_parallel_apart(setting: Setting) -> AbstractContextManager[Online]:
    """One rank, and one engine over two other cards."""
    return opened(setting, online_config(setting, TENSOR_PARALLEL_APART))


def probes(shape: Shape, *, num: int = 8, num_tokens: int = 160) -> list[Rollout]:
    """Random sequences to score: all their tokens but the first."""
    generator = np.random.default_rng(1)
    made = []
    for number in range(num):
        first, *rest = random_ids(generator, shape, num_tokens).tolist()
        made.append(
            Rollout(
                prompt=Prompt(prompt_id=f"probe{number}", token_ids_T=(first,), text=""),
                draw=number,
                sample=0,
                response_ids_T=np.asarray(rest, dtype=np.int32),
                logprobs_T=np.zeros(len(rest), dtype=np.float32),
                versions_T=np.zeros(len(rest), dtype=np.int32),
                action_mask_T=np.ones(len(rest), dtype=np.bool_),
                finish_reason="length",
                text="",
            )
        )
    return made


def requests(
    shape: Shape, *, num: int, new_tokens: int, num_tokens: int
) -> list[GenerationRequest]:
    """Random prompts to answer, one sample each."""
    generator = np.random.default_rng(2)
    return [
        GenerationRequest(
            prompt=Prompt(
                prompt_id=f"request{number}",
                token_ids_T=tuple(random_ids(generator, shape, num_tokens).tolist()),
                text="",
            ),
            draw=number,
            seeds_G=(number,),
            temperature=1.0,
            max_new_tokens=new_tokens,
        )
        for number in range(num)
    ]


def gaps(ours_B: Sequence[Any], theirs_B: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Distance of each token's two log-probabilities (nats), end to end: [T]."""
    return np.abs(np.concatenate(ours_B) - np.concatenate(theirs_B))
