r"""Where a response gives its answer: behind its reasoning, in `\boxed{}`, after words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlhf_ray.data.chat.reasoning import behind_reasoning
from rlhf_ray.rewards.numbers import NUMBER, plain_text

# What stands beside a box is looked at no further: patterns take long on long space.
_BESIDE = 40
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# No units, of the words behind a box: `\boxed{42} of 50`.
_UNIT = r"(?!(?:of|in|at|on|is|as|for|from|after|since|because|then|so|but|not)\b)[A-Za-z]+"
# What makes a box a part of a term, inexact, or one of two.
_NOT_BEFORE = re.compile(
    r"(?:[0-9^]|(?<![-+/])[-+/]|\\(?:times|cdot|div|sqrt|frac)\s*\{?|[}^_]\s*\{"
    r"|(?:\\(?:approx|sim|pm|ne|neq|le|leq|ge|geq|lt|gt)(?![a-z])|[≈≠≤≥~±]|[^\n=-][<>])\s*"
    r"|(?:\b(?:not|or|than|least|most|about|approximately|roughly|around|nearly"
    r"|almost)|n't)\s+\$*)\Z",
    re.IGNORECASE,
)
_NOT_BEHIND = re.compile(
    r"\s*[\^!]|_\{?[0-9]|\([0-9]|[A-Za-z](?![A-Za-z])|[.,:][0-9]"
    r"|\s*(?:[-+*/]\s*[0-9]|\\(?:times|cdot|div|pm|sqrt|frac|pi)(?![a-z]))"
    r"|[^\S\n]*\$*[^\S\n]*(?:[0-9?]|\(?\s*(?:or|to)\s|and\s+a\s+half"
    rf"|{_UNIT}\s+(?:and\s+)?\$*[0-9]|(?:dozen|hundred|thousand|[mbtr]+illion)s?\b)",
    re.IGNORECASE,
)
# What stands between two boxes of one list.
_JOINS = re.compile(
    r"(?=.*(?:[,;&]|and|or))[\s$]*(?:\\[)\]])?\s*[,;&]?\s*(?:\\text\s*\{\s*)?(?:and|or)?"
    r"\s*\}?[\s$]*(?:\\[(\[])?\s*"
    # 5 hours and 30 minutes.
    rf"|[^\S\n$]*{_UNIT}(?:[^\S\n]+and)?[^\S\n]+\$*",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Marked:
    """Text that a response marks as its answer.

    Attributes:
        begin: Where the mark begins in the response.
        end: Where the marked text ends.
    """

    text: str
    begin: int
    end: int


def last_boxed(text: str) -> Marked | None:
    r"""The last `\boxed{...}`, braces balanced; of a list in boxes, `\boxed{3} and \boxed{4}`, all.

    Its text is empty where it is not closed, or is a part of a term: `2\boxed{3}^2`.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    # A box around a box is one: `\boxed{\boxed{42}}`.
    last = _boxed(text, boxes.pop())
    before = text[max(0, last.begin - _BESIDE) : last.begin]
    if _NOT_BEFORE.search(before) or _NOT_BEHIND.match(text[last.end : last.end + _BESIDE]):
        return Marked(text="", begin=last.begin, end=last.end)
    while boxes:
        other = _boxed(text, boxes.pop())
        is_near = 0 <= last.begin - other.end <= _BESIDE
        if not (is_near and _JOINS.fullmatch(text[other.end : last.begin])):
            break
        both = last.text if other.text == last.text else f"{other.text}, {last.text}"
        last = Marked(text=both, begin=other.begin, end=last.end)
    return last


