"""A checkpoint is whole or not there: torn and corrupt ones give way to the one before."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from rlhf_ray.errors import ConfigError, RunError
from rlhf_ray.loops.checkpoints import MANIFEST, CheckpointStore


def write(store, step, text="weights"):
    with store.writing(step) as folder:
        (folder / "policy/state").mkdir(parents=True)
        (folder / "policy/state/shard").write_text(f"{text} of {step}")
        store.commit(step, {"position": step * 10}, roles=["policy"])


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, keep=3)


def test_the_newest_is_found_with_its_state(store):
    assert store.latest() is None
    for step in (1, 2, 10):
        write(store, step)
    latest = store.latest()
    assert (latest.step, latest.state) == (10, {"position": 100})
    assert (latest.folder / "policy/state/shard").read_text() == "weights of 10"
    assert latest.folder.name == "step_00000010"


def test_what_did_not_come_to_its_end_does_not_count_and_takes_no_room(store):
    write(store, 1)
    with pytest.raises(LookupError), store.writing(2) as folder:
        (folder / "half").write_text("written")
        assert store.latest().step == 1
        raise LookupError
    assert [path.name for path in store.root.iterdir()] == ["step_00000001"]


def test_what_a_killed_run_left_half_written_goes_before_the_next(store):
    left = store.root / ".writing_00000003"
    left.mkdir(parents=True)
    (left / "half").write_text("written")
    with store.writing(4) as folder:
        assert not left.exists()
        assert not list(folder.iterdir())


@pytest.mark.parametrize("failing", ["write_text", "rename"])
def test_a_full_disk_leaves_the_older_one_whole(store, monkeypatch, failing):
    for step in (1, 2):
        write(store, step)

    def fail(path, *arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(store.root), failing, fail)
        with pytest.raises(RunError, match=r"the disk is full: no room for a checkpoint in \S+"):
            if failing == "rename":
                with store.writing(2):
                    store.commit(2, {}, roles=[])
            else:
                write(store, 3)
    assert [store.latest().step, store.latest().state] == [2, {"position": 20}]
    assert sorted(path.name for path in store.root.iterdir()) == ["step_00000001", "step_00000002"]


def test_all_of_it_is_on_the_disk_before_it_has_its_name(store, monkeypatch):
    done = []

    def sync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{store.root}/"))

    monkeypatch.setattr(os, "fsync", sync)
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda path, to: (done.append(f"renamed {path.name}"), rename(path, to))
    )
    write(store, 3)
    before, after = done[: (named := done.index("renamed .writing_00000003"))], done[named + 1 :]
    folders = ("", "/policy", "/policy/state")
    files = (f"/{MANIFEST}", "/policy/state/shard")
    assert set(before) == {f".writing_00000003{path}" for path in (*folders, *files)}
    assert after == [str(store.root)]


def damage_missing_file(folder):
    (folder / "policy/state/shard").unlink()


def damage_one_byte(folder):
    path = folder / "policy/state/shard"
    path.write_bytes(b"W" + path.read_bytes()[1:])


def damage_cut_short(folder):
    path = folder / "policy/state/shard"
    path.write_bytes(path.read_bytes()[:-1])


def damage_no_manifest(folder):
    (folder / MANIFEST).unlink()


def damage_torn_manifest(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text()[:-20])


def damage_manifest_without_state(folder):
    (folder / MANIFEST).write_text('{"step": 3, "files": {}}')


def damage_manifest_of_another_kind(folder):
    (folder / MANIFEST).write_text("[]")


def damage_position_in_manifest(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"position": ', '"position": 1'))


def damage_step_in_manifest(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"step": ', '"step": 1'))


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing_file,
        damage_one_byte,
        damage_cut_short,
        damage_no_manifest,
        damage_torn_manifest,
        damage_manifest_without_state,
        damage_manifest_of_another_kind,
        damage_position_in_manifest,
        damage_step_in_manifest,
    ],
)
def test_a_damaged_one_gives_way_to_the_one_before(store, damage, caplog):
    for step in (2, 3):
        write(store, step)
    damage(store.root / "step_00000003")
    assert store.latest().step == 2
    assert "step_00000003 is not usable" in caplog.text
    damage(store.root / "step_00000002")
    with pytest.raises(ConfigError, match=r"none of the 2 checkpoints in .* is whole"):
        store.latest()


def test_one_of_another_step_is_none(store, caplog):
    """Each is whole by itself; the newest by its name would be the older one."""
    for step in (1, 2, 3):
        write(store, step)
    one, two, three = (store.root / f"step_{step:08d}" for step in (1, 2, 3))
    two.rename(store.root / "aside")
    three.rename(two)
    (store.root / "aside").rename(three)
    assert store.latest().step == 1
    assert f"{three} is not usable" in caplog.text
    assert "it was written as the checkpoint of step 2" in caplog.text
    shutil.copy(two / MANIFEST, one / MANIFEST)
    with pytest.raises(ConfigError, match="none of the 3 checkpoints"):
        store.latest()


def test_what_a_resumed_run_writes_takes_the_place_of_later_ones(store):
    for step in (20, 30, 40):
        write(store, step)
    damage_one_byte(store.root / "step_00000040")
    damage_one_byte(store.root / "step_00000030")
    assert store.latest().step == 20
    write(store, 25)
    assert [path.name for path in sorted(store.root.iterdir())] == [
        "step_00000020", "step_00000025"
    ]  # fmt: skip
    assert store.latest().step == 25


def test_files_are_digested_side_by_side(store, monkeypatch):
    digest, both_are_there = hashlib.file_digest, threading.Barrier(2)

    def digest_beside_another(file, digestmod):
        both_are_there.wait(timeout=10)
        return digest(file, digestmod)

    monkeypatch.setattr(hashlib, "file_digest", digest_beside_another)
    with store.writing(1) as folder:
        for role in ("policy", "value"):
            (folder / role).mkdir()
            (folder / role / "shard").write_text(role)
        store.commit(1, {}, roles=["policy", "value"])
    assert store.latest().step == 1


def test_only_the_newest_are_kept(store):
    for step in range(1, 7):
        write(store, step)
    kept = sorted(path.name for path in store.root.iterdir())
    assert kept == ["step_00000004", "step_00000005", "step_00000006"]


def test_a_step_can_be_written_again(store):
    write(store, 1)
    write(store, 1, text="new weights")
    assert (store.latest().folder / "policy/state/shard").read_text() == "new weights of 1"


def test_a_role_that_wrote_elsewhere_is_an_error(store):
    with store.writing(1) as folder:
        (folder / "policy").mkdir()
        with pytest.raises(RunError, match="the checkpoint of policy is not in"):
            store.commit(1, {}, roles=["policy"])
    assert store.latest() is None
    assert not list(store.root.iterdir())


def test_the_oldest_is_what_a_rollback_may_still_need(store):
    assert store.oldest() is None
    for step in range(1, 6):
        write(store, step)
    assert (store.oldest().step, store.oldest().state) == (3, {"position": 30})
    damage_torn_manifest(store.root / "step_00000003")
    assert store.oldest().step == 4, "nobody can go back to the torn one"


def test_a_folder_that_vanished_is_no_checkpoint(store):
    write(store, 1)
    shutil.rmtree(store.root)
    assert store.latest() is None
