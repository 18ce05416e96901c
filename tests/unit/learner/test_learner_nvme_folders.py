"""What is offloaded to a drive lies in a folder of its rank, which is gone when the rank is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actors.ranks import hosting
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.learners import LearnerConfig, ReferenceConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.config.zero import ZeroConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner import build
from rlhf_ray.learner.build import engine_builder
from rlhf_ray.learner.deepspeed import drive
from rlhf_ray.learner.deepspeed.drive import DriveFolder, own_folder
from rlhf_ray.specs import PolicySpec, ReferenceSpec, SupervisedSpec, ValueSpec

KILLED = """
import os, signal, sys
from pathlib import Path
from rlhf_ray.learner.deepspeed.drive import DriveFolder
folder = DriveFolder(Path(sys.argv[1]))
(folder.path / "states").write_bytes(bytes(1000))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def libaio(monkeypatch):
    monkeypatch.setattr(drive, "libaio_fault", lambda: None)


def section(drive, **zero) -> LearnerConfig:
    zero = {"stage": 3, "offload_optimizer": "nvme", "nvme_path": str(drive), **zero}
    return LearnerConfig.model_validate({"model": {"path": "org/model"}, "zero": zero})


def test_roles_and_runs_with_one_path_share_no_folder(tmp_path):
    given = section(tmp_path)
    placed = [own_folder(given) for _ in range(6)]
    folders = [Path(own.zero.nvme_path) for own, _ in placed]
    assert len(set(folders)) == len(placed)
    for (own, folder), path in zip(placed, folders, strict=True):
        assert path.is_dir() and path.parent == tmp_path
        assert folder.path == path
        zero = own.zero.model_copy(update={"nvme_path": str(tmp_path)})
        assert own.model_copy(update={"zero": zero}) == given, "nothing else changes"
    for _, folder in placed:
        folder.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["policy", "value", "reference", "sft", "dpo", "rm"])
def test_what_is_hosted_by_any_specification_has_a_folder(tmp_path, kind):
    builder = engine_builder(specs(tmp_path)[kind], device=torch.device("cpu"))
    folder = Path(builder.config.zero.nvme_path)
    assert folder.is_dir() and folder.parent == tmp_path
    builder.close()
    assert list(tmp_path.iterdir()) == []


def specs(drive):
    """One of every kind that a rank hosts."""
    learner = section(drive)
    settings = learner.model_dump(exclude_unset=True)
    trained = {
        "learner": learner,
        "algorithm": AlgorithmConfig(advantage="gae"),
        "max_new_tokens": 8,
        "total_steps": 1,
        "replay_folder": "",
        "seed": 0,
    }
    jobs = {
        "sft": SftConfig.model_validate({"data": {"path": "rows"}, "policy": settings}),
        "dpo": DpoConfig.model_validate({"data": {"path": "rows"}, "policy": settings}),
        "rm": RmConfig.model_validate({"data": {"path": "rows"}, "reward": settings}),
    }
    return {
        "policy": PolicySpec(temperature=1.0, **trained),
        "value": ValueSpec(**trained),
        "reference": ReferenceSpec(
            reference=ReferenceConfig.model_validate(settings), temperature=1.0
        ),
        **{
            name: SupervisedSpec(job=job, total_steps=1, replay_folder="")
            for name, job in jobs.items()
        },
    }


def test_what_offloads_to_no_drive_has_no_folder(tmp_path):
    given = section(tmp_path, offload_optimizer="cpu")
    assert own_folder(given) == (given, None)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_lives_is_kept(tmp_path):
    alive = DriveFolder(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=120)
    [left] = tmp_path.glob("*/states")
    (tmp_path / "of another program").mkdir()
    later = DriveFolder(tmp_path)
    assert not left.parent.exists()
    assert alive.path.is_dir() and later.path.is_dir()
    assert (tmp_path / "of another program").is_dir()
    assert len(list(tmp_path.iterdir())) == 5, "two folders with their locks, and what was there"


def test_a_rank_removes_its_folder_with_its_model(tmp_path, monkeypatch):
    class Learner:
        def __init__(self, spec, builder):
            self.path = Path(builder.config.zero.nvme_path)
            (self.path / "states").write_bytes(bytes(10))
            self.engine = SimpleNamespace(residency=None)

        def close(self):
            assert self.path.is_dir(), "DeepSpeed still has it"

    monkeypatch.setattr(build, "make_learner", Learner)
    monkeypatch.setattr(hosting.HostingRank, "__init__", lambda self: None)
    rank = hosting.HostingRank()
    rank.fetch_timeout_s, rank.device = 1.0, torch.device("cpu")
    first, second, *_ = specs(tmp_path).values()
    rank.load(first)
    path = rank.learner.path
    rank.load(second)
    assert not path.exists() and rank.learner.path.is_dir()
    rank.unload()
    assert list(tmp_path.iterdir()) == []
    rank.load(first)
    rank.stop()
    assert list(tmp_path.iterdir()) == []


def test_without_libaio_nothing_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "libaio_fault", lambda: "offloading to nvme needs libaio")
    with pytest.raises(ConfigError, match="offloading to nvme needs libaio"):
        own_folder(section(tmp_path))


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_that_leave_states_where_they_are_are_refused(stage):
    with pytest.raises(ValueError, match=f"nvme needs stage 3, got stage {stage}"):
        ZeroConfig(stage=stage, nvme_path="/nvme", offload_optimizer="nvme")
