"""A job whose files are all there."""

import pytest
from model_folders import write_model

REWARD = """
def score(prompts, completions):
    return [0.0 for _ in completions]
"""


@pytest.fixture
def good(tmp_path):
    """A configuration that passes, as a mapping that a test may spoil."""
    write_model(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "rewards.py").write_text(REWARD)
    return {
        "data": {"path": str(tmp_path / "prompts.jsonl")},
        "policy": {"model": {"path": str(tmp_path / "model")}},
        "reward": {"functions": [{"path": f"{tmp_path}/rewards.py:score"}]},
        "rollout": {"max_new_tokens": 64},
    }
