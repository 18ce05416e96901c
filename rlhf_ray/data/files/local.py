"""What a path of this machine names: a file, a folder of files or a pattern, and its splits."""

from __future__ import annotations

import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.config.checks import references
from rlhf_ray.config.checks.data_files import (
    ACCEPTED,
    data_format,
    files_below,
    files_matching,
    fixed_part,
    is_data_file,
)
from rlhf_ray.data.files.json_rows import SPLIT_NAMES, rows_keys
from rlhf_ray.data.files.parsing import parse
from rlhf_ray.data.files.reading import READ_ERRORS, kind_of_file
from rlhf_ray.data.files.splits import named_splits, parse_split, saved_splits
from rlhf_ray.data.row import Columns, Located
from rlhf_ray.errors import DataError, RowError

_SHOWN_FILES = 3


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file, and the key under which its rows are where it is one JSON object."""

    path: Path
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class LocalData:
    """Files by split.

    Attributes:
        path: As it was given.
        name: By which rows are called: the file's without suffixes, or the folder's.
        splits: In the order of reading.
        has_names: Whether files or keys name splits; else all is `train`.
        others: Files of no split, where splits have names.
    """

    path: str
    name: str
    splits: Mapping[str, Sequence[DataFile]]
    has_names: bool = False
    others: Sequence[DataFile] = field(default=())

    def files(self, split: str) -> Sequence[DataFile]:
        """Those of a split.

        Raises:
            DataError: There is no such split.
        """
        if split in self.splits:
            return self.splits[split]
        if not self.has_names:
            raise DataError(
                f"a local data set has one split, 'train', got {split!r}: name the file itself in "
                "path"
            )
        raise DataError(
            f"{self.path!r} has no split {split!r}; there: {self._words(self.splits)}. Take one of "
            "these by `split`, or name files in `path`, by a pattern (`FOLDER/*.jsonl`) where they "
            "are several"
        )

    def named_by(self, expression: str) -> dict[str, Sequence[DataFile]]:
        """Files by each split that an expression such as `train[:10]+test` names.

        Raises:
            DataError: It is none, or there is no such split.
        """
        return {range_.split: self.files(range_.split) for range_ in parse_split(expression)}

    def rows(self, expression: str, *, separator: str) -> Iterator[Located]:
        """Rows of every range of an expression, each range in a pass of its own."""
        for range_ in parse_split(expression):
            files = self.files(range_.split)
            name = f"{self.name}/{range_.split}" if self.has_names else self.name
            num_rows = sys.maxsize
            if range_.needs_count:
                num_rows = sum(1 for _ in _parsed(files, separator))
            start, stop = range_.resolve(num_rows)
            rows = enumerate(_parsed(files, separator))
            for number, located in itertools.islice(rows, start, max(start, stop)):
                yield f"{name}:{number}", located

    def describe(self, expression: str) -> str:
        """In words, of which files an expression takes rows, and which are not read."""
        chosen = self.named_by(expression)
        left = {split: files for split, files in self.splits.items() if split not in chosen}
        words = f"{self.path}: {self._words(chosen, others=False)}"
        return f"{words}; not read: {self._words(left)}" if left or self.others else words

    def _words(self, splits: Mapping[str, Sequence[DataFile]], *, others: bool = True) -> str:
        words = [f"split {split} ({_listed(files)})" for split, files in splits.items()]
        if others and self.others:
            words.append(f"no split ({_listed(self.others)})")
        return ", ".join(words)


def local_data(path: str) -> LocalData | None:
    """What is here under this path, or None for a name on the hub.

    Raises:
        DataError: Neither is there, or it holds no data, or what cannot be read.
    """
    place = Path(path).expanduser()
    try:
        if path and place.is_dir():
            return _folder(path, place)
        if path and (place.exists() or place.is_symlink()):
            return _file(path, place)
        if glob.has_magic(path):
            return _pattern(path, place)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if references.hub_dataset(path) is not None:
        return None
    raise DataError(f"no data at {path!r}; wanted {ACCEPTED}{references.origin(path)}")


def _parsed(files: Sequence[DataFile], separator: str) -> Iterator[tuple[str, Columns | RowError]]:
    for file in files:
        for line, columns in parse(file.path, separator=separator, key=file.key):
            yield f"{file.path}:{line}", columns


def _file(path: str, file: Path) -> LocalData:
    _check(file)
    if not data_format(file.name):
        kind = kind_of_file(file)
        found = f" ({kind.advice(file)})" if kind else ""
        raise DataError(f"{file}: unknown format{found}; wanted {ACCEPTED}")
    name = file.name.split(".")[0]
    keys, chosen = _keys(file)
    if not keys:
        return LocalData(path=path, name=name, splits={"train": [DataFile(path=file)]})
    splits = {key: [DataFile(path=file, key=key)] for key in keys}
    if chosen and chosen not in SPLIT_NAMES:
        return LocalData(path=path, name=name, splits={"train": splits[chosen], **splits})
    return LocalData(path=path, name=name, splits=splits, has_names=True)


def _listed(files: Sequence[DataFile]) -> str:
    """The first names of files, in words."""
    names = [file.key or file.path.name for file in files[:_SHOWN_FILES]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _keys(file: Path) -> tuple[list[str], str]:
    if data_format(file.name) != ".json":
        return [], ""
    try:
        return rows_keys(file)
    except READ_ERRORS:  # named with its place when rows are read
        return [], ""


def _pattern(path: str, place: Path) -> LocalData:
    found = list(files_matching(str(place)))
    files = sorted(filter(is_data_file, found))
    if not files:
        there = f"; it matches {len(found)} others, such as {found[0].name!r}" if found else ""
        raise DataError(f"no data file matches {path!r}{there}; wanted {ACCEPTED}")
    return LocalData(
        path=path,
        name=Path(fixed_part(str(place))).resolve().name,
        splits={"train": _checked(files)},
    )


def _folder(path: str, folder: Path) -> LocalData:
    name = folder.resolve().name
    if saved := saved_splits(folder):
        splits = {split: _checked(files) for split, files in saved.items()}
        return LocalData(path=path, name=name, splits=splits, has_names=list(splits) != ["train"])
    files = sorted(filter(is_data_file, files_below(folder)))
    if not files:
        raise DataError(f"no data files in the folder {path!r}; wanted {ACCEPTED}")
    by_split = named_splits(folder, files)
    if not by_split:
        return LocalData(path=path, name=name, splits={"train": _checked(files)})
    taken = {file for split in by_split.values() for file in split}
    return LocalData(
        path=path,
        name=name,
        splits={split: _checked(files) for split, files in by_split.items()},
        has_names=True,
        others=[DataFile(path=file) for file in files if file not in taken],
    )


def _checked(files: Iterable[Path]) -> list[DataFile]:
    """Files that can be opened, and that end."""
    checked = []
    for file in files:
        _check(file)
        checked.append(DataFile(path=file))
    return checked


def _check(file: Path) -> None:
    if file.is_symlink() and not file.exists():
        raise DataError(f"{file}: a link to {os.readlink(file)!r}, which is not there")
    if not file.exists():
        raise DataError(f"{file}: no such file, though the folder's description names it")
    if not file.is_file():
        raise DataError(f"{file}: neither a file nor a folder, but a pipe, socket or device")
    if not os.access(file, os.R_OK):
        raise DataError(f"{file}: cannot be read: permission denied")
