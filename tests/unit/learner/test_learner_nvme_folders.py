"""What is offloaded to a drive lies in a folder of its rank, which is gone when the rank is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actors.ranks import hosting
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.base import LearnerConfig, ReferenceConfig, ZeroConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner import nvme
from rlhf_ray.learner.nvme import DriveFolder, in_own_folder
from rlhf_ray.specs import PolicySpec, ReferenceSpec, SupervisedSpec, ValueSpec

KILLED = """
import os, signal, sys
from pathlib import Path
from rlhf_ray.learner.nvme import DriveFolder
folder = DriveFolder(Path(sys.argv[1]))
(folder.path / "states").write_bytes(bytes(1000))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def libaio(monkeypatch):
    monkeypatch.setattr(nvme, "libaio_fault", lambda: None)


def specs(drive, **zero):
    """One of every kind that a rank hosts."""
    settings = {
        "model": {"path": "org/model"},
        "zero": {"stage": 3, "offload_optimizer": "nvme", "nvme_path": str(drive), **zero},
    }
    learner = LearnerConfig.model_validate(settings)
    trained = {
        "learner": learner,
        "algorithm": AlgorithmConfig(advantage="gae"),
        "max_new_tokens": 8,
        "total_steps": 1,
        "replay_folder": "",
        "seed": 0,
    }
    jobs = [
        SftConfig.model_validate({"data": {"path": "rows"}, "policy": settings}),
        DpoConfig.model_validate({"data": {"path": "rows"}, "policy": settings}),
        RmConfig.model_validate({"data": {"path": "rows"}, "reward": settings}),
    ]
    return [
        PolicySpec(temperature=1.0, **trained),
        ValueSpec(**trained),
        ReferenceSpec(reference=ReferenceConfig.model_validate(settings), temperature=1.0),
        *(SupervisedSpec(job=job, total_steps=1, replay_folder="") for job in jobs),
    ]


def zero_of(spec) -> ZeroConfig:
    match spec:
        case ReferenceSpec():
            return spec.reference.zero
        case SupervisedSpec():
            return spec.job.learner.zero
    return spec.learner.zero


def test_roles_and_runs_with_one_path_share_no_folder(tmp_path):
    given = [*specs(tmp_path), *specs(tmp_path)]
    placed = [in_own_folder(spec) for spec in given]
    folders = [Path(zero_of(spec).nvme_path) for spec, _ in placed]
    assert len(set(folders)) == len(given)
    for (spec, folder), before, path in zip(placed, given, folders, strict=True):
        assert path.is_dir() and path.parent == tmp_path
        assert folder.path == path
        same = zero_of(spec).model_copy(update={"nvme_path": str(tmp_path)})
        assert same == zero_of(before), "nothing else changes"
    for _, folder in placed:
        folder.close()
    assert list(tmp_path.iterdir()) == []


def test_what_offloads_to_no_drive_has_no_folder(tmp_path):
    for spec in specs(tmp_path, offload_optimizer="cpu"):
        assert in_own_folder(spec) == (spec, None)
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
        def __init__(self, spec):
            self.path = Path(zero_of(spec).nvme_path)
            (self.path / "states").write_bytes(bytes(10))
            self.residency = None

        def close(self):
            assert self.path.is_dir(), "DeepSpeed still has it"

    monkeypatch.setattr(hosting, "_learner", lambda spec, device: Learner(spec))
    monkeypatch.setattr(hosting.HostingRank, "__init__", lambda self: None)
    rank = hosting.HostingRank()
    rank.fetch_timeout_s, rank.device = 1.0, None
    first, second, *_ = specs(tmp_path)
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
    monkeypatch.setattr(nvme, "libaio_fault", lambda: "offloading to nvme needs libaio")
    with pytest.raises(ConfigError, match="offloading to nvme needs libaio"):
        in_own_folder(specs(tmp_path)[0])


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_that_leave_states_where_they_are_are_refused(stage):
    with pytest.raises(ValueError, match=f"nvme needs stage 3, got stage {stage}"):
        ZeroConfig(stage=stage, nvme_path="/nvme", offload_optimizer="nvme")
