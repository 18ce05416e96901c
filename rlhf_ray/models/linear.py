"""Linear heads of one number a token or sequence: new ones, and such that compute in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Float32Linear(nn.Linear):
    """A linear layer with the weights of another, computed in float32 whatever their dtype.

    bfloat16 keeps 8 bits: scores and values of a few units would differ by steps of a hundredth.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Take over the parameters; their names stay."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(hidden.float(), self.weight.float(), bias)


def in_float32(head: nn.Module) -> nn.Module:
    """The head with every plain linear layer of it computed in float32, those of adapters too."""
    if type(head) is nn.Linear:
        return Float32Linear(head)
    for name, module in list(head.named_modules()):
        if type(module) is nn.Linear:
            head.set_submodule(name, Float32Linear(module))
    return head


def new_head(size: int, *, like: torch.Tensor, bias: bool, seed: int) -> nn.Linear:
    """A scalar head whose first estimates are small: standard deviation 1 / (D + 1).

    Source: Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, appendix B.1.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(size, 1, bias=bias, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, size, generator=generator) / (size + 1))
        if bias:
            head.bias.zero_()
    return head
