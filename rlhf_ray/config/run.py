"""What all runs have, and what all jobs have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import PositiveInt

from rlhf_ray.config.base import Config, LocalPath, NonNegativeInt
from rlhf_ray.config.fault_tolerance import FailureConfig, TimeoutConfig
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.models import ModelSource
from rlhf_ray.config.placement import GroupConfig

# Stands in the folder of every run, beside what the run wrote.
STATUS_FILE = "status.json"


class CheckpointConfig(Config):
    """When to save; `every: 0` only at the end. Exports are in the transformers layout."""

    every: NonNegativeInt = 0
    keep: PositiveInt = 2
    export: Literal["end", "each", "never"] = "end"


class WandbConfig(Config):
    """Weights & Biases; the key is read from the environment, never from here."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "rlhf-ray"
    name: str = ""
    entity: str = ""
    tags: list[str] = []


class RayConfig(Config):
    """Where Ray runs.

    Attributes:
        address: Empty starts Ray on this machine; `auto` joins the cluster it belongs to.
        pool: A standing pool (`rlhf-ray pool up`) to attach to; empty for actors of one's own.
    """

    address: str = ""
    pool: str = ""
    num_cpus: NonNegativeInt = 0
    num_gpus: NonNegativeInt = 0


class RunConfig(Config):
    """What every command that trains has.

    Attributes:
        seed: Of data order, sampling and initial heads.
        run_dir: Folder of everything the run writes; empty for `runs/<job>-<config>-<time>`.
        resume: `auto` goes on from the last checkpoint in `run_dir`; `never` refuses a used folder.
        tensorboard: Write TensorBoard's event files to `run_dir/tensorboard`.
    """

    # Its name on the command line.
    job: ClassVar[str]

    seed: NonNegativeInt = 0
    run_dir: LocalPath = ""
    resume: Literal["never", "auto"] = "never"
    ray: RayConfig = RayConfig()
    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = False
    timeouts: TimeoutConfig = TimeoutConfig()
    failures: FailureConfig = FailureConfig()

    def _faults(self) -> Iterator[str]:
        if self.resume == "auto" and not self.run_dir:
            yield "resume 'auto' needs run_dir, the folder of the run to go on with"


class JobConfig(RunConfig):
    """What every job has.

    Attributes:
        total_steps: Optimiser steps of SFT, rollout steps of PPO and GRPO.
        nonfinite_steps_to_stop: Optimiser steps with a loss or gradient that is not finite, one
            after the other, that stop the run.
        spans_mb: Most that the timeline in `run_dir/spans.jsonl` takes, in MB: what all processes
            did, for `rlhf-ray trace`. The oldest steps go first. 0 keeps none.
    """

    # Whose model the job trains, or samples from: what a later stage starts from.
    trained_role: ClassVar[str] = "policy"
    model_kind: ClassVar[Literal["causal", "classifier"]] = "causal"
    trains: ClassVar[bool] = True
    # Keys beside those of data and models that a resumed run may not change.
    fixed_keys: ClassVar[tuple[str, ...]] = ()

    total_steps: PositiveInt = 100
    checkpoint: CheckpointConfig = CheckpointConfig()
    nonfinite_steps_to_stop: PositiveInt = 3
    spans_mb: NonNegativeInt = 256

    @property
    def groups(self) -> dict[str, GroupConfig]:
        """The group of each role that the job uses."""
        raise NotImplementedError

    @property
    def models(self) -> Mapping[str, ModelSource]:
        """The model of each role that loads one, as the configuration names it."""
        raise NotImplementedError

    @property
    def learner(self) -> LearnerConfig:
        """Of the role that is trained."""
        learner: LearnerConfig = getattr(self, self.trained_role)
        return learner

    @property
    def learners(self) -> dict[str, LearnerConfig]:
        """Of each role that is trained, and so in a checkpoint."""
        return {self.trained_role: self.learner}

    @property
    def on_engines_gpus(self) -> frozenset[str]:
        """The other roles that live on the engines' GPUs, and leave them while engines sample."""
        return frozenset()

    @property
    def uses_reference_role(self) -> bool:
        """Whether a reference lives on a group of its own."""
        return False

    @property
    def tokenizer_path(self) -> str:
        """Where the run keeps its own copy of the tokenizer."""
        return str(Path(self.run_dir) / "tokenizer")

    def for_rows(self, num_rows: int) -> Self:
        """The same with what depends on the number of rows resolved: nothing, where that is all."""
        return self
