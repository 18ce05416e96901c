"""The resident pool as one job sees it: its roles, from specifications to actors with models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from actors.cluster.ray_metrics import RaySink
from actors.cluster.role_handle import RoleHandle
from actors.cluster.rollout_store import ObjectStore
from actors.engines.replica_set import ReplicaSet
from actors.engines.samples import Ending
from actors.environments.worker import EnvironmentWorker
from actors.pool.pool import Pool
from actors.ranks.experience import ExperienceGroup
from actors.ranks.group import RankGroup, SupervisedGroup, TrainedGroup
from actors.ranks.policy import PolicyGroup
from actors.ranks.reference import ReferenceGroup
from actors.ranks.reward import RewardGroup, RewardRank
from actors.ranks.reward_workers import RewardWorkers
from actors.ranks.value import ValueGroup
from actors.roles.acting import ActingEngines, acting_of
from actors.roles.engines import gap_limits, sync_spec
from actors.roles.lasting import (
    Lasting,
    LastingPolicy,
    LastingTrained,
    or_lost,
    repeated,
)
from actors.roles.start import REWARD_WORKER, role_specs, start_actors
from actors.weights.probe import probe_sequences
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.metrics import Sink
from rlhf_ray.metrics.usage import Used
from rlhf_ray.specs import (
    EnvironmentSpec,
    ExperienceSpec,
    PolicySpec,
    ReferenceSpec,
    RewardSpec,
    RolloutSpec,
    Spec,
    SupervisedSpec,
    ValueSpec,
    model_path_of,
)
from rlhf_ray.types import Prompt


class JobPool:
    """What `rlhf_ray.jobs.pool.Pool` asks for, on the actors of a resident pool."""

    def __init__(self, pool: Pool, config: AnyJob) -> None:
        """Start nothing so far."""
        self.pool, self.config = pool, config
        self.actors: Mapping[str, RoleHandle[Any]] = {}
        self.engines: ReplicaSet | None = None
        self.working: Sequence[str] = ()  # those whose waits and memory a step tells
        self.policy: PolicyGroup | None = None

    async def start(self) -> None:
        """Start what is not there of the job's roles, and have what others left make room."""
        groups = self.config.groups
        specs = role_specs(groups, self.config)
        self.actors = await start_actors(self.pool, groups, specs)
        # Engines wait for environments, and say how long.
        self.working = [role for role in specs if role != "environment"]
        await repeated(self.pool, partial(self.pool.make_room, self.actors))

    async def load(self, role: str, spec: Spec) -> Any:
        """Have the role's ranks host what `spec` describes; engines and helpers take it along."""
        if isinstance(spec, RewardSpec):
            return Lasting(await self._reward(spec), self.pool)
        if isinstance(spec, EnvironmentSpec):
            return await self._environment(spec)
        if not isinstance(spec, RolloutSpec | ExperienceSpec):
            await self._host(role, spec, path=model_path_of(spec))
        return self._lasting(self._loaded(role, spec))

    async def _host(self, role: str, spec: Spec, *, path: str) -> list[Any]:
        leaves = role in self.config.on_engines_gpus
        load = partial(self.pool.load, role, spec, path=path, leaves=leaves)
        return await repeated(self.pool, load)

    def _lasting(self, role: Any) -> Any:
        match role:
            case ReplicaSet():
                workers = self.actors.get("environment")
                if workers is None:
                    return role
                assert isinstance(self.config, OnlineConfig)
                return ActingEngines(role, self.pool, workers, timeouts=self.config.timeouts)
            case PolicyGroup() if not isinstance(self.config, SampleConfig):
                return LastingPolicy(role, self.pool)
            case PolicyGroup():  # as it was loaded, and nobody trains it
                return Lasting(role, self.pool)
            case TrainedGroup():
                return LastingTrained(role, self.pool)
        return Lasting(role, self.pool)

    def _loaded(self, role: str, spec: Spec) -> Any:
        config, actors, timeouts = self.config, self.actors[role], self.config.timeouts
        leaves = role in config.on_engines_gpus
        exports_with = config.tokenizer_path if config.checkpoint.export == "each" else ""
        match spec:
            case PolicySpec(learner=learner):
                self.policy = PolicyGroup(
                    actors=actors,
                    config=learner,
                    timeouts=timeouts,
                    files=partial(self.pool.files_of, role),
                    exports_with=exports_with,
                    leaves=leaves,
                )
                return self.policy
            case ValueSpec(learner=learner):
                return ValueGroup(
                    actors=actors,
                    config=learner,
                    timeouts=timeouts,
                    files=partial(self.pool.files_of, role),
                    leaves=leaves,
                )
            case ReferenceSpec(reference=reference):
                return ReferenceGroup(
                    actors=actors, config=reference, timeouts=timeouts, leaves=leaves
                )
            case SupervisedSpec(job=job):
                return SupervisedGroup(
                    actors=actors,
                    config=job.learner,
                    timeouts=timeouts,
                    files=partial(self.pool.files_of, role),
                    exports_with=exports_with,
                )
            case RolloutSpec(rollout=rollout, end_token_ids=ends):
                self.engines = ReplicaSet(
                    actors,
                    Ending.of(rollout, ends),
                    timeout_s=timeouts.call_s,
                    sleeps=bool(config.on_engines_gpus),
                    seats=rollout.max_num_seqs,
                    replace=self.pool.restarts.replace,
                    start_s=self.pool.restarts.longest_s(timeouts),
                    again_s=self.pool.restarts.again_s,
                )
                return self.engines
            case ExperienceSpec():
                return ExperienceGroup(actors, spec, timeouts)

    async def _environment(self, spec: EnvironmentSpec) -> None:
        """The user's code in its workers, and the engines told of them."""
        assert self.engines is not None, "engines come before environments"
        workers: RoleHandle[EnvironmentWorker] = self.actors["environment"]
        drop = workers.call(EnvironmentWorker.drop_sessions, timeout_s=self.config.timeouts.call_s)
        await repeated(self.pool, drop)
        await self._host("environment", spec, path="")
        self.engines.acting = partial(acting_of, workers, spec)

    async def _reward(self, spec: RewardSpec) -> RewardGroup:
        """Its model, where it has one, and the processes of its other scorers."""
        timeouts, model, workers = self.config.timeouts, None, None
        if path := spec.reward.model.path:
            await self._host("reward", spec, path=path)
            model = RankGroup[RewardRank](
                actors=self.actors["reward"],
                timeouts=timeouts,
                leaves="reward" in self.config.on_engines_gpus,
            )
        if spec.reward.needs_workers:
            functions, *_ = await self._host(REWARD_WORKER, spec, path="")
            workers = RewardWorkers(
                self.actors[REWARD_WORKER],
                functions,
                reward=spec.reward,
                timeouts=timeouts,
                restart=lambda died: self.pool.restarts.after(died, self.pool.state.roles),
            )
        return RewardGroup(spec.reward, timeouts, model=model, workers=workers)

    async def unload(self, role: str) -> None:
        """Have a role's ranks release their model."""
        await repeated(self.pool, partial(self.pool.unload, role))

    async def connect(self, prompts: Iterable[Prompt]) -> None:
        """Say how the loaded policy reaches the engines, and what both are compared by."""
        config, policy, engines = self.config, self.policy, self.engines
        assert policy is not None and engines is not None and isinstance(config, OnlineConfig)
        policy.publish_to(
            engines,
            sync_spec(config),
            probe=probe_sequences(prompts, config.publication.probe_sequences),
            limits=gap_limits(config),
        )

    async def finish(self) -> None:
        """Write the trained role's model to `export`; keep it in memory for jobs to come."""
        config = self.config
        role = config.trained_role
        await or_lost(self.pool, partial(self.pool.finish, config, role, config.tokenizer_path))

    async def usage(self) -> Used:
        """What the job's processes needed and did since the last time."""
        ask = partial(self.pool.usage, self.working)
        if self.engines is not None:
            ask = partial(self.engines.lasts, ask)
        used = await repeated(self.pool, ask)
        if num_restarts := self.pool.restarts.budget.num_restarts:
            metrics = {**used.metrics, "recovery/restarts": float(num_restarts)}
            used = replace(used, metrics=metrics)
        return used

    def store(self) -> ObjectStore:
        """Ray's object store."""
        return ObjectStore(timeout_s=self.config.timeouts.call_s)

    def sinks(self) -> Sequence[Sink]:
        """Ray's agents."""
        return [RaySink(run=Path(self.config.run_dir).name, job=self.config.job)]
