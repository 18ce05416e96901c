"""What the cluster tests run: one small PPO job, in pieces or as a whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from fake_engine import ReplayedEngine
from fake_sink import FakeSink

from actors.cluster.role_handle import RoleHandle
from actors.pool.pool import Pool
from actors.roles.job_pool import JobPool
from launch.run.folder import run_folder
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.jobs.online import PPO
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.roles.groups import RolloutGroup, SampleArrays
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.types import Rollout

SCORERS = Path(__file__).with_name("scorers.py")
STOP_STRING = "and"
STOP_TOKEN = 426  # stories260K's full stop
# Of chats, for a model that has none.
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ '\\n' + m.content + '\\n' }}{% endif %}"
    "{% endfor %}"
)
DEADLINES = {"place_s": 60, "start_s": 180, "call_s": 120, "publish_s": 60, "reward_s": 30}
DEADLINES |= {"health_s": 1, "hang_s": 20}

# What a clock or the machine's memory says differs from run to run, and no other metric does.
MEASURED = (
    *("time", "share/", "wait/", "perf/", "engine/", "memory/"),
    *("rollout/tokens_per_s", "sync/seconds"),
)

TWO_RANKS_SHARED = {
    "policy": {"ranks": 2},
    "value": {"ranks": 2, "share": "policy"},
    "reference": {"share": "policy"},
    "reward": {"share": "policy"},
}


def ppo_config(model: Path, prompts: Path, run_dir: Path, **sections: Any) -> PpoConfig:
    """Policy, reference, critic, reward and engine; `sections` are laid over it.

    Jobs that keep model, seed and rollout settings are served by one engine.
    """
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "total_steps": 3,
        "prompts_per_step": 5,
        "samples_per_prompt": 2,
        "data": {"path": str(prompts)},
        # The budget makes several uneven micro-batches of a minibatch.
        "policy": {
            "model": {"path": str(model), "dtype": "float32"},
            "optim": {"lr": 1e-3},
            "max_tokens_per_micro_batch": 120,
            "logits_chunk_tokens": 40,
        },
        "value": {
            "model": {"dtype": "float32"},
            "optim": {"lr": 1e-3},
            "max_tokens_per_micro_batch": 120,
        },
        "reference": {"model": {"dtype": "float32"}},
        "rollout": {
            "max_new_tokens": 24,
            "max_num_seqs": 64,
            "kv_cache_gb": 0.25,
            # Responses of many lengths.
            "stop": [STOP_STRING],
            "stop_token_ids": [STOP_TOKEN],
        },
        "reward": {"functions": [{"path": f"{SCORERS}:share_of_e"}]},
        "publication": {"bucket_mb": 1},
        "algorithm": {"minibatches": 2, "kl": {"coefficient": 0.05}},
        "timeouts": DEADLINES,
    }
    return PpoConfig.model_validate(laid_over(values, sections))


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = laid_over(below[key], above[key])
    return merged


def train(config: PpoConfig, pool: Pool) -> Path:
    """The whole job on a pool that is there; returns its folder."""
    job = PPO.prepare(config)
    with run_folder(config) as folder:
        asyncio.run(job.run(JobPool(pool, config)))
    return folder


async def start_roles(config: PpoConfig, pool: Pool) -> Roles:
    """The job's roles with their models, connected."""
    return await PPO.start(config, PPO.load(config), JobPool(pool, config))


def run_loop(
    config: PpoConfig,
    pool: Pool,
    tape: dict[Any, Any] | None = None,
    *,
    moves: bool = False,
) -> tuple[Roles, list[dict[str, float]]]:
    """The job's loop alone: its roles, and the metrics of its steps.

    With a tape, rollouts come from it; those that are not on it yet are sampled. With `moves`, all
    roles leave each other their place as if they lived on one GPU.
    """

    async def run() -> tuple[Roles, list[dict[str, float]]]:
        data = PPO.load(config)
        roles = await PPO.start(config, data, JobPool(pool, config))
        if moves:
            model: Any = roles.reward.model  # type: ignore[attr-defined]
            for role in (roles.policy, roles.value, roles.reference, model):
                if role is not None:
                    role.leaves = True  # type: ignore[union-attr]
            roles.rollout.sleeps = True  # type: ignore[attr-defined]
        if tape is not None:
            roles = replace(roles, rollout=ReplayedEngine(roles.rollout, tape))
        sink = FakeSink()
        loop = OnlineLoop(
            config,
            roles,
            data.prompts,
            Evaluation(config, []),
            MetricsLog([sink]),
        )
        await loop.run(None)
        return roles, [metrics for step, metrics in sink.steps.items() if step > 0]

    return asyncio.run(run())


def metrics_of(run_dir: Path) -> list[dict[str, float]]:
    """What was logged, but for what is measured."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(MEASURED)}
        for line in lines
    ]


def weights_of(actors: RoleHandle[Any], *, merged: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """Every weight that a trained role holds, gathered; changed by its adapters if `merged`."""

    # Nested, so that it travels by value: the workers cannot import the tests.
    def gather(rank: Any) -> dict[str, Any]:
        from rlhf_ray.learner.weights import named_weights
        from rlhf_ray.models.sharding import gathered

        if hasattr(rank.learner, "lm"):
            weights = named_weights(rank.learner.lm, merged=merged)
            return {name: w.float().numpy().copy() for name, w in weights}
        parameters = dict(rank.learner.engine.module.named_parameters())
        with gathered(list(parameters.values())):
            return {name: w.detach().numpy().copy() for name, w in parameters.items()}

    weights: dict[str, np.ndarray[Any, Any]] = on_ranks(actors, gather)[0]
    return weights


def process_ids(pool: Pool) -> dict[str, int]:
    """Process of every actor, by its name."""
    roles = pool.state.roles.values()
    return {
        name: ray.get(actor.process_id.remote(), timeout=60)
        for role in roles
        for name, actor in zip(role.names, role.actors, strict=True)
    }


def on_ranks(actors: RoleHandle[Any], function: Any, *arguments: Any) -> list[Any]:
    """Call `function(rank actor, *arguments)` inside every rank."""
    return asyncio.run(inside(actors, function, *arguments))


async def inside(actors: RoleHandle[Any], function: Any, *arguments: Any) -> list[Any]:
    """The same, from a coroutine."""
    refs = [actor.__ray_call__.remote(function, *arguments) for actor in actors.actors]
    return await actors.answers(refs, function.__name__, timeout_s=60.0)


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """Relative to each weight's norm, and which weight it is; what is no number is the largest."""
    assert ours.keys() == theirs.keys()
    names = list(theirs)
    differences = [
        float(np.linalg.norm(ours[name] - theirs[name]) / (np.linalg.norm(theirs[name]) or 1.0))
        for name in names
    ]
    worst = int(np.argmax(differences))
    return differences[worst], names[worst]


def rollouts_of(groups: Sequence[RolloutGroup]) -> list[Rollout]:
    """The samples of groups, from the object store."""
    rollouts_PG = ray.get([group.rollouts for group in groups], timeout=30)
    return [rollout for rollouts_G in rollouts_PG for rollout in rollouts_G]


def arrays_of(said: SampleArrays, groups: Sequence[RolloutGroup]) -> list[Any]:
    """What a role said of each sample of groups."""
    of_sample: dict[Any, Any] = {}
    for of_rank in ray.get(list(said), timeout=30):
        of_sample |= of_rank
    return [of_sample[sample] for group in groups for sample in group.samples_G]
