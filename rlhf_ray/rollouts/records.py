"""A decided draw as bytes: a record of a file, checked when it is read.

    magic, bytes of JSON, bytes of arrays, crc32 of all but these 4 bytes | JSON | arrays

All numbers are little-endian. The JSON of a group has the decision, scores, lengths and texts; its
arrays are those of all samples, kind by kind. Prompts are not stored: the draw tells which it was.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from rlhf_ray.errors import FailureCause
from rlhf_ray.types import Prompt, Rollout, RolloutSummary, Score, Turn

_MAGIC = b"RHJ\n"
_LENGTHS, _CHECKSUM = struct.Struct("<4sII"), struct.Struct("<I")
_NUM_START_BYTES = _LENGTHS.size + _CHECKSUM.size
_CHUNK_BYTES = 2**20
# Those of 4 bytes come first: so all of them are aligned when they are read.
_ARRAYS = {"response_ids_T": "<i4", "logprobs_T": "<f4", "versions_T": "<i4", "action_mask_T": "?"}


@dataclass(frozen=True, kw_only=True)
class RecordedGroup:
    """A draw that was sampled, scored and decided.

    Attributes:
        draw: Position in the order of the data.
        prompt_id: Of the prompt that was answered.
        is_accepted: Whether it is trained; else it is passed over.
        scores_G: One a sample, all numbers finite.
        summaries_G: One a sample.
        rollouts_G: One a sample where the group is accepted; else none.
        unsampled: Why its environment failed, once a try; of a group without samples at every try.
        failed: Why it could not be scored, once a try.
        is_skipped: Whether no try succeeded. It has no scores then, whether its step passes over it
            or has it among the groups that are not trained.

    Raises:
        ValueError: These do not belong together.
    """

    draw: int
    prompt_id: str
    is_accepted: bool
    scores_G: tuple[Score, ...]
    summaries_G: tuple[RolloutSummary, ...]
    rollouts_G: tuple[Rollout, ...]
    unsampled: tuple[FailureCause, ...] = ()
    failed: tuple[FailureCause, ...] = ()
    is_skipped: bool = False

    def __post_init__(self) -> None:
        num_samples = len(self.summaries_G)
        given = (len(self.scores_G), len(self.rollouts_G))
        if given != (num_samples, num_samples if self.is_accepted else 0):
            raise ValueError(
                f"draw {self.draw} has {num_samples} samples: it must have as many scores, and as "
                f"many rollouts or, where it is not accepted, none; got {given[0]} and {given[1]}"
            )
        if self.is_skipped and any(score.total is not None for score in self.scores_G):
            raise ValueError(f"draw {self.draw} is skipped: it must have no scores")
        answered = {(rollout.draw, rollout.prompt.prompt_id) for rollout in self.rollouts_G}
        if answered - {(self.draw, self.prompt_id)}:
            raise ValueError(
                f"rollouts must be of {(self.draw, self.prompt_id)} as their group, got {answered}"
            )


class DamagedRecord(Exception):
    """No sound record stands there; the message says what does."""


def group_record(group: RecordedGroup) -> bytes:
    """A group as a record.

    Raises:
        ValueError: A score is not finite.
    """
    values = {
        "draw": group.draw,
        "prompt_id": group.prompt_id,
        "is_accepted": group.is_accepted,
        "unsampled": list(group.unsampled),
        "failed": list(group.failed),
        "is_skipped": group.is_skipped,
        "scores": [{**vars(score), "parts": dict(score.parts)} for score in group.scores_G],
        "summaries": [vars(summary) for summary in group.summaries_G],
        "rollouts": [
            {
                "sample": rollout.sample,
                "finish_reason": rollout.finish_reason,
                "text": rollout.text,
                "num_tokens": len(rollout.response_ids_T),
                "turns": [vars(turn) for turn in rollout.turns],
                "messages": [dict(message) for message in rollout.messages],
            }
            for rollout in group.rollouts_G
        ],
    }
    arrays = [
        _array_bytes(rollout, name, kind)
        for name, kind in _ARRAYS.items()
        for rollout in group.rollouts_G
    ]
    try:
        return record(values, *arrays)
    except ValueError as error:
        raise ValueError(
            f"scores of draw {group.draw} must be finite, got {list(group.scores_G)}"
        ) from error


def group_of(values: Mapping[str, Any], arrays: bytes, prompt: Prompt) -> RecordedGroup:
    """The group of which `values` is the JSON; its arrays are read-only views of `arrays`."""
    arrays_G: list[dict[str, Any]] = [{} for _ in values["rollouts"]]
    offset = 0
    for name, kind in _ARRAYS.items():
        for rollout, sample in zip(arrays_G, values["rollouts"], strict=True):
            rollout[name] = np.frombuffer(arrays, kind, sample["num_tokens"], offset)
            offset += rollout[name].nbytes
    return RecordedGroup(
        draw=values["draw"],
        prompt_id=values["prompt_id"],
        is_accepted=values["is_accepted"],
        unsampled=tuple(values["unsampled"]),
        failed=tuple(values["failed"]),
        is_skipped=values["is_skipped"],
        scores_G=tuple(Score(**score) for score in values["scores"]),
        summaries_G=tuple(RolloutSummary(**summary) for summary in values["summaries"]),
        rollouts_G=tuple(
            Rollout(
                prompt=prompt,
                draw=values["draw"],
                sample=sample["sample"],
                finish_reason=sample["finish_reason"],
                text=sample["text"],
                turns=tuple(Turn(**turn) for turn in sample["turns"]),
                messages=tuple(sample["messages"]),
                **rollout,
            )
            for rollout, sample in zip(arrays_G, values["rollouts"], strict=True)
        ),
    )


def record(values: Mapping[str, Any], *arrays: bytes) -> bytes:
    """JSON and arrays as a record.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A text may hold halves of surrogate pairs, which come back as they were.
    parts = (text.encode("utf-8", "surrogatepass"), *arrays)
    lengths = _LENGTHS.pack(_MAGIC, len(parts[0]), sum(map(len, arrays)))
    checksum = zlib.crc32(lengths)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([lengths, _CHECKSUM.pack(checksum), *parts])


