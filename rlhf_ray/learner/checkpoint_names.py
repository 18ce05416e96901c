"""From a model's names in memory to those of its family's checkpoints, a few weights at a time.

transformers 5 holds some families otherwise than their checkpoints do (a layer's experts lie in
one tensor) and converts at loading. `save_pretrained` reverts that for a whole model at once; here
its conversions are reverted weight by weight, so that no rank ever holds a model twice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Weights in memory that become weights of a checkpoint together.

    Attributes:
        sources: Their names in memory, each with the pattern of the conversion that it matched;
            None where it is only renamed.
        target: The first weight that they become; a pattern where they become several.
    """

    sources: tuple[tuple[str, str | None], ...]
    target: str


class CheckpointNames:
    """What `save_pretrained` makes of a model's weights, planned by their names alone."""

    def __init__(self, model: Any) -> None:
        """Take the conversions that the model was loaded with, backwards.

        Args:
            model: Of transformers, without a wrapper of adapters around it.
        """
        self.model = model
        # The last conversion of loading is the first one to revert.
        backwards = [one.reverse_transform() for one in reversed(_conversions(model))]
        self._renamings = [one for one in backwards if isinstance(one, WeightRenaming)]
        self._converters = [one for one in backwards if isinstance(one, WeightConverter)]

    def plan(self, names: Iterable[str]) -> list[Conversion]:
        """Which of the names go together, in the order of their layers."""
        planned: dict[str, list[tuple[str, str | None]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(
                name, self._renamings, self._converters, reverse=True
            )
            planned.setdefault(target, []).append((name, pattern))
        return [
            Conversion(sources=tuple(sources), target=target) for target, sources in planned.items()
        ]

    def convert(
        self, conversion: Conversion, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The checkpoint's weights, from those in memory; works on the meta device as well."""
        (first, pattern), *_ = conversion.sources
        if pattern is None:
            return {conversion.target: tensors[first]}
        converter = next(one for one in self._converters if pattern in one.source_patterns)
        converter = copy.deepcopy(converter)
        for name, its_pattern in conversion.sources:
            converter.add_tensor(conversion.target, name, its_pattern, tensors[name])
        converted = converter.convert(conversion.target, model=self.model, config=self.model.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in converted.items()
        }


def _has_way_back(conversion: Any) -> bool:
    """Not so what makes bitsandbytes' weights of their files: they leave as plain ones."""
    operations = getattr(conversion, "operations", ())
    return all(type(one).reverse_op is not ConversionOps.reverse_op for one in operations)


def _conversions(model: Any) -> list[Any]:
    """Those that changed a name when the model was loaded; else its family's."""
    # Under ZeRO-3 transformers remembers also those that did not.
    used = [one for one in getattr(model, "_weight_conversions", None) or () if one.was_used()]
    if used := [one for one in used if _has_way_back(one)]:
        return used
    # Made from a configuration, or of a checkpoint with the names in memory. Whether the family's
    # checkpoints have the prefix that may be there or not, only a checkpoint could tell.
    family = get_model_conversion_mapping(model, add_legacy=False)
    return [one for one in family if not isinstance(one, PrefixChange)]
