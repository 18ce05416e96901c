"""A model is compared with itself when it is loaded, and runs the first way that is right.

What a family does between tokens and scores is its own code's business: how it keeps sequences
apart, numbers positions, scales logits, is random in training. Here nobody has to know: a few
random sequences go through the model in the layout, kernel and mode that the role will use, and
must come out as from the family's own `forward`, one sequence a call, eager attention.

How much two right ways may differ is measured on the model: its own `forward` once more, with the
outputs of all layers rounded another way.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.limits import positions_of
from rlhf_ray.models.modes import CHECKED_PROMPT, CheckedModel, ForwardMode, adapter_dropouts
from rlhf_ray.types import IntArray

logger = logging.getLogger(__name__)

# Short ones before and behind a longer one: what flows along a packed row reaches the last. The
# first two begin alike, which a layout that shares prompts computes once.
# No longer than it takes to see that: each pass is a part of every start.
LENGTHS = (7, 15, 8)
# Differences that two right ways may have: so many times what rounding does (root mean squares),
# over so many outcomes at least, and a share of the outcomes themselves, computed in float32.
NOISE_FACTOR = 4.0
NUM_ROUNDED = 12
FLOAT32_SHARE = 64 * torch.finfo(torch.float32).eps
# A weight in 8 or 4 bit: its layer rounds what goes in to 8 bit.
QUANTIZED_EPS = 2.0**-6

_REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def settle(module: CheckedModel, config: ForwardConfig, device: torch.device) -> None:
    """Make `module` run the first way in which it is right.

    Every rank of a group calls it, behind DeepSpeed's start where that spreads its weights. Random
    state and training mode stay as they were.

    Raises:
        ConfigError: It is right in none: says what differs, by how much, and what would work.
    """
    was_training, module.device = module.training, device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            _settle(module, config)
        finally:
            module.train(was_training)


def _settle(module: CheckedModel, config: ForwardConfig) -> None:
    allowed = module.modes(config)
    truth = _truth(module)
    faults: list[str] = []
    for mode in allowed:
        faults.append(_fault(module, mode, truth))
        if not faults[-1]:
            if len(faults) > 1:
                logger.warning("%s runs with %s: %s", _name(module), module.mode, faults[0])
            return
    model = config.model.model_copy(update={"attention": "auto"})
    free = config.model_copy(update={"model": model, "layout": "auto"})
    others = (mode for mode in module.modes(free) if mode not in allowed)
    works = next((module.mode for mode in others if not _fault(module, mode, truth)), None)
    if not allowed:
        faults.append("some of its layers need an attention mask")
    wanted = next(iter(allowed), f"layout {config.layout}, attention {config.model.attention}")
    raise ConfigError(
        f"{_name(module)} cannot be run with {wanted}: {faults[0]}; "
        + (f"it is right with {works}" if works else "it is right in no other layout either")
    )


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """What sequences are worth by the model's own `forward`, and how exactly that is known."""

    sequences_B: Sequence[IntArray]
    own_B: Sequence[Tensor]
    tolerance: float
    widest: float
    far: int | None


def _truth(module: CheckedModel) -> _Truth:
    transformer = module.transformer()
    text = transformer.config.get_text_config()
    sequences_B = _sequences(transformer.config)
    module.eval()
    transformer.set_attn_implementation("eager")

    rows_B = [_row(ids_T, module) for ids_T in sequences_B]
    try:
        own_B = [own_outcome(module, row_1T) for row_1T in rows_B]
    # Whatever a family says that wants more than tokens.
    except Exception as error:
        raise ConfigError(
            f"{_name(module)} cannot be run: its own forward takes no tokens alone: {error}"
        ) from error
    noise = _noise(module, rows_B, own_B)
    context = getattr(text, "max_position_embeddings", None)
    size = torch.cat(own_B).square().mean().sqrt().item()
    return _Truth(
        sequences_B=sequences_B,
        own_B=own_B,
        tolerance=NOISE_FACTOR * noise + FLOAT32_SHARE * size,
        widest=_widest(text, context),
        far=_far(text, context) if isinstance(context, int) else None,
    )


