"""The folder of a run: its configuration, and a status that never looks finished when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.run.messages import keep_in
from launch.run.signals import on_stop
from rlhf_ray.config.run import STATUS_FILE, JobConfig, RunConfig
from rlhf_ray.config.tools.load import dump_config, is_dump_of
from rlhf_ray.disk import room_for
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs import status

CONFIG_FILE = "config.yaml"


@contextmanager
def run_folder(config: RunConfig) -> Iterator[Path]:
    """Write `config.yaml`, and `status.json`: running, then finished, interrupted or failed.

    A run enters when it begins, past what can refuse it before its roles are there. Where one of
    these refuses a run that was to go on, both files are again as they were.

    Raises:
        ConfigError: Another process runs in the folder.
        RunError: There is no room for the two files; they are as they were.
    """
    folder = Path(config.run_dir)
    before = _Snapshot.of(folder)
    with room_for("the run", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with status.held(folder, job=config.job) as write:
            dump_config(config, folder / CONFIG_FILE)
            write("running", "")
            keep_in(folder)
            try:
                with on_stop(lambda: write("interrupted", "")), room_for("it", folder):
                    yield folder
            except (KeyboardInterrupt, asyncio.CancelledError):
                write("interrupted", "")
                raise
            except ConfigError as error:
                if not before.restore():
                    write("failed", f"{type(error).__name__}: {error}")
                raise
            except BaseException as error:
                write("failed", f"{type(error).__name__}: {error}")
                raise
            write("finished", "")


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """What a run finds in its folder, which is a pipeline's or a job's."""

    folder: Path
    files: Mapping[str, bytes]
    steps: Collection[Path]

    @classmethod
    def of(cls, folder: Path) -> _Snapshot:
        files = {
            name: (folder / name).read_bytes()
            for name in (CONFIG_FILE, STATUS_FILE)
            if (folder / name).is_file()
        }
        places = ("checkpoints/step_*", "*/checkpoints/step_*")
        steps = {path for place in places for path in folder.glob(place)}
        return cls(folder=folder, files=files, steps=steps)

    def restore(self) -> bool:
        """Put the files back; False where there was no run to go on with, or it has gone on."""
        if not self.steps or _Snapshot.of(self.folder).steps != self.steps:
            return False
        for name, content in self.files.items():
            # In place: the status is locked, and its room is needed on a full disk.
            with (self.folder / name).open("r+b") as file:
                file.write(content)
                file.truncate()
        return True


def check_folder(config: RunConfig) -> None:
    """Whether a job may have its folder; nothing is written.

    Raises:
        ConfigError: A process runs there, it holds another kind of job, or a run that has finished
            and cannot go on otherwise, as its checkpoints are gone.
    """
    folder, name = Path(config.run_dir), config.job
    if status.is_in_use(folder):
        raise ConfigError(status.in_use(folder))
    before = status.read_status(folder)
    if config.resume == "never" or not before:
        return
    if before.get("job", name) != name:
        raise ConfigError(
            f"run_dir {config.run_dir!r} holds a run of {before['job']}, not of {name}"
        )
    has_steps = any((folder / "checkpoints").glob("step_*"))
    if not isinstance(config, JobConfig) or before["state"] != "finished":
        return
    if not (has_steps or is_finished(config)):
        raise ConfigError(
            f"run_dir {config.run_dir!r} holds a finished run without its checkpoints, which "
            "cannot go on with other settings: take another run_dir"
        )


def is_finished(config: JobConfig) -> bool:
    """Whether the folder holds this very run, whole, and it may go on there."""
    if config.resume == "never" or status.state_of(config.run_dir) != "finished":
        return False
    folder = Path(config.run_dir)
    has_result = not config.trains or (folder / "export").is_dir()
    return has_result and is_dump_of(config, folder / CONFIG_FILE, besides={"resume"})
