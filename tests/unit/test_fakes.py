"""Fakes cannot drift from what they stand for: mypy holds one to every Protocol of the roles."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_ray.jobs import pool
from rlhf_ray.learner import engine
from rlhf_ray.roles import protocols as roles

TESTS = Path(__file__).parents[1]


def protocols_of(module: ModuleType) -> set[str]:
    """Those that it defines."""
    return {
        name
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and getattr(cls, "_is_protocol", False)
    }


def checked() -> set[str]:
    """What the functions `_` of the modules that mypy reads return fakes as."""
    nodes = [
        node
        for path in TESTS.rglob("*.py")
        if not path.name.startswith(("test_", "conftest"))
        for node in ast.parse(path.read_text()).body
    ]
    return {
        ast.unparse(node.returns)
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.name == "_" and node.returns
    }


@pytest.mark.parametrize("module", [roles, pool, engine], ids=["roles", "pool", "engine"])
def test_every_protocol_has_a_fake_that_is_held_to_it(module: ModuleType) -> None:
    protocols = protocols_of(module)
    assert protocols
    assert protocols - checked() <= {"Offloads"}, "every other role of a loop is one"
