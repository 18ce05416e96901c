"""YAML as configurations use it: safe, with line numbers and environment variables.

PyYAML reads `1e-6` as text (YAML 1.1 wants `1.0e-6`) and silently keeps the last of two equal keys.
Here the first is a number and the second a problem.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.tools.problems import KeyPath, Problem
from rlhf_ray.errors import ConfigError

_EXPONENT_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(:-(?P<default>[^}]*))?\}")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    """Quotes the text "1e-6", which `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT_FLOAT, list("-+.0123456789"))


@dataclass(frozen=True, kw_only=True)
class YamlFile:
    """A file's values, the line of each key, and what was wrong while reading."""

    values: dict[str, Any]
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]


def read_yaml(path: Path, environment: Mapping[str, str] = os.environ) -> YamlFile:
    """Read a mapping; `${NAME}` and `${NAME:-default}` in its texts come from `environment`.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or does not hold a mapping.
    """
    lines: dict[KeyPath, int] = {}
    problems: list[Problem] = []
    loader = _Loader(_read_text(path))
    try:
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), lines, problems)
        values = {} if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold keys with values, got {type(values).__name__}")
    expanded = _expand(values, (), environment, lines, problems)
    return YamlFile(values=expanded, lines=lines, problems=tuple(problems))


def read_value(text: str) -> Any:
    """One YAML value from a command line; text that is not YAML stands for itself."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def write_yaml(values: Mapping[str, Any], path: Path) -> None:
    """Write a mapping that `read_yaml` reads back unchanged."""
    # ASCII with escapes: written as themselves, rare line separators would not survive.
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, width=100)
    path.write_text(text, encoding="ascii")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _walk(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem]
) -> None:
    """Note the line of every key and each key that is given twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, str(index)] = item.start_mark.line + 1
            _walk(item, (*path, str(index)), lines, problems)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below, line = (*path, str(key.value)), key.start_mark.line + 1
            if below in lines and lines[below] != line:
                problems.append(
                    Problem(path=below, message=f"given twice, in lines {lines[below]} and {line}")
                )
            lines[below] = line
            _walk(value, below, lines, problems)


def _expand(
    value: Any,
    path: KeyPath,
    environment: Mapping[str, str],
    lines: Mapping[KeyPath, int],
    problems: list[Problem],
) -> Any:
    def replace(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if default is not None:
            return environment.get(name) or default
        if name not in environment:
            message = f"environment variable {name} is not set; ${{{name}:-x}} gives a default"
            where = f"line {lines[path]}" if path in lines else ""
            problems.append(Problem(path=path, message=message, where=where))
        return environment.get(name, "")

    def below(key: object, item: Any) -> Any:
        return _expand(item, (*path, str(key)), environment, lines, problems)

    if isinstance(value, str):
        return _VARIABLE.sub(replace, value)
    if isinstance(value, dict):
        return {key: below(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [below(index, item) for index, item in enumerate(value)]
    return value
