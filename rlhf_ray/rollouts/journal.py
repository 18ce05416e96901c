"""Decided draws on the disk: what was sampled and scored outlives the process that asked for it.

    rollouts/segment_00000001.rollouts    header | group | group | ...

A run writes one segment after another; the order of their names is the order in which they were
written, whatever process did. The header has the file's format, what a run that replays it must
agree on, its name, and how much of the segments before its writer knew.

What is damaged ends its segment, and segments are passed over whose writer knew what is damaged or
missing now: which draws it admitted, and for which step, followed from decisions that are made
anew. So what is read is what some process knew at some time. Other draws are sampled again, which
costs time alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_ray.disk import room_for
from rlhf_ray.errors import ConfigError, FailureCause, RunError, differences
from rlhf_ray.rollouts.records import (
    DamagedRecord,
    RecordedGroup,
    group_of,
    group_record,
    read_record,
    record,
)
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

FORMAT = 4


@dataclass
class _Segment:
    """What is known of a file: its sound bytes, and the largest draw in them."""

    num_bytes: int = 0
    last_draw: int = -1


class Journal:
    """The folder `rollouts` of a run, for one caller at a time.

    A process replays what there is, or clears it, before it appends.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Use `folder`, which is made with the first segment; nothing is read or written yet.

        Args:
            folder: Holds the segments.
            identity: JSON: what a run must agree on with the segments that are there.
            settings: JSON: what may change from one process to the next; nothing that was decided
                under others is replayed, as the run would have decided otherwise now.
        """
        self.folder = folder
        # As a file gives it back: lists for tuples, texts for keys.
        self._identity = json.loads(json.dumps({"the file's format": FORMAT, **identity}))
        self._settings = json.loads(json.dumps(settings or {}))
        self._file: io.FileIO | None = None
        self._num_synced_bytes = 0
        self._segments: dict[Path, _Segment] = {}

    def append(self, group: RecordedGroup) -> None:
        """Write a group to the end of the open segment, or of a new one.

        When this returns, the group outlives the process, but not yet the machine: see `sync`.

        Raises:
            RunError: The disk is full; what was appended before stays as it is.
            ValueError: A score is not finite.
        """
        data = group_record(group)
        with room_for("rollouts", self.folder):
            file = self._file = self._file or self._new_file()
            end = file.tell()
            if end == 0:
                data = self._header(Path(file.name)) + data
            try:
                _write(file, data)
            except BaseException:
                file.seek(end)
                file.truncate()
                raise
            segment = self._segments.setdefault(Path(file.name), _Segment())
            segment.num_bytes = end + len(data)
            segment.last_draw = max(group.draw, segment.last_draw)

    def sync(self) -> None:
        """Have all that was appended outlive the machine.

        Raises:
            RunError: The disk is full.
        """
        with room_for("rollouts", self.folder):
            if self._file is None or (end := self._file.tell()) == self._num_synced_bytes:
                return
            os.fsync(self._file.fileno())
            if not self._num_synced_bytes:
                _sync_folder(self.folder)
            self._num_synced_bytes = end

    def end_segment(self) -> None:
        """Sync and close the open segment, if any; the next group begins another.

        Raises:
            RunError: The disk is full.
        """
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file, self._num_synced_bytes = None, 0

    def check(self) -> None:
        """Whether a run may go on from what is there; nothing is written.

        Raises:
            ConfigError: A segment is of another run: names it, and every key that differs.
        """
        for path in self._paths():
            for _, _, values in islice(_sound_records(path), 1):
                self._require_same(path, values["identity"])

    def replay(self, frontier: int) -> Replay:
        """The decided draws from `frontier` on in all segments; of records of a draw the last.

        What is damaged is logged and left out; all is removed that was decided under other
        settings. Ends the open segment.

        Raises:
            ConfigError: A segment is of another run: names it, and every key that differs.
        """
        places: dict[int, _Place] = {}
        skipped: dict[int, tuple[FailureCause, ...]] = {}
        unsampled: dict[int, tuple[FailureCause, ...]] = {}
        self.end_segment()
        self._segments = {}
        for path in self._paths():
            # Also of one that is passed over: others may have been written without it.
            segment = self._segments[path] = _Segment()
            for offset, end, values in _sound_records(path):
                if "identity" in values:
                    self._require_same(path, values["identity"])
                    if changed := differences(values["settings"], self._settings):
                        logger.warning(
                            "what was sampled before is sampled again, as settings are other "
                            "than they were: %s", "; ".join(changed),
                        )  # fmt: skip
                        self.clear()
                        return Replay({})
                    if not self._is_as_written(path, values, frontier):
                        break
                segment.num_bytes = end
                if "draw" in values:
                    draw = values["draw"]
                    segment.last_draw = max(draw, segment.last_draw)
                    if draw >= frontier:
                        places[draw] = _Place(path, offset)
                        skipped.pop(draw, None)
                        unsampled.pop(draw, None)
                        if values["is_skipped"] and values["summaries"]:
                            skipped[draw] = tuple(values["failed"])
                        elif values["is_skipped"]:
                            unsampled[draw] = tuple(values["unsampled"])
        return Replay(places, skipped, unsampled)

    def prune(self, frontier: int) -> None:
        """Remove closed segments, written or replayed, whose every draw lies before `frontier`."""
        for path, segment in list(self._segments.items()):
            is_open = self._file is not None and path == Path(self._file.name)
            if segment.last_draw < frontier and not is_open:
                path.unlink(missing_ok=True)
                del self._segments[path]
        if not self._segments:
            with contextlib.suppress(OSError):  # not there, or not empty
                self.folder.rmdir()

    def clear(self) -> None:
        """Remove all segments, whosever they are: the run begins anew."""
        self.end_segment()
        for path in self._paths():
            path.unlink()
        self._segments.clear()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("segment_*.rollouts"))

    def _new_file(self) -> io.FileIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem.removeprefix("segment_")) for path in self._paths()]
        name = f"segment_{max(numbers, default=0) + 1:08d}.rollouts"
        return (self.folder / name).open("xb", buffering=0)

    def _header(self, path: Path) -> bytes:
        known = {before.name: vars(segment) for before, segment in self._segments.items()}
        return record(
            {
                "identity": self._identity,
                "settings": self._settings,
                "name": path.name,
                "known": known,
            }
        )

    def _require_same(self, path: Path, identity: Mapping[str, Any]) -> None:
        if changed := differences(identity, self._identity):
            raise ConfigError(f"the rollouts in {path} cannot be replayed: {'; '.join(changed)}")

    def _is_as_written(self, path: Path, header: Mapping[str, Any], frontier: int) -> bool:
        """Whether a segment has its name, and what its writer knew of those before is there."""
        if header["name"] != path.name:
            logger.warning("%s is passed over: it was written as %s", path, header["name"])
            return False
        for name, known in header["known"].items():
            before = self._segments.get(self.folder / name)
            if before is None and known["last_draw"] >= frontier:  # else it may have been pruned
                logger.warning("%s is passed over: it follows from %s, which is gone", path, name)
                return False
            if before is not None and before.num_bytes < known["num_bytes"]:
                logger.warning(
                    "%s is passed over: it follows from %s, of which %d of %d bytes are used",
                    path, name, before.num_bytes, known["num_bytes"],
                )  # fmt: skip
                return False
        return True


def journal_of(run_dir: str, setup: Mapping[str, Any]) -> Journal:
    """The journal of a run, whose job is what `setup_of` says."""
    folder = Path(run_dir) / "rollouts"
    return Journal(folder, identity=setup["fixed"], settings=setup["settings"])


class _Place(NamedTuple):
    path: Path
    offset: int


class Replay:
    """Draws that were decided before; each is read from the disk when it is taken.

    Attributes:
        skipped: Draws that nobody could score, and why. They stay, whether they are taken,
            discarded or decided anew: what hung once is not to be met at each start.
        unsampled: The same of draws whose environment failed.
    """

    def __init__(
        self,
        places: dict[int, _Place],
        skipped: Mapping[int, tuple[FailureCause, ...]] | None = None,
        unsampled: Mapping[int, tuple[FailureCause, ...]] | None = None,
    ) -> None:
        """Of draws by the places of their records."""
        self._places, self.skipped, self.unsampled = places, skipped or {}, unsampled or {}

    @property
    def draws(self) -> KeysView[int]:
        """Those that were not taken or discarded yet."""
        return self._places.keys()

    def take(self, draw: int, prompt: Prompt) -> RecordedGroup:
        """The group of one of `draws`, which was sampled for `prompt`; its arrays are read-only.

        Raises:
            ConfigError: It was sampled for another prompt.
            RunError: The file is not what it was when `replay` read it.
        """
        path, offset = self._places[draw]
        with path.open("rb") as file:
            try:
                values, num_array_bytes = read_record(file, offset)
            except DamagedRecord as error:
                raise RunError(
                    f"{path} was damaged at byte {offset} while the run used it ({error}): resume "
                    "the run, and the draws behind that are sampled again"
                ) from error
            arrays = file.read(num_array_bytes)
        if values["prompt_id"] != prompt.prompt_id:
            raise ConfigError(
                f"the rollouts in {path} cannot be replayed: the prompt of draw {draw} was "
                f"{values['prompt_id']!r}, is {prompt.prompt_id!r}"
            )
        del self._places[draw]
        return group_of(values, arrays, prompt)

    def discard(self, draws: Iterable[int]) -> None:
        """Leave out draws that are sampled again, whether they are there or not."""
        for draw in draws:
            self._places.pop(draw, None)


def _sound_records(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Offset, end and JSON of the records before a damaged one: the header, then groups."""
    offset, num_records, num_file_bytes = 0, 0, path.stat().st_size
    with path.open("rb") as file:
        try:
            while offset < num_file_bytes or not num_records:
                values, num_array_bytes = read_record(file, offset)
                if ("identity" in values) == bool(num_records):
                    raise DamagedRecord("one header begins a segment")
                end = file.tell() + num_array_bytes
                yield offset, end, values
                offset, num_records = end, num_records + 1
        except DamagedRecord as error:
            if num_records:
                logger.warning(
                    "%s is damaged at byte %d (%s): the %d draws before that are used, those "
                    "behind it are sampled again", path, offset, error, num_records - 1,
                )  # fmt: skip
            else:
                logger.warning("%s has no sound header (%s): it is passed over", path, error)


def _write(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a file without a buffer may take a part
        rest = rest[file.write(rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
