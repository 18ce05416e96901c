"""The sizes of a model that memory follows from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Head = Literal["lm", "value", "score"]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A layer's product with a matrix of its own, what adapters and quantization work on.

    Attributes:
        name: What transformers calls it in most decoders, such as `q_proj`; empty where names vary.
    """

    inputs: int
    outputs: int
    bias: bool = False
    name: str = ""

    @property
    def num_weights(self) -> int:
        """Of the matrix alone."""
        return self.inputs * self.outputs

    @property
    def num_parameters(self) -> int:
        """Bias included."""
        return self.num_weights + self.outputs * self.bias


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One transformer layer.

    Attributes:
        linears: Its matrices. Experts are none: transformers keeps those of a layer in one tensor,
            which bitsandbytes does not touch.
        num_other: Norms, and the experts.
        num_fused: Weights of the largest tensor that holds all experts' matrices of a kind.
        experts: What peft puts adapters on beside the linears, as plain matrices.
    """

    linears: tuple[Linear, ...]
    num_other: int
    num_fused: int = 0
    experts: tuple[Linear, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Of the whole layer."""
        return sum(linear.num_parameters for linear in self.linears) + self.num_other


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that memory follows from.

    Attributes:
        layers: From the first to the last.
        outer_linears: Matrices beside the layers, the head left out.
        num_embedding: Token, position and type embeddings.
        num_other: What remains: final norms, and the like.
        lm_head: None where it is the embedding, or where there is none.
        score_head: Parameters of a classifier with one label; 0 where it has no such head.
        num_heads: Query heads of a layer.
        num_kv_heads: Key and value heads of a layer.
        ffn: Inner width that one token passes through, those of its experts added.
        is_gated: Whether the inner width is computed twice and multiplied.
        kv_width: Numbers that the cache keeps of a token and layer.
        context_tokens: The longest sequence; 0 where not stated.
    """

    model_type: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    outer_linears: tuple[Linear, ...] = ()
    num_embedding: int
    num_other: int
    lm_head: Linear | None
    score_head: int = 0
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    is_gated: bool
    kv_width: int
    context_tokens: int

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """All matrices that adapters can be put on."""
        inside = tuple(linear for layer in self.layers for linear in layer.linears)
        return (*self.outer_linears, *inside)

    def adapted(self, targets: Sequence[str] | Literal["all-linear"]) -> tuple[Linear, ...]:
        """Matrices that get an adapter.

        All of them where a target's name is not known here: rather too many than too few.
        """
        experts = tuple(linear for layer in self.layers for linear in layer.experts)
        every = (*self.linears, *experts)
        names = {target.rpartition(".")[2] for target in targets}
        if targets == "all-linear" or not names <= {linear.name for linear in every}:
            return every
        return tuple(linear for linear in every if linear.name in names)

    @cached_property
    def num_fused(self) -> int:
        """Of the largest tensor of experts; 0 without any."""
        return max((layer.num_fused for layer in self.layers), default=0)

    @cached_property
    def num_body(self) -> int:
        """Parameters without any head."""
        outer = sum(linear.num_parameters for linear in self.outer_linears)
        layers = sum(layer.num_parameters for layer in self.layers)
        return self.num_embedding + self.num_other + outer + layers

    def num_parameters(self, head: Head) -> int:
        """Parameters with a head."""
        return self.num_body + self.num_head(head)

    def num_head(self, head: Head) -> int:
        """Parameters that a head adds."""
        match head:
            case "lm":
                return 0 if self.lm_head is None else self.lm_head.num_parameters
            case "value":
                return self.hidden + 1
            case "score":
                return self.score_head
