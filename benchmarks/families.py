"""Every decoder family in transformers in every role: how it runs, and that it is right so.

    python -m benchmarks.families
    python -m benchmarks.families qwen3_next gemma2 --each

A tiny random model of each family is loaded as policy (and SFT, DPO, reference), critic and reward
model, with each layout. What `rlhf_ray.models.check` lets pass is compared here once more, with
other sequences, alone and in a batch, in evaluation and twice in training mode, to the family's own
`forward`. Prints the table of `rlhf_ray/models/README.md`; `--each` adds a line a family. Exits
with 1 where something that ran was wrong.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

from benchmarks.tiny_models import UNBUILDABLE, VOCAB_SIZE, family_names, tiny
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import attention
from rlhf_ray.models.check import settle
from rlhf_ray.models.heads import TokenScorer, ValueModel
from rlhf_ray.models.modes import CheckedModel
from rlhf_ray.models.reward import RewardModel

ROLES = ("policy", "critic", "reward model")
LAYOUTS = ("auto", "packed", "padded")
LENGTHS = (31, 3, 17, 8)
# Logits are of size 1 here; float32 rounding makes some 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One family in one role and layout.

    Attributes:
        way: How it runs; empty where it is refused.
        refusal: In which words.
        error: Largest difference from its own `forward`.
    """

    way: str = ""
    refusal: str = ""
    error: float = 0.0

    @property
    def is_right(self) -> bool:
        """Refused in words counts."""
        return bool(self.refusal) or self.error <= TOLERANCE


def main() -> int:
    """Try all and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("rlhf_ray").setLevel(logging.ERROR)
    outcomes: dict[tuple[str, str, str], Outcome] = {}
    for family in arguments.families or family_names():
        for role in ROLES:
            if role == "reward model" and family not in CLASSIFIERS:
                continue
            for layout in arguments.layouts:
                outcome = outcomes[family, role, layout] = outcome_of(family, role, layout)
                if arguments.each or not outcome.is_right:
                    print(f"{family}, {role}, {layout}: {outcome}", flush=True)
    for role in ROLES:
        _print_table(
            role, {f: o for (f, r, lay), o in outcomes.items() if (r, lay) == (role, "auto")}
        )
    for family, reason in sorted(UNBUILDABLE.items()):
        print(f"not tried: {family}, {reason}")
    wrong = [key for key, outcome in outcomes.items() if not outcome.is_right]
    print(f"{len(outcomes)} cases, {len(wrong)} wrong")
    return int(bool(wrong))


def outcome_of(family: str, role: str, layout: str) -> Outcome:
    """Load one and compare."""
    attention.register()
    try:
        module = _module(family, role)
        settle(module, ForwardConfig.model_validate({"layout": layout}), torch.device("cpu"))
    except ConfigError as error:
        return Outcome(refusal=str(error))
    except Exception as error:  # of one family, which must not end the walk
        return Outcome(way=f"crashed: {type(error).__name__}: {error}", error=float("inf"))
    with torch.random.fork_rng(), torch.no_grad():
        return Outcome(way=str(module.mode), error=_error(module))


def _module(family: str, role: str) -> CheckedModel:
    if role == "reward model":
        lm, _ = tiny(family, auto=AutoModelForSequenceClassification, num_labels=1)
        return RewardModel(lm)
    lm, _ = tiny(family)
    if role == "critic":
        return ValueModel(lm, seed=0)
    return TokenScorer(lm, temperature=1.0, chunk_tokens=16)


def _error(module: CheckedModel) -> float:
    generator = np.random.default_rng(1)
    sequences_B = [generator.integers(5, VOCAB_SIZE - 5, size=n).astype(np.int32) for n in LENGTHS]
    ours = []
    for mode, times in ((False, 1), (True, 2)):
        module.train(mode)
        for _ in range(times):
            ours.append(module.outcomes(sequences_B))
            ours.append([module.outcomes([ids_T])[0] for ids_T in sequences_B])
    module.eval()
    module.transformer().set_attn_implementation("eager")
    own_B = [module.own_outcome(torch.from_numpy(ids_T).long()[None]) for ids_T in sequences_B]
    return max(
        float((ours_T - own_T).abs().max())
        for ours_B in ours
        for ours_T, own_T in zip(ours_B, own_B, strict=True)
    )


def _print_table(role: str, outcomes: dict[str, Outcome]) -> None:
    families: dict[str, list[str]] = defaultdict(list)
    for family, outcome in outcomes.items():
        families[outcome.way or f"refused: {_short(outcome.refusal)}"].append(family)
    print(f"\n{role}: {len(outcomes)} families\n\n| runs with | families |\n|---|---|")
    for way, names in sorted(families.items(), key=lambda item: -len(item[1])):
        print(f"| {way} | {_listed(names)} |")


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: " + ", ".join(f"`{name}`" for name in names)


def _short(refusal: str) -> str:
    return refusal.split(": ", 1)[-1].split(";")[0]


if __name__ == "__main__":
    raise SystemExit(main())
