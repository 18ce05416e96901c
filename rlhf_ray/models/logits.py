"""Logits by a model's own code: its heads, scales and caps, on hidden states of our passes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_ray.models.decoder import base_of, decoder_name


def logits_of(lm: Any, hidden_tD: Tensor) -> Tensor:
    """What the causal language model makes of its decoder's final hidden states: [t, V].

    The model's own `forward` runs, with a stand-in for the decoder that answers with `hidden_tD`.
    So whatever a family does between the two is done as the family does it.
    """
    base = base_of(lm)
    num_tokens, name = len(hidden_tD), decoder_name(base)
    # A rank without work takes part with one row, which some heads cannot do without.
    rows_tD = hidden_tD if num_tokens else F.pad(hidden_tD, (0, 0, 0, 1))
    input_ids = torch.zeros(1, len(rows_tD), dtype=torch.long, device=hidden_tD.device)
    decoder = base._modules[name]
    base._modules[name] = _Answering(decoder, rows_tD.unsqueeze(0))
    try:
        output = base.forward(input_ids=input_ids, use_cache=False, return_dict=True)
    finally:
        base._modules[name] = decoder
    logits_tV: Tensor = output.logits.flatten(0, -2)[:num_tokens]
    return logits_tV


def trains_head(lm: Any) -> bool:
    """Whether anything between hidden states and logits is trained."""
    base = base_of(lm)
    decoder = decoder_name(base)
    heads = [child for name, child in base.named_children() if name != decoder]
    return any(parameter.requires_grad for head in heads for parameter in head.parameters())


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
