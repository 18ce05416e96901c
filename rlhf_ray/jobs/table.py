"""All kinds of jobs, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_ray.jobs.dpo import DPO
from rlhf_ray.jobs.job import Job
from rlhf_ray.jobs.online import GRPO, PPO, SAMPLE
from rlhf_ray.jobs.rm import RM
from rlhf_ray.jobs.sft import SFT

JOBS: Mapping[str, Job[Any, Any, Any]] = {
    job.config.job: job for job in (SFT, RM, DPO, PPO, GRPO, SAMPLE)
}
