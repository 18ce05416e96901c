"""What a wheel holds, and that commands find it from any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
# All that planning needs of a model.
SIZES = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
PARTS = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
FOLDERS = ("rlhf_ray", "actors", "launch", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: building leaves folders beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        shutil.copy(ROOT / part, source)
    for folder in FOLDERS:
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=without)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "-w", out, source], check=True, timeout=250)
    [file] = out.iterdir()
    with ZipFile(file) as archive:
        yield archive


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


@pytest.fixture
def command(installed, tmp_path):
    """Runs the command with the wheel's packages, in an empty folder."""

    def run(*words):
        assert not any(tmp_path.iterdir())
        return subprocess.run(
            [sys.executable, "-P", "-m", "launch.cli", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def names_in(folder):
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    }


def test_it_holds_packages_and_ready_configurations_and_nothing_else(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = names_in("rlhf_ray") | names_in("actors") | names_in("launch")
    ready = {f"rlhf_ray/{name}" for name in names_in("configs")}
    [changelog] = [name for name in held if name.endswith("/CHANGELOG.md")]
    assert modules and ready
    assert held == modules | ready | {changelog}


def test_it_holds_license_and_readme(wheel):
    [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    said = message_from_bytes(wheel.read(metadata))
    assert said["License-Expression"] == "Apache-2.0"
    license_file = metadata.replace("METADATA", f"licenses/{said['License-File']}")
    assert wheel.read(license_file) == (ROOT / "LICENSE").read_bytes()
    assert said["Description-Content-Type"] == "text/markdown"
    payload = said.get_payload(decode=True).decode()
    assert payload.strip() == (ROOT / "README.md").read_text().strip()


@pytest.mark.parametrize(("job", "name"), [("grpo", "qwen2.5-0.5b-1gpu"), ("pipeline", "tiny-cpu")])
def test_a_ready_configuration_is_found_by_name_from_any_folder(
    job, name, command, tmp_path_factory
):
    sizes = tmp_path_factory.mktemp("sizes") / "config.json"
    sizes.write_text(json.dumps(SIZES))
    done = command("plan", job, name, "--model-config", str(sizes))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_name_that_is_none_is_refused_with_the_nearest(command, installed):
    done = command("grpo", "tiny-cp")
    assert done.returncode == 2
    assert "did you mean tiny-cpu?" in done.stderr
    done = command("grpo", "tiny-cpu", "--total-steps", "no")
    assert done.returncode == 2
    assert f"{installed}/rlhf_ray/configs/grpo/tiny-cpu.yaml" in done.stderr
