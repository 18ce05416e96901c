"""The sizes of a model that its memory follows from, read from its `config.json` without torch.

What is below a fiftieth of a real model is left out: norms, biases, positions, poolers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlhf_ray.config.checks.references import is_hub_name
from rlhf_ray.errors import ConfigError

Head = Literal["lm", "value", "score"]

# Families whose layers have a gate, and those whose layers have none.
_GATED = (
    "cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral",
    "modernbert", "olmo", "olmo2", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3",
    "stablelm",
)  # fmt: skip
_UNGATED = (
    "bert", "bloom", "deberta-v2", "distilbert", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt",
    "phi", "roberta", "starcoder2", "xlm-roberta",
)  # fmt: skip
FAMILIES = (*_GATED, *_UNGATED)
# Head and embedding are one where the configuration does not say.
_TIED = (
    "bloom", "cohere", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "opt", "smollm3",
    "starcoder2",
)  # fmt: skip
# Of one head, where the configuration does not say and it is not hidden / heads.
_HEAD_DIM = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128, "qwen3_moe": 128}
# What GPTs, BLOOM, OPT and DistilBERT call a size.
_OTHER_NAMES = {
    "hidden_size": ("n_embd", "dim"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "num_heads", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "hidden_dim"),
    "max_position_embeddings": ("n_positions",),
}
# Where peft knows a family's experts: what a target is called that takes the router, that takes
# gates (with what they are multiplied with), and that takes the products back.
_EXPERT_TARGETS = {
    "mixtral": ("gate", "w1", "w2"),
    "qwen3_moe": ("gate", "gate_proj", "down_proj"),
}


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of a layer, or all of one kind of its experts.

    Attributes:
        name: What transformers calls it in most decoders, such as `q_proj`; empty where names vary.
        count: More than one of experts, which transformers keeps in one tensor.
        adapters: How many of LoRA's pairs peft puts on it.
        quantizes: Whether bitsandbytes replaces it: not experts and their router.
    """

    inputs: int
    outputs: int
    name: str = ""
    count: int = 1
    adapters: int = 1
    quantizes: bool = True

    @property
    def num_weights(self) -> int:
        """Of all of the kind."""
        return self.count * self.inputs * self.outputs


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that memory follows from.

    Attributes:
        matrices: Of all layers.
        num_embedding: Weights of the embedding.
        num_lm_head: Weights; 0 where it is the embedding.
        num_heads: Query heads of a layer; `num_kv_heads` for keys and values.
        ffn: Inner width that one token passes through, those of its experts added.
        is_gated: Whether the inner width is computed twice and multiplied.
        context_tokens: The longest sequence; 0 where not stated.
    """

    hidden: int
    vocabulary: int
    num_layers: int
    matrices: tuple[Matrix, ...]
    num_embedding: int
    num_lm_head: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    is_gated: bool
    context_tokens: int

    @cached_property
    def num_body(self) -> int:
        """Parameters without any head."""
        return self.num_embedding + sum(matrix.num_weights for matrix in self.matrices)

    def num_head(self, head: Head) -> int:
        """Parameters that a head adds."""
        return self.num_lm_head if head == "lm" else self.hidden

    def num_parameters(self, head: Head) -> int:
        """Parameters with a head."""
        return self.num_body + self.num_head(head)

    @cached_property
    def num_quantized(self) -> int:
        """Weights that bitsandbytes replaces."""
        return sum(matrix.num_weights for matrix in self.matrices if matrix.quantizes)

    @cached_property
    def largest_tensor(self) -> int:
        """Weights of the largest tensor: the embedding, or a layer's experts."""
        return max(self.num_embedding, *(matrix.num_weights for matrix in self.matrices))

    def num_adapter(self, rank: int, targets: Sequence[str] | Literal["all-linear"]) -> int:
        """Weights of LoRA's pairs.

        On all matrices where a target's name is not known here: rather too many than too few.
        """
        names = {target.rpartition(".")[2] for target in targets}
        every = targets == "all-linear" or not names <= {matrix.name for matrix in self.matrices}
        return rank * sum(
            matrix.adapters * (matrix.inputs + matrix.outputs)
            for matrix in self.matrices
            if every or matrix.name in names
        )


