"""Questions to a configuration class: what is below a key, what is allowed there, what is near.

Annotations are read once more here because pydantic's messages name neither the bounds of a value
that has the wrong type nor the key that a typo meant.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf_ray.config.tools.problems import KeyPath

_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
    Any: "a value",
    type(None): "null",
}


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, else the annotation alone; constraints stripped."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for part in get_args(annotation) for inner in members(part))
    return (annotation,)


def is_section(annotation: Any) -> bool:
    """Whether the annotation is a configuration class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def child(annotation: Any, key: str) -> Any:
    """The annotation below `key`, or None where there is no such key."""
    for member in members(annotation):
        arguments = get_args(member)
        if is_section(member) and key in member.model_fields:
            return _annotation(member.model_fields[key])
        if member is Any:
            return Any
        if get_origin(member) is dict:
            return arguments[1]
        if get_origin(member) is list and key.isdigit():
            return arguments[0]
        if get_origin(member) is tuple and key.isdigit() and int(key) < len(arguments):
            return arguments[int(key)]
    return None


def at_path(annotation: Any, path: KeyPath) -> Any:
    """The annotation at the end of `path`, or None."""
    for key in path:
        annotation = child(annotation, key)
    return annotation


def keys(annotation: Any) -> tuple[str, ...]:
    """The names that a section allows, none where the annotation is no section."""
    sections = (part for part in members(annotation) if is_section(part))
    return tuple(name for section in sections for name in section.model_fields)


def all_paths(annotation: Any, above: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key of a configuration class, sections and lists of sections walked through."""
    for name in keys(annotation):
        path = (*above, name)
        yield path
        yield from all_paths(child(annotation, name), path)


def describe(annotation: Any) -> str:
    """What is allowed, in words: "an integer above 0"; "one of 'a', 'b'"."""
    if get_origin(annotation) is Annotated:
        inner, *constraints = get_args(annotation)
        return " ".join([describe(inner), *_bounds(constraints)])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in arguments)
    if origin is Literal:
        allowed = ", ".join(repr(value) for value in arguments)
        return f"one of {allowed}" if len(arguments) > 1 else allowed
    if origin is tuple:
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if is_section(annotation):
        return f"a section with the keys {', '.join(keys(annotation))}"
    return _NAMES[origin or annotation]


def nearest_path(cls: type[BaseModel], path: KeyPath) -> KeyPath | None:
    """The key that a mistyped or misplaced one most likely meant."""
    *above, key = path
    beside = difflib.get_close_matches(key, keys(at_path(cls, tuple(above))), n=1)
    if beside:
        return (*above, beside[0])
    elsewhere = [other for other in all_paths(cls) if other[-1] == key]
    dotted = ".".join(path)
    return max(
        elsewhere,
        key=lambda other: difflib.SequenceMatcher(None, dotted, ".".join(other)).ratio(),
        default=None,
    )


def _annotation(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _bounds(constraints: list[Any]) -> list[str]:
    words = []
    for constraint in constraints:
        match constraint:
            case FieldInfo():
                words += _bounds(constraint.metadata)
            case at.Gt(gt=bound):
                words.append(f"above {bound}")
            case at.Ge(ge=bound):
                words.append(f"of at least {bound}")
            case at.Le(le=bound):
                words.append(f"and at most {bound}" if words else f"of at most {bound}")
    return words
