"""Where tokenized rows go while they are made: a file to keep, one that nobody keeps, or memory."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from rlhf_ray.data.rows.row_file import RowFile

logger = logging.getLogger(__name__)

_MEMORY_BYTES = 64 << 20  # rows that are not kept go to a temporary file from here on


class RowStore:
    """Takes tables of rows, and makes one data set of them.

    A disk without room costs the file alone: what it holds goes to memory, and so does the rest.
    `Dataset.from_generator`, which takes rows one by one, takes ten times as long.

    Attributes:
        file: Where rows are written; None while they are in memory.
    """

    def __init__(self, schema: pa.Schema, kept_in: Path | None) -> None:
        """Take tables of `schema`.

        Args:
            schema: Of every table.
            kept_in: The folder that the rows shall be kept in: its parent is where they are
                written, and its name begins the file's. None for rows that are not kept.
        """
        self.schema = schema
        self.file: RowFile | None = None
        self._tables: list[pa.Table] = []
        self._num_bytes = 0
        self._most_bytes: float = _MEMORY_BYTES
        if kept_in is not None:
            self._to_file(kept_in.parent, kept_in.name[:16])

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