def read_shape(path: Path) -> ModelShape:
    """The shape of the model in a folder, or of a `config.json` by itself.

    Raises:
        ConfigError: Unreadable, or of a family that is not known here.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {str(file)!r}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{str(file)!r} must hold a model's configuration, got no mapping")
    try:
        return shape_of(config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{str(file)!r} lacks or misstates a size: {error}") from error


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a configuration describes.

    Raises:
        ConfigError: A family that is not known here.
        KeyError: A size that its family needs is missing.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise ConfigError(
            f"cannot plan for models of type {family!r}; known are {', '.join(sorted(FAMILIES))}"
        )
    hidden, vocabulary = _size(config, "hidden_size"), _size(config, "vocab_size")
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", heads)
    head_dim = _size(config, "head_dim", _HEAD_DIM.get(family, hidden // heads))
    query, key = heads * head_dim, kv_heads * head_dim
    attention = [
        Matrix(inputs=hidden, outputs=query, name="q_proj"),
        Matrix(inputs=hidden, outputs=key, name="k_proj"),
        Matrix(inputs=hidden, outputs=key, name="v_proj"),
        Matrix(inputs=query, outputs=hidden, name="o_proj"),
    ]
    inner = list(_inner(config, family, hidden))
    num_embedding = vocabulary * _size(config, "word_embed_proj_dim", hidden)
    return ModelShape(
        hidden=hidden,
        vocabulary=vocabulary,
        num_layers=len(inner),
        matrices=tuple(matrix for _, layer in inner for matrix in (*attention, *layer)),
        num_embedding=num_embedding,
        num_lm_head=0 if config.get("tie_word_embeddings", family in _TIED) else num_embedding,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=max(width for width, _ in inner),
        is_gated=family in _GATED,
        context_tokens=_size(config, "max_position_embeddings", 0),
    )


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    names = (name, *_OTHER_NAMES.get(name, ()))
    found = next((config[one] for one in names if config.get(one) is not None), default)
    if found is None:
        raise KeyError(name)
    return int(found)


def _inner(
    config: Mapping[str, Any], family: str, hidden: int
) -> Iterator[tuple[int, list[Matrix]]]:
    """Of each layer the width that a token passes through, and the matrices."""
    width = _size(config, "intermediate_size", 4 * hidden)
    dense = sparse = (width, _mlp(hidden, width, is_gated=family in _GATED))
    if config.get("num_local_experts") or config.get("num_experts"):
        sparse = _experts(config, family, hidden, _size(config, "moe_intermediate_size", width))
    step, dense_layers = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    for layer in range(_size(config, "num_hidden_layers")):
        yield dense if layer in dense_layers or (layer + 1) % step else sparse


def _mlp(hidden: int, width: int, *, is_gated: bool) -> list[Matrix]:
    """To the inner width, twice where one gates the other, and back; without a gate names vary."""
    *into, back = ("gate_proj", "up_proj", "down_proj") if is_gated else ("", "")
    return [
        *(Matrix(inputs=hidden, outputs=width, name=name) for name in into),
        Matrix(inputs=width, outputs=hidden, name=back),
    ]


def _experts(
    config: Mapping[str, Any], family: str, hidden: int, width: int
) -> tuple[int, list[Matrix]]:
    """Those of a layer; gate and up are one matrix, to which peft gives twice the rank."""
    num = int(config.get("num_local_experts") or config["num_experts"])
    router, gate, down = _EXPERT_TARGETS.get(family, ("", "", ""))
    sizes = [  # and how many there are, and how many adapters peft puts on each
        (router, hidden, num, 1, 1),
        (gate, hidden, 2 * width, num, 2),
        (down, width, hidden, num, 1),
    ]
    experts = [
        Matrix(
            name=name,
            inputs=inputs,
            outputs=outputs,
            count=count,
            adapters=count * adapters if name else 0,
            quantizes=False,
        )
        for name, inputs, outputs, count, adapters in sizes
    ]
    shared = int(config.get("shared_expert_intermediate_size", 0))
    if shared:
        experts += [*_mlp(hidden, shared, is_gated=True), Matrix(inputs=hidden, outputs=1)]
    return shared + width * int(config.get("num_experts_per_tok", 2)), experts


def read_shapes(paths: Mapping[str, str], given: Sequence[str]) -> dict[str, ModelShape]:
    """The shape of every model that is loaded, by its path.

    Args:
        paths: Of the models, by the keys that name them.
        given: `FILE` for the only model that is not on this disk, or `MODEL=FILE`.

    Raises:
        ConfigError: A model is neither on this disk nor given, or cannot be read.
    """
    files = _given_files(given, set(paths.values()))
    shapes: dict[str, ModelShape] = {}
    for key, path in paths.items():
        if path not in shapes:
            shapes[path] = read_shape(files.get(path) or _on_disk(key, path))
    return shapes


def _given_files(given: Sequence[str], wanted: set[str]) -> Mapping[str, Path]:
    files = {}
    for one in given:
        path, equals, file = one.rpartition("=")
        path = os.path.expanduser(path)
        if equals and path not in wanted:
            raise ConfigError(
                f"--model-config names {path!r}, which is not loaded; "
                f"{', '.join(sorted(wanted))} would be"
            )
        absent = sorted(path for path in wanted if _found(path) is None)
        if not equals and len(absent) > 1:
            raise ConfigError(
                f"--model-config {file} could be of {' or '.join(absent)}: "
                f"write --model-config {absent[0]}={file}, and the same for each other"
            )
        files[path if equals else (absent or sorted(wanted))[0]] = Path(file).expanduser()
    return files


def _on_disk(key: str, path: str) -> Path:
    found = _found(path)
    if found is not None:
        return found
    if is_hub_name(path):
        raise ConfigError(
            f"{key} is {path!r}, which is not on this disk: its config.json alone is needed; "
            f"get it with `hf download {path} config.json`, or name such a file with "
            "--model-config FILE"
        )
    raise ConfigError(
        f"{key} is {path!r}, where no config.json is; where the job is to make that model first, "
        "name one like it with --model-config FILE"
    )


def _found(path: str) -> Path | None:
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    cached = _cache() / f"models--{path.replace('/', '--')}" / "snapshots"
    return max(cached.glob("*/config.json"), key=lambda file: file.stat().st_mtime, default=None)


def _cache() -> Path:
    """As huggingface_hub finds it."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
