"""The folder that goes along with a submitted job."""

from zipfile import ZipFile

import pytest

from launch import package
from rlhf_ray.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    files = {
        "my_rewards.py": "x = 1",
        "data/rows.jsonl": "{}",
        "data/big/.gitignore": "*.bin\n!keep.bin",
        "data/big/a.bin": "0",
        "data/big/keep.bin": "0",
        ".gitignore": "/secret.txt\nbuild/\n*.log",
        "secret.txt": "s",
        "data/secret.txt": "not this one",
        "build/x.o": "x",
        "out.log": "x",
        ".git/config": "x",
        ".venv/bin/python": "x",
        "node_modules/a.js": "x",
        "runs/first/metrics.jsonl": "x",
        "wandb/run/files": "x",
        ".aws/credentials": "x",
        "data/.env.local": "KEY=1",
        ".git-credentials": "x",
        "environment.yaml": "x",
        "deep/__pycache__/x.pyc": "x",
        ".env": "KEY=1",
    }
    for name, text in files.items():
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "work/linked").symlink_to(tmp_path / "work/data", target_is_directory=True)
    return tmp_path / "work"


def test_junk_and_what_git_ignores_stay_here(folder):
    assert package.shipped_files(folder) == [
        ".gitignore", "data/big/.gitignore", "data/big/keep.bin", "data/rows.jsonl",
        "data/secret.txt", "environment.yaml", "my_rewards.py",
    ]  # fmt: skip


def test_a_folder_that_is_too_large_names_its_largest_files(folder, monkeypatch):
    monkeypatch.setattr(package, "MAX_BYTES", 2**20)
    (folder / "model.safetensors").write_bytes(bytes(3 * 2**20))
    with pytest.raises(ConfigError, match=r"at most 1 MiB .* model\.safetensors \(3\.0 MiB\)"):
        package.shipped_files(folder)


def test_the_same_files_make_the_same_package(folder, tmp_path):
    (folder / "run.sh").write_text("true")
    (folder / "run.sh").chmod(0o755)
    files = package.shipped_files(folder)
    for name in ("a.zip", "b.zip"):
        package.write_package(folder, files, tmp_path / name)
        (folder / "my_rewards.py").touch()
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with ZipFile(tmp_path / "a.zip") as packed:
        assert packed.namelist() == files
        assert packed.read("my_rewards.py") == b"x = 1"
        assert packed.getinfo("run.sh").external_attr >> 16 & 0o111
