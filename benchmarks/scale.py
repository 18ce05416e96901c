"""What a group costs the driver of a GRPO run on 4, 64 and 512 GPUs, without a cluster.

    OMP_NUM_THREADS=1 python -m benchmarks.scale

The driver's own code steps through a run: loop, feed, journal, plans, handles, metrics and spans.
Behind the handles stand objects that answer at once. What would be sent to an actor or laid into
Ray's object store is pickled as Ray does it; Ray's own work for a call is not there. A GPU has four
groups of eight samples a step, so that a step on 512 has 16,384. Half of the GPUs train, a quarter
samples and a quarter holds the reference.

The result as JSON: the driver's CPU seconds a group on most GPUs, over those on fewest.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import ActorUsage
from actors.engines.replica_set import ReplicaSet
from actors.engines.samples import Ending
from actors.pool.clocks import Clocks
from actors.pool.usage import usage_of
from actors.ranks.experience import ExperienceGroup
from actors.ranks.policy import PolicyGroup
from actors.ranks.reference import ReferenceGroup
from actors.ranks.reward import RewardGroup
from actors.ranks.reward_worker import LoadedFunctions
from actors.ranks.reward_workers import RewardWorkers
from actors.weights.probe import EXACT
from actors.weights.sync_spec import Sent, SyncSpec
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.errors import ActorDied
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.jsonl import JsonlSink
from rlhf_ray.metrics.spans_file import SpansFile
from rlhf_ray.metrics.usage import UpdateFlops
from rlhf_ray.roles.groups import RolloutGroup
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.roles.reports import Hardware
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Prompt, Rollout, RolloutSummary

GOAL = 1.2
GPUS = (4, 64, 512)
GROUPS_PER_GPU, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 4, 8, 64, 64
# Of each run's steps the first one warms up.
ROUNDS, STEPS = 2, 3


def main() -> None:
    """Print the result as JSON."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(json.dumps(drivers_cost()))


def drivers_cost(
    gpus: Sequence[int] = GPUS, *, rounds: int = ROUNDS, steps: int = STEPS
) -> dict[str, Any]:
    """CPU seconds a group at each number of GPUs, in turns, and the last of them over the first.

    The ratio is the median of the rounds'; `pairs` are the last and the first of each.
    """
    by_gpus: dict[int, list[float]] = {num: [] for num in gpus}
    sent: dict[int, float] = {}
    for _ in range(rounds):
        for num, found in by_gpus.items():
            cost = cost_of_a_group(num, steps=steps)
            found.append(cost.seconds)
            sent[num] = cost.num_bytes
    pairs = list(zip(by_gpus[gpus[-1]], by_gpus[gpus[0]], strict=True))
    ratio = median(most / fewest for most, fewest in pairs)
    return {
        "ratio": ratio,
        "goal": GOAL,
        "holds": ratio <= GOAL,
        "pairs": pairs,
        "seconds_a_group": {num: median(found) for num, found in by_gpus.items()},
        "bytes_a_group": sent,
    }


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the driver spends.

    Attributes:
        seconds: Of its CPU.
        num_bytes: That it pickles, for actors and Ray's object store.
    """

    seconds: float
    num_bytes: float


def cost_of_a_group(num_gpus: int, *, steps: int) -> Cost:
    """The median over steps but for the first, of which a group has its share."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), num_gpus, steps)
        costs = asyncio.run(_run(config))[1:]
    return Cost(
        seconds=median(cost.seconds for cost in costs) / config.prompts_per_step,
        num_bytes=median(cost.num_bytes for cost in costs) / config.prompts_per_step,
    )


def _config(run_dir: Path, num_gpus: int, steps: int) -> GrpoConfig:
    quarter = max(1, num_gpus // 4)
    return GrpoConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": steps,
            "prompts_per_step": GROUPS_PER_GPU * num_gpus,
            "samples_per_prompt": SAMPLES,
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "model"}},
            "rollout": {"max_new_tokens": NEW_TOKENS},
            "reward": {"functions": [{"path": "scorers:score"}]},
            "algorithm": {"kl": {"coefficient": 0.001}},
            "placement": {
                "policy": {"ranks": 2 * quarter},
                "reference": {"ranks": quarter},
                "rollout": {"ranks": quarter},
            },
        }
    )


