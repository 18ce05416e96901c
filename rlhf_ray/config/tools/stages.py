"""The stages of a pipeline as the configurations of their jobs, checked all together."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_ray.config.checks.preflight import find_problems
from rlhf_ray.config.jobs import JOB_CONFIGS, AnyJob, PipelineConfig, StageConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.run import JobConfig, RunConfig
from rlhf_ray.config.tools import schema
from rlhf_ray.config.tools.layers import lay_over, put, texts, value_at
from rlhf_ray.config.tools.load import find_config, validate
from rlhf_ray.config.tools.problems import KeyPath, Problem, raise_for
from rlhf_ray.config.tools.yaml_file import YamlFile, read_yaml
from rlhf_ray.errors import ConfigError

PREFIX = "stage:"
EXPORT = "export"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job of a pipeline, or a job by itself.

    Attributes:
        name: Empty for a job by itself.
        config: As the job gets it: a model of another stage is that stage's `export` folder.
        rooted: The same with the models that those were trained from, which are there before
            anything has run: what can be known of a model but its weights is known from them.
        sources: Stages whose models this one starts from.
    """

    name: str
    config: AnyJob
    rooted: AnyJob
    sources: frozenset[str] = frozenset()

    @property
    def job(self) -> str:
        """The job's name."""
        return self.config.job

    @property
    def result(self) -> str:
        """Where its model is found."""
        return str(Path(self.config.run_dir) / EXPORT)


def stages_of(config: RunConfig, *, check_files: bool = True) -> list[Stage]:
    """The stages of a pipeline, each read and checked; of a job, itself as the only one.

    With `check_files`, the data, models and functions of stages must be there.

    Raises:
        ConfigError: With every problem of every stage.
    """
    if not isinstance(config, PipelineConfig):
        assert isinstance(config, AnyJob)
        return [Stage(name="", config=config, rooted=config)]
    stages: list[Stage] = []
    problems: list[Problem] = []
    for given in config.stages:
        stage, found = _resolve(given, config, stages)
        if stage is not None and check_files:
            unwritten = to_come(stage.config, stages)  # they are there when its turn comes
            found = [one for one in find_problems(stage.rooted) if one.path not in unwritten]
        for one in found:
            where = f"{one.where} of {given.config}" if one.where else ""
            path = ("stages", given.name, *one.path)
            problems.append(Problem(path=path, message=one.message, where=where))
        if stage is not None:
            stages.append(stage)
    problems += _shapes(stages)
    raise_for(problems, source="pipeline")
    return stages


def groups_of(stages: Sequence[Stage]) -> dict[str, GroupConfig]:
    """The groups of all stages together."""
    return {role: group for stage in stages for role, group in stage.config.groups.items()}


def _resolve(
    given: StageConfig, pipeline: PipelineConfig, earlier: Sequence[Stage]
) -> tuple[Stage | None, list[Problem]]:
    cls = JOB_CONFIGS[given.job]
    try:
        file = _values(given, pipeline, cls)
    except ConfigError as error:
        return None, [Problem(path=("config",), message=str(error))]
    known = {stage.name: stage for stage in earlier}
    references = {
        path: text.removeprefix(PREFIX)
        for path, text in texts(file.values)
        if text.startswith(PREFIX)
    }
    names = [stage.name for stage in pipeline.stages]
    faults = {path: _fault(path, ref, given.job, known, names) for path, ref in references.items()}
    problems = [Problem(path=path, message=fault) for path, fault in faults.items() if fault]
    if problems or file.problems:
        return None, [*file.problems, *problems]
    places = {path: _place(path, ref, known) for path, ref in references.items()}
    models = {path: known[ref] for path, ref in references.items() if _names_model(path)}
    config, found = _validated(cls, file, places)
    roots = {path: stage.rooted.learner.model.path for path, stage in models.items()}
    rooted, _ = _validated(cls, file, places | roots)
    if config is None or rooted is None:
        return None, found
    stage = Stage(
        name=given.name,
        config=config,
        rooted=rooted,
        sources=frozenset(stage.name for stage in models.values()),
    )
    return stage, []


