"""Does the export of every family load again, in transformers and in vLLM, as the same model?

    python -m benchmarks.exports                     # all families: 15 minutes on 2 cores
    python -m benchmarks.exports mixtral qwen3_moe   # some

Of each family a tiny model, every weight and buffer of it random, is exported as it is and with
adapters on all its linear layers. Printed is what is not as it should be: names other than those
that `save_pretrained` gives, logits of a loaded copy other than the model's own, and names that
vLLM's loader does not take or that leave a parameter of its model without values. The exit code
says whether anything was printed as wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks.tiny_models import VOCAB_SIZE, family_names, tiny
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.base import settle_unreached
from rlhf_ray.learner.export import export_model
from rlhf_ray.learner.weights import require_mergeable
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import with_adapter

RANK = 4
TOKENS = torch.arange(3, 27)[None]
# Of logits, as a share of their size: adapters are merged before they are multiplied, which rounds,
# and a random mixture of experts makes much of that.
GAP = 2e-3
# What the configurations on the hub say, transformers' own default does not, and vLLM asks for.
OWN_SETTINGS = {"deepseek_v3": {"topk_method": "noaux_tc"}}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one export.

    Attributes:
        wrong: What is not as it should be, in words; empty where all is right.
        refused: Why there is no export at all; empty where there is one.
    """

    wrong: str = ""
    refused: str = ""


def exported(model_type: str, folder: Path, *, rank: int) -> Outcome:
    """Export a tiny model of a family, adapters of the given rank on it or 0 for none.

    Args:
        model_type: One of `family_names()`.
        folder: Gets the folders `family`, as `save_pretrained` writes it, and `export`.
        rank: Of the adapters.
    """
    made, _ = tiny(model_type, **OWN_SETTINGS.get(model_type, {}))
    made.save_pretrained(folder / "family")
    tokenizer(folder / "tokenizer")
    lm = type(made).from_pretrained(folder / "family").eval()
    if rank:
        config = ModelConfig.model_validate({"path": model_type, "lora": {"rank": rank}})
        try:
            lm = with_adapter(lm, config).eval()
            require_mergeable(lm)
            settle_unreached(TokenScorer(lm, temperature=1.0, chunk_tokens=RANK), is_sharded=False)
        except (ConfigError, ValueError) as error:
            return Outcome(refused=f"{type(error).__name__}: {error}")
        randomize_adapters(lm)
    wanted = logits_of(lm)
    export_model(lm, folder / "export", str(folder / "tokenizer"), write=True)
    if names := names_in(folder / "family") ^ names_in(folder / "export"):
        return Outcome(wrong=f"names {', '.join(sorted(names)[:4])}")
    loaded = type(made).from_pretrained(folder / "export").eval()
    gap = float((logits_of(loaded) - wanted).norm() / wanted.norm())
    return Outcome() if gap <= GAP else Outcome(wrong=f"logits {gap:.1e} apart")


def randomize_adapters(lm: Any) -> None:
    """Give adapters under training numbers that matter: peft makes their product 0."""
    torch.manual_seed(1)
    for name, parameter in lm.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3 * parameter.shape[-1] ** -0.5)


@torch.no_grad()
def logits_of(lm: Any) -> torch.Tensor:
    """Of one sequence."""
    logits: torch.Tensor = lm(input_ids=TOKENS, use_cache=False).logits
    return logits


def names_in(folder: Path) -> set[str]:
    """Of the weights."""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.offset_keys())
    return names


def tokenizer(folder: Path) -> None:
    """Write one of as many words as the tiny models have."""
    from tokenizers import Tokenizer, models

    words = {f"<{index}>": index for index in range(VOCAB_SIZE)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<0>", bos_token="<1>", eos_token="<2>"
    ).save_pretrained(folder)


def taken_by_vllm(folder: Path) -> Outcome:
    """Whether vLLM takes an export, if it takes what `save_pretrained` wrote of the same model."""
    config = AutoConfig.from_pretrained(folder / "export")
    if config.get_text_config() is not config:
        return Outcome(refused="asks how images or sounds are read, which no tiny model says")
    if not (wrong := vllm_says_of(folder / "export")):
        return Outcome()
    if own := vllm_says_of(folder / "family"):
        return Outcome(refused=f"nor the family's own: {own}")
    return Outcome(wrong=wrong)


def vllm_says_of(folder: Path) -> str:
    """Build vLLM's model of a folder without an engine, and have it load the weights.

    Every parameter is NaN beforehand, so that one which got no values shows. Empty where all is
    right.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator
    from vllm.utils.torch_utils import set_default_torch_dtype

    try:
        config = EngineArgs(
            model=str(folder), dtype="float32", enforce_eager=True, max_model_len=64
        ).create_engine_config()
        with set_default_torch_dtype(torch.float32):
            model = initialize_model(config)
    # Whatever vLLM raises says that it does not serve such a model, which is not ours to mend.
    except Exception as error:
        return f"builds none: {type(error).__name__}: {first_line(error)}"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)
    files = sorted(str(file) for file in folder.glob("*.safetensors"))
    try:
        model.load_weights(safetensors_weights_iterator(files, use_tqdm_on_load=False))
    except Exception as error:
        return f"its loader: {type(error).__name__}: {first_line(error)}"
    empty = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    return f"got no {', '.join(empty[:4])}" if empty else ""


def start_vllm() -> None:
    """A process group of one, which vLLM's layers ask for their share."""
    os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    store = f"file://{tempfile.mkdtemp()}/store"
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, store, 0, "gloo")
        initialize_model_parallel()


def first_line(error: Exception) -> str:
    """Of what it says."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def outcomes_of(family: str, folder: Path) -> dict[str, Outcome]:
    """In transformers, as it is and with adapters."""
    outcomes = {}
    for what, rank in (("adapters", RANK), ("export", 0)):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            outcomes[what] = exported(family, folder, rank=rank)
        except Exception as error:  # the next family is not to suffer from it
            outcomes[what] = Outcome(wrong=f"{type(error).__name__}: {first_line(error)}")
    return outcomes


def main() -> int:
    """Walk the families."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=family_names())
    parser.add_argument("--no-vllm", action="store_true", help="transformers alone")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    num_wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folders = {family: Path(name) / family for family in options.families}
        for family, folder in folders.items():
            num_wrong += printed(family, outcomes_of(family, folder))
        if options.no_vllm:
            return int(num_wrong > 0)
        start_vllm()  # after all else: it lays its own classes over those of transformers
        for family, folder in folders.items():
            if (folder / "export").is_dir():
                num_wrong += printed(family, {"vLLM": taken_by_vllm(folder)})
    return int(num_wrong > 0)


def printed(family: str, outcomes: dict[str, Outcome]) -> int:
    """How many are wrong."""
    cells = [
        f"{what}: {f'WRONG {one.wrong}' if one.wrong else one.refused or 'right'}"
        for what, one in outcomes.items()
    ]
    print(f"{family:24} {' | '.join(cells)}", flush=True)
    return sum(bool(one.wrong) for one in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
