"""How a job's records stand in an Arrow table, and how they are made of it again.

Beside what a record says, its row holds what is asked of all rows at once, so that no record is
made to answer it:

============  =====================================================
`length`      tokens of its longest sequence
`largest_id`  of its tokens
`digest`      of everything that it says, 8 bytes
============  =====================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from rlhf_ray.data.rows import plain_values
from rlhf_ray.types import IntArray, LabelledAnswer, Prompt, Ranking, SftExample

T = TypeVar("T")

_TOKENS = pa.list_(pa.int32())
_INDEX = {"length": pa.int32(), "largest_id": pa.int32(), "digest": pa.uint64()}


@dataclass(frozen=True, kw_only=True)
class RecordKind(Generic[T]):
    """One kind of records.

    Attributes:
        id_name: The attribute that names a record.
        columns: Arrow types of what it says, by column.
        write: One record's values of these columns.
        read: A record from its row.
        sequences: What models are shown of it.
        index: Further numbers that are asked of all rows at once.
    """

    id_name: str
    columns: Mapping[str, pa.DataType]
    write: Callable[[T], Mapping[str, Any]]
    read: Callable[[Mapping[str, pa.Scalar]], T]
    sequences: Callable[[T], Iterator[Sequence[int] | IntArray]]
    index: Mapping[str, tuple[pa.DataType, Callable[[T], int]]]

    @property
    def schema(self) -> pa.Schema:
        """Of a table of such records."""
        more = {name: type_ for name, (type_, _) in self.index.items()}
        return pa.schema({**self.columns, **_INDEX, **more})

    def table(self, records: Iterable[T]) -> pa.Table:
        """Records as rows of a table."""
        rows = [self._row(record) for record in records]
        arrays = [_array([row[field.name] for row in rows], field.type) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def record(self, table: pa.Table, row: int = 0) -> T:
        """The record of a table's row."""
        return self.read({name: table.column(name)[row] for name in self.columns})

    def records(self, table: pa.Table) -> list[T]:
        """Those of all rows."""
        return [self.record(table, row) for row in range(len(table))]

    def _row(self, record: T) -> dict[str, Any]:
        sequences = [np.asarray(ids_T) for ids_T in self.sequences(record)]
        return {
            **self.write(record),
            "length": max(map(len, sequences)),
            "largest_id": max((int(ids_T.max()) for ids_T in sequences if len(ids_T)), default=-1),
            "digest": digest_of(record),
            **{name: value(record) for name, (_, value) in self.index.items()},
        }


def digest_of(record: Any) -> int:
    """8 bytes of everything that a record says."""
    digest = hashlib.blake2b(digest_size=8)
    for field in fields(record):
        for part in _parts(getattr(record, field.name)):
            digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield repr((value.dtype.str, value.shape)).encode() + value.tobytes()
    elif isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
        for inner in value:
            yield from _parts(inner)
    else:
        yield repr(value).encode()


def _array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Values of one column; arrays are laid end to end, which is far quicker than one by one."""
    if not pa.types.is_list(type_):
        return pa.array(values, type=type_)
    lengths = [len(value) for value in values]
    if pa.types.is_list(type_.value_type):
        inner = _array([part for value in values for part in value], type_.value_type)
    else:
        joined = np.concatenate(values) if sum(lengths) else np.array([])
        inner = pa.array(joined.astype(type_.value_type.to_pandas_dtype()), type=type_.value_type)
    return pa.ListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int32), inner, type=type_)


def _numbers(scalar: pa.Scalar) -> Any:
    """A list's own copy as an array: it must not keep a mapped file open."""
    return scalar.values.to_numpy(zero_copy_only=False).copy()


def _write_example(example: SftExample) -> dict[str, Any]:
    return vars(example)


def _read_example(row: Mapping[str, pa.Scalar]) -> SftExample:
    return SftExample(
        example_id=row["example_id"].as_py(),
        token_ids_T=_numbers(row["token_ids_T"]),
        trained_T=_numbers(row["trained_T"]),
    )


