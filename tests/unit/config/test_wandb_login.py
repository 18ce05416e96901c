"""W&B online without a login is refused before the start."""

import pytest

from rlhf_ray.config.checks.preflight import find_problems, login_fault
from rlhf_ray.config.supervised import SftConfig


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(("mode", "refused"), [("online", True), ("offline", False)])
def test_only_online_needs_one(mode, refused):
    config = SftConfig.model_validate(
        {"data": {"path": "x"}, "policy": {"model": {"path": "a/b"}}, "wandb": {"mode": mode}}
    )
    found = [str(p) for p in find_problems(config) if p.path == ("wandb", "mode")]
    assert bool(found) == refused
    assert all("set WANDB_API_KEY, run `wandb login`, or set" in text for text in found)


def test_a_key_or_a_noted_login_will_do(tmp_path):
    assert login_fault({}) is not None
    assert login_fault({"WANDB_API_KEY": "k"}) is None
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n login user\n password k\n")
    assert login_fault({}) is None
    other = login_fault({"WANDB_BASE_URL": "https://wandb.example"})
    assert other is not None and "wandb.example" in other
