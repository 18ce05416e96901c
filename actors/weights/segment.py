"""Memory that another process on the node reads: weights go from one to the other uncopied.

A segment has no name in a file system, so that nothing stays behind whoever dies: the kernel keeps
it for as long as a process has it open or mapped. Others find it by the process that made it and
the number of its file there (`/proc/PID/fd/N`), which the same user may open.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.weights.bucket import Bucket, Contents
from rlhf_ray.errors import RunError

# One is written, one is read.
NUM_SEGMENTS = 2


@dataclass(frozen=True, kw_only=True)
class SegmentPlace:
    """Where a segment is found on its node.

    Attributes:
        pid: Of the process that made it.
        fd: Its file there.
        device: Of the file; with `inode` it tells whether the file is still that one.
    """

    pid: int
    fd: int
    device: int
    inode: int


class Segment:
    """Memory of this process that others on the node may read.

    Attributes:
        data: All of it, to be written to.
        place: What others find it by.
    """

    def __init__(self, num_bytes: int) -> None:
        """Take it; pages that are never written to take no memory."""
        self._fd = os.memfd_create("rlhf-ray-weights", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, num_bytes)
        memory = mmap.mmap(self._fd, num_bytes)
        # Taken 4 KiB at a time memory costs five times a copy. Not every kernel has larger pages.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.data = np.frombuffer(memory, dtype=np.uint8)
        status = os.fstat(self._fd)
        self.place = SegmentPlace(
            pid=os.getpid(), fd=self._fd, device=status.st_dev, inode=status.st_ino
        )

    def close(self) -> None:
        """Nobody finds it any more; it is given back when nobody has it mapped."""
        os.close(self._fd)
        del self.data


class SegmentRing:
    """Segments that take turns: one is written while others are read.

    They are kept, because taking memory costs more than writing to it.

    Attributes:
        turn: Whose it is next.
    """

    def __init__(self) -> None:
        """Nothing is taken so far."""
        self._segments: list[Segment | None] = [None] * NUM_SEGMENTS
        self.turn = 0

    def next(self, num_bytes: int) -> Segment:
        """The one whose turn it is, with room for so many bytes; nobody reads it any more."""
        segment = self._segments[self.turn]
        if segment is None or len(segment.data) < num_bytes:
            if segment is not None:
                segment.close()
            self._segments[self.turn] = segment = Segment(num_bytes)
        self.turn = (self.turn + 1) % NUM_SEGMENTS
        return segment

    def close(self, *, above_bytes: int = 0) -> None:
        """Give the memory back, or that of segments above a size."""
        for turn, segment in enumerate(self._segments):
            if segment is not None and len(segment.data) > above_bytes:
                segment.close()
                self._segments[turn] = None


class Mappings:
    """The segments that this process read last; mapping one costs nearly as much as reading it."""

    def __init__(self) -> None:
        """None."""
        self._mapped: dict[SegmentPlace, npt.NDArray[np.uint8]] = {}

    def read(self, bucket: SharedBucket) -> Bucket:
        """What lies there; good until the sender writes the next bucket there.

        Raises:
            RunError: See `mapped`.
        """
        memory = self._mapped.pop(bucket.place, None)
        if memory is None or len(memory) < bucket.num_bytes:
            memory = mapped(bucket.place)
        self._mapped[bucket.place] = memory
        for place in list(self._mapped)[:-NUM_SEGMENTS]:
            del self._mapped[place]
        return Bucket(
            names=bucket.names,
            dtype_names=bucket.dtype_names,
            shapes=bucket.shapes,
            data=memory[: bucket.num_bytes],
        )

    def close(self) -> None:
        """Hold none of them any more."""
        self._mapped.clear()


@dataclass(frozen=True, kw_only=True)
class SharedBucket(Contents):
    """A bucket at the start of a segment, for a process on the same node.

    Attributes:
        num_bytes: Of its data.
    """

    place: SegmentPlace
    num_bytes: int

    @classmethod
    def of(cls, bucket: Bucket, segment: Segment) -> SharedBucket:
        """A bucket whose data lie at the start of `segment`."""
        return cls(
            names=bucket.names,
            dtype_names=bucket.dtype_names,
            shapes=bucket.shapes,
            place=segment.place,
            num_bytes=len(bucket.data),
        )


def mapped(place: SegmentPlace) -> npt.NDArray[np.uint8]:
    """A segment of this or another process, to be read.

    Raises:
        RunError: It is gone, or this process may not read it.
    """
    path = f"/proc/{place.pid}/fd/{place.fd}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RunError(f"memory of process {place.pid} cannot be read: {error}") from error
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (place.device, place.inode):
            raise RunError(f"memory of process {place.pid} is gone: {path} is another file now")
        memory = mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    return np.frombuffer(memory, dtype=np.uint8)
