"""Data sets on the Hugging Face hub, as `datasets` keeps or streams them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.config.checks import references
from rlhf_ray.config.checks.data_files import ACCEPTED
from rlhf_ray.data.errors import DataError
from rlhf_ray.data.row import Located
from rlhf_ray.errors import RunError


@dataclass(frozen=True, kw_only=True)
class HubData:
    """A name on the hub; what it stands for is asked once a split.

    Attributes:
        path: `owner/name`, `name` or `owner/name:subset`.
    """

    path: str
    _kept: dict[str, Any] = field(default_factory=dict)

    def kept(self, split: str) -> Any:
        """A split as `datasets` keeps it on this machine.

        Raises:
            DataError: The hub has no such thing, or does not answer.
        """
        if split not in self._kept:
            self._kept[split] = self._load(split)
        return self._kept[split]

    def rows(self, split: str, first: int, *, streaming: bool) -> Iterator[Located]:
        """Rows from a number on; as a stream they come over the network, and are not kept.

        Raises:
            DataError: As in `kept`.
            RunError: The hub stops giving rows.
        """
        name = f"{self.path}/{split}"
        if streaming:  # it passes over whole files where it can
            rows = iter(self._load(split, streaming=True).skip(first))
        else:
            rows = itertools.islice(self.kept(split), first, None)
        for number in itertools.count(first):
            try:
                columns = next(rows, None)
            except Exception as error:  # of many unrelated types, as below
                raise RunError(
                    f"{name}: the hub gave no row {number} ({type(error).__name__}: {error}); a "
                    "run that is resumed goes on from its last checkpoint"
                ) from error
            if columns is None:
                return
            yield f"{name}:{number}", (f"{name} row {number}", dict(columns))

    def _load(self, split: str, **options: Any) -> Any:
        import datasets

        named = references.hub_dataset(self.path)
        assert named is not None
        try:
            return datasets.load_dataset(*named, split=split, **options)
        # The hub's client raises many unrelated types; whichever it is, the user has one question.
        except Exception as error:
            raise DataError(
                f"{self.path!r} is not on this machine, and the hub gave no split {split!r} of it "
                f"({type(error).__name__}: {error}); wanted {ACCEPTED}"
            ) from error
