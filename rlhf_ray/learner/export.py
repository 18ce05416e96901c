"""A trained model as others load it: transformers layout, adapters merged, tokenizer beside."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from rlhf_ray.data.chat.turn_end import turn_end
from rlhf_ray.learner.export_check import check_export
from rlhf_ray.learner.weight_files import write_weights
from rlhf_ray.learner.weights import named_weights, weight_infos
from rlhf_ray.models.classifier import is_packable
from rlhf_ray.models.decoder import base_of


def export_model(lm: Any, folder: Path, tokenizer_path: str, *, write: bool) -> None:
    """Write weights, configuration and tokenizer, aside first; every rank calls it, one writes.

    What was there stays until the new export is complete. Ranks that do not `write` only take part
    in gathering what ZeRO-3 has spread.

    Raises:
        RunError: What was written is not the model in memory.
    """
    if not write:
        for _ in named_weights(lm):
            continue
        return
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    written = write_weights(aside, weight_infos(lm), named_weights(lm))
    export_description(lm, aside, tokenizer_path)
    check_export(lm, aside, written)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def export_description(lm: Any, folder: Path, tokenizer_path: str) -> None:
    """Write all but the weights: configuration and tokenizer."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    base = base_of(lm)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    if hasattr(config, "quantization_config"):
        # What is written is dequantized.
        del config.quantization_config
    if base.can_generate():
        # Not `save_pretrained`, which refuses what it loaded, such as a temperature without
        # do_sample: what came with the model goes with it.
        path = folder / "generation_config.json"
        _generation_config(base, tokenizer).to_json_file(path, keys_to_pop=["compile_config"])
    elif is_packable(base) and tokenizer.pad_token_id != tokenizer.eos_token_id:
        # transformers reads a decoder's score at the last token that is not this one.
        config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if config.get_text_config() is not config:
        _copy_processor(base.config, folder)


def _generation_config(base: Any, tokenizer: Any) -> Any:
    """The model's own, which also ends where its chat template ends a turn.

    Servers take end tokens from here: one that answers in ChatML would write both sides' turns.
    """
    end = turn_end(tokenizer)
    own = base.generation_config.eos_token_id
    known = own if isinstance(own, list) else [] if own is None else [own]
    if end is None or end.token_id is None or end.token_id in known:
        return base.generation_config
    generation = copy.deepcopy(base.generation_config)
    generation.eos_token_id = [*known, end.token_id]
    return generation


def _copy_processor(config: Any, folder: Path) -> None:
    """Take along how images and sounds are read: vLLM serves no model that knows them without."""
    from transformers.utils import cached_file

    for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME):
        found = cached_file(
            config._name_or_path,
            name,
            revision=getattr(config, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            shutil.copy(found, folder / name)
