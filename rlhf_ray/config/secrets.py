"""Secrets that stand in a configuration stay in the process: no file and no log shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET_KEY = re.compile(r"(^|[_-])(token|api_?key|key|secret|password|credentials?)$", re.I)
_LOGIN_IN_URL = re.compile(r"://[^/@\s]+@")


def without_secrets(values: Any) -> Any:
    """A copy without logins in URLs and without the values of keys named like a secret."""
    if isinstance(values, Mapping):
        return {
            key: "***"
            if isinstance(value, str) and value and _SECRET_KEY.search(str(key))
            else without_secrets(value)
            for key, value in values.items()
        }
    if isinstance(values, list):
        return [without_secrets(value) for value in values]
    return _LOGIN_IN_URL.sub("://***@", values) if isinstance(values, str) else values
