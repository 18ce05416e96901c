"""What is masked when a configuration is written, and what is not."""

from __future__ import annotations

import pytest

from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.tools.load import dump_config, load_config
from rlhf_ray.config.tools.secrets import masked_keys, secrets_in_url, without_secrets
from rlhf_ray.errors import ConfigError

SECRET = "s3cr3t-0123456789"
BASE = {
    "data": {"path": "prompts.jsonl"},
    "policy": {"model": {"path": "org/model"}},
    "reward": {"functions": [{"path": "rewards.py:score"}]},
}


def dumped(tmp_path, **reward):
    config = GrpoConfig.model_validate({**BASE, "reward": {**BASE["reward"], **reward}})
    dump_config(config, tmp_path / "config.yaml")
    return config, tmp_path / "config.yaml"


@pytest.mark.parametrize(
    "key",
    [
        "api_key", "apikey", "apiKey", "openaiApiKey", "OPENAI_API_KEY", "X-Api-Key", "hf_token",
        "HFToken", "auth_token", "accessToken", "refresh_token", "secret", "client_secret",
        "password", "db-password", "authorization", "Authorization", "Proxy-Authorization",
        "private_key", "aws_secret_access_key", "credentials", "bearer", "bearerToken",
    ],
)  # fmt: skip
def test_what_is_named_like_a_secret_is_masked(key):
    assert without_secrets({"a": [{key: SECRET}]}) == {"a": [{key: "***"}]}
    assert without_secrets({key: 123456}) == {key: "***"}
    assert without_secrets({key: {"user": "me", "pass": SECRET}}) == {key: "***"}


@pytest.mark.parametrize(
    "key",
    [
        "end_token", "answer_key", "pad_token", "token", "key", "keys", "token_env", "max_tokens",
        "tokenizer", "sort_key", "stop_token_ids", "secrets_of_cooking", "monkey", "author",
    ],
)  # fmt: skip
def test_other_names_keep_their_values(key):
    assert without_secrets({key: "</s>"}) == {key: "</s>"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"password": ""}, {"password": ""}),
        ({"use_api_key": True}, {"use_api_key": True}),
        ({"columns": {"password": "pw", "hf_token": "t"}},) * 2,
        ("https://me:pw@host/score", "https://***@host/score"),
        (f"https://{SECRET}@host/score", "https://***@host/score"),
        (f"https://h/s?api_key={SECRET}&n=3", "https://h/s?api_key=***&n=3"),
        (
            f"https://h/s?n=3&X-Amz-Signature={SECRET}#top",
            "https://h/s?n=3&X-Amz-Signature=***#top",
        ),
        (f"at https://h/?token={SECRET} and", "at https://h/?token=*** and"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        ("the bearer of good news; why?key=3",) * 2,
        ("s3://bucket/model?versionId=3", "s3://bucket/model?versionId=3"),
    ],
)
def test_what_is_told_of_values(given, told):
    assert without_secrets(given) == told


def test_a_urls_secrets_are_found():
    url = "https://me:pw@host/score?api_key=one&n=3&sig=two"
    assert secrets_in_url(url) == ["me:pw", "one", "two"]


def test_a_written_configuration_is_the_same_where_nothing_is_secret(tmp_path):
    arguments = {"end_token": "</s>", "answer_key": "gold", "token": "x", "stars": "***"}
    functions = [{"path": "rewards.py:score", "arguments": arguments}]
    config, path = dumped(tmp_path, functions=functions)
    assert load_config(GrpoConfig, path) == config


@pytest.mark.parametrize(
    ("reward", "key"),
    [
        (
            {"functions": [{"path": "r.py:f", "arguments": {"api_key": SECRET}}]},
            "reward.functions.0.arguments.api_key",
        ),
        (
            {"functions": [{"path": "r.py:f", "arguments": {"headers": [f"Bearer {SECRET}"]}}]},
            "reward.functions.0.arguments.headers.0",
        ),
        ({"remote": {"url": f"https://h/score?api_key={SECRET}"}}, "reward.remote.url"),
        ({"remote": {"url": f"https://me:{SECRET}@h/score"}}, "reward.remote.url"),
    ],
)
def test_a_masked_secret_is_asked_for(tmp_path, reward, key):
    config, path = dumped(tmp_path, **reward)
    assert SECRET not in path.read_text()
    with pytest.raises(ConfigError) as caught:
        load_config(GrpoConfig, path)
    assert "1 problem" in str(caught.value)
    assert f"  {key} (line " in str(caught.value)
    assert "*** stands for a secret that was left out of the file" in str(caught.value)
    if key == "reward.remote.url":
        assert load_config(GrpoConfig, path, [f"--{key}={config.reward.remote.url}"]) == config


def test_every_mask_is_found():
    values = {"a": [{"password": SECRET}, f"x://u:{SECRET}@h", f"x://h?key={SECRET}"], "b": "***"}
    assert list(masked_keys(values)) == []
    masked = list(masked_keys(without_secrets(values)))
    assert masked == [("a", "0", "password"), ("a", "1"), ("a", "2")]
