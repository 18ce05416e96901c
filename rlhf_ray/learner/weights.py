"""A model's weights under their checkpoint names, whole and merged, whatever holds them.

ZeRO-3 spreads each parameter over ranks, adapters keep their change apart, and transformers has
names of its own; the rollout engines and `from_pretrained` know none of it. Exports, publications
and held models all come from here. Iterating is a collective under ZeRO-3: all ranks take part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft.tuners.lora import ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from rlhf_ray.errors import ConfigError
from rlhf_ray.models.decoder import base_of
from rlhf_ray.models.sharding import gathered, whole_shape

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class WeightInfo:
    """One weight as it will be sent."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Whole."""
        return self.dtype.itemsize * math.prod(self.shape)


def weight_infos(lm: Any) -> list[WeightInfo]:
    """What `named_weights` will yield, in its order, without gathering anything."""
    held, names = _held(lm), CheckpointNames(base_of(lm))
    infos = []
    for conversion in names.plan(held):
        empty = {name: held[name].empty() for name, _ in conversion.sources}
        infos += [
            WeightInfo(name=name, dtype=weight.dtype, shape=tuple(weight.shape))
            for name, weight in names.convert(conversion, empty).items()
        ]
    return infos


def named_weights(
    lm: Any, *, gathered_bytes: int = 0, merged: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each weight in full. The tensor is valid until the next one is asked for.

    Args:
        lm: The model, with or without adapters.
        gathered_bytes: What ZeRO-3 has spread is gathered in pieces of so many bytes, which takes
            fewer exchanges between ranks. A piece is at least one weight, or what the family's
            checkpoints hold apart and the model together (a layer's experts), or the other way
            round.
        merged: Whether adapters change them; else they are what the adapters were put on.
    """
    held, names = _held(lm, merged=merged), CheckpointNames(base_of(lm))

    def num_bytes(conversion: Conversion) -> int:
        return sum(held[name].num_bytes for name, _ in conversion.sources)

    with torch.no_grad():
        for piece in _pieces(names.plan(held), num_bytes, gathered_bytes):
            sources = [held[name] for conversion in piece for name, _ in conversion.sources]
            with gathered(_once(part for one in sources for part in one.parts())):
                for conversion in piece:
                    whole = {name: held[name].whole() for name, _ in conversion.sources}
                    yield from names.convert(conversion, whole).items()


def adapter_weights(lm: Any, *, gathered_bytes: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield both matrices of each adapter, by the checkpoint's name of the layer that it is on.

    They are `[rank, in]` as `...lora_A.weight` and `[out, rank]`, times the adapter's scale, as
    `...lora_B.weight`: together what is added to the layer's weight. The tensor is valid until the
    next one is asked for.

    Raises:
        ConfigError: See `linear_adapters`.
    """

    def num_bytes(adapter: tuple[str, Any]) -> int:
        return sum(math.prod(whole_shape(part)) * part.itemsize for part in _matrices(adapter[1]))

    with torch.no_grad():
        for piece in _pieces(linear_adapters(lm), num_bytes, gathered_bytes):
            with gathered(_once(part for _, adapter in piece for part in _matrices(adapter))):
                for layer, adapter in piece:
                    first, second = _matrices(adapter)
                    [key] = adapter.active_adapters
                    yield f"{layer}.lora_A.weight", first.detach()
                    yield f"{layer}.lora_B.weight", second.detach() * adapter.scaling[key]


def linear_adapters(lm: Any) -> list[tuple[str, Any]]:
    """The adapters of linear layers, by the layers' names in the checkpoint.

    Raises:
        ConfigError: There is none, or one is on something else.
    """
    held, names = _held(lm), CheckpointNames(base_of(lm))
    found = []
    for conversion in names.plan(held):
        for name, pattern in conversion.sources:
            adapter = held[name].adapter
            if adapter is None:
                continue
            if pattern is not None or not _is_linear(adapter):
                raise ConfigError(
                    f"publication.adapters must be merged for an adapter on {name}: engines take "
                    "adapters of linear layers alone"
                )
            found.append((conversion.target.removesuffix(".weight"), adapter))
    if not found:
        raise ConfigError("publication.adapters must be merged for a model without adapters")
    return found


def _is_linear(adapter: Any) -> bool:
    keys = adapter.active_adapters
    return not isinstance(adapter, ParamWrapper) and all(key in adapter.lora_A for key in keys)


def _matrices(adapter: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    [key] = adapter.active_adapters
    return adapter.lora_A[key].weight, adapter.lora_B[key].weight


def parameter_infos(lm: Any) -> list[WeightInfo]:
    """Each parameter under its name in memory, whole and unquantized; adapters are left out."""
    return [
        WeightInfo(name=name, dtype=one.dtype, shape=one.shape)
        for name, one in _held(lm).items()
        if isinstance(one.tensor, torch.nn.Parameter)
    ]


def require_mergeable(lm: Any) -> None:
    """Refuse adapters that no plain model can stand for.

    Raises:
        ConfigError: An adapter changes one use of a weight that the model uses twice.
    """
    base = base_of(lm)
    uses: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(_plain(name))
    for target in _adapters(base):
        for names in uses.values():
            if target in names and len(names) > 1:
                others = ", ".join(name for name in names if name != target)
                raise ConfigError(
                    f"model.lora.target_modules must leave out {target}: it is one weight with "
                    f"{others}, and no merged model could have both"
                )


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A weight as the model holds it; `owner` has it, `adapter`, if any, changes it."""

    tensor: torch.Tensor
    owner: torch.nn.Module
    adapter: Any
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Whole and unquantized."""
        return self.dtype.itemsize * math.prod(self.shape)

    def empty(self) -> torch.Tensor:
        """Of its shape, without numbers."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def parts(self) -> list[torch.nn.Parameter]:
        """What ZeRO-3 may have spread."""
        mine = [self.tensor] if isinstance(self.tensor, torch.nn.Parameter) else []
        return [*mine, *(self.adapter.parameters() if self.adapter is not None else ())]

    def whole(self) -> torch.Tensor:
        """Dequantized and merged, while its parts are gathered."""
        weight = self.tensor.detach()
        if _is_quantized(self.tensor):
            weight = dequantize_module_weight(self.owner).to(self.dtype)
        for key in self.adapter.active_adapters if self.adapter is not None else ():
            weight = weight + self.adapter.get_delta_weight(key).to(weight.dtype)
        return weight


def _pieces(
    items: Iterable[T], num_bytes: Callable[[T], int], piece_bytes: int
) -> Iterator[list[T]]:
    """Items one after the other, together up to so many bytes; each piece has at least one."""
    piece: list[T] = []
    size = 0
    for item in items:
        if piece and size + num_bytes(item) > piece_bytes:
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += num_bytes(item)
    if piece:
        yield piece


def _once(parts: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return list({id(part): part for part in parts}.values())


def _held(lm: Any, *, merged: bool = True) -> dict[str, _Held]:
    """All that a checkpoint of the model holds, by its name in memory without adapters."""
    base = base_of(lm)
    modules, adapters = dict(base.named_modules()), _adapters(base) if merged else {}
    held = {}
    for name, tensor in _state(base).items():
        owner = modules[name.rpartition(".")[0]]
        plain = _plain(name)
        quantized = _is_quantized(tensor)
        held[plain] = _Held(
            tensor=tensor,
            owner=owner,
            adapter=adapters.get(plain),
            dtype=base.dtype if quantized else tensor.dtype,
            shape=_shape(tensor),
        )
    return held


def _state(base: Any) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, adapters left out, each once."""
    named: dict[str, torch.Tensor] = dict(base.named_parameters(remove_duplicate=False))
    for path, module in base.named_modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            if leaf not in module._non_persistent_buffers_set:
                named[f"{path}.{leaf}" if path else leaf] = buffer
    # Of tied weights a checkpoint has the one that the model's code names as their source.
    tied, ignored = base.all_tied_weights_keys, base._keys_to_ignore_on_save or ()
    first: dict[int, str] = {}
    for name in sorted(named, key=lambda name: _plain(name) in tied):
        first.setdefault(id(named[name]), name)
    kept = set(first.values())
    return {
        name: tensor
        for name, tensor in named.items()
        if name in kept and ".lora_" not in f".{name}" and _plain(name) not in ignored
    }


def _adapters(base: Any) -> dict[str, Any]:
    """The adapter of each weight that has one, by the weight's name without adapters."""
    adapters = {}
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight"):
            # Those of a layer's experts are wrapped around each other, one a parameter.
            leaf = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            adapters[_plain(f"{name}.{leaf}")] = module
    return adapters


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    if _is_quantized(tensor):
        state = getattr(tensor, "quant_state", None)
        return tuple(tensor.shape if state is None else state.shape)
    return whole_shape(tensor)


def _is_quantized(tensor: torch.Tensor) -> bool:
    """Whether bitsandbytes holds it, by the name of its class: the package need not be there."""
    return type(tensor).__name__ in ("Params4bit", "Int8Params")


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
    """What `save_pretrained` makes of a model's weights, planned by their names alone.

    transformers 5 holds some families otherwise than their checkpoints do (a layer's experts lie in
    one tensor) and converts at loading. `save_pretrained` reverts that for a whole model at once;
    here it is reverted weight by weight, so that no rank ever holds a model twice.
    """

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
