"""A job's configuration from a YAML file and overrides, with every mistake reported at once.

For example `load_config(PpoConfig, "configs/ppo/tiny-cpu.yaml", ["--policy.optim.lr", "1e-6"])`.
Commands name a file, or one of those that come with the package: `find_config("grpo", "tiny-cpu")`.
`rlhf_ray/configs` is a link to the repository's `configs/`, whose files a wheel holds in its place.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlhf_ray.config.base import ELSEWHERE
from rlhf_ray.config.jobs import JOB_CONFIGS, PIPELINE, PipelineConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.tools import schema
from rlhf_ray.config.tools.layers import COMMAND_LINE, lay_arguments, value_at, with_sections
from rlhf_ray.config.tools.problems import KeyPath, Problem, raise_for
from rlhf_ray.config.tools.secrets import MASK, masked_keys, without_secrets
from rlhf_ray.config.tools.yaml_file import YamlFile, read_yaml, write_yaml
from rlhf_ray.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)
SUFFIX = ".yaml"


def load_config(
    cls: type[ConfigT],
    yaml_path: Path | str,
    arguments: Sequence[str] = (),
    *,
    elsewhere: bool = False,
) -> ConfigT:
    """Read a job's file, lay `--key value` overrides over it and validate the result.

    Relative paths inside stay as they are given: they are relative to the working directory.
    With `elsewhere` the job runs on another machine, whose home `~` stands for.

    Raises:
        ConfigError: With every problem found: its key, what was given and what is allowed.
    """
    file = read_yaml(Path(yaml_path).expanduser())
    given, problems = lay_arguments(cls, arguments, file.values)
    problems = [*file.problems, *problems]
    from_command_line = (with_sections(given) - file.lines.keys()) | given
    config, found = validate(cls, file, from_command_line, elsewhere=elsewhere)
    known = {problem.path for problem in problems}
    raise_for(
        [*problems, *(problem for problem in found if problem.path not in known)],
        source=str(yaml_path),
    )
    assert config is not None
    return config


def validate(
    cls: type[ConfigT],
    file: YamlFile,
    from_command_line: Collection[KeyPath] = (),
    *,
    elsewhere: bool = False,
) -> tuple[ConfigT | None, list[Problem]]:
    """A file's values as a configuration, or what is wrong with them.

    Keys `from_command_line` have values that are not the file's; `elsewhere` as in `load_config`.
    """
    asked = (
        f"{MASK} stands for a secret that was left out of the file: give it again, best as "
        "${NAME} of an environment variable"
    )
    if masked := [
        Problem(path=path, message=asked, where=_where(path, file.lines, from_command_line))
        for path in masked_keys(file.values)
    ]:
        return None, masked
    try:
        return cls.model_validate(file.values, context={ELSEWHERE: elsewhere}), []
    except ValidationError as error:
        return None, _explain_all(error.errors(), cls, file, from_command_line)


def dump_config(config: BaseModel, path: Path) -> None:
    """Write the resolved configuration, so that `load_config` gives an equal one.

    Secrets are masked, and `load_config` asks for them. The file is whole or as it was.
    """
    aside = path.with_name(f".{path.name}")
    try:
        write_yaml(without_secrets(config.model_dump(mode="json")), aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def is_dump_of(config: BaseModel, path: Path, *, besides: Collection[str]) -> bool:
    """Whether `dump_config` wrote this file of an equal configuration, whatever `besides` say."""
    values = without_secrets(config.model_dump(mode="json"))
    written = read_yaml(path).values if path.is_file() else {}
    return {k: v for k, v in values.items() if k not in besides} == {
        k: v for k, v in written.items() if k not in besides
    }


def _explain_all(
    errors: Iterable[ErrorDetails],
    cls: type[BaseModel],
    file: YamlFile,
    from_command_line: Collection[KeyPath],
) -> list[Problem]:
    """One problem a key: pydantic reports a union once for every alternative."""
    problems: dict[KeyPath | str, Problem] = {}
    for error in errors:
        if error["type"] == "default_factory_not_called":
            continue  # the key that the default follows from has an error of its own
        path, message = _explain(error, cls, file.values)
        where = _where(path, file.lines, from_command_line)
        problems.setdefault(path or message, Problem(path=path, message=message, where=where))
    return list(problems.values())


def _explain(
    error: ErrorDetails, cls: type[BaseModel], values: Mapping[str, Any]
) -> tuple[KeyPath, str]:
    full = tuple(str(part) for part in error["loc"])
    path = _known_part(cls, full)
    allowed = schema.describe(schema.at_path(cls, path))
    match error["type"]:
        case "extra_forbidden":
            return full, _unknown_key(cls, full)
        case "value_error":
            return path, str(error["ctx"]["error"])
        case "missing":
            return full, f"is missing: must be {schema.describe(schema.at_path(cls, full))}"
    given = value_at(values, path)  # a default has none
    return path, f"must be {allowed}, got {error['input'] if given is None else given!r}"


def _unknown_key(cls: type[BaseModel], path: KeyPath) -> str:
    nearest = schema.nearest_path(cls, path)
    meant = f", did you mean {'.'.join(nearest)}?" if nearest else ";"
    allowed = ", ".join(schema.keys(schema.at_path(cls, path[:-1])))
    return f"unknown key{meant} allowed here: {allowed}"


def _known_part(cls: type[BaseModel], path: KeyPath) -> KeyPath:
    """Without pydantic's names for the alternatives of a union, which are no keys."""
    known: KeyPath = ()
    for key in path:
        if schema.at_path(cls, (*known, key)) is None:
            break
        known = (*known, key)
    return known


