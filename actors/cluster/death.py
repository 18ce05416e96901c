"""What Ray says of an actor's death, in one line: on which node, and why."""

from __future__ import annotations

import re
import textwrap

from ray.exceptions import RayActorError, RayError

# As far as what Ray takes for common causes of a process's end: want of memory comes first.
MOST_CHARACTERS = 320
_FIELD = re.compile(r"\t(class_name|actor_id|pid|name|namespace|ip): ")
_ADDRESS = re.compile(r"\bip(?:: |=)([0-9A-Fa-f.:]+)")


def death_of(error: RayError) -> str:
    """Example: `on 10.0.0.2: The actor is dead because its node has died. Node Id: 1f3a...`."""
    said = str(error).strip()
    first, *others = said.splitlines() or [type(error).__name__]
    is_in_start = isinstance(error, RayActorError) and error.actor_init_failed
    why = _last_words(others) if is_in_start else _behind_fields(others)
    line = textwrap.shorten(" ".join(why) or first, MOST_CHARACTERS, placeholder=" ...")
    address = _ADDRESS.search(said)
    return f"on {address.group(1)}: {line}" if address else line


def _behind_fields(lines: list[str]) -> list[str]:
    return [line for line in lines if not _FIELD.match(line)]


def _last_words(lines: list[str]) -> list[str]:
    """The error at the end of a traceback, whose lines before are indented."""
    indented = [number for number, line in enumerate(lines) if line.startswith(" ")]
    return lines[indented[-1] + 1 :] if indented else lines
