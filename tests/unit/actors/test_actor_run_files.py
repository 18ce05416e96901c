"""Files between the driver and nodes with disks of their own: whole, compared, never too much."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.cluster import run_files
from actors.cluster.role_handle import RoleHandle
from actors.cluster.run_files import RunFiles
from rlhf_ray.errors import RunError


class Disks:
    """Runs the tasks here, with a folder a node in place of the driver's."""

    def __init__(self, root: Path) -> None:
        self.root, self.chunks, self.num_chunks = root, 0, 0

    def at(self, node: str, path: str = "") -> Path:
        return self.root / node / path

    async def ask(self, files: Any, nodes: list[str], task: Any, *arguments: Any) -> list[Any]:
        driver = str(self.at("driver"))
        self.chunks = max(self.chunks, *(len(a) for a in arguments if isinstance(a, bytes)), 0)
        return [
            task._function(
                *(
                    a.replace(driver, str(self.at(node))) if isinstance(a, str) else a
                    for a in arguments
                )
            )
            for node in nodes
        ]


@pytest.fixture
def disks(tmp_path, monkeypatch) -> Disks:
    disks = Disks(tmp_path)

    async def ask(files, nodes, task, *arguments):
        return await disks.ask(files, nodes, task, *arguments)

    monkeypatch.setattr(RunFiles, "_ask", ask)
    monkeypatch.setattr(run_files, "CHUNK_BYTES", 4)
    return disks


@pytest.fixture
def files() -> RunFiles:
    """Two nodes with disks of their own, and one that sees the driver's."""
    distant = {"a": "10.0.0.2", "b": "10.0.0.3"}
    return RunFiles(distant=distant, ranks=("a", "a", "b", "near"), timeout_s=5.0)


@pytest.fixture
def ranks() -> RoleHandle[Any]:
    """They wrote what they were asked to."""
    done = SimpleNamespace(remote=lambda *arguments: asyncio.sleep(0))
    return RoleHandle("policy", {"job/policy/0": SimpleNamespace(export=done)})


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


async def test_what_ranks_wrote_joins_what_is_here(disks, files):
    write(disks.at("driver", "run/near.pt"), "of the near node")
    write(disks.at("a", "run/state/0.pt"), "longer than a chunk")
    write(disks.at("b", "run/state/1.pt"), "four")
    write(disks.at("b", "run/empty"), "")
    await files.fetch(str(disks.at("driver", "run")))
    assert read(disks.at("driver", "run")) == {
        "near.pt": "of the near node",
        "state/0.pt": "longer than a chunk",
        "state/1.pt": "four",
        "empty": "",
    }


async def test_two_files_of_one_name_are_an_error(disks, files):
    write(disks.at("a", "run/x"), "one")
    write(disks.at("b", "run/x"), "two")
    with pytest.raises(RunError, match=r"two nodes hold different files as .*run/x"):
        await files.fetch(str(disks.at("driver", "run")))
    write(disks.at("b", "run/x"), "one")
    await files.fetch(str(disks.at("driver", "run")))


async def test_a_file_that_changes_while_it_is_read_is_an_error(disks, files, monkeypatch):
    write(disks.at("a", "run/x"), "unchanged")
    listing = run_files.file_tasks.list_files

    async def ask(files, nodes, task, *arguments):
        answers = await disks.ask(files, nodes, task, *arguments)
        if task is listing:
            write(disks.at("a", "run/x"), "changed!!")
        return answers

    monkeypatch.setattr(RunFiles, "_ask", ask)
    with pytest.raises(RunError, match=r"run/x of 10\.0\.0\.2 changed while it was read"):
        await files.fetch(str(disks.at("driver", "run")))
    assert not disks.at("driver", "run/x").exists()


async def test_only_what_a_node_lacks_is_sent_to_it(disks, files):
    for name, text in {"same": "same", "other": "new", "sub/new": "longer than a chunk"}.items():
        write(disks.at("driver", f"run/{name}"), text)
    write(disks.at("driver", "run/empty"), "")
    write(disks.at("a", "run/same"), "same")
    write(disks.at("a", "run/other"), "old, and longer")
    kept = disks.at("a", "run/same").stat().st_ino
    await files.send(str(disks.at("driver", "run")))
    for node in ("a", "b"):
        assert read(disks.at(node, "run")) == read(disks.at("driver", "run"))
    assert disks.at("a", "run/same").stat().st_ino == kept
    assert not disks.at("near").exists()
    assert disks.chunks == 4