def read_record(file: BinaryIO, offset: int) -> tuple[dict[str, Any], int]:
    """JSON of the record at `offset`, and the bytes of its arrays, before which `file` then stands.

    All of it is checked, in pieces: a length may be what is damaged.

    Raises:
        DamagedRecord: No sound record stands there.
    """
    file.seek(offset)
    start = file.read(_NUM_START_BYTES)
    if len(start) < _NUM_START_BYTES:
        raise DamagedRecord("the file ends within a record")
    magic, num_json_bytes, num_array_bytes = _LENGTHS.unpack_from(start)
    if magic != _MAGIC:
        raise DamagedRecord("no record begins there")
    checksum, num_left = zlib.crc32(start[: _LENGTHS.size]), num_json_bytes + num_array_bytes
    while num_left:
        chunk = file.read(min(num_left, _CHUNK_BYTES))
        if not chunk:
            raise DamagedRecord("the file ends within a record")
        checksum, num_left = zlib.crc32(chunk, checksum), num_left - len(chunk)
    if _CHECKSUM.unpack_from(start, _LENGTHS.size) != (checksum,):
        raise DamagedRecord("the checksum is wrong")
    file.seek(offset + _NUM_START_BYTES)
    values: dict[str, Any] = json.loads(file.read(num_json_bytes).decode("utf-8", "surrogatepass"))
    return values, num_array_bytes


def _array_bytes(rollout: Rollout, name: str, kind: str) -> bytes:
    array = getattr(rollout, name)
    assert len(array) == len(rollout.response_ids_T), (name, rollout.draw, rollout.sample)
    # Another kind of number would be another array when it is read.
    data: bytes = array.astype(kind, casting="equiv", copy=False).tobytes()
    return data
