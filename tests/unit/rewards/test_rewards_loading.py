from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_ray.config.rewards import RewardFunctionConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.functions import load_functions
from rlhf_ray.rewards.loading import load_function


def test_a_function_is_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.rewards.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Weight:\n    value: float = 2.0\n"
        "def reward(completions):\n    return [Weight().value for _ in completions]\n"
    )
    assert load_function(f"{file}:reward")(completions=["a"]) == [2.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("just_a_name", "must be given as package.module:function or .*, got 'just_a_name'"),
        ("module:", "must be given as"),
        (":function", "must be given as"),
        ("no_such_package.rewards:f", r"no module 'no_such_package\.rewards'.*path/to/file\.py"),
        ("rlhf_ray.rewards.nothing:f", r"no module 'rlhf_ray\.rewards\.nothing'"),
        (".relative:f", r"importing \.relative raised TypeError"),
        ("/no/such/file.py:f", "reward function .*: no file '/no/such/file.py'"),
        (
            "rlhf_ray.rewards.contains:contain_word",
            "has no function 'contain_word'; did you mean 'contains_word'",
        ),
        ("rlhf_ray.rewards.contains:zzz", r"has no function 'zzz'; functions there: \["),
        ("rlhf_ray.rewards.contains:__doc__", "has no function '__doc__'"),
    ],
)
def test_a_function_that_is_not_there_is_named(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_function(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_dependency", "raised ModuleNotFoundError: No module named 'no_such_dep"),
        ("def f(:", "raised SyntaxError"),
        ("raise SystemExit(2)", "raised SystemExit: 2"),
    ],
)
def test_a_file_that_does_not_import_is_named_with_its_cause(
    tmp_path: Path, code: str, message: str
) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(code)
    with pytest.raises(ConfigError, match=rf"importing {file} {message}"):
        load_function(f"{file}:f")


def test_a_file_imports_its_own_neighbours(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "lib").mkdir(parents=True)
        (folder / "helpers.py").write_text(f"NAME = {name!r}\n")
        (folder / "deeper.py").write_text("from helpers import NAME as DEEP\n")
        (folder / "lib/__init__.py").write_text("from . import inner\n")
        (folder / "lib/inner.py").write_text("import helpers\nINNER = helpers.NAME\n")
        (folder / "json.py").write_text("raise AssertionError('not the standard library')\n")
        (folder / "datasets").mkdir()  # of data, not of code
        (folder / "rewards.py").write_text(
            "import json, datasets, lib.inner\nfrom deeper import DEEP\n\n\n"
            "def reward(completions):\n    import helpers\n"
            "    assert datasets.__file__\n"
            "    return [helpers.NAME, DEEP, lib.inner.INNER]\n"
        )
    one, two = (load_function(f"{tmp_path}/{name}/rewards.py:reward") for name in ("one", "two"))
    assert one(completions=[]) == ["one"] * 3
    assert two(completions=[]) == ["two"] * 3
    assert "helpers" not in sys.modules and str(tmp_path / "one") not in sys.path


def test_a_file_of_a_package_imports_from_it(tmp_path: Path) -> None:
    (tmp_path / "mine/sub").mkdir(parents=True)
    for folder in ("mine", "mine/sub"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "mine/shared.py").write_text("ABOVE = 1.0\n")
    (tmp_path / "mine/sub/side.py").write_text("BESIDE = 2.0\n")
    (tmp_path / "mine/sub/rewards.py").write_text(
        "from ..shared import ABOVE\nfrom .side import BESIDE\nimport mine.shared\nimport side\n"
        "def reward(completions):\n"
        "    return [ABOVE, BESIDE, mine.shared.ABOVE, side.BESIDE]\n"
    )
    reward = load_function(f"{tmp_path}/mine/sub/rewards.py:reward")
    assert reward(completions=[]) == [1.0, 2.0, 1.0, 2.0]


def test_files_are_read_anew_for_every_job(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("VALUE = 1.0\n")
    (tmp_path / "rewards.py").write_text(
        "import helpers\nseen = []\n"
        "def one(completions):\n    seen.append(1)\n    return [helpers.VALUE]\n"
        "def two(completions):\n    return [len(seen)]\n"
    )
    configs = [
        RewardFunctionConfig(path=f"{tmp_path}/rewards.py:{name}") for name in ("one", "two")
    ]
    one, two = load_functions(configs)
    assert one.function(completions=[""]) == [1.0] and two.function(completions=[""]) == [1]
    (tmp_path / "helpers.py").write_text("VALUE = 2.0\n")
    one, two = load_functions(configs)
    assert one.function(completions=[""]) == [2.0] and two.function(completions=[""]) == [1]
    assert not list(tmp_path.glob("__pycache__"))


def test_a_module_is_found_where_the_command_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards_of_mine.py").write_text("def reward(completions):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_function("rewards_of_mine:reward")(completions=["a"]) == [1.0]


def test_a_class_is_no_function() -> None:
    with pytest.raises(ConfigError, match="is a class; name an instance"):
        load_function("rlhf_ray.rewards.batch:ScoringBatch")
