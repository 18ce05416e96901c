"""Which model a role takes, and how it is held."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from rlhf_ray.config.base import Config, LocalPath, NonNegativeInt, Share

CHAT_TEMPLATE_NAMES = ("alpaca", "chatml", "llama3", "mistral", "vicuna", "zephyr")


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); `rank: 0` trains all weights."""

    rank: NonNegativeInt = 0
    alpha: PositiveFloat = 16.0
    dropout: Share = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class ModelSource(Config):
    """What every model of a job is named by."""

    path: LocalPath = ""
    tokenizer: LocalPath = ""
    chat_template: LocalPath = ""


class ModelConfig(ModelSource):
    """Where a model comes from and how it is held.

    Attributes:
        path: Folder in the transformers layout, or a hub name. Empty in a role that takes the
            policy's.
        tokenizer: Folder or hub name of the tokenizer; empty for the model's own.
        chat_template: A name (`CHAT_TEMPLATE_NAMES`), Jinja text or a file's path; empty for the
            tokenizer's own.
        dtype: Of the weights in forward and backward passes; `auto` is bfloat16 on GPU, float32 on
            CPU.
        attention: `auto` is `varlen_attn`, PyTorch's own FlashAttention kernel, in bfloat16 on a
            GPU of compute capability 8.0 or above; there `packed_sdpa` for a model that it does not
            suit, and everywhere else. `flash_attention_2` needs the package flash-attn. Two equal
            updates are bit-equal with `packed_sdpa` on a CPU alone.
        quantization: Base weights in 4 or 8 bit through bitsandbytes; needs `lora.rank` above 0.
        kernels: `liger` takes norms and gated products of the package liger-kernel, on a GPU.
    """

    revision: str = "main"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "varlen_attn", "packed_sdpa", "flash_attention_2"] = "auto"
    gradient_checkpointing: bool = False
    quantization: Literal["none", "4bit", "8bit"] = "none"
    kernels: Literal["torch", "liger"] = "torch"
    trust_remote_code: bool = False
    lora: LoraConfig = LoraConfig()

    def or_from(self, other: ModelConfig) -> ModelConfig:
        """This model; where it names none, the one that `other` starts from."""
        if self.path:
            return self
        start = {
            "path": other.path,
            "revision": other.revision,
            "trust_remote_code": other.trust_remote_code,
        }
        return self.model_copy(update=start)