@pytest.mark.parametrize("direction", ["fetch", "send"])
async def test_several_pieces_are_on_their_way_at_a_time(disks, files, monkeypatch, direction):
    """Whichever comes first, the file is as it was."""
    write(disks.at("a" if direction == "fetch" else "driver", "run/x"), "0123456789" * 7)
    pieces = (run_files.file_tasks.read_chunk, run_files.file_tasks.write_chunk)
    under_way, most, delays_s = 0, 0, itertools.cycle([0.03, 0.0, 0.01])

    async def ask(files, nodes, task, *arguments):
        nonlocal under_way, most
        if task in pieces:
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(next(delays_s))
            under_way -= 1
        return await disks.ask(files, nodes, task, *arguments)

    monkeypatch.setattr(RunFiles, "_ask", ask)
    one = files.of_ranks(["a"])
    await getattr(one, direction)(str(disks.at("driver", "run")))
    assert read(disks.at("driver", "run")) == read(disks.at("a", "run")) == {"x": "0123456789" * 7}
    assert most == run_files.CHUNKS_IN_FLIGHT


def parts(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize("direction", ["fetch", "send"])
async def test_a_transfer_that_breaks_off_leaves_no_rests(disks, files, monkeypatch, direction):
    """Here they go at once; on a node that does not answer, before it is asked again."""
    write(disks.at("a" if direction == "fetch" else "driver", "run/x"), "longer than a chunk")

    async def ask(files, nodes, task, *arguments):
        if disks.num_chunks == 2:
            raise RunError("no answer from node 10.0.0.2")
        disks.num_chunks += task in (
            run_files.file_tasks.read_chunk,
            run_files.file_tasks.write_chunk,
        )
        return await disks.ask(files, nodes, task, *arguments)

    transfer = getattr(files, direction)
    with monkeypatch.context() as patched:
        patched.setattr(RunFiles, "_ask", ask)
        with pytest.raises(RunError, match="no answer from node"):
            await transfer(str(disks.at("driver", "run")))
    assert not parts(disks.at("driver"))
    assert len(parts(disks.root)) == (direction == "send")
    await transfer(str(disks.at("driver", "run")))
    assert not parts(disks.root)
    assert read(disks.at("a", "run")) == read(disks.at("driver", "run"))


async def test_an_export_is_the_first_ranks_and_replaces_what_was_here(disks, files, ranks):
    folder, tokenizer = (str(disks.at("driver", name)) for name in ("export", "tokenizer"))
    write(disks.at("driver", "export/old.safetensors"), "old")
    write(disks.at("a", "export/new.safetensors"), "new")
    write(disks.at("b", "export/sent.safetensors"), "what another job sent there")
    await files.export(ranks, folder, tokenizer, timeout_s=5.0)
    assert read(disks.at("driver")) == {"export/new.safetensors": "new"}
    near = files.of_ranks(["near", "a"])
    await near.export(ranks, folder, tokenizer, timeout_s=5.0)
    assert read(disks.at("driver")) == {"export/new.safetensors": "new"}


async def test_clearing_leaves_the_drivers_copy(disks, files):
    for node in ("driver", "a", "near"):
        write(disks.at(node, "run/x"), "x")
    await files.clear(str(disks.at("driver", "run")))
    assert not disks.at("a", "run").exists()
    assert read(disks.at("driver", "run")) == read(disks.at("near", "run")) == {"x": "x"}


async def test_a_folder_that_is_the_drivers_after_all_is_not_cleared(disks, files):
    write(disks.at("driver", "run/x"), "x")
    disks.at("a").symlink_to(disks.at("driver"))
    await files.clear(str(disks.at("driver", "run")))
    assert read(disks.at("driver", "run")) == {"x": "x"}


async def test_nothing_is_asked_where_every_node_sees_the_drivers_folders(
    tmp_path, monkeypatch, ranks
):
    async def ask(*arguments):
        raise AssertionError("no node should be asked")

    monkeypatch.setattr(RunFiles, "_ask", ask)
    folder = str(tmp_path)
    near = RunFiles(distant={"elsewhere": "10.0.0.9"}, ranks=("near",), timeout_s=5.0)
    for files in (RunFiles(), near):
        await files.fetch(folder)
        await files.export(ranks, folder, folder, timeout_s=5.0)
        await files.send(folder)
        await files.clear(folder)
    assert not list(tmp_path.iterdir())
