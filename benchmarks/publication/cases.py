"""Which publications are tried, and the tiny models that are published."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.config.learners import LearnerConfig

FAMILIES = ("qwen2", "llama", "mixtral", "qwen3_moe")
BACKENDS = ("nccl", "ipc", "object_store")
STAGES = (0, 3)
# As many heads of keys as ranks, so that each holds its own, of a width that vLLM's kernels take.
SHAPES: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model's publication.

    Attributes:
        family: Model type of transformers.
        is_tied: Whether the head is the embedding.
        lora: Rank of adapters on all linear layers; 0 for none.
        stage: Of ZeRO.
        backend: `nccl`, `ipc` or `object_store`.
    """

    family: str
    is_tied: bool
    lora: int
    stage: int
    backend: str

    @property
    def model(self) -> str:
        """What is published; cases of one follow each other."""
        tied = "tied" if self.is_tied else "untied"
        return f"{self.family}, {tied}{', LoRA' if self.lora else ''}"

    @property
    def way(self) -> str:
        """How."""
        return f"{self.backend}, ZeRO {self.stage}"


def matrix(families: Sequence[str] = FAMILIES) -> list[Case]:
    """All combinations."""
    return [
        Case(family=family, is_tied=is_tied, lora=lora, stage=stage, backend=backend)
        for family, is_tied, lora, backend, stage in itertools.product(
            families, (True, False), (0, 4), BACKENDS, STAGES
        )
    ]


def learner_config(case: Case, folder: str) -> LearnerConfig:
    """Of the policy."""
    model = {"path": folder, "dtype": "bfloat16", "lora": {"rank": case.lora}}
    return LearnerConfig.model_validate({"model": model, "zero": {"stage": case.stage}})


def write_model(case: Case, folder: Path) -> None:
    """Write a model in bfloat16, every number of it random."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from benchmarks.tiny_models import tiny

    known = CONFIG_MAPPING[case.family]().to_dict()
    settings = {name: value for name, value in SHAPES.items() if name in known}
    model, _ = tiny(case.family, tie_word_embeddings=case.is_tied, **settings)
    model.to(torch.bfloat16).save_pretrained(folder)


def write_other_weights(case: Case, folder: Path, wanted: Path) -> dict[str, torch.Tensor]:
    """Other numbers for a case's model, by parameter, and the same as files in `wanted`.

    transformers writes the files; what it does not merge, our own export.
    """
    from benchmarks.tiny_models import fill
    from rlhf_ray.learner.export import write_weights
    from rlhf_ray.learner.weights import named_weights, weight_infos
    from rlhf_ray.models.load import load_causal_lm

    lm: Any = load_causal_lm(learner_config(case, str(folder)).model, device=torch.device("cpu"))
    fill(lm, seed=1)
    if case.lora:
        lm.get_base_model().config.save_pretrained(wanted)
        write_weights(wanted, weight_infos(lm), named_weights(lm))
    else:
        lm.save_pretrained(wanted)
    return {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}
