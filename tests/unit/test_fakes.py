"""Fakes cannot drift from what they stand for: mypy holds one to every Protocol of the roles."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_ray import roles
from rlhf_ray.jobs import pool
from rlhf_ray.learner import engine

TESTS = Path(__file__).parents[1]


def protocols_of(module: ModuleType) -> set[str]:
    """Those that it defines."""
    return {
        name
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and getattr(cls, "_is_protocol", False)
    }


def checked() -> set[str]:
    """What the fakes are held to: the names in the annotations of `_`, where mypy reads."""
    names = set()
    for path in TESTS.rglob("*.py"):
        if path.name.startswith(("test_", "conftest")):
            continue
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.AnnAssign(target=ast.Name(id="_"), value=ast.expr()):
                    found = ast.walk(node.annotation)
                    names |= {part.id for part in found if isinstance(part, ast.Name)}
    return names


@pytest.mark.parametrize("module", [roles, pool, engine], ids=["roles", "pool", "engine"])
def test_every_protocol_has_a_fake_that_is_held_to_it(module: ModuleType) -> None:
    protocols = protocols_of(module)
    assert protocols
    assert protocols - checked() <= {"Offloads"}, "every other role of a loop is one"
