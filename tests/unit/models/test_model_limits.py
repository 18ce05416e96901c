from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config.checks.model_files import POSITIONS_AFTER_PADDING, read_limits
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.limits import context_length, positions_of


@pytest.mark.parametrize(("kind", "length"), [("roberta", 62), ("bert", 64), ("llama", 64)])
def test_positions_before_the_first_token_are_not_context(
    tmp_path: Path, kind: str, length: int
) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, max_position_embeddings=64, pad_token_id=1)
    config.save_pretrained(tmp_path)
    assert context_length(ModelConfig(path=str(tmp_path))) == length
    limits = read_limits(tmp_path)
    assert limits is not None
    assert limits.context_tokens == length


def test_a_model_without_a_longest_sequence_has_none_below_zero_either(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("xlnet")
    assert positions_of(config) is None
    (tmp_path / "config.json").write_text('{"model_type": "xlnet", "max_position_embeddings": -1}')
    limits = read_limits(tmp_path)
    assert limits is not None and limits.context_tokens is None


def test_who_numbers_positions_from_behind_the_padding_token() -> None:
    """As transformers' own code does it, in the models that classify texts."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
    )

    models = Path(transformers.__file__).parent / "models"
    found = set()
    for kind in CLASSIFIERS:
        name = kind.replace("-", "_")
        source = models / {"data2vec_text": "data2vec"}.get(name, name) / f"modeling_{name}.py"
        text = source.read_text() if source.is_file() else ""
        if "def create_position_ids_from_input_ids" in text:
            found.add(kind)
    assert found - {"layoutlmv3", "m2m_100", "nllb_moe"} <= POSITIONS_AFTER_PADDING
    assert found | {"roberta", "camembert", "luke", "markuplm"} >= POSITIONS_AFTER_PADDING


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "zzz"}', r"has model type `zzz` but .* \(transformers \d"),
        ("{}", "Should have a `model_type` key"),
        ("{", "is not a valid JSON file"),
        ('{"model_type": "llama", "hidden_size": "x"}', "'hidden_size'"),
        ('{"model_type": "llama", "hidden_size": 65, "num_attention_heads": 2}', "multiple"),
        ('{"model_type": "mamba"}', "names no longest sequence: set rollout.max_model_len"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_said_in_words(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        context_length(ModelConfig(path=str(tmp_path)))
