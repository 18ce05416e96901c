"""A job's configuration from a YAML file and overrides, with every mistake reported at once.

For example `load_config(PpoConfig, "configs/ppo/tiny-cpu.yaml", ["--policy.optim.lr", "1e-6"])`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlhf_ray.config.base import ELSEWHERE
from rlhf_ray.config.tools import schema
from rlhf_ray.config.tools.layers import COMMAND_LINE, lay_arguments, value_at, with_sections
from rlhf_ray.config.tools.problems import KeyPath, Problem, raise_for
from rlhf_ray.config.tools.secrets import MASK, masked_keys, without_secrets
from rlhf_ray.config.tools.yaml_file import YamlFile, read_yaml, write_yaml

ConfigT = TypeVar("ConfigT", bound=BaseModel)


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