async def _run(config: GrpoConfig) -> list[Cost]:
    """What each step costs."""
    put, ray.put = ray.put, _Answer.laid_down
    costs: list[Cost] = []
    try:
        handles = _handles(config)
        clocks, before = Clocks(own="driver"), _spent.so_far()

        async def usage() -> Any:
            nonlocal before
            used = await usage_of({h.name: [h] for h in handles.values()}, clocks, timeout_s=60.0)
            now = _spent.so_far()
            costs.append(
                Cost(
                    seconds=now.seconds - before.seconds,
                    num_bytes=now.num_bytes - before.num_bytes,
                )
            )
            before = now
            return used

        prompts = [
            Prompt(prompt_id=f"p{n}", token_ids_T=(1,) * PROMPT_TOKENS, text="a prompt")
            for n in range(config.prompts_per_step)
        ]
        folder = Path(config.run_dir)
        timeline = SpansFile(folder, most_bytes=10**8)
        with MetricsLog([JsonlSink(folder)], timeline=timeline) as log:
            roles = _roles(config, handles)
            await OnlineLoop(config, roles, prompts, Evaluation(config, []), log, usage=usage).run(
                None
            )
    finally:
        ray.put = put
    return costs[1:]  # what comes before the first step is none of it


# Actors that are none.

# Bytes of an actor's handle: about as many as Ray's.
HANDLE_BYTES = 1_000


class _Spent:
    """What this process has spent in the driver's place."""

    def __init__(self) -> None:
        self._elsewhere_s, self._num_bytes = 0.0, 0

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is inside would be done by other processes."""
        started_s = time.process_time()
        yield
        self._elsewhere_s += time.process_time() - started_s

    def send(self, value: Any) -> None:
        """Pickle it as Ray does."""
        self._num_bytes += len(cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))

    def so_far(self) -> Cost:
        """All of it."""
        return Cost(seconds=time.process_time() - self._elsewhere_s, num_bytes=self._num_bytes)


_spent = _Spent()


class _Answer:
    """What Ray calls a reference: something that is sent as a few bytes, and waited for."""

    numbers = itertools.count()

    def __init__(self, value: Any = None, number: int | None = None) -> None:
        self.value, self.number = value, next(self.numbers) if number is None else number

    @classmethod
    def laid_down(cls, value: Any) -> _Answer:
        """As `ray.put`."""
        _spent.send(value)
        return cls()

    def __reduce__(self) -> Any:
        return _Answer, (None, self.number)

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value


@dataclass(frozen=True, kw_only=True)
class _Method:
    """One of an actor: arguments are pickled, and the answer is there at once."""

    answer: Callable[..., Any]
    num_returns: int = 1

    def options(self, *, num_returns: int) -> _Method:
        return _Method(answer=self.answer, num_returns=num_returns)

    def remote(self, *arguments: Any, **keywords: Any) -> Any:
        _spent.send((arguments, keywords))
        with _spent.elsewhere():
            sent = pickle.dumps(self.answer(*arguments), protocol=pickle.HIGHEST_PROTOCOL)
        answer = _Answer(pickle.loads(sent))
        if self.num_returns == 1:
            return answer
        return answer, *(_Answer() for _ in range(self.num_returns - 1))


class _Actor:
    """Has every method; those without an answer of their own say nothing."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self._answers = {"usage": lambda: ActorUsage.of_process({"peak_gb": 1.0}), **answers}

    def __reduce__(self) -> Any:
        return _Handle, (bytes(HANDLE_BYTES),)

    def __getattr__(self, name: str) -> _Method:
        return _Method(answer=self._answers.get(name, lambda *_: None))


