"""The policy's adapter in one of vLLM's workers, beside the weights that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

# The only one of an engine; vLLM counts from 1.
ADAPTER_ID = 1
# As peft and vLLM have it before the names of an adapter's matrices, and no checkpoint has it.
ADAPTER_PREFIX = "base_model.model."


def adapter_request() -> LoRARequest:
    """What a request carries that is to be answered with the adapter."""
    from vllm.lora.request import LoRARequest

    # The path is never read: the adapter is there before the first request.
    return LoRARequest(lora_name="policy", lora_int_id=ADAPTER_ID, lora_path="published")


def set_adapter(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put an adapter in the place of the one before, from its matrices.

    Args:
        model: Of a worker of an engine that was started for adapters.
        weights: `[rank, in]` as `...lora_A.weight`, and `[out, rank]`, scaled, as
            `...lora_B.weight`, behind `ADAPTER_PREFIX`.

    Raises:
        RuntimeError: VLLM has no place for some of it, and would leave that out, or it changes the
            head, for which there are no log-probabilities of prompts.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = model.lora_manager
    rank = max(weight.shape[0] for name, weight in weights.items() if ".lora_A." in name)
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    adapter = LoRAModel.from_lora_tensors(
        ADAPTER_ID,
        dict(weights),
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),  # a scale of 1
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        # Of the checkpoint's names those that vLLM changes; which it stacks, its manager knows.
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    manager.remove_adapter(ADAPTER_ID)
    manager.add_adapter(adapter)
    if lost := sorted(adapter.loras.keys() - manager.modules.keys()):
        raise RuntimeError(
            f"vLLM puts no adapter on {lost[0]} of {type(model).__name__}: leave it out of "
            "policy.model.lora.target_modules, or set publication.adapters to merged"
        )
    _leave_out_head(manager, adapter.loras)
    manager.activate_adapter(ADAPTER_ID)


class _NoAdapter:
    """Stands where vLLM would add an adapter's part of the logits."""

    def add_lora_logits(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return logits


def _leave_out_head(manager: Any, matrices: Mapping[str, Any]) -> None:
    # vLLM takes all logits for those of tokens that are sampled, and fails where prompts are
    # scored, as the probe's are; also for an adapter that leaves the head as it is.
    from vllm.lora.layers import LogitsProcessorWithLoRA

    for name, module in manager.modules.items():
        if isinstance(module, LogitsProcessorWithLoRA):
            if any(of.endswith("lm_head") for of in matrices):
                raise RuntimeError(
                    f"{name}: vLLM scores no prompts with an adapter on the head: leave it out of "
                    "policy.model.lora.target_modules, or set publication.adapters to merged"
                )
            module.punica_wrapper = _NoAdapter()
