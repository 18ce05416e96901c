"""Every key of a configuration class with what it allows, its default and its meaning, as text.

Ours instead of tyro's because tyro leaves out lists of sections (`reward.functions`) and free
mappings (`rollout.engine`), and does not know the bounds of a value.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlhf_ray.config.tools import schema

_ENTRY = re.compile(r"    (?P<name>\w+): (?P<text>.*)")


def help_text(cls: type[BaseModel], *, width: int) -> str:
    """All keys, a paragraph a section."""
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
        key, annotation = f"{prefix}{name}", schema.child(cls, name)
        if schema.is_section(field.annotation):
            section: Any = field.annotation
            known = default if isinstance(default, BaseModel) else None
            below += _section(section, prefix=f"{key}.", defaults=known, width=width)
            continue
        shown = "required" if default is PydanticUndefined else f"default {_plain(default)}"
        option = f"--{key}  {schema.describe(annotation)} ({shown})"
        yield from _wrap(option, indent=2, hang=6, width=width)
        yield from _wrap(meanings.get(name, ""), indent=8, width=width)
        if get_origin(field.annotation) is list and schema.is_section(get_args(annotation)[0]):
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