def _where(
    path: KeyPath, lines: Mapping[KeyPath, int], from_command_line: Collection[KeyPath]
) -> str:
    for depth in range(len(path), 0, -1):
        if path[:depth] in from_command_line:
            return COMMAND_LINE
        if path[:depth] in lines:
            return f"line {lines[path[:depth]]}"
    return ""


def ready_configs(job: str) -> dict[str, Path]:
    """The files of a job's ready configurations by their names."""
    folder = Path(str(files("rlhf_ray"))) / "configs" / job
    return {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def file_there(given: str) -> Path | None:
    """What can be read at a path; a folder cannot."""
    file = Path(given).expanduser()
    return file if file.exists() and not file.is_dir() else None


def find_config(job: str, given: str) -> Path:
    """The file that `given` is: one that is there, else the job's ready configuration of that name.

    Raises:
        ConfigError: It is neither.
    """
    file, ready = file_there(given), ready_configs(job)
    if file is None and given not in ready:
        raise ConfigError(f"{given}: {_what_is_there(given, job, ready)}")
    return file or ready[given]


def _what_is_there(given: str, job: str, ready: dict[str, Path]) -> str:
    name = Path(given).name.removesuffix(SUFFIX)
    near = difflib.get_close_matches(name, ready, n=1)
    meant = f", did you mean {near[0]}?" if near else ";"
    return (
        f"no such configuration file, and no ready configuration of {job}{meant} "
        f"ready are {', '.join(ready)}"
    )


def load_job(given: str, job: str = "") -> RunConfig:
    """Read a file or a ready configuration as what it is, where `job` does not say it.

    A pipeline has stages; a job is in a folder of its name.

    Raises:
        ConfigError: It cannot be told what it is, or it has a mistake.
    """
    path = find_config(job, given) if job else _found(given)
    file = read_yaml(path)
    if job == PIPELINE or (not job and "stages" in file.values):
        return load_config(PipelineConfig, path)
    folder = path.resolve().parent.name
    fitting = [name for name, cls in JOB_CONFIGS.items() if validate(cls, file)[0] is not None]
    named = job or (folder if folder in JOB_CONFIGS else fitting[0] if len(fitting) == 1 else "")
    if named not in JOB_CONFIGS:
        raise ConfigError(
            f"{path} may configure {' or '.join(fitting) or 'no job'}: say which by --job, "
            f"one of {', '.join(JOB_CONFIGS)}, {PIPELINE}"
        )
    return load_config(JOB_CONFIGS[named], path)


def _found(given: str) -> Path:
    """The file, or the ready configuration whose job its name tells.

    Raises:
        ConfigError: None has this name, or several.
    """
    having = [job for job in (*JOB_CONFIGS, PIPELINE) if given in ready_configs(job)]
    file = file_there(given)
    if file is None and not having:
        raise ConfigError(f"{given}: no such configuration file, and no ready configuration")
    if file is None and len(having) > 1:
        raise ConfigError(f"{given} is ready for {', '.join(having)}: say which by --job")
    return file or find_config(having[0], given)
