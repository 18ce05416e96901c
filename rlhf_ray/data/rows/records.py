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

import datetime
import decimal
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from rlhf_ray.types import IntArray, LabelledAnswer, Prompt, Ranking, SftExample

T = TypeVar("T")

_TOKENS = pa.list_(pa.int32())
_INDEX = {"length": pa.int32(), "largest_id": pa.int32(), "digest": pa.uint64()}


@dataclass(frozen=True, kw_only=True)
class RecordKind(Generic[T]):
    """One kind of records, whose attributes are the columns of its table.

    Attributes:
        of: Its class.
        id_name: The attribute that names a record.
        columns: Arrow types of its attributes.
        sequences: What models are shown of it.
        to_column: What a column holds of a record, where that is not the attribute as it stands.
        from_column: The attribute again.
        index: Further numbers that are asked of all rows at once.
    """

    of: type[T]
    id_name: str
    columns: Mapping[str, pa.DataType]
    sequences: Callable[[T], Iterable[Sequence[int] | IntArray]]
    to_column: Mapping[str, Callable[[T], Any]] = field(default_factory=dict)
    from_column: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    index: Mapping[str, tuple[pa.DataType, Callable[[T], int]]] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        """Of a table of such records."""
        more = {name: type_ for name, (type_, _) in self.index.items()}
        return pa.schema({**self.columns, **_INDEX, **more})

    def table(self, records: Iterable[T]) -> pa.Table:
        """Records as rows of a table."""
        rows = [self._row(record) for record in records]
        arrays = [_array([row[each.name] for row in rows], each.type) for each in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def record(self, table: pa.Table, row: int = 0) -> T:
        """The record of a table's row."""
        values = {name: _value(table.column(name)[row]) for name in self.columns}
        return self.of(**values | {name: of(values[name]) for name, of in self.from_column.items()})

    def records(self, table: pa.Table) -> list[T]:
        """Those of all rows."""
        return [self.record(table, row) for row in range(len(table))]

    def of_source(self, record: Any, number: int, again: str = "") -> T:
        """A record of one of several sources: its id begins with the source's number."""
        id_ = f"{number}/{getattr(record, self.id_name)}{again}"
        named: T = replace(record, **{self.id_name: id_})
        return named

    def _row(self, record: T) -> dict[str, Any]:
        sequences = [np.asarray(ids_T) for ids_T in self.sequences(record)]
        return {
            **vars(record),
            **{name: value(record) for name, value in self.to_column.items()},
            "length": max(map(len, sequences)),
            "largest_id": max((int(ids_T.max()) for ids_T in sequences if len(ids_T)), default=-1),
            "digest": digest_of(record),
            **{name: value(record) for name, (_, value) in self.index.items()},
        }


def digest_of(record: Any) -> int:
    """8 bytes of everything that a record says."""
    digest = hashlib.blake2b(digest_size=8)
    for each in fields(record):
        for part in _parts(getattr(record, each.name)):
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


def _value(scalar: pa.Scalar) -> Any:
    """A list's own copy as an array: it must not keep a mapped file open."""
    if not pa.types.is_list(scalar.type):
        return scalar.as_py()
    if pa.types.is_list(scalar.type.value_type):
        return tuple(map(_value, scalar))
    return scalar.values.to_numpy(zero_copy_only=False).copy()


def _answered(record: Ranking | LabelledAnswer) -> Iterator[IntArray]:
    for answer_ids_T in record.answer_ids_K:
        yield np.concatenate([record.prompt_ids_T, answer_ids_T])


def _prompt_key(row: LabelledAnswer) -> int:
    """The same for equal prompts."""
    digest = hashlib.blake2b(row.prompt_ids_T.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


# Arrow wants one type a column, which nested columns of real data do not have: values of any kind
# are kept as JSON text. What JSON lacks is an object with a key that no column has by chance.
_KIND = "rlhf_ray/kind"
# What a kind is called, its class, what JSON holds of it, and how that is read. Date comes behind
# datetime, which is one.
_KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, lambda value: [_plain(item) for item in value], tuple),
    "datetime": (
        datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat,
    ),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: datetime.timedelta(*parts),
    ),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "object": (dict, lambda value: [[name, _plain(item)] for name, item in value.items()], dict),
}  # fmt: skip


def _written(value: Any) -> str:
    return json.dumps(_plain(value), separators=(",", ":"))


def _read(text: str) -> Any:
    return json.loads(text, object_hook=_marked) if _KIND in text else json.loads(text)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and _KIND not in value:
        return {name: _plain(item) for name, item in value.items()}
    for name, (class_, write, _) in _KINDS.items():
        if isinstance(value, class_):
            return {_KIND: name, "value": write(value)}
    raise TypeError(f"cannot keep a {type(value).__name__}")


def _marked(item: dict[str, Any]) -> Any:
    kind = item.get(_KIND)
    return item if kind is None else _KINDS[kind][2](item["value"])


EXAMPLES = RecordKind(
    of=SftExample,
    id_name="example_id",
    columns={"example_id": pa.string(), "token_ids_T": _TOKENS, "trained_T": pa.list_(pa.bool_())},
    sequences=lambda example: [example.token_ids_T],
)
RANKINGS = RecordKind(
    of=Ranking,
    id_name="example_id",
    columns={
        "example_id": pa.string(),
        "prompt_ids_T": _TOKENS,
        "answer_ids_K": pa.list_(_TOKENS),
        "margin": pa.float64(),
        "tiers_K": pa.list_(pa.int32()),
    },
    sequences=_answered,
    from_column={"tiers_K": lambda tiers_K: tuple(tiers_K.tolist())},
)
# Each with its own answer in place of another's, as long as none is linked to it.
LABELLED = RecordKind(
    of=LabelledAnswer,
    id_name="example_id",
    columns={
        "example_id": pa.string(),
        "prompt_ids_T": _TOKENS,
        "answer_ids_K": _TOKENS,
        "desirable": pa.bool_(),
    },
    sequences=_answered,
    to_column={"answer_ids_K": lambda row: row.answer_ids_K[0]},
    from_column={"answer_ids_K": lambda answer_ids_T: (answer_ids_T, answer_ids_T)},
    index={
        "prompt_key": (pa.uint64(), _prompt_key),
        "prompt_length": (pa.int32(), lambda row: len(row.prompt_ids_T)),
    },
)
PROMPTS = RecordKind(
    of=Prompt,
    id_name="prompt_id",
    columns={
        "prompt_id": pa.string(),
        "token_ids_T": _TOKENS,
        "text": pa.string(),
        "columns": pa.string(),
        "opens_reasoning": pa.bool_(),
    },
    sequences=lambda prompt: [prompt.token_ids_T],
    to_column={
        "text": lambda prompt: _written(prompt.text),
        "columns": lambda prompt: _written(dict(prompt.columns)),
    },
    from_column={
        "token_ids_T": lambda ids_T: tuple(ids_T.tolist()),
        "text": _read,
        "columns": _read,
    },
)
