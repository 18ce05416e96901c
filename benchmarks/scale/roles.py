"""The roles of a GRPO run as a job has them, on actors that answer at once."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.cluster.role_handle import RoleHandle
from actors.engines.replica_set import ReplicaSet
from actors.engines.samples import Ending
from actors.ranks.experience import ExperienceGroup
from actors.ranks.forward import OwnSamples
from actors.ranks.policy import PolicyGroup
from actors.ranks.reference import ReferenceGroup
from actors.ranks.reward import RewardGroup
from actors.ranks.reward_worker import LoadedFunctions
from actors.ranks.reward_workers import RewardWorkers
from actors.weights.probe import EXACT
from actors.weights.sync_spec import Sent, SyncSpec
from benchmarks.scale.answers import SPENT, Actor, Answer, Parts
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.errors import ActorDied
from rlhf_ray.metrics.usage import UpdateFlops
from rlhf_ray.own_rows import dealt
from rlhf_ray.roles.groups import RolloutGroup, SampleId
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.roles.reports import Hardware
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Experience, Prompt, Rollout, RolloutSummary, Score

SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 8, 64, 64
PROMPT = Prompt(prompt_id="p", token_ids_T=tuple(range(PROMPT_TOKENS)), text="a prompt")


class Engine(Actor):
    """Draws lengths in place of tokens."""

    def __init__(self, rank: int) -> None:
        super().__init__(finished=self._finished, logprobs=lambda *_: [])
        self._lengths = np.random.Generator(np.random.PCG64(rank))

    def _finished(self, draw: int) -> Parts:
        lengths = self._lengths.integers(1, NEW_TOKENS, size=SAMPLES, endpoint=True).tolist()
        summaries = [
            RolloutSummary(
                sample=sample,
                num_prompt_tokens=PROMPT_TOKENS,
                num_response_tokens=length,
                num_action_tokens=length,
                finish_reason="stop",
                version_min=0,
                version_max=0,
                version_sum=0,
            )
            for sample, length in enumerate(lengths)
        ]
        rollouts = [_rollout(PROMPT, draw, sample, num) for sample, num in enumerate(lengths)]
        return Parts(first=summaries, others=[rollouts])


class Store:
    """Has rollouts for the journal."""

    async def fetch(self, groups: Sequence[RolloutGroup]) -> list[list[Rollout]]:
        """The samples of groups, made on the spot."""
        with SPENT.elsewhere():
            sent = pickle.dumps(
                [
                    [
                        _rollout(group.prompt, group.draw, s.sample, s.num_response_tokens)
                        for s in group.summaries_G
                    ]
                    for group in groups
                ]
            )
        rollouts: list[list[Rollout]] = pickle.loads(sent)
        return rollouts

    def put(self, rollouts: Sequence[Rollout]) -> Any:
        """Count what is laid down."""
        return Answer.laid_down(rollouts)


def _rollout(prompt: Prompt, draw: int, sample: int, length: int) -> Rollout:
    return Rollout(
        prompt=prompt,
        draw=draw,
        sample=sample,
        response_ids_T=np.zeros(length, dtype=np.int32),
        logprobs_T=np.zeros(length, dtype=np.float32),
        versions_T=np.zeros(length, dtype=np.int32),
        action_mask_T=np.ones(length, dtype=np.bool_),
        finish_reason="stop",
        text="an answer",
    )


def _scored(work: Answer, own: OwnSamples) -> Parts:
    """A rank's log-probabilities of its samples."""
    rollouts = {(r.draw, r.sample): r for ref in own.refs for r in ref.value}
    return Parts(
        first=len(own.samples),
        others=[{sample: rollouts[sample].logprobs_T for sample in own.samples.values()}],
    )


def _built(refs: Sequence[Answer], scores: Mapping[SampleId, Score], *others: Any) -> Parts:
    """The experience of samples, each rank's by itself."""
    rollouts = {(r.draw, r.sample): r for ref in refs for r in ref.value}
    rows = [_experience(rollouts[sample]) for sample in scores]
    *_, plans = others
    return Parts(first={}, others=[part for plan in plans for part in dealt(rows, plan)])


def _experience(rollout: Rollout) -> Experience:
    columns = [np.zeros_like(rollout.logprobs_T) for _ in range(5)]
    return Experience(
        rollout=rollout,
        old_logprobs_T=columns[0],
        reference_logprobs_T=columns[1],
        values_T=columns[2],
        advantages_T=columns[3],
        returns_T=columns[4],
    )


def _save(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "state").touch()


def handles_of(config: GrpoConfig) -> dict[str, RoleHandle[Any]]:
    groups = config.groups
    flops = UpdateFlops(per_token=1.0, per_scored_token=1.0, per_pair={})
    policy = {
        "hardware": lambda: Hardware(flops=flops, device_name="cpu", num_devices=1),
        "update": lambda *_: {"loss": 0.0, "grad_norm": 1.0, "lr": 1e-6, "skipped_in_a_row": 0.0},
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

    def handle(name: str, make: Callable[[int], Actor], num: int) -> RoleHandle[Any]:
        return RoleHandle(name, {f"run/{name}/{rank}": make(rank) for rank in range(num)})

    return {
        "policy": handle("policy", lambda _: Actor(**policy), groups["policy"].ranks),
        "reference": handle(
            "reference", lambda _: Actor(logprobs=_scored), groups["reference"].ranks
        ),
        "rollout": handle("rollout", Engine, groups["rollout"].ranks),
        "reward_worker": handle("reward_worker", lambda _: Actor(**worker), 1),
        "experience": handle("experience", lambda _: Actor(build=_built), 1),
    }


async def _never(died: ActorDied) -> None:
    """Nobody dies here."""
    raise died


def roles_of(config: GrpoConfig, handles: dict[str, RoleHandle[Any]]) -> Roles:
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
        store=Store(),
        reference=ReferenceGroup(
            actors=handles["reference"], config=config.reference, timeouts=timeouts
        ),
        value=None,
    )
