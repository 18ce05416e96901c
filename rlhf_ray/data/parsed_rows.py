"""What a parser gives of a row: its columns, or what is wrong with it, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from rlhf_ray.data.errors import RowError

Columns: TypeAlias = dict[str, Any]
# With the line where a row begins, or its number where it has none.
NumberedRows: TypeAlias = Iterator[tuple[int, Columns | RowError]]
# The row's id, and its place with what stands there.
Located: TypeAlias = tuple[str, tuple[str, Columns | RowError]]
