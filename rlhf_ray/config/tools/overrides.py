"""Command-line overrides: `--policy.optim.lr 1e-6`, `--data.shuffle=False`, `--wandb.tags a b`.

They are laid over the file's values before the one validation, so that an override may supply a key
that the file lacks, and so that mistakes in the file and on the command line are reported together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from rlhf_ray.config.tools import layers, schema
from rlhf_ray.config.tools.problems import KeyPath, Problem
from rlhf_ray.config.tools.yaml_file import read_value


@dataclass(frozen=True, kw_only=True)
class Override:
    """One option, not yet interpreted."""

    path: KeyPath
    tokens: tuple[str, ...]


def parse(cls: type[BaseModel], arguments: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Split a command line into overrides."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    for option, tokens in _options(arguments):
        if not option.startswith("--"):
            message = f"expected an option such as --seed 1, got {option!r}"
            problems.append(Problem(path=(), message=message))
            continue
        path = _spell(cls, tuple(option[2:].split(".")))
        if tokens:
            overrides.append(Override(path=path, tokens=tokens))
        else:
            message = f"needs a value: {schema.describe(schema.at_path(cls, path) or Any)}"
            problems.append(Problem(path=path, message=message, where="command line"))
    return overrides, problems


def apply(cls: type[BaseModel], override: Override, values: dict[str, Any]) -> Problem | None:
    """Set one value in `values`, in place; or say why that is not possible."""
    annotation = schema.at_path(cls, override.path)
    if len(override.tokens) > 1 and annotation is not None and not _takes_list(annotation):
        return _problem(override.path, f"takes one value, got {list(override.tokens)}")
    target: Any = values
    for depth, key in enumerate(override.path):
        above = override.path[:depth]
        if isinstance(target, list) and not (key.isdigit() and int(key) <= len(target)):
            return _problem(override.path, f"no entry {key} in a list of {len(target)}")
        if not isinstance(target, dict | list):
            return _problem(override.path, f"{'.'.join(above)} has no keys below it")
        if depth == len(override.path) - 1:
            _set(target, key, _typed(override.tokens, annotation))
        elif _get(target, key) is None:
            is_list = _takes_list(schema.at_path(cls, (*above, key)))
            _set(target, key, [] if is_list else {})
        target = _get(target, key)
    return None


def drop_replaced(
    cls: type[BaseModel], overrides: Sequence[Override], values: dict[str, Any]
) -> None:
    """Take from the file's values, in place, the keys in whose place applied overrides stand."""
    given = {
        override.path[: depth + 1] for override in overrides for depth in range(len(override.path))
    }
    for override in overrides:
        if layers.value_at(values, override.path):  # `--epochs 0` stands in no place
            for path in layers.replaced_by(cls, override.path):
                if path not in given:
                    layers.drop(values, path)


def _get(target: dict[str, Any] | list[Any], key: str) -> Any:
    if isinstance(target, dict):
        return target.get(key)
    return target[int(key)] if int(key) < len(target) else None


def _set(target: dict[str, Any] | list[Any], key: str, value: Any) -> None:
    if isinstance(target, dict):
        target[key] = value
    elif int(key) < len(target):
        target[int(key)] = value
    else:
        target.append(value)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Group `--key value ...` and `--key=value`, which a value that begins with -- needs."""
    position = 0
    while position < len(arguments):
        option, equals, value = arguments[position].partition("=")
        position += 1
        if not option.startswith("--"):
            yield arguments[position - 1], ()
            continue
        tokens = [value] if equals else []
        while not equals and position < len(arguments) and not arguments[position].startswith("--"):
            tokens.append(arguments[position])
            position += 1
        yield option, tuple(tokens)


def _spell(cls: type[BaseModel], path: KeyPath) -> KeyPath:
    """`run-dir` is `run_dir`; names that a user chose, such as Ray resources, stay as they are."""
    spelled: KeyPath = ()
    for key in path:
        inside_section = schema.keys(schema.at_path(cls, spelled))
        spelled = (*spelled, key.replace("-", "_") if inside_section else key)
    return spelled


def _takes_list(annotation: Any) -> bool:
    return any(get_origin(member) in (list, tuple) for member in schema.members(annotation))


def _typed(tokens: tuple[str, ...], annotation: Any) -> Any:
    """The tokens as values; numbers stay text where text is asked for."""
    if len(tokens) == 1:
        literals = [
            value
            for member in schema.members(annotation)
            if get_origin(member) is Literal
            for value in get_args(member)
        ]
        for value in literals:
            if str(value) == tokens[0]:
                return value
        if str in schema.members(annotation):
            return tokens[0]
        if not _takes_list(annotation) or tokens[0].lstrip().startswith("["):
            return read_value(tokens[0])
    return [_typed((token,), schema.child(annotation, str(i))) for i, token in enumerate(tokens)]


def _problem(path: KeyPath, message: str) -> Problem:
    return Problem(path=path, message=message, where="command line")
