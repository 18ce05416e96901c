"""The project's Markdown pages as tests read them: blocks, commands, code, sections, links."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
# Folders that hold no page of the project: environments, caches, and what runs and builds leave.
ELSEWHERE = {"build", "dist", "node_modules", "runs", "wandb"}
_BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>\w+): (?P<mark>[\w., -]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block, and what the comment before it says it is: `<!-- kind: mark -->`."""

    page: str
    language: str
    body: str
    kind: str
    mark: str


@dataclass(frozen=True)
class Page:
    """One Markdown file; `name` is its path below the repository's root."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def label(self) -> str:
        """For ids of tests: `configs` of `configs/README.md`."""
        return self.name.removesuffix("/README.md").removesuffix(".md")

    @property
    def prose(self) -> str:
        """Without fenced blocks, in which `#` and `](` mean other things."""
        return _BLOCK.sub("", self.text)

    @property
    def blocks(self) -> list[Block]:
        return [
            Block(
                page=self.label,
                language=match["language"],
                body=textwrap.dedent(match["body"]),
                kind=match["kind"] or "",
                mark=match["mark"] or "",
            )
            for match in _BLOCK.finditer(self.text)
        ]

    @property
    def code(self) -> set[str]:
        """What stands between backticks in the text."""
        return set(re.findall(r"`([^`\n]+)`", self.prose))

    @property
    def anchors(self) -> set[str]:
        """As GitHub makes them of headings."""
        found: set[str] = set()
        for _, heading in _HEADING.findall(self.prose):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = 0
            while (numbered := f"{anchor}-{number}" if number else anchor) in found:
                number += 1
            found.add(numbered)
        return found

    @property
    def links(self) -> list[tuple[str, str]]:
        """Path below the root and anchor of every link that leads to a place of the project."""
        found = []
        for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", self.prose)):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            place = os.path.normpath(Path(self.name).parent / path) if path else self.name
            found.append((place, unquote(anchor)))
        return found

    def section(self, heading: str) -> str:
        """What stands below a heading, up to the next of its kind or above; it must be there."""
        found = [h for h in _HEADING.finditer(self.prose) if h[0] == heading]
        assert len(found) == 1, f"{self.name} has {len(found)} headings {heading!r}, not one"
        level = len(found[0][1])
        below = self.text.partition(f"{heading}\n")[2]
        end = next((h for h in _HEADING.finditer(_blanked(below)) if len(h[1]) <= level), None)
        text = below[: end.start()] if end else below
        assert text.strip(), f"{self.name} has nothing below {heading!r}"
        return text


def _blanked(text: str) -> str:
    """The text with its blocks' characters as spaces: places stay where they are."""
    return _BLOCK.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _pages() -> Iterator[Page]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in ELSEWHERE)
        for file in sorted(files):
            if file.endswith(".md"):
                yield Page(str((Path(folder) / file).relative_to(ROOT)))


PAGES = tuple(_pages())
README = Page("README.md")


def blocks(language: str, kind: str = "") -> list[Block]:
    """Of all pages; there must be some."""
    found = [
        block
        for page in PAGES
        for block in page.blocks
        if block.language == language and (not kind or block.kind == kind)
    ]
    assert found, f"no {language} block ({kind})"
    return found


def commands() -> list[tuple[str, ...]]:
    """Every command line of the shell blocks, as words, without what a comment or variable adds."""
    found = []
    for block in blocks("bash"):
        for line in block.body.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    found.append(tuple(words))
    return list(dict.fromkeys(found))


def of_program(name: str) -> list[tuple[str, ...]]:
    """The commands of one program, whatever folder it is named with."""
    found = [words for words in commands() if Path(words[0]).name == name]
    assert found, f"no command {name}"
    return found


def all_code() -> set[str]:
    """What stands between backticks on any page."""
    return {code for page in PAGES for code in page.code}