def _boxed(text: str, box: re.Match[str]) -> Marked:
    begin, start = box.span()
    depth = 1
    for position in range(start, len(text)):
        escaped = text[position - 1] == "\\"
        depth += 0 if escaped else (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return Marked(text=text[start:position].strip(), begin=begin, end=position + 1)
    return Marked(text="", begin=begin, end=len(text))


_END_TOKEN = re.compile(r"(?:<[|｜][^<>|｜]*[|｜]>|</s>|<eos>|<end_of_turn>)")
_MARK = re.compile(r"(?<!#)####(?!#)(?P<text>(?:(?!####)[^\n])*)")
_PHRASE = re.compile(
    r"(?P<doubt>\b(?:if|wrong|incorrect|suppose|assum(?:e|ing)|whether)\b[^\n.,:;]{0,40})?"
    r"\banswer\b[^\n.:=0-9]{0,40}?(?:\bis\b\s*:?|:|=)(?:\s|\*)*",
    re.IGNORECASE,
)
_TEX_BRACKETS = re.compile(r"\\[()\[\]]")
_DOLLARS = re.compile(r"(?<!\\)\${1,2}(?![0-9][0-9.,]*(?:\s|$))")
SENTENCE_END = re.compile(r"(?<=\S)[.?](?=\s|$)")
_REASON = re.compile(r",?\s(?:because|since)\b.*")
# Behind an answer these take it back.
_RECANTS = re.compile(
    r"\b(?:wait|actually|correction|mistake|sorry|oops|incorrect|wrong|false|hmm|alternatively"
    r"|no[,.!]|second thought|(?:let me|i'll|i will) (?:re-?|double[- ]?)?check"
    r"|(?:it|that|this)(?:['’]s| is| was)? ?n(?:o|['’])t\b(?! [$0-9]))",
    re.IGNORECASE,
)


def answer_part(text: str, *, is_opened: bool = False) -> str:
    """What a response says after its reasoning, without end tokens; nothing if it is still in it.

    Args:
        text: The response.
        is_opened: Whether it begins inside of reasoning, which the prompt has opened.
    """
    text = text.rstrip()
    # From the end: to search the whole for each of many tokens takes quadratic time.
    while (begin := text.rfind("<")) >= 0 and _END_TOKEN.fullmatch(text, begin):
        text = text[:begin].rstrip()
    return behind_reasoning(text, is_opened=is_opened)


def last_marked(text: str) -> Marked | None:
    r"""What stands behind the last `####` that is no heading, or in the last `\boxed{}`.

    Whichever comes last.
    """
    mark, box = _last_mark(text), last_boxed(text)
    if mark is None or box is None:
        return mark or box
    if box.begin > mark.end:
        return box
    # `#### \boxed{42}` marks the same twice.
    around = text[mark.begin : box.begin] + text[box.end : mark.end]
    return mark if around.strip("#$*. ") else box


def _last_mark(text: str) -> Marked | None:
    """The last `####` with an answer: the end of the text, or nothing but a number in its line.

    Any other is a heading of Markdown.
    """
    for match in reversed(list(_MARK.finditer(text))):
        marked, end = match["text"].strip(), match.end()
        if not marked:
            marked = text[end:].lstrip("\n").partition("\n")[0]
            end = text.index(marked, end) + len(marked)
        is_last = not text[end:].strip()
        if is_last or _is_bare(marked):
            return Marked(text=marked, begin=match.start(), end=end)
    return None


def _is_bare(marked: str) -> bool:
    return bool(NUMBER.fullmatch(plain_text(marked).strip().removesuffix("%").strip()))


def last_phrase(text: str) -> Marked | None:
    """The rest of the line, or the next one, after the last "answer is" or "answer:"."""
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    begin, start = phrases[-1].span()
    if phrases[-1]["doubt"]:  # "if the answer is 3", "the wrong answer is 3"
        return Marked(text="", begin=begin, end=len(text))
    line = text[start:].partition("\n")[0]
    return Marked(text=line, begin=begin, end=start + len(line))


def is_recanted(behind: str) -> bool:
    """Whether what a response says behind its answer takes it back."""
    return bool(_RECANTS.search(behind))


def stated_answer(text: str, *, is_opened: bool = False) -> str:
    r"""What a response gives as its answer, as it is written; empty without one.

    After its reasoning, what it marks by `\boxed{}` or `####`; without either, what follows "the
    answer is", and a response of one line is its own answer. `is_opened` as in `answer_part`.
    """
    text = answer_part(text, is_opened=is_opened).strip()
    marked = last_marked(text)
    phrase = last_phrase(text) if marked is None else None
    if marked is None and phrase is None:
        return "" if "\n" in text else _formula(text)
    given = marked or phrase
    assert given is not None
    if is_recanted(text[given.end :]):
        return ""
    if marked is not None:
        return marked.text
    return _formula(given.text if given.text.strip() else text[given.end :].strip())


def _formula(text: str) -> str:
    """The formulas of a line, if nothing but a list's words is between; else its first sentence.

    Nothing where the sentence asks, or the next one takes it back.
    """
    line = _TEX_BRACKETS.sub("$", text.partition("\n")[0])
    end = SENTENCE_END.search(line)
    if end and (end[0] == "?" or is_recanted(line[end.end() :])):
        return ""
    begin, *pieces = _DOLLARS.split(line)
    if len(pieces) < 2 or len(pieces) % 2 or begin.strip("*: "):
        return _REASON.sub("", SENTENCE_END.split(line, maxsplit=1)[0]).strip("* ")
    formulas = pieces[:1]
    for between, formula in zip(pieces[1::2], pieces[2::2], strict=False):
        if re.sub(r"\b(?:and|or)\b|[\s,]", "", between):
            break
        formulas.append(formula)
    behind = SENTENCE_END.split(pieces[2 * len(formulas) - 1], maxsplit=1)[0].strip("* ")
    return ", ".join(formulas) + (f" {behind}" if behind[:1].isalpha() or behind == "%" else "")