def _values(given: StageConfig, pipeline: PipelineConfig, cls: type[JobConfig]) -> YamlFile:
    """The stage's file, what the pipeline has for all stages, and `set`, laid over each other."""
    empty = YamlFile(values={}, lines={}, problems=())
    file = read_yaml(find_config(given.job, given.config)) if given.config else empty
    own = {
        "run_dir": str(Path(pipeline.run_dir) / given.name),
        "resume": pipeline.resume,
        "ray": pipeline.ray.model_dump(),
    }
    values = file.values
    for above in (shared_values(pipeline, cls), given.set, own):
        values = lay_over(cls, values, above)
    lines = {
        path: n
        for path, n in file.lines.items()
        if value_at(values, path) == value_at(file.values, path)
    }
    return YamlFile(values=values, lines=lines, problems=file.problems)


def shared_values(pipeline: PipelineConfig, cls: type[JobConfig]) -> dict[str, Any]:
    """What the pipeline has for all stages, as far as a stage's job knows it."""
    shared = pipeline.model_dump(
        mode="json", exclude_unset=True, include={"seed", "wandb", "timeouts", "failures"}
    )
    placement = pipeline.placement.model_dump(mode="json", exclude_unset=True)
    roles = schema.keys(schema.at_path(cls, ("placement",)))
    shared["placement"] = {role: group for role, group in placement.items() if role in roles}
    return shared


def _names_model(path: KeyPath) -> bool:
    return path[-2:] == ("model", "path")


def _fault(
    path: KeyPath, reference: str, job: str, known: Mapping[str, Stage], names: Sequence[str]
) -> str | None:
    """What is wrong with one reference."""
    name, _, file = reference.partition("/")
    if name not in known:
        if name in names:
            return f"stage {name!r} must come earlier"
        near = difflib.get_close_matches(name, known, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ";"
        return f"no stage {name!r}{meant} earlier stages are {', '.join(known) or 'none'}"
    if not _names_model(path):
        return None if file else f"must name a file of the stage: {PREFIX}{name}/FILE"
    if file:
        return f"a model is a whole stage's result: {PREFIX}{name}, got {PREFIX}{reference}"
    kinds = _kinds(path[0], job)
    if known[name].job not in kinds:
        return f"must be the result of {' or '.join(kinds)}, stage {name!r} is {known[name].job}"
    return None


def _kinds(role: str, job: str) -> tuple[str, ...]:
    """Jobs whose result a role can start from."""
    results = {name: cls for name, cls in JOB_CONFIGS.items() if cls.trains}
    policies = tuple(name for name, cls in results.items() if cls.model_kind == "causal")
    scorers = tuple(name for name in results if name not in policies)
    if role == "reward" and JOB_CONFIGS[job].trained_role != role:
        return scorers
    return policies if role in ("policy", "reference") else (*policies, *scorers)


def _place(path: KeyPath, reference: str, known: Mapping[str, Stage]) -> str:
    """Where the pipeline writes what is referred to."""
    name, _, file = reference.partition("/")
    stage = known[name]
    return stage.result if _names_model(path) else str(Path(stage.config.run_dir) / file)


def to_come(config: JobConfig, earlier: Sequence[Stage]) -> set[KeyPath]:
    """Keys that name files in earlier stages' folders, which are not there yet."""
    folders = [stage.config.run_dir + os.sep for stage in earlier]
    return {
        path
        for path, text in texts(config.model_dump())
        if any(os.path.abspath(text).startswith(folder) for folder in folders)
    }


def _validated(
    cls: type[JobConfig], file: YamlFile, places: Mapping[KeyPath, str]
) -> tuple[Any, list[Problem]]:
    values = deepcopy(file.values)
    for path, place in places.items():
        put(values, path, place)
    return validate(cls, replace(file, values=values))


def _shapes(stages: Sequence[Stage]) -> Iterator[Problem]:
    """A role that two stages want in two shapes."""
    first: dict[str, Stage] = {}
    for stage in stages:
        for role, group in stage.config.groups.items():
            other = first.setdefault(role, stage)
            if other.config.groups[role] != group:
                yield Problem(
                    path=("stages", stage.name, "placement", role),
                    message=f"is {group}, but {other.config.groups[role]} in stage {other.name}: "
                    "a pool has one shape for all; set it in the pipeline's placement",
                )


def values_of(config: RunConfig) -> dict[str, Any]:
    """All that a configuration says, without a file beside it.

    Only what was given, no defaults: a default may depend on whether its key was given.

    Raises:
        ConfigError: A stage cannot be read or has a mistake.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    if isinstance(config, PipelineConfig):
        stages_of(config, check_files=False)
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