def _noise(module: CheckedModel, rows_B: Sequence[Tensor], own_B: Sequence[Tensor]) -> float:
    """What rounding does to outcomes, over enough of them: a reward model has one a sequence."""
    longest_first = sorted(range(len(rows_B)), key=lambda row: -len(own_B[row]))
    picked: list[int] = []
    for row in itertools.cycle(longest_first):
        if sum(len(own_B[row]) for row in picked) >= NUM_ROUNDED:
            break
        picked.append(row)
    with _rounded_otherwise(module):
        otherwise = [own_outcome(module, rows_B[row]) for row in picked]
    return _difference(otherwise, [own_B[row] for row in picked])


def _widest(text: Any, context: Any) -> float:
    """A window of so many tokens or more hides nothing that a layer would see without it."""
    if {*(getattr(text, "layer_types", None) or ())} == {"full_attention"}:
        return 0  # masks with windows are made in some families whether a layer takes them or not
    return context if isinstance(context, int) else math.inf


def _far(text: Any, context: int) -> int | None:
    """A distance that no position of the sequences reaches: past what the family was made for."""
    if getattr(text, "rope_parameters", None):
        return 2 * context  # dynamic NTK changes its frequencies beyond the context only
    return context - LENGTHS[-1] if context > sum(LENGTHS) else None  # a table ends there


def own_outcome(module: CheckedModel, input_ids_1T: Tensor) -> Tensor:
    """What the role reads of one sequence, by the model's own `forward`.

    By a call of the module: ZeRO-3 counts passes by calls of what it was given.
    """
    torch.manual_seed(0)  # what is random is so alike whenever it is asked: not rounding's doing
    module.forward = module.own_outcome
    try:
        outcome: Tensor = module(input_ids_1T)
    finally:
        del module.forward
    return outcome.float()


def _fault(module: CheckedModel, mode: ForwardMode, truth: _Truth) -> str:
    """What is wrong with running like this; empty for nothing."""
    try:
        module.use(mode)
        return next(_faults(module, mode, truth), "")
    # Attention functions refuse what they cannot honour; families choke on a mask that is None.
    except _REFUSALS as error:
        return f"it fails: {error}"


def _faults(module: CheckedModel, mode: ForwardMode, truth: _Truth) -> Iterator[str]:
    def differing(outcomes_B: Sequence[Tensor], where: str) -> Iterator[str]:
        difference = _difference(outcomes_B, truth.own_B[: len(outcomes_B)])
        if not difference <= truth.tolerance:
            yield (
                f"its {module.outcome} {where} differ from its own forward's by "
                f"{difference:.2g}, where rounding explains {truth.tolerance:.2g}"
            )

    module.eval()
    with lost_windows(mode.attention) as windows:
        together = module.outcomes(truth.sequences_B)
    # Longer than the sequences, or it would show below.
    if not mode.with_mask and (felt := [size for size in windows if size < truth.widest]):
        yield f"its attention is not told of its window of {min(felt)} tokens"
    if any(differing(together, "")):
        yield from differing(module.outcomes(truth.sequences_B[:1]), "for a sequence alone")
        yield from differing(together, "for sequences of one batch")
    if truth.far is not None and not mode.with_mask:
        outcomes_B = module.outcomes(truth.sequences_B, far=truth.far)[:-1]
        yield from differing(outcomes_B, "beside a sequence at far positions")
    module.train()
    for dropout in adapter_dropouts(module):
        dropout.eval()
    # Once is enough: what is random differs from what was not.
    yield from differing(module.outcomes(truth.sequences_B), "in training mode")


def sample_row(module: CheckedModel) -> Tensor:
    """One short sequence that the model can take: [1, T]."""
    return _row(_sequences(module.transformer().config)[0], module)


