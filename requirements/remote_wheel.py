"""The files of a wheel that lies in an index: its list is read, the wheel is not downloaded."""

from __future__ import annotations

import io
import urllib.request
import zipfile
from dataclasses import dataclass

# The end of a wheel, with the list of most; the list of the largest (torch) takes two more reads.
_READ_BYTES = 2**19
_ANSWER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel of an index.

    Attributes:
        size: In bytes.
    """

    package: str
    url: str
    size: int


class _Remote(io.RawIOBase):
    """A file behind a URL, read in pieces as the server allows by ranges."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size = url, size
        self._at, self._start, self._piece = 0, size, b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        if self._at < self._start or end > self._start + len(self._piece):
            self._start = min(self._at, max(0, end - _READ_BYTES))
            self._piece = self._fetch(self._start, end)
        found = self._piece[self._at - self._start : end - self._start]
        self._at = end
        return found

    def _fetch(self, start: int, end: int) -> bytes:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        request = urllib.request.Request(self._url, headers=headers)
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            if answer.status != 206 and (start, end) != (0, self._size):
                raise OSError(f"{self._url}: the index sends no parts of files")
            return bytes(answer.read())


def installed_files(wheel: Wheel) -> dict[str, int]:
    """Checksum of each of a wheel's files by where it goes below `site-packages`.

    The wheel's own records are left out.
    """
    with zipfile.ZipFile(_Remote(wheel.url, wheel.size)) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
    files = {}
    for info in infos:
        place = info.filename
        top, _, rest = place.partition("/")
        if top.endswith(".dist-info"):
            continue
        if top.endswith(".data"):
            scheme, _, rest = rest.partition("/")
            place = rest if scheme in ("purelib", "platlib") else f"<{scheme}>/{rest}"
        files[place] = info.CRC
    return files
