"""Logits by a model's own code: its heads, scales and caps, on hidden states of our passes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_ray.algorithms.logprobs import token_logprobs
from rlhf_ray.models.decoder import base_of, decoder_name
from rlhf_ray.models.sharding import is_engine_hook


class LogprobsHead(nn.Module):
    """All chunks of logits of a pass, as one call of one module.

    ZeRO-3 gathers weights where a module is called and frees them where the call ends, and its
    order of calls is one for all ranks and passes. A chunk a call would gather the head as often
    as there are chunks, and each other number of tokens would be another order, which stops
    prefetching. So a chunk runs past DeepSpeed's hooks, whose place this module's own take: told
    what it borrows, ZeRO-3 has that there for the whole call and the whole of its backward pass.
    """

    def __init__(self, lm: Any) -> None:
        """Run the head of `lm`, which stays where it is."""
        super().__init__()
        # Past nn.Module, which would take the model for a child and its weights for ours.
        object.__setattr__(self, "lm", lm)

    def borrowed(self) -> Iterator[nn.Parameter]:
        """Weights that it reads, which are other modules'."""
        base = base_of(self.lm)
        for _, head in _heads(base):
            yield from head.parameters()

    def forward(
        self, hidden_TD: Tensor, targets_T: Tensor, **settings: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Arguments of `token_logprobs`, without its head, to its log-probabilities, entropy, top.

        A plain tuple: DeepSpeed looks for tensors in no dataclass.
        """
        scores = token_logprobs(hidden_TD, partial(logits_of, self.lm), targets_T, **settings)
        return scores.logprobs_T, scores.entropy_T, scores.top_T


def logits_of(lm: Any, hidden_tD: Tensor) -> Tensor:
    """What the causal language model makes of its decoder's final hidden states: [t, V].

    The model's own `forward` runs, with a stand-in for the decoder that answers with `hidden_tD`.
    So whatever a family does between the two is done as the family does it.
    """
    base = base_of(lm)
    num_tokens = len(hidden_tD)
    # A rank without work takes part with one row, which some heads cannot do without.
    rows_tD = hidden_tD if num_tokens else F.pad(hidden_tD, (0, 0, 0, 1))
    input_ids = torch.zeros(1, len(rows_tD), dtype=torch.long, device=hidden_tD.device)
    with _stand_ins(base, rows_tD.unsqueeze(0)):
        output = base.forward(input_ids=input_ids, use_cache=False, return_dict=True)
    logits_tV: Tensor = output.logits.flatten(0, -2)[:num_tokens]
    return logits_tV


@contextmanager
def _stand_ins(base: Any, hidden_1tD: Tensor) -> Iterator[None]:
    """While this is open, the decoder answers with `hidden_1tD`; engines leave heads alone."""
    children, decoder = dict(base._modules), decoder_name(base)
    heads = {name: _without_engine_hooks(head) for name, head in _heads(base)}
    base._modules.update({**heads, decoder: _Answering(children[decoder], hidden_1tD)})
    try:
        yield
    finally:
        base._modules.update(children)


def _heads(base: Any) -> Iterator[tuple[str, nn.Module]]:
    decoder = decoder_name(base)
    return ((name, child) for name, child in base.named_children() if name != decoder)


def _without_engine_hooks(module: nn.Module) -> nn.Module:
    """The same module, its parameters and those below it shared, without the engine's hooks."""
    bare = copy.copy(module)
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        kept = {
            key: hook for key, hook in getattr(module, hooks).items() if not is_engine_hook(hook)
        }
        bare.__dict__[hooks] = OrderedDict(kept)
    bare.__dict__["_modules"] = {
        name: child if child is None else _without_engine_hooks(child)
        for name, child in module._modules.items()
    }
    return bare


class _Answering(nn.Module):
    """Stands where a decoder stood, or where a part of it does, and knows the hidden states."""

    def __init__(self, decoder: nn.Module, hidden_1tD: Tensor) -> None:
        super().__init__()
        # Past nn.Module, which would take the decoder for a child and its weights for ours.
        object.__setattr__(self, "decoder_itself", decoder)
        object.__setattr__(self, "hidden_1tD", hidden_1tD)

    def forward(self, *arguments: Any, **keywords: Any) -> _HiddenStates:
        return _HiddenStates(self.hidden_1tD)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.decoder_itself, name)
        # OPT's head calls `self.model.decoder`.
        return _Answering(found, self.hidden_1tD) if name == "decoder" else found


class _HiddenStates:
    """A decoder's output that has hidden states, and None for all else."""

    def __init__(self, hidden_1tD: Tensor) -> None:
        self.last_hidden_state = hidden_1tD

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]