def _row(ids_T: IntArray, module: CheckedModel) -> Tensor:
    return torch.from_numpy(ids_T.astype(np.int64))[None].to(module.device)


def _difference(ours_B: Sequence[Tensor], theirs_B: Sequence[Tensor]) -> float:
    """Root mean square over all tokens; the largest of all ranks, so that they agree."""
    gaps = [ours - theirs for ours, theirs in zip(ours_B, theirs_B, strict=True)]
    difference = torch.cat(gaps).float().square().mean().sqrt().nan_to_num(nan=torch.inf)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(difference, op=dist.ReduceOp.MAX)
    return difference.item()


def _sequences(config: Any) -> list[IntArray]:
    """Random tokens, but none that a family takes for an image or padding."""
    text, num_positions = config.get_text_config(), positions_of(config)
    lens = [min(length, num_positions or length) for length in LENGTHS]
    named = {v for k, v in text.to_dict().items() if k.endswith("token_id") and isinstance(v, int)}
    generator = np.random.default_rng(0)
    plain = np.setdiff1d(generator.integers(text.vocab_size, size=sum(lens) * 4), list(named))
    generator.shuffle(plain)
    ids_T = np.resize(plain, sum(lens)).astype(np.int32)
    ids_T[lens[0] :][:CHECKED_PROMPT] = ids_T[:CHECKED_PROMPT]
    return np.split(ids_T, np.cumsum(lens)[:-1])


@contextmanager
def _rounded_otherwise(module: nn.Module) -> Iterator[None]:
    """While this is open, what each layer gives is off by up to half a unit in the last place."""
    generators: dict[torch.device, torch.Generator] = {}

    def rounded(layer: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        weight = getattr(layer, "weight", None)
        quantized = isinstance(weight, Tensor) and not weight.is_floating_point()
        eps = QUANTIZED_EPS if quantized else torch.finfo(output.dtype).eps
        generator = generators.setdefault(output.device, torch.Generator(output.device))
        noise = torch.rand(output.shape, generator=generator, device=output.device) - 0.5
        return output * (1 + eps * noise).to(output.dtype)

    leaves = [m for m in module.modules() if not any(True for _ in m.children())]
    handles = [leaf.register_forward_hook(rounded) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name(module: CheckedModel) -> str:
    return type(module.transformer()).__name__


@contextmanager
def lost_windows(name: str) -> Iterator[set[int]]:
    """While this is open, collect windows that masks were asked to have and attention never got.

    Attention that is given no mask knows of a window by the keyword `sliding_window` alone. Some
    families (Phi-3.5-MoE, Qwen2-MoE) leave it to the mask, and would see everything without.

    Args:
        name: transformers' name of the attention function that the passes in between use.

    Yields:
        Filled when it closes: the windows, in tokens.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    masks, functions = AttentionMaskInterface._global_mapping, AttentionInterface._global_mapping
    if name not in functions:  # eager, which every family has its own of and gives a mask
        yield set()
        return
    make_mask, attend = masks.get(name), functions[name]
    asked: set[int | None] = set()
    given: set[int | None] = set()
    lost: set[int] = set()

    def asking(*arguments: Any, local_size: int | None = None, **keywords: Any) -> Any:
        asked.add(local_size)
        if make_mask is None:
            return None
        return make_mask(*arguments, local_size=local_size, **keywords)

    def attending(*arguments: Any, sliding_window: int | None = None, **keywords: Any) -> Any:
        given.add(sliding_window)
        return attend(*arguments, sliding_window=sliding_window, **keywords)

    AttentionMaskInterface.register(name, asking)
    AttentionInterface.register(name, attending)
    try:
        yield lost
    finally:
        AttentionInterface.register(name, attend)
        if make_mask is None:
            del masks[name]
        else:
            AttentionMaskInterface.register(name, make_mask)
        if given:  # else no layer attends
            lost.update(size for size in asked - given if size is not None)
