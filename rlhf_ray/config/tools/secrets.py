"""Secrets that stand in a configuration stay in the process: no file and no log shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_ray.config.tools.layers import texts
from rlhf_ray.config.tools.problems import KeyPath

MASK = "***"
# `end_token` and `answer_key` are none: a word before says what a token or key is of.
_SECRET_KEY = re.compile(
    r"(^|_)(secret|password|passwd|passphrase|credentials?|authorization|bearer"
    r"|(api|auth|access|private|secret)_?key"
    r"|(api|auth|oauth|access|refresh|session|service|security|secret|bearer|login"
    r"|hf|hub|hugging_?face|git_?hub|git_?lab|wandb|openai|scorer)_?token)$"
)
_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|-")
_URL = re.compile(r"[a-zA-Z][\w+.-]*://\S+")
_IN_URL = re.compile(
    r"(?<=://)(?P<login>[^/?#@\s]+)(?=@)"
    r"|(?P<name>[?&;][^=&;#\s]*(?:key|token|secret|passw(?:or)?d|pwd|sig|signature|credentials?"
    r"|auth|authorization)=)(?P<value>[^&;#\s]+)",
    re.IGNORECASE,
)
# As a header says it; fewer letters could be an ordinary word.
_BEARER = re.compile(r"(?P<kind>\b(?:bearer|basic)\s+)(?P<value>[\w.~+/=-]{16,})", re.IGNORECASE)
_MASKED = re.compile(
    r"://\*\*\*@|[?&;][^=&;#\s]+=\*\*\*|\b(?:bearer|basic)\s+\*\*\*", re.IGNORECASE
)
# What columns of the data are called; `token` is one like any other.
_NAMES_ONLY = "columns"


def without_secrets(values: Any) -> Any:
    """A copy without the values of keys named like a secret, and without credentials in URLs."""
    if isinstance(values, Mapping):
        return {key: _value_without_secrets(str(key), value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_secrets(value) for value in values]
    if not isinstance(values, str):
        return values
    text = _URL.sub(lambda url: _IN_URL.sub(_masked_part, url[0]), values)
    return _BEARER.sub(rf"\g<kind>{MASK}", text)


def secrets_in_url(url: str) -> list[str]:
    """The credentials that stand in a URL: login and parameters."""
    return [match["login"] or match["value"] for match in _IN_URL.finditer(url)]


def masked_keys(values: Any) -> Iterator[KeyPath]:
    """Where a configuration has the mask of `without_secrets` in place of a secret."""
    for path, text in texts(values):
        is_mask = text == MASK and bool(path) and _is_secret(path[-1])
        if _NAMES_ONLY not in path and (is_mask or _MASKED.search(text)):
            yield path


def _value_without_secrets(key: str, value: Any) -> Any:
    if key == _NAMES_ONLY:
        return value
    # A switch such as `use_api_key: true` is no secret.
    if value and not isinstance(value, bool) and _is_secret(key):
        return MASK
    return without_secrets(value)


def _is_secret(key: str) -> bool:
    """Whether `key` is named like a secret, in whichever spelling: `api_key`, `openaiApiKey`."""
    return bool(_SECRET_KEY.search(_WORD_BORDER.sub("_", key).lower()))


def _masked_part(match: re.Match[str]) -> str:
    return f"{match['name'] or ''}{MASK}"
