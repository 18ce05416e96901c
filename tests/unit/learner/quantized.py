"""A stand-in for bitsandbytes' 4-bit layers, which need the package: its names, its dtypes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Params4bit(nn.Parameter):
    """Codes of 4 bit, one a byte."""


class Linear4bit(nn.Linear):
    """Computes in bfloat16, and answers in the dtype that it is given, as bitsandbytes' does."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(dim=1, keepdim=True) / 7.0
        codes = (weight / self.scale).round().add(8).to(torch.uint8)
        self.weight: Any = Params4bit(codes, requires_grad=False)
        self.bias = linear.bias

    def dequantized(self) -> torch.Tensor:
        codes: torch.Tensor = self.weight.float()
        return (codes - 8.0) * self.scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.dequantized().bfloat16()
        return F.linear(hidden.bfloat16(), weight, self.bias).to(hidden.dtype)


def quantize(lm: Any) -> Any:
    """All matrices but the head, as bitsandbytes takes them."""
    for name, module in list(lm.named_modules()):
        if type(module) is nn.Linear and module is not lm.get_output_embeddings():
            lm.set_submodule(name, Linear4bit(module))
    return lm


def dequantize(lm: Any) -> Any:
    """Plain matrices with the same numbers, in float32."""
    for name, module in list(lm.named_modules()):
        if isinstance(module, Linear4bit):
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight.data = module.dequantized()
            lm.set_submodule(name, plain)
    return lm.float()
