"""A configuration that is read here and runs elsewhere: what must be in it, and what it names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from rlhf_ray.config.base import CHAT_TEMPLATE_NAMES
from rlhf_ray.config.checks.data_files import fixed_part
from rlhf_ray.config.checks.references import hub_dataset
from rlhf_ray.config.jobs import JOB_CONFIGS, PipelineConfig, StageConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.tools.layers import lay_over, texts
from rlhf_ray.config.tools.problems import KeyPath, Problem
from rlhf_ray.config.tools.ready import find_config
from rlhf_ray.config.tools.stages import PREFIX, resolve_stages, shared_values
from rlhf_ray.config.tools.yaml_file import read_yaml

_PATH_KEYS = ("path", "tokenizer", "chat_template", "nvme_path")


def values_of(config: RunConfig) -> dict[str, Any]:
    """All that a configuration says, without a file beside it.

    Only what was given, no defaults: a default may depend on whether its key was given.

    Raises:
        ConfigError: A stage cannot be read or has a mistake.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    if isinstance(config, PipelineConfig):
        resolve_stages(config, check_files=False)
        values["stages"] = [_whole(stage, config) for stage in config.stages]
    return values


def _whole(stage: StageConfig, pipeline: PipelineConfig) -> dict[str, Any]:
    """A stage with its file's values in `set`; what holds for all stages still wins over them."""
    given = stage.model_dump(mode="json", exclude_unset=True)
    if not stage.config:
        return given
    of_file = read_yaml(find_config(stage.job, stage.config)).values
    cls = JOB_CONFIGS[stage.job]
    values = lay_over(cls, lay_over(cls, of_file, shared_values(pipeline, cls)), stage.set)
    return {**given, "config": "", "set": values}


def find_missing(values: Mapping[str, Any], shipped: Collection[str] | None) -> list[Problem]:
    """Relative paths that lead nowhere with the `shipped` files alone; None where none go along."""
    problems = []
    for path, text in _relative(values):
        if shipped is None:
            message = (
                f"{text!r} is relative to a folder that the cluster does not have: send it along "
                "by --working-dir, or give the path that it has on the cluster's nodes"
            )
        elif not _is_there(text, shipped):
            message = (
                f"{text!r} is not among the files of --working-dir that are sent (runs, caches "
                "and what git ignores stay here): give the path that it has on the cluster's nodes"
            )
        else:
            continue
        problems.append(Problem(path=path, message=message))
    return problems


def _is_there(text: str, shipped: Collection[str]) -> bool:
    wanted = str(PurePosixPath(fixed_part(text)))  # of a pattern, the folder that it searches
    return wanted in (".", *shipped) or any(file.startswith(f"{wanted}/") for file in shipped)


def _relative(values: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Every relative path of files, with its key."""
    for path, value in texts(values):
        text = value.rpartition(":")[0] if "functions" in path else value
        is_path = path[-1] in _PATH_KEYS and text and _names_files(text, path)
        if is_path and not text.startswith(("/", "~", PREFIX)):
            yield path, text


def _names_files(text: str, path: KeyPath) -> bool:
    if "functions" in path:
        return text.endswith(".py")  # else a module, which is imported
    if path[-1] == "chat_template":
        return text not in CHAT_TEMPLATE_NAMES and "{" not in text
    return hub_dataset(text) is None
