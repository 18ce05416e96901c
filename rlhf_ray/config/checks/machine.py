"""Whether this installation and this machine can run a job: asked before Ray starts.

On a cluster the command's own node may be of another kind than those that compute. There each rank
and each engine asks the same of its node as it starts (`actors.cluster.gpus`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.config.checks.installed import (
    ENGINES,
    engine_fault,
    installed_versions,
    needed,
    package_faults,
)
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.tools.problems import Problem, raise_for
from rlhf_ray.gpus import cuda_fault, read_driver, read_torch_build
from rlhf_ray.libaio import libaio_fault


def require_machine(configs: Sequence[JobConfig], *, is_here: bool) -> None:
    """Refuse what cannot run.

    Args:
        configs: A job, or the stages of a pipeline.
        is_here: Whether the roles run on this machine, and not on a cluster.

    Raises:
        ConfigError: With every reason.
    """
    requirements = needed()
    versions = installed_versions([*ENGINES, *(requirement.name for requirement in requirements)])
    problems = [Problem(path=(), message=fault) for fault in package_faults(requirements, versions)]
    if is_here:
        problems += [*_engines(configs, versions), *_gpus(configs), *_nvme(configs)]
    raise_for(problems, source="this machine")


def _engines(configs: Sequence[JobConfig], versions: dict[str, str]) -> Iterator[Problem]:
    engines = [config.groups["rollout"] for config in configs if "rollout" in config.groups]
    for on_gpus in sorted({bool(group.gpus_per_rank) for group in engines}):
        if fault := engine_fault(versions, on_gpus=on_gpus):
            yield Problem(path=("placement", "rollout", "gpus_per_rank"), message=fault)


def _gpus(configs: Sequence[JobConfig]) -> Iterator[Problem]:
    groups = {role: group for config in configs for role, group in config.groups.items()}
    roles = [role for role, group in groups.items() if group.gpus_per_rank]
    build = read_torch_build() if roles else None
    if build is not None and (fault := cuda_fault(build, read_driver())):
        yield Problem(path=("placement",), message=f"{', '.join(roles)} on GPUs: {fault}")


def _nvme(configs: Sequence[JobConfig]) -> Iterator[Problem]:
    keys = {
        f"{role}.zero.nvme_path"
        for config in configs
        for role in config.groups
        if isinstance(section := getattr(config, role, None), ForwardConfig)
        and section.zero.offloads_to_nvme
    }
    if keys and (fault := libaio_fault()):
        yield Problem(path=(", ".join(sorted(keys)),), message=fault)
