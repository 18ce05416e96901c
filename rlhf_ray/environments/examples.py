"""Environments that are ready to use, and examples of how tools are written."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_ray.environments.tools import ToolEnvironment
from rlhf_ray.errors import ConfigError
from rlhf_ray.sandbox.limits import Limits
from rlhf_ray.sandbox.run import run_python

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_MOST_DIGITS = 100


def _round(number: float, digits: int = 0) -> float:
    if abs(digits) > _MOST_DIGITS:
        raise ValueError(f"round takes at most {_MOST_DIGITS} digits, got {digits}")
    return round(number, digits) if digits else round(number)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "max": max, "min": min, "round": _round, "sqrt": math.sqrt, "gcd": math.gcd,
}  # fmt: skip
_MOST_BITS = 4096
_MOST_TRACEBACK_CHARACTERS = 2000
_WORD = re.compile(r"\w+")


def calculate(expression: str) -> str:
    """Work out an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % **, brackets, and abs, gcd, max, min, round, sqrt.
    """
    try:
        return str(_value(ast.parse(expression.strip(), mode="eval").body))
    except RecursionError as error:
        raise ValueError("the expression is nested too deeply") from error


def _value(node: ast.expr) -> Any:
    """The number that a part of an expression stands for; nothing else is run."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.BinOp() if type(node.op) in _BINARY:
            left, right = _value(node.left), _value(node.right)
            _check_size(node.op, left, right)
            return _BINARY[type(node.op)](left, right)
        case ast.UnaryOp() if type(node.op) in _UNARY:
            return _UNARY[type(node.op)](_value(node.operand))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_value, node.args))
    raise ValueError(f"only arithmetic is allowed, not {ast.unparse(node)!r:.80}")


def _check_size(kind: ast.operator, left: Any, right: Any) -> None:
    """Refuse whole numbers that would fill the memory: 9 ** 9 ** 9."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    num_bits = left.bit_length() + right.bit_length()
    if isinstance(kind, ast.Pow):
        num_bits = left.bit_length() * max(right, 0)
    if num_bits > _MOST_BITS:
        raise ValueError(f"the result has more than {_MOST_BITS} bits")


def calculator(**arguments: Any) -> ToolEnvironment:
    """A policy with a calculator; `arguments` are those of `ToolEnvironment`."""
    return ToolEnvironment([calculate], **arguments)


class FolderSearch:
    """Paragraphs of a folder's text files, found by their words.

    Source: BM25, Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019, eq. 3.15, with
    its usual k1 = 1.2 and b = 0.75.
    """

    def __init__(self, folder: str, *, suffixes: tuple[str, ...] = (".md", ".txt")) -> None:
        """Read them all.

        Raises:
            ConfigError: There are none.
        """
        root = Path(folder)
        self.passages = [
            (str(path.relative_to(root)), paragraph.strip())
            for path in sorted(root.rglob("*"))
            if path.suffix in suffixes and path.is_file()
            for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n")
            if paragraph.strip()
        ]
        if not self.passages:
            raise ConfigError(f"no text in {folder!r} ({', '.join(suffixes)}) to search in")
        self._counts = [Counter(_words(text)) for _, text in self.passages]
        self._lens = [sum(counts.values()) for counts in self._counts]
        self._mean_len = max(1.0, sum(self._lens) / len(self._lens))
        self._num_with = Counter(word for counts in self._counts for word in counts)

    def best(self, query: str, most: int) -> list[tuple[str, str]]:
        """File and text of the passages that match, the best first."""
        words = _words(query)
        scores = [self._score(words, number) for number in range(len(self.passages))]
        order = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
        return [self.passages[number] for number in order[:most] if scores[number] > 0]

    def _score(self, words: list[str], number: int) -> float:
        counts, total = self._counts[number], 0.0
        for word in words:
            if not (count := counts[word]):
                continue
            num_with = self._num_with[word]
            rarity = math.log1p((len(self.passages) - num_with + 0.5) / (num_with + 0.5))
            length = 0.25 + 0.75 * self._lens[number] / self._mean_len
            total += rarity * count * 2.2 / (count + 1.2 * length)
        return total


def search(folder: str, *, most: int = 3, **arguments: Any) -> ToolEnvironment:
    """A policy that may search the text files of a folder."""
    found = _searched(folder)

    def search(query: str) -> str:
        """Find passages of the library that match a query.

        Args:
            query: Words to look for.
        """
        passages = found.best(query, most)
        return "\n\n".join(f"[{file}] {text}" for file, text in passages) or "nothing found"

    return ToolEnvironment([search], **arguments)


@functools.lru_cache(maxsize=4)
def _searched(folder: str) -> FolderSearch:
    """Each rollout has an environment, and all of a process the same texts."""
    return FolderSearch(folder)


def python(*, timeout_s: float = 10.0, memory_mb: int = 512, **arguments: Any) -> ToolEnvironment:
    """A policy that may run scripts in the sandbox."""
    limits = Limits(wall_s=timeout_s, cpu_s=max(1, round(timeout_s)), memory_mb=memory_mb)

    async def python(code: str) -> str:
        """Run a Python script. There is no network, and nothing stays for the next script.

        Args:
            code: The script; what it prints is the result.
        """
        outcome = await run_python(code, limits=limits)
        said = [outcome.stdout, outcome.stderr[-_MOST_TRACEBACK_CHARACTERS:]]
        if outcome.ending in ("timeout", "memory"):
            said.append(f"ended: too much {'time' if outcome.ending == 'timeout' else 'memory'}")
        return "\n".join(part.rstrip() for part in said if part.strip()) or "nothing printed"

    # The sandbox keeps the time; this is for a machine that is slow to start it.
    return ToolEnvironment([python], **{"call_timeout_s": timeout_s + 60.0, **arguments})


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
