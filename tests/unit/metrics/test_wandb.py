"""Weights & Biases without a network, with the real library."""

import pytest

from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.metrics import open_metrics
from rlhf_ray.metrics.log import Table
from rlhf_ray.metrics.wandb_sink import without_secrets


@pytest.fixture
def config(tmp_path):
    return SftConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "total_steps": 2,
            "data": {"path": "x"},
            "policy": {"model": {"path": "y"}},
            "wandb": {"mode": "offline", "tags": ["t"]},
        }
    )


def test_an_offline_run_is_written_and_resumed_under_its_id(config, tmp_path):
    run_dir = tmp_path / "run"
    with open_metrics(config, job="sft") as log:
        log.log(1, {"sft/loss": 2.0})
        rows = [["a", 1.0], ["b", None]]
        log.table(Table(step=1, name="eval", columns=["prompt", "score"], rows=rows))
    run_id = (run_dir / "wandb_run_id").read_text()
    with open_metrics(config, job="sft", resumed_step=1) as log:
        log.log(2, {"sft/loss": 1.0})
    files = list(run_dir.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert files
    assert b"sft/loss" in files[0].read_bytes()
    assert (run_dir / "wandb_run_id").read_text() == run_id


def test_secrets_stay_here():
    told = without_secrets(
        {
            "api_key": "k1",
            "hf_token": "k2",
            "password": "",
            "token_env": "MY_TOKEN",
            "max_tokens": 3,
            "tokenizer": "org/t",
            "remote": [{"url": "https://me:pw@host/score"}],
        }
    )
    assert told == {
        "api_key": "***",
        "hf_token": "***",
        "password": "",
        "token_env": "MY_TOKEN",
        "max_tokens": 3,
        "tokenizer": "org/t",
        "remote": [{"url": "https://***@host/score"}],
    }
