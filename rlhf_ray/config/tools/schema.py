"""Questions to a configuration class: what is below a key, what is allowed there, what is near.

Annotations are read once more here because pydantic's messages name neither the bounds of a value
that has the wrong type nor the key that a typo meant. Help is ours instead of tyro's because tyro
leaves out lists of sections (`reward.functions`) and free mappings (`rollout.engine`), and does not
know the bounds of a value.
"""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

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
# Of the `Attributes:` of a docstring.
_ENTRY = re.compile(r"    (?P<name>\w+): (?P<text>.*)")


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


def help_text(cls: type[BaseModel], *, width: int) -> str:
    """Every key with what it allows, its default and its meaning, a paragraph a section."""
    return "\n".join(_section(cls, prefix="", defaults=None, width=width))


def _section(
    cls: type[BaseModel], *, prefix: str, defaults: BaseModel | None, width: int
) -> Iterator[str]:
    """The section's own keys, then the sections below it.

    `prefix` stands before its keys: `policy.optim.`. `defaults` is the section as it is when
    nothing is given, None where something must be.
    """
    summary, meanings = summary_of(cls), _meanings(cls)
    yield from ["", *_wrap(f"{prefix.rstrip('.') or 'job'}: {summary}", indent=0, width=width)]
    below: list[str] = []
    for name, field in cls.model_fields.items():
        default = _default(field) if defaults is None else getattr(defaults, name)
        key, annotation = f"{prefix}{name}", child(cls, name)
        if is_section(field.annotation):
            section: Any = field.annotation
            known = default if isinstance(default, BaseModel) else None
            below += _section(section, prefix=f"{key}.", defaults=known, width=width)
            continue
        shown = "required" if default is PydanticUndefined else f"default {_plain(default)}"
        option = f"--{key}  {describe(annotation)} ({shown})"
        yield from _wrap(option, indent=2, hang=6, width=width)
        yield from _wrap(meanings.get(name, ""), indent=8, width=width)
        if get_origin(field.annotation) is list and is_section(get_args(annotation)[0]):
            below += _section(
                get_args(annotation)[0], prefix=f"{key}.0.", defaults=None, width=width
            )
    yield from below


def summary_of(cls: type[BaseModel]) -> str:
    """The first paragraph of the class's docstring, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _meanings(cls: type[BaseModel]) -> dict[str, str]:
    """What the `Attributes:` of the docstrings say of each field, bases included."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition(
            "Attributes:\n"
        )
        name = ""
        for line in attributes.splitlines():
            entry = _ENTRY.fullmatch(line)
            if entry:
                name = entry["name"]
                meanings[name] = entry["text"]
            elif name:
                meanings[name] += f" {line.strip()}"
    return meanings


def _default(field: FieldInfo) -> Any:
    """The field's own; one that follows from other keys is not known without them."""
    if field.default_factory_takes_validated_data:
        return "by other keys"
    return field.get_default(call_default_factory=True)


def _plain(value: object) -> str:
    return "none" if value in ("", [], {}, None) else str(value)


def _wrap(text: str, *, indent: int, width: int, hang: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        width=width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_long_words=False,
        break_on_hyphens=False,
    )
