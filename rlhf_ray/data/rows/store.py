"""Where tokenized rows go while they are made: a file to keep, one that nobody keeps, or memory."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

logger = logging.getLogger(__name__)

_MEMORY_BYTES = 64 << 20  # rows that are not kept go to a temporary file from here on
ROWS_FILE = "rows.arrow"
_WRITING = ".writing-"


class RowStore:
    """Takes tables of rows, and makes one data set of them.

    A disk without room costs the file alone: what it holds goes to memory, and so does the rest.
    `Dataset.from_generator`, which takes rows one by one, takes ten times as long.

    Attributes:
        file: Where rows are written; None while they are in memory.
    """

    def __init__(self, schema: pa.Schema, kept_in: Path | None) -> None:
        """Take tables of `schema`.

        They are written beside the folder that they shall be `kept_in`, by a name that begins with
        its name; None for rows that are not kept.
        """
        self.schema = schema
        self.file: RowFile | None = None
        self._tables: list[pa.Table] = []
        self._num_bytes = 0
        self._most_bytes: float = _MEMORY_BYTES
        if kept_in is not None:
            self._to_file(kept_in.parent, kept_in.name[:16])

    def close(self) -> None:
        """Remove the file, if there is one that was not kept."""
        if self.file is not None:
            self.file.drop()

    def add(self, table: pa.Table) -> None:
        """Put rows behind the others."""
        if self.file is None:
            self._tables.append(table)
            self._num_bytes += table.nbytes
            if self._num_bytes > self._most_bytes:
                self._to_file(Path(tempfile.gettempdir()), "rlhf-ray-rows")
            return
        try:
            self.file.add(table)
        except OSError as error:
            self._to_memory(error)
            self._tables.append(table)

    def finish(self) -> Any:
        """All rows as a `datasets.Dataset`; that of a file is mapped."""
        from datasets import Dataset

        if self.file is not None:
            try:
                self.file.close()
                return Dataset.from_file(str(self.file.path))
            except OSError as error:
                self._to_memory(error)
        whole = pa.concat_tables([self.schema.empty_table(), *self._tables]).combine_chunks()
        # By itself it would take a digest of everything for its fingerprint.
        return Dataset(whole, fingerprint="in memory")

    def _to_file(self, parent: Path, name: str) -> None:
        try:
            self.file = RowFile(parent, name, self.schema)
        except OSError as error:
            self._warn(parent, error)
            self._most_bytes = float("inf")
            return
        tables, self._tables = self._tables, []
        for table in tables:
            self.add(table)

    def _to_memory(self, error: OSError) -> None:
        file, self.file = self.file, None
        assert file is not None
        self._warn(file.folder.parent, error)
        self._most_bytes = float("inf")
        try:
            self._tables = file.read_back()
        finally:
            file.drop()

    def _warn(self, folder: Path, error: OSError) -> None:
        logger.warning("%s: tokenized rows are not kept, but held in memory: %s", folder, error)


class RowFile:
    """An Arrow stream that grows by tables.

    Attributes:
        folder: Where it stands; a lock in it says that somebody writes there.
        path: The file.
    """

    def __init__(self, parent: Path, name: str, schema: pa.Schema) -> None:
        """Begin a file in a new folder of `parent`, which may be absent.

        Raises:
            OSError: It cannot be written.
        """
        from datasets.arrow_writer import ArrowWriter

        parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}{_WRITING}", dir=parent))
        self.path = self.folder / ROWS_FILE
        self._schema, self._num_rows = schema, 0
        self._lock = (self.folder / "lock").open("wb")
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            self._stream = pa.OSFile(str(self.path), "wb")
            self._writer = ArrowWriter(schema=schema, stream=self._stream)
        except OSError:
            self.drop()
            raise

    def add(self, table: pa.Table) -> None:
        """Write rows behind the others.

        Raises:
            OSError: They did not fit.
        """
        self._writer.write_table(table)
        self._num_rows += len(table)

    def close(self) -> None:
        """Finish the file, down to the disk.

        Raises:
            OSError: Its end did not fit.
        """
        self._writer.finalize(close_stream=False)
        self._stream.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def read_back(self) -> list[pa.Table]:
        """All rows that were added, into memory."""
        self._stream.close()
        tables: list[pa.Table] = []
        left = self._num_rows
        if not left:
            return tables
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as batches:
            while left:
                batch = batches.read_next_batch()
                tables.append(pa.Table.from_batches([batch.slice(0, left)], schema=self._schema))
                left -= len(tables[-1])
        return tables

    def drop(self) -> None:
        """Remove the folder, if it is still there; what is mapped of the file stays."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove_left_over(parent: Path) -> None:
    """Folders whose writers were killed: nobody holds their locks."""
    for folder in parent.glob(f"*{_WRITING}*"):
        with contextlib.suppress(OSError), (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
