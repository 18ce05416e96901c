"""Configurations in layers: a file, a pipeline's values and `set`, a command line; the last counts.

It also counts over the key that it stands in place of: `total_steps` over the `epochs` of a layer
below.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rlhf_ray.config.base import Config, laid_over
from rlhf_ray.config.tools import schema
from rlhf_ray.config.tools.problems import KeyPath


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


def drop(values: Any, path: KeyPath) -> None:
    """Take a key away, in place, if it is there."""
    section = value_at(values, path[:-1])
    if isinstance(section, dict):
        section.pop(path[-1], None)


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
