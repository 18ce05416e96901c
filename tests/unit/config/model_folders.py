"""Folders that look like models, and a job that finds them."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.checks.preflight import preflight
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import ConfigError

# The group of a policy that publishes to engines on GPUs.
ON_GPU = {"gpus_per_rank": 1}


def write_weights(path: Path, **tensors: bytes) -> None:
    """A safetensors file: each tensor's bytes by its name."""
    header: dict[str, Any] = {}
    end = 0
    for name, data in (tensors or {"w": bytes(4)}).items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    data = b"".join((tensors or {"w": bytes(4)}).values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_model(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    config = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")


def refused(values: dict[str, Any], cls: type[JobConfig] = GrpoConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        preflight(cls.model_validate(values))
    return str(caught.value)
