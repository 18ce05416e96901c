"""What every section of a configuration is, and the types of its keys."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# In the context of a validation: the configuration is read here and runs on another machine.
ELSEWHERE = "elsewhere"


def _at_home(path: str, info: ValidationInfo) -> str:
    return path if (info.context or {}).get(ELSEWHERE) else os.path.expanduser(path)


# What names a file or folder: `~` is the home of whoever runs the job, on the machine that runs it.
LocalPath = Annotated[str, AfterValidator(_at_home)]
# Ray's label selectors: a value, several of them, or anything but those.
LabelSelector = Annotated[str, Field(pattern=r"^!?(in\([\w.-]+(, ?[\w.-]+)*\)|[\w.-]+)$")]


class Config(BaseModel):
    """Frozen, and an unknown key is an error.

    A section that is given in part keeps the other defaults of the class that it stands in:
    `PpoConfig` with `algorithm: {epochs: 2}` still has PPO's advantage and KL.

    Attributes:
        alternatives: Keys of which one stands in place of the other: what is given later (a file, a
            pipeline's `set`, the command line) counts; together they are refused.
    """

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for fault in self._faults():
            raise ValueError(fault)
        return self

    def _faults(self) -> Iterator[str]:
        """What is wrong with the values beside each other; a mistake is told one by one."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _sections_keep_their_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        completed = dict(values)
        for name, field in cls.model_fields.items():
            if field.default_factory_takes_validated_data:
                continue  # it follows from other keys, and is no section
            default = field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel) and isinstance(values.get(name), Mapping):
                completed[name] = laid_over(default.model_dump(exclude_unset=True), values[name])
        return completed


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` where it has a value, else `below`, mapping by mapping."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            merged[name] = laid_over(below[name], above[name])
    return merged
