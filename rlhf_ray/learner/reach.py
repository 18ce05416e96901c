"""Which parameters can have a gradient at all? Asked when a model is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from rlhf_ray.errors import ConfigError
from rlhf_ray.models.check import own_outcome, sample_row
from rlhf_ray.models.checked import CheckedModel

logger = logging.getLogger(__name__)

# The last of several numbers in a name: which expert of a layer, say.
_MEMBER = re.compile(r"(?<=\.)\d+(?=\.(?:[^.\d]+\.)*[^.\d]+$)")


def freeze_unreached(module: CheckedModel) -> None:
    """Take out of training what the model's code leaves out of what the role reads, and say so.

    Towers for images see no token, biases that balance experts and indexers of attention have no
    gradient; some families read a matrix without calling its layer, so that an adapter there does
    nothing. Not under ZeRO-3, which has no whole weights before DeepSpeed's start.

    Raises:
        ConfigError: Nothing would be left.
    """
    unreached = _unreached(module)
    if not unreached:
        return
    for parameter in unreached.values():
        parameter.requires_grad_(False)
    fault = _in_words(module, unreached)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"nothing can be trained: {fault}")
    logger.warning("%s: they stay as they are", fault)


def require_reached(module: CheckedModel) -> None:
    """Refuse the same, where it cannot be taken out any more.

    Raises:
        ConfigError: Names it.
    """
    if unreached := _unreached(module):
        raise ConfigError(
            f"{_in_words(module, unreached)}: under ZeRO stage 3 set model.lora.target_modules to "
            "other layers, or take zero.stage 2, which leaves them as they are"
        )


def _unreached(module: CheckedModel) -> dict[str, nn.Parameter]:
    """Parameters under training that nothing which the role reads is computed from."""
    was_training = module.training
    module.eval()
    with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
        outcome = own_outcome(module, sample_row(module))
    module.train(was_training)
    reached = {id(leaf) for leaf in _leaves(outcome)}
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    # An expert that no token went to has others of its kind beside it.
    kinds = {_kind(name) for name, parameter in trained if id(parameter) in reached}
    return {n: p for n, p in trained if id(p) not in reached and _kind(n) not in kinds}


def _in_words(module: CheckedModel, unreached: Collection[str]) -> str:
    names = ", ".join(list(unreached)[:5])
    more = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
    return f"{type(module.transformer()).__name__} computes nothing with {names}{more}"


def _kind(name: str) -> str:
    several = sum(part.isdigit() for part in name.split(".")) > 1
    return _MEMBER.sub("*", name) if several else name


def _leaves(outcome: Tensor) -> Iterator[Tensor]:
    """The tensors that gradients of the outcome would arrive at; nothing is computed."""
    pending, seen = [outcome.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            yield leaf
        pending += [before for before, _ in node.next_functions]
