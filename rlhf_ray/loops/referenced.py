"""What the frozen reference says of answers: asked batch by batch, or once for all and kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from rlhf_ray.errors import RunError
from rlhf_ray.types import LabelledAnswer, Ranking, Referenced

logger = logging.getLogger(__name__)

Row: TypeAlias = Ranking | LabelledAnswer
# Rows -> log-probabilities of each row's answers, in nats, in the order of rows.
AnswerLogps: TypeAlias = Callable[[Sequence[Row]], Awaitable[Sequence[tuple[float, ...]]]]

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


async def precomputed(
    rows: Sequence[Row], answer_logps: AnswerLogps, folder: Path, *, model: str
) -> list[Referenced]:
    """Ask for all rows once, and read the answer back the next time.

    Args:
        rows: Of the whole job.
        answer_logps: The reference.
        folder: Where answers are kept, a file for each model and content of the rows.
        model: What tells this reference model from others.

    Raises:
        RunError: A log-probability is not finite.
    """
    path = folder / f"{_digest(rows, model)}.npy"
    counts = [len(row.answer_ids_K) for row in rows]
    flat = _read(path, sum(counts))
    if flat is None:
        logps: list[tuple[float, ...]] = []
        for start in range(0, len(rows), ROWS_A_CALL):
            logps += await answer_logps(rows[start : start + ROWS_A_CALL])
            logger.info("reference: %d of %d rows are scored", len(logps), len(rows))
        flat = np.asarray([logp for of_row in logps for logp in of_row], dtype=np.float64)
        if not np.isfinite(flat).all():
            wrong = int((~np.isfinite(flat)).sum())
            raise RunError(f"the reference gave {wrong} log-probabilities that are not finite")
        _write(path, flat)
    by_row = np.split(flat, np.cumsum(counts)[:-1])
    return [
        Referenced(row=row, reference_logps_K=tuple(part.tolist()))
        for row, part in zip(rows, by_row, strict=True)
    ]


def _digest(rows: Sequence[Row], model: str) -> str:
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    for row in rows:
        for tokens in (row.prompt_ids_T, *row.answer_ids_K):
            digest.update(len(tokens).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(tokens, dtype=np.int32).tobytes())
    return digest.hexdigest()


def _read(path: Path, count: int) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        flat: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is not usable, scoring again: %s", path, error)
        return None
    if flat.shape != (count,):
        logger.warning("%s holds %s numbers, wanted %d: scoring again", path, flat.shape, count)
        return None
    logger.info("reference: %d rows were scored before, in %s", count, path)
    return flat


def _write(path: Path, flat: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing.npy")
    np.save(aside, flat)
    aside.replace(path)
