"""What a model's own files say: its limits, what rules it out for a role, are its weights there?

Read without transformers, and no weight is read whole. The same questions are asked of files here
(`preflight`) and of what transformers makes of a hub's name, where the data are read
(`rlhf_ray.models.fit`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from rlhf_ray.config.models import ModelConfig

# vllm/v1/attention/backends/cpu_attn.py, CPUAttentionBackend.get_supported_head_sizes, vLLM 0.32
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# RoBERTa and its kin number positions from behind the padding token's id, which is 1 by default.
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
# As GPT-2 and others of its time call what has another name by now.
_OLDER_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
}

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
# How Git LFS begins what stands for a file that was not fetched.
_POINTER = b"version https://git-lfs"
_LENGTH_BYTES = 8
# A header describes some ten thousand tensors; what asks for more is no safetensors file.
_MOST_HEADER_BYTES = 100 * 2**20
_SAMPLE_BYTES = 64 * 2**10


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's mapping; None where there is none."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model of text, which others keep in a section."""
    return {**config, **section(config, "text_config")}


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping below a key; an empty one where something else is there."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """Numbers that decide before anything starts whether a model fits; None where not stated.

    Attributes:
        head_dim: Of one attention head.
        num_heads: Query heads of a layer.
        num_kv_heads: Key and value heads of a layer.
        context_tokens: The longest sequence; None also where the model stretches its positions.
    """

    head_dim: int | None
    num_heads: int | None
    num_kv_heads: int | None
    context_tokens: int | None


def read_limits(folder: Path) -> ModelLimits | None:
    """The limits of a local model; None where `folder` holds no readable `config.json`."""
    config = read_json(folder / "config.json")
    if config is None:
        return None
    text = {ours: config[older] for older, ours in _OLDER_NAMES.items() if older in config}
    text |= text_part(config)
    num_heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    head_dim = text.get("head_dim")
    if head_dim is None and num_heads and hidden:
        head_dim = hidden // num_heads
    return ModelLimits(
        head_dim=head_dim,
        num_heads=num_heads,
        num_kv_heads=text.get("num_key_value_heads"),
        context_tokens=None if is_stretched(text) else context_of(text),
    )


def is_stretched(text: Mapping[str, Any]) -> bool:
    """Whether a model reaches further than the positions that it names, as by YaRN."""
    rope = section(text, "rope_parameters") or section(text, "rope_scaling")
    return rope.get("rope_type", rope.get("type", "default")) not in ("default", "llama3")


def context_of(text: Mapping[str, Any]) -> int | None:
    """The longest sequence by a configuration's keys, where it names one."""
    num_positions = text.get("max_position_embeddings")
    return usable_positions(num_positions, text.get("model_type"), text.get("pad_token_id"))


def usable_positions(
    num_positions: int | None, model_type: str | None, padding: int | None
) -> int | None:
    """Those of a model's positions that tokens can have; None for any number of them."""
    if num_positions is None or num_positions < 1:  # XLNet says -1
        return None
    if model_type not in POSITIONS_AFTER_PADDING:
        return int(num_positions)
    return int(num_positions) - (1 if padding is None else int(padding)) - 1


# A critic may start from a reward model; a classifier from any model.
Kind: TypeAlias = Literal["causal", "critic", "classifier"]

_ROLE_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_NO_DECODER = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining")
_CLASSIFIER = "ForSequenceClassification"


def kind_fault(config: Mapping[str, Any], kind: Kind) -> str | None:
    """Whether a model, by its `config.json`, is of another kind than a role takes."""
    if kind == "classifier":
        return None
    names = config.get("architectures") or []
    what = " or ".join(names) or config.get("model_type")
    if config.get("is_encoder_decoder"):
        return f"is {what}, an encoder with a decoder: a decoder alone is wanted"
    unfit = _NO_DECODER if kind == "critic" else (*_NO_DECODER, _CLASSIFIER)
    if names and all(name.endswith(unfit) for name in names):
        return f"is {what}: a causal language model is wanted"
    return None


def quantization_fault(config: Mapping[str, Any], model: ModelConfig) -> str | None:
    """Whether a model that is to be trained comes in weights that cannot be."""
    if not config.get("quantization_config"):
        return None
    method = section(config, "quantization_config").get("quant_method") or "bitsandbytes"
    if method == "bitsandbytes" and model.lora.rank:
        return None
    return (
        f"holds weights that are quantized ({method}) and cannot be trained: name the model in "
        "bfloat16 or float32; model.quantization with lora.rank quantizes it here"
    )


