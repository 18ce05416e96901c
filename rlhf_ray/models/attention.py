"""The attention functions of this project, made known to transformers."""

from __future__ import annotations

import torch

from rlhf_ray.models import sdpa, varlen


def register() -> None:
    """Let models take them by their names, and let SDPA choose the same kernels in every process.

    cuDNN's attention builds a graph for each shape. vLLM turns it off where it is imported: roles
    in whose processes it is not would compute by another kernel than those in whose it is.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(varlen.NAME, varlen.varlen_attention)
    AttentionInterface.register(sdpa.NAME, sdpa.packed_sdpa)
    AttentionInterface.register(sdpa.MASKED_NAME, sdpa.masked_sdpa)
    AttentionMaskInterface.register(sdpa.MASKED_NAME, sdpa_mask)
    torch.backends.cuda.enable_cudnn_sdp(False)
