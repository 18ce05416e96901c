"""A file of rows while it is written: in a folder of its own, which goes unless it is kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa

ROWS_FILE = "rows.arrow"
_WRITING = ".writing-"


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
