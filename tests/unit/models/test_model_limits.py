from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.models.limits import context_length


@pytest.mark.parametrize(("kind", "length"), [("roberta", 62), ("bert", 64), ("llama", 64)])
def test_positions_before_the_first_token_are_not_context(
    tmp_path: Path, kind: str, length: int
) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, max_position_embeddings=64, pad_token_id=1)
    config.save_pretrained(tmp_path)
    assert context_length(str(tmp_path), revision="main", trust_remote_code=False) == length