class _Handle:
    """An actor as another process has it."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Engine(_Actor):
    """Draws lengths in place of tokens."""

    def __init__(self, rank: int) -> None:
        super().__init__(finished=self._finished, logprobs=lambda *_: [])
        self._lengths = np.random.Generator(np.random.PCG64(rank))

    def _finished(self, draw: int) -> list[RolloutSummary]:
        return [
            RolloutSummary(
                sample=sample,
                num_prompt_tokens=PROMPT_TOKENS,
                num_response_tokens=int(length),
                num_action_tokens=int(length),
                finish_reason="stop",
                version_min=0,
                version_max=0,
                version_sum=0,
            )
            for sample, length in enumerate(
                self._lengths.integers(1, NEW_TOKENS, size=SAMPLES, endpoint=True)
            )
        ]


class _Store:
    """Has rollouts for the journal."""

    async def fetch(self, groups: Sequence[RolloutGroup]) -> list[list[Rollout]]:
        with _spent.elsewhere():
            sent = pickle.dumps(
                [[_rollout(g, sample) for sample in range(SAMPLES)] for g in groups]
            )
        rollouts: list[list[Rollout]] = pickle.loads(sent)
        return rollouts

    def put(self, rollouts: Sequence[Rollout]) -> Any:
        return _Answer.laid_down(rollouts)


def _rollout(group: RolloutGroup, sample: int) -> Rollout:
    length = group.summaries_G[sample].num_response_tokens
    return Rollout(
        prompt=group.prompt,
        draw=group.draw,
        sample=sample,
        response_ids_T=np.zeros(length, dtype=np.int32),
        logprobs_T=np.zeros(length, dtype=np.float32),
        versions_T=np.zeros(length, dtype=np.int32),
        action_mask_T=np.ones(length, dtype=np.bool_),
        finish_reason="stop",
        text="an answer",
    )


def _save(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "state").touch()


def _handles(config: GrpoConfig) -> dict[str, RoleHandle[Any]]:
    groups = config.groups
    flops = UpdateFlops(per_token=1.0, per_scored_token=1.0, per_pair={})
    policy = {
        "hardware": lambda: Hardware(flops=flops, device_name="cpu", num_devices=1),
        "update": lambda *_: {"loss": 0.0, "grad_norm": 1.0, "lr": 1e-6, "skipped_in_a_row": 0.0},
        "logprobs": lambda *_: 1,
        "publish": lambda *_: Sent(num_bytes=1),
        "logprobs_of": lambda *_: [],
        "rendezvous": lambda: ("127.0.0.1", 1),
        "connect": lambda *_: None,
        "save": _save,
    }
    worker = {
        "score": lambda names, refs, samples_G, timeout_s: {
            "score": [float(sample % 2) for _, sample in samples_G]
        },
    }

    def handle(name: str, make: Callable[[int], _Actor], num: int) -> RoleHandle[Any]:
        return RoleHandle(name, {f"run/{name}/{rank}": make(rank) for rank in range(num)})

    return {
        "policy": handle("policy", lambda _: _Actor(**policy), groups["policy"].ranks),
        "reference": handle(
            "reference", lambda _: _Actor(logprobs=lambda *_: 1), groups["reference"].ranks
        ),
        "rollout": handle("rollout", _Engine, groups["rollout"].ranks),
        "reward_worker": handle("reward_worker", lambda _: _Actor(**worker), 1),
        "experience": handle("experience", lambda _: _Actor(build=lambda *_: {}), 1),
    }


async def _never(died: ActorDied) -> None:
    """Nobody dies here."""
    raise died


def _roles(config: GrpoConfig, handles: dict[str, RoleHandle[Any]]) -> Roles:
    """The roles as a job has them, on these handles."""
    timeouts = config.timeouts
    policy = PolicyGroup(actors=handles["policy"], config=config.policy, timeouts=timeouts)
    way = SyncSpec(backend="object_store", gpus_per_replica=0, bucket_bytes=1, timeout_s=60.0)
    rollout = ReplicaSet(
        handles["rollout"],
        Ending(),
        timeout_s=60.0,
        sleeps=False,
        seats=config.rollout.max_num_seqs,
    )
    policy.publish_to(rollout, way, probe=[], limits=EXACT)
    workers = RewardWorkers(
        handles["reward_worker"],
        LoadedFunctions(weights={"score": 1.0}, plain=("score",)),
        reward=config.reward,
        timeouts=timeouts,
        restart=_never,
    )
    reward = RewardGroup(config.reward, timeouts, model=None, workers=workers)
    experience = ExperienceSpec(
        algorithm=config.algorithm,
        shaping=config.reward.shaping,
        max_new_tokens=NEW_TOKENS,
        reward_weights=reward.weights,
    )
    return Roles(
        rollout=rollout,
        policy=policy,
        reward=reward,
        experience=ExperienceGroup(handles["experience"], experience, timeouts),
        store=_Store(),
        reference=ReferenceGroup(
            actors=handles["reference"], config=config.reference, timeouts=timeouts
        ),
        value=None,
    )


if __name__ == "__main__":
    main()
