"""What the frozen reference says of answers: asked batch by batch, or once for all and kept."""

from __future__ import annotations

import hashlib
import itertools
import logging
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rlhf_ray.data.rows.records import digest_of
from rlhf_ray.disk import room_for
from rlhf_ray.errors import RunError
from rlhf_ray.types import LabelledAnswer, Ranking, Referenced

logger = logging.getLogger(__name__)

Row: TypeAlias = Ranking | LabelledAnswer
Digests: TypeAlias = npt.NDArray[np.uint64]
Counts: TypeAlias = npt.NDArray[np.int64]
Logps: TypeAlias = npt.NDArray[np.float64]
# Rows -> log-probabilities of each row's answers, in nats, in the order of rows.
AnswerLogps: TypeAlias = Callable[[Sequence[Row]], Awaitable[Sequence[tuple[float, ...]]]]

# A row that is kept: its digest, and what is known of its two answers.
KEPT = np.dtype([("row", "<u8"), ("logps_K", "<f8", 2)])
# Rows that are scored between two lines of progress.
ROWS_A_CALL = 2048


async def without_reference(rows: Sequence[Row]) -> list[Referenced]:
    """For losses that take none, or whose learner knows its own."""
    return [Referenced(row=row, reference_logps_K=(0.0,) * len(row.answer_ids_K)) for row in rows]


async def referenced(rows: Sequence[Row], answer_logps: AnswerLogps) -> list[Referenced]:
    """Ask for these rows."""
    found = await answer_logps(rows)
    return [
        Referenced(row=row, reference_logps_K=logps) for row, logps in zip(rows, found, strict=True)
    ]


class KeptReference:
    """Asks about rows that are new to it; what it was told of the others it knows.

    The first answer counts, for a run that goes on after a stop as well, as it is in a file: which
    rows share a pass decides the last bits.
    """

    def __init__(self, answer_logps: AnswerLogps, folder: Path, *, model: str) -> None:
        """Take answers that are in `folder` already; `model` tells this reference from others."""
        self._answer_logps = answer_logps
        digest = hashlib.blake2b(model.encode(), digest_size=16).hexdigest()
        self._path = folder / f"{digest}.rows"
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[int, tuple[float, ...]] = {}
        if self._path.exists():
            written = self._path.read_bytes()
            whole = len(written) - len(written) % KEPT.itemsize  # a killed run may leave a part
            self._path.write_bytes(written[:whole])
            self._learn(np.frombuffer(written[:whole], KEPT))

    async def __call__(self, rows: Sequence[Row]) -> list[Referenced]:
        """The rows with what the reference says of them.

        Raises:
            RunError: A log-probability is not finite.
        """
        keys = [digest_of(row) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._known}
        if new:
            logps = await self._answer_logps([*new.values()])
            found = np.array([*zip(new, logps, strict=True)], KEPT)
            _require_finite(found["logps_K"])
            with room_for("what the reference said", self._path), self._path.open("ab") as file:
                file.write(found.tobytes())
            self._learn(found)
        return [
            Referenced(row=row, reference_logps_K=self._known[key])
            for key, row in zip(keys, rows, strict=True)
        ]

    def _learn(self, found: npt.NDArray[np.void]) -> None:
        logps = map(tuple, found["logps_K"].tolist())
        for key, logps_K in zip(found["row"].tolist(), logps, strict=True):
            self._known.setdefault(key, logps_K)


class KnownReference:
    """What the reference said of all rows of a job; a row is known by everything that it says."""

    def __init__(self, keys_B: Digests, counts_B: Counts, logps: Logps) -> None:
        """Keep answers.

        Args:
            keys_B: `digest_of` each row.
            counts_B: Answers of each row.
            logps: Of all answers, row after row, in nats.
        """
        order_B = np.argsort(keys_B, kind="stable")
        self._keys_B = keys_B[order_B]
        self._ends_B = np.cumsum(counts_B)[order_B]
        self._logps = logps

    async def __call__(self, rows: Sequence[Row]) -> list[Referenced]:
        """The same rows with what is known of them."""
        return [Referenced(row=row, reference_logps_K=self._of(row)) for row in rows]

    def _of(self, row: Row) -> tuple[float, ...]:
        at = np.searchsorted(self._keys_B, np.uint64(digest_of(row)))
        end = self._ends_B[at]
        logps_K: list[float] = self._logps[end - len(row.answer_ids_K) : end].tolist()
        return tuple(logps_K)


async def precomputed(
    parts: Sequence[Sequence[Row]], answer_logps: AnswerLogps, folder: Path, *, model: str
) -> KnownReference:
    """Ask for all rows once, and read the answer back the next time.

    Args:
        parts: All rows of the job: those to train on, and those held out.
        answer_logps: The reference.
        folder: Where answers are kept, a file for each model and content of the rows.
        model: What tells this reference model from others.

    Raises:
        RunError: A log-probability is not finite.
    """
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    keys, counts = array("Q"), array("q")
    for row in itertools.chain(*parts):
        keys.append(digest_of(row))
        counts.append(len(row.answer_ids_K))
    keys_B, counts_B = np.asarray(keys), np.asarray(counts)
    digest.update(keys_B.tobytes())
    path = folder / f"{digest.hexdigest()}.npy"
    logps = _read(path, int(counts_B.sum()))
    if logps is None:
        logps = await _asked(parts, answer_logps, len(keys_B))
        _write(path, logps)
    return KnownReference(keys_B, counts_B, logps)


async def _asked(parts: Sequence[Sequence[Row]], answer_logps: AnswerLogps, num_rows: int) -> Logps:
    found: list[Logps] = []
    num_asked = 0
    for rows in parts:
        for start in range(0, len(rows), ROWS_A_CALL):
            asked = list(rows[start : start + ROWS_A_CALL])
            logps = await answer_logps(asked)
            found.append(np.asarray([logp for of_row in logps for logp in of_row], np.float64))
            num_asked += len(asked)
            logger.info("reference: %d of %d rows are scored", num_asked, num_rows)
    flat = np.concatenate(found)
    _require_finite(flat)
    return flat


def _require_finite(logps: Logps) -> None:
    if wrong := int((~np.isfinite(logps)).sum()):
        raise RunError(f"the reference gave {wrong} log-probabilities that are not finite")


def _read(path: Path, count: int) -> Logps | None:
    if not path.exists():
        return None
    try:
        flat: Logps = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is not usable, scoring again: %s", path, error)
        return None
    if flat.shape != (count,):
        logger.warning("%s holds %s numbers, wanted %d: scoring again", path, flat.shape, count)
        return None
    logger.info("reference: %d answers were scored before, in %s", count, path)
    return flat


def _write(path: Path, flat: Logps) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing.npy")
    np.save(aside, flat)
    aside.replace(path)