def token_id_faults(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens in `config.json` or `generation_config.json` that have no embedding."""
    num_rows = text_part(config).get("vocab_size")
    if not isinstance(num_rows, int):
        return
    files = {"config.json": text_part(config), "generation_config.json": generation}
    for file, values in files.items():
        for key in _ROLE_IDS:
            given = values.get(key)
            for token_id in given if isinstance(given, list) else [given]:
                if isinstance(token_id, int) and not 0 <= token_id < num_rows:
                    yield (
                        f"has {key} {token_id} in its {file}, but embeddings of the tokens 0 to "
                        f"{num_rows - 1} alone: correct it there"
                    )


def weights_fault(folder: Path) -> str | None:
    """What is wrong with the weights of a folder in the transformers layout; None for nothing."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = (read_json(adapter) or {}).get("base_model_name_or_path") or "its base model"
        return (
            f"folder {str(folder)!r} holds an adapter: merge it into {base} (peft's "
            "merge_and_unload) and name the folder with the result"
        )
    for name in (SAFETENSORS, BIN):  # in transformers' order
        if (folder / name).is_file():
            return _file_fault(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards_fault(index)
    return f"folder {str(folder)!r} holds no weights ({SAFETENSORS}, or its parts and their index)"


def untied_head_fault(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Whether embeddings that `config.json` ties to the head are other ones in the files.

    transformers then leaves them apart and vLLM does not.
    """
    if not config.get("tie_word_embeddings"):
        return None
    places = {name: (file, span) for file in _files(folder) for name, span in _spans(file)}
    embedding = next((n for n in places if n.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if embedding is None or "lm_head.weight" not in places:
        return None
    if _samples(*places["lm_head.weight"]) == _samples(*places[embedding]):
        return None
    return (
        f"{str(folder)!r} says tie_word_embeddings in its config.json, but lm_head.weight is not "
        f"{embedding}: set it to false there"
    )


def _shards_fault(index: Path) -> str | None:
    names = set((read_json(index) or {}).get("weight_map", {}).values())
    if not names:
        return f"{str(index)!r} names no files"
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        return f"folder {str(index.parent)!r} lacks {', '.join(missing)}, which {index.name} names"
    faults = (_file_fault(index.parent / name) for name in sorted(names))
    return next((fault for fault in faults if fault), None)


def _file_fault(path: Path) -> str | None:
    size = path.stat().st_size
    if size == 0:
        return f"{str(path)!r} is empty"
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            return f"{str(path)!r} stands for a file that was not fetched: run git lfs pull there"
        if path.suffix != ".safetensors":
            return None
        file.seek(0)
        header = _header(file, size)
    if header is None:
        return f"{str(path)!r} is no safetensors file, or cut short"
    start, tensors = header
    whole = start + max((end for _, end in tensors.values()), default=0)
    return None if size == whole else f"{str(path)!r} has {size} bytes, but names {whole}"


def _header(file: BinaryIO, size: int) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """Where the data begin, and each tensor's bytes from there."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > min(size - _LENGTH_BYTES, _MOST_HEADER_BYTES):
        return None
    try:
        named = json.loads(file.read(length))
        spans = {name: value["data_offsets"] for name, value in named.items() if name[:2] != "__"}
        return _LENGTH_BYTES + length, {name: (int(a), int(b)) for name, (a, b) in spans.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _files(folder: Path) -> list[Path]:
    """Those of safetensors that transformers would load."""
    whole, index = folder / SAFETENSORS, folder / f"{SAFETENSORS}.index.json"
    if whole.is_file():
        return [whole]
    return [folder / name for name in set((read_json(index) or {}).get("weight_map", {}).values())]


def _spans(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    with path.open("rb") as file:
        start, tensors = _header(file, path.stat().st_size) or (0, {})
    for name, (first, end) in tensors.items():
        yield name, (start + first, start + end)


def _samples(path: Path, span: tuple[int, int]) -> tuple[int, list[bytes]]:
    """A tensor's length, and bytes of its beginning, middle and end."""
    first, end = span
    last = max(first, end - _SAMPLE_BYTES)
    samples = []
    with path.open("rb") as file:
        for place in (first, (first + last) // 2, last):
            file.seek(place)
            samples.append(file.read(min(_SAMPLE_BYTES, end - place)))
    return end - first, samples
