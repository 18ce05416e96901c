"""The roles that pass rollouts or rows through a model, and those that train it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from rlhf_ray.config.base import Config, NonNegativeFloat, NonNegativeInt, Share
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.zero import ZeroConfig


class OptimConfig(Config):
    """AdamW (arXiv 1711.05101) and its schedule; all counts are optimiser steps.

    Attributes:
        weight_decay: Of matrices; biases and the weights of norms have none.
    """

    lr: PositiveFloat = 1e-6
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    min_lr_share: Share = 0.0


# 256 MiB in float32. A chunk's gradient of the head is as large as the head, and is added to the
# others': fewer rows at a time would take longer.
LOGITS_AT_A_TIME = 2**26


class ForwardConfig(Config):
    """A role that runs a model over rollouts.

    Attributes:
        max_tokens_per_micro_batch: Budget of one pass on one rank; a longer single sequence still
            goes alone. A prompt that is shared counts once, and a sixth of the tokens of the
            sequences that share it for copies of its keys.
        layout: `packed` lays sequences end to end; `padded` makes a rectangle. Same numbers, and
            packed needs less memory; models with other layers than attention need `padded`. `auto`
            is packed where the loaded model shows that it keeps sequences apart, else padded.
        share_prompts: A prompt that several sequences of a packed pass begin with (samples of a
            group, answers of a pair or a ranking) is computed once, forward and backward: the same
            numbers to rounding. Off in padded layouts, for models that show at loading that they
            cannot, and with `model.lora.dropout`, which is to be drawn anew for each answer.
        logits_chunk_tokens: Logits exist for at most this many tokens at a time. `auto` has 256 MiB
            of them in float32: 441 tokens of a vocabulary of 152k, all tokens of a small one.
    """

    model: ModelConfig = ModelConfig()
    zero: ZeroConfig = ZeroConfig()
    max_tokens_per_micro_batch: PositiveInt = 8192
    layout: Literal["auto", "packed", "padded"] = "auto"
    share_prompts: bool = True
    logits_chunk_tokens: PositiveInt | Literal["auto"] = "auto"

    def chunk_tokens(self, vocabulary: int) -> int:
        """How many tokens of a vocabulary have logits at a time."""
        if self.logits_chunk_tokens != "auto":
            return self.logits_chunk_tokens
        return max(1, LOGITS_AT_A_TIME // vocabulary)

    @property
    def padded(self) -> bool:
        """Whether micro-batches are rectangles."""
        return self.layout == "padded"

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt stands once in a pass, where the model can."""
        return self.share_prompts and not self.padded and not self.model.lora.dropout


class LearnerConfig(ForwardConfig):
    """A role that trains.

    Attributes:
        compile: Layers are compiled by `torch.compile` at their first pass, which takes a minute;
            not under ZeRO stage 3. For GPUs: it fuses what lies between the large products.
    """

    optim: OptimConfig = OptimConfig()
    compile: bool = False

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.compile and self.zero.stage == 3:
            yield "compile needs zero.stage below 3, whose hooks cannot be compiled"
        if self.model.quantization != "none" and self.model.lora.rank == 0:
            yield (
                f"model.quantization {self.model.quantization!r} needs model.lora.rank above 0: "
                "quantized weights cannot be trained"
            )


class ReferenceConfig(ForwardConfig):
    """The frozen model that KL is measured to; an empty `model.path` takes the policy's start."""

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.model.lora.rank:
            yield "a frozen reference has no adapter: model.lora.rank must be 0"


class CriticConfig(LearnerConfig):
    """The critic.

    Attributes:
        warmup_steps: Steps at the start, of `total_steps`, in which only the critic learns: the
            policy takes no optimiser step, so that its schedule runs over the steps after them.
    """

    warmup_steps: NonNegativeInt = 0
