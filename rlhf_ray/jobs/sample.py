"""Sampling: what a policy answers, judged; nothing is trained."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.jobs import online
from rlhf_ray.jobs.job import Job
from rlhf_ray.jobs.online import OnlineData
from rlhf_ray.loops.checkpoints import Checkpoint
from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.sample_files import SampleFiles
from rlhf_ray.loops.sampling import SampleLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.roles import Roles, Usage


def _loop(
    config: SampleConfig, data: OnlineData, roles: Roles, log: MetricsLog, usage: Usage
) -> SampleLoop:
    evaluation = Evaluation(config, data.eval_prompts)
    return SampleLoop(config, roles, data.prompts, evaluation, log, usage=usage)


def _check_files(config: SampleConfig, checkpoint: Checkpoint) -> None:
    """Whether what was sampled before is there, as steps to come add to it."""
    SampleFiles(Path(config.run_dir)).check(checkpoint.state["sizes"])


SAMPLE: Job[SampleConfig, OnlineData, Roles] = Job(
    config=SampleConfig,
    rows=online.rows_of,
    load=online.load,
    specs=online.specs,
    roles=online.load_roles,
    loop=_loop,
    check_checkpoint=_check_files,
    headline=("eval/reward_mean", "rollout/reward_mean"),
)
