"""Configurations in layers: a file, a pipeline's values and `set`, a command line; the last counts.

It also counts over the key that it stands in place of: `total_steps` over the `epochs` of a layer
below. A command line, `--policy.optim.lr 1e-6 --data.shuffle=False --wandb.tags a b`, is laid over
the file's values before the one validation, so that it may supply a key that the file lacks, and so
that mistakes in both are reported together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from rlhf_ray.config.base import Config, laid_over
from rlhf_ray.config.tools import schema
from rlhf_ray.config.tools.problems import KeyPath, Problem
from rlhf_ray.config.tools.yaml_file import read_value

# Where a value comes from, in a problem.
COMMAND_LINE = "command line"


def lay_over(cls: Any, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` where it has a value, else `below` as far as nothing above stands in its place."""
    return laid_over(_without_replaced(cls, below, above), above)


def replaced_by(cls: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The keys in whose place one, or a section that it is in, may stand."""
    for depth, key in enumerate(path):
        for other in _others(schema.at_path(cls, path[:depth]), key):
            yield (*path[:depth], other)


def value_at(values: Any, path: KeyPath) -> Any:
    """What a mapping of mappings and lists has below a key; None for nothing."""
    for key in path:
        if isinstance(values, Mapping):
            values = values.get(key)
        elif isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        else:
            return None
    return values


def put(values: Any, path: KeyPath, value: Any) -> None:
    """Set a key of a section or list that is there, in place; an index past the end appends."""
    target = value_at(values, path[:-1])
    if isinstance(target, dict):
        target[path[-1]] = value
    elif int(path[-1]) < len(target):
        target[int(path[-1])] = value
    else:
        target.append(value)


def texts(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every text in mappings and lists, with its key."""
    if isinstance(values, str):
        yield path, values
    elif isinstance(values, Mapping | list):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, item in items:
            yield from texts(item, (*path, str(key)))


def _without_replaced(
    cls: Any, below: Mapping[str, Any], above: Mapping[str, Any]
) -> dict[str, Any]:
    kept = dict(below)
    for key, value in above.items():
        if value:
            for other in _others(cls, key):
                kept.pop(other, None)
        if isinstance(value, Mapping) and isinstance(kept.get(key), Mapping):
            kept[key] = _without_replaced(schema.child(cls, key), kept[key], value)
    return kept


def _others(annotation: Any, key: str) -> Collection[str]:
    return {
        name
        for section in schema.members(annotation)
        if isinstance(section, type) and issubclass(section, Config)
        for pair in section.alternatives
        if key in pair
        for name in pair - {key}
    }


def lay_arguments(
    cls: type[BaseModel], arguments: Sequence[str], values: dict[str, Any]
) -> tuple[set[KeyPath], list[Problem]]:
    """Lay a command line over a file's values, in place.

    Returns:
        The keys that it gives, and what is wrong with it.
    """
    given: set[KeyPath] = set()
    unread: list[Problem] = []
    unfit: list[Problem] = []
    for option, tokens in _options(arguments):
        if not option.startswith("--"):
            message = f"expected an option such as --seed 1, got {option!r}"
            unread.append(Problem(path=(), message=message))
            continue
        path = _spell(cls, tuple(option[2:].split(".")))
        if not tokens:
            message = f"needs a value: {schema.describe(schema.at_path(cls, path) or Any)}"
            unread.append(Problem(path=path, message=message, where=COMMAND_LINE))
            continue
        given.add(path)
        if fault := _apply(cls, path, tokens, values):
            unfit.append(Problem(path=path, message=fault, where=COMMAND_LINE))
    sections = with_sections(given)
    for path in given:
        if value_at(values, path):  # `--epochs 0` stands in no place
            for *above, key in replaced_by(cls, path):
                section = value_at(values, tuple(above))
                if (*above, key) not in sections and isinstance(section, dict):
                    section.pop(key, None)
    return given, [*unread, *unfit]


def with_sections(paths: Iterable[KeyPath]) -> set[KeyPath]:
    """Keys, and the sections that they are in."""
    return {path[: depth + 1] for path in paths for depth in range(len(path))}


def _apply(
    cls: type[BaseModel], path: KeyPath, tokens: tuple[str, ...], values: dict[str, Any]
) -> str | None:
    """Set one value, in place; or say why that is not possible."""
    annotation = schema.at_path(cls, path)
    if len(tokens) > 1 and annotation is not None and not _takes_list(annotation):
        return f"takes one value, got {list(tokens)}"
    for depth, key in enumerate(path):
        above, here = path[:depth], path[: depth + 1]
        target = value_at(values, above)
        if isinstance(target, list) and not (key.isdigit() and int(key) <= len(target)):
            return f"no entry {key} in a list of {len(target)}"
        if not isinstance(target, dict | list):
            return f"{'.'.join(above)} has no keys below it"
        if here == path:
            put(values, path, _typed(tokens, annotation))
        elif value_at(values, here) is None:
            put(values, here, [] if _takes_list(schema.at_path(cls, here)) else {})
    return None


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