def _read_ranking(row: Mapping[str, pa.Scalar]) -> Ranking:
    return Ranking(
        example_id=row["example_id"].as_py(),
        prompt_ids_T=_numbers(row["prompt_ids_T"]),
        answer_ids_K=tuple(_numbers(answer) for answer in row["answer_ids_K"]),
        margin=row["margin"].as_py(),
        tiers_K=tuple(row["tiers_K"].as_py()),
    )


def _write_labelled(row: LabelledAnswer) -> dict[str, Any]:
    return {**vars(row), "answer_ids_T": row.answer_ids_K[0]}


def _read_labelled(row: Mapping[str, pa.Scalar]) -> LabelledAnswer:
    """With its own answer in place of another's, as long as none is linked to it."""
    answer_ids_T = _numbers(row["answer_ids_T"])
    return LabelledAnswer(
        example_id=row["example_id"].as_py(),
        prompt_ids_T=_numbers(row["prompt_ids_T"]),
        answer_ids_K=(answer_ids_T, answer_ids_T),
        desirable=row["desirable"].as_py(),
    )


def _write_prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        **vars(prompt),
        "text": plain_values.written(prompt.text),
        "columns": plain_values.written(dict(prompt.columns)),
    }


def _read_prompt(row: Mapping[str, pa.Scalar]) -> Prompt:
    return Prompt(
        prompt_id=row["prompt_id"].as_py(),
        token_ids_T=tuple(_numbers(row["token_ids_T"]).tolist()),
        text=plain_values.read(row["text"].as_py()),
        columns=plain_values.read(row["columns"].as_py()),
        opens_reasoning=row["opens_reasoning"].as_py(),
    )


def _whole(record: SftExample | Prompt) -> Iterator[Sequence[int] | IntArray]:
    yield record.token_ids_T


def _answered(record: Ranking | LabelledAnswer) -> Iterator[IntArray]:
    for answer_ids_T in record.answer_ids_K:
        yield np.concatenate([record.prompt_ids_T, answer_ids_T])


def _prompt_key(row: LabelledAnswer) -> int:
    """The same for equal prompts."""
    digest = hashlib.blake2b(row.prompt_ids_T.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


EXAMPLES: RecordKind[SftExample] = RecordKind(
    id_name="example_id",
    columns={"example_id": pa.string(), "token_ids_T": _TOKENS, "trained_T": pa.list_(pa.bool_())},
    write=_write_example,
    read=_read_example,
    sequences=_whole,
    index={},
)
RANKINGS: RecordKind[Ranking] = RecordKind(
    id_name="example_id",
    columns={
        "example_id": pa.string(),
        "prompt_ids_T": _TOKENS,
        "answer_ids_K": pa.list_(_TOKENS),
        "margin": pa.float64(),
        "tiers_K": pa.list_(pa.int32()),
    },
    write=vars,
    read=_read_ranking,
    sequences=_answered,
    index={},
)
LABELLED: RecordKind[LabelledAnswer] = RecordKind(
    id_name="example_id",
    columns={
        "example_id": pa.string(),
        "prompt_ids_T": _TOKENS,
        "answer_ids_T": _TOKENS,
        "desirable": pa.bool_(),
    },
    write=_write_labelled,
    read=_read_labelled,
    sequences=_answered,
    index={
        "prompt_key": (pa.uint64(), _prompt_key),
        "prompt_length": (pa.int32(), lambda row: len(row.prompt_ids_T)),
    },
)
PROMPTS: RecordKind[Prompt] = RecordKind(
    id_name="prompt_id",
    columns={
        "prompt_id": pa.string(),
        "token_ids_T": _TOKENS,
        "text": pa.string(),
        "columns": pa.string(),
        "opens_reasoning": pa.bool_(),
    },
    write=_write_prompt,
    read=_read_prompt,
    sequences=_whole,
    index={},
)
