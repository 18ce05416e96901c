r"""Verifier of grade-school maths: does the response end in the right number?

The data is GSM8K (Cobbe et al. 2021, arXiv 2110.14168), whose solutions end in `#### <number>`. A
policy that was not trained on that form may answer in `\boxed{}` or plain words. What cannot be
read with certainty as one number earns nothing. Of a text without a mark the last number is its
answer, unless something beside it makes it another number, a part of one, or uncertain.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rlhf_ray.rewards.answers import (
    SENTENCE_END,
    answer_part,
    is_recanted,
    last_marked,
    last_phrase,
)
from rlhf_ray.rewards.batch import Messages, Scores, completion_text
from rlhf_ray.rewards.numbers import NUMBER, plain_text, value, whole_number

# GSM8K's own notes of what a calculator said: 9 * 2 = <<9*2=18>>18.
_CALCULATION = re.compile(r"<<[^<>\n]*>>")


def correct_answer(
    completions: list[str | Messages],
    answer: list[str | int | float | None],
    *,
    opens_reasoning: list[bool] | None = None,
    **_: Any,
) -> Scores:
    """1 where a completion's final number equals the row's `answer`, else 0.

    None where a row has no answer.

    Raises:
        ValueError: An `answer` that is no number.
    """
    return [
        None
        if reference is None
        else float(
            final_number(completion_text(completion), is_opened=is_opened)
            == reference_number(reference)
        )
        for completion, reference, is_opened in zip(
            completions, answer, opens_reasoning or [False] * len(answer), strict=True
        )
    ]


def reference_number(answer: str | int | float) -> Fraction:
    r"""The number of a reference: all of it, or what stands after its `####` or in `\boxed{}`.

    Raises:
        ValueError: There is none.
    """
    text = str(answer)
    marked = last_marked(text)
    number = whole_number(marked.text if marked else text)
    if number is None:
        raise ValueError(
            "the column `answer` must be a number, or end in one after #### or in \\boxed{}, "
            f"got {answer!r:.200}"
        )
    return number


def check_rows(answer: list[str | int | float | None], **_: Any) -> list[str | None]:
    """What is wrong with each row's `answer`, before anything starts."""
    return [None if reference is None else _fault(reference) for reference in answer]


correct_answer.check_rows = check_rows  # type: ignore[attr-defined]


def _fault(reference: str | int | float) -> str | None:
    try:
        reference_number(reference)
    except ValueError as error:
        return str(error)
    return None


def final_number(text: str, *, is_opened: bool = False) -> Fraction | None:
    r"""The number that a response gives as its answer, `None` without one.

    After its reasoning (`<think>`), it is all of the text behind the last `####` that is no
    heading, or in the last `\boxed{}`, whichever comes last; without either, what follows "the
    answer is", else the last number of all. Thousands' commas, currencies and units do not matter,
    nor does 42 being written 42.00. A text with more than one number, a term or an approximation
    gives none. `is_opened` as in `answer_part`.
    """
    text = _CALCULATION.sub("", answer_part(text, is_opened=is_opened))
    marked = last_marked(text)
    if marked is not None:
        return None if is_recanted(text[marked.end :]) else whole_number(marked.text)
    return number_in_words(text)


# The answer is at the end.
_MAX_CHARACTERS = 2000
# Numbers of lists, steps and notes are no quantities.
_NUMBERING = re.compile(
    r"^#{1,6}[ \t](?!.*answer).*\n(?=\s*\S)|\[[0-9]+\]|#[0-9]+"
    r"|^[ \t]*(?:[0-9]+[.)]|\([0-9]+\)|[-+*•])[ \t]+(?=\S)"
    r"|\b(?:step|question|problem|part|equation|example|case|figure|table|page|line|no\.)\s*[0-9]+",
    re.IGNORECASE | re.MULTILINE,
)
_CLAUSE = re.compile(r"[^,;(\n]*?[0-9].*?(?=\s*(?:,\s|;|\(|\b(?:because|since|as|which)\b))")
# The answer is 15 (10 + 5).
_EXPLAINED = re.compile(r"^\s*\([0-9.$ ]+(?:[+*/x×=][0-9.$ ]+)+\)")
# In the sentence of a number they leave it uncertain.
_DOUBT = re.compile(
    r"\b(?:either|maybe|perhaps|possibly|might|may be|could|guess|unknown|unclear|approx\w*"
    r"|roughly|estimat\w+|assume|suppose|unless|whether|let['’]s say|neighbou?rhood|order of"
    r"|more or less|if it (?:is|was|were)|give or take|thereabouts"
    r"|no way|anything but|no idea|not sure|unsure)\b",
    re.IGNORECASE,
)
# Before a number they make it a part of something else, inexact, or one of two.
_SIGN_BEFORE = (
    r"[-+*/÷⁄^_{~≈≠<≤≥±√]|(?<![=-])>|[!<>]=|[0-9](?:\s*—|;|\s*%\s)|[0-9][.,:'’′]?|[0-9)][^\S\n]"
    r"|[\w)]\(|[-+*/÷^)]\s*\(|\\[a-z]+\s*(?:\[[^\]]*\])?"
)
_DENIAL_BEFORE = (
    r"(?:\b(?:not|never|cannot|neither)|n't)\s[^.,;\n0-9]{0,12}"
    r"|\b(?:wrong|incorrect)\s[^.,;\n0-9]{0,30}"
)
_PART_OF = (
    r"\b(?:half|hal[fv]es|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten)ths?|root|square|cube"
    r"|multiples?|factors?|logarithm|percent|out|short|instead)\sof\s(?:an?\s|the\s|every\s)?"
    r"|%\s*of\s"
)
# "adds up to 18" is 18, "up to 18" is not.
_ADDS = "".join(rf"(?<!\b{verb} )" for verb in ("add", "adds", "come", "comes", "sums", "works"))
_WORD_BEFORE = (
    r"\b(?:x|than|least|most|minimum|maximum|min|max|about|around|nearly|almost|near|close\sto"
    r"|(?:many|much|few|little)\sas|approx\.?|circa|some|or(?:\sequal\sto)?|else|versus|vs\.?"
    r"|except|without|like|unlike"
    r"|plus|minus|negative|times|(?:divided|multiplied|[0-9])\sby|over|above|under|below|beyond"
    rf"|until|{_ADDS}up\sto|twice|double|triple|probably|likely|sqrt|log|ln|sin|cos|tan"
    r"|base|remainder)\s"
)
_LIST_BEFORE = (
    r"[0-9][^.\n]{0,15}\bto\s|[0-9][^\w\n]*(?:\band|[,;:&])\s|[0-9]\W*\bor\s[^.\n0-9]{0,12}"
    # 2 hours and 30 minutes, 3 dogs and 4 cats.
    r"|[0-9][^\S\n]*(?!(?:but|is|are|was|equals?|makes?|gives?|leaves?)\b)[A-Za-z]+,?[^\S\n]+"
    r"(?:and[^\S\n]+)?"
)
# An equation about another quantity: 2x =, x + 1 =, f(x) =, -x =.
_EQUATION_BEFORE = (
    r"(?:[0-9][a-z]|\b[a-z]\s*[-+*/^]\s*\w+|\w+\s*[-+*/^]\s*[a-z]\b|\(\s*[a-z]\s*\)|\}|-\s*[a-z]\b)"
    r"\s*="
)
_NOT_BEFORE = re.compile(
    rf"(?:{_SIGN_BEFORE}|{_DENIAL_BEFORE}|{_PART_OF}|{_WORD_BEFORE}|{_LIST_BEFORE}"
    rf"|{_EQUATION_BEFORE})\s*\Z|\w\Z",
    re.IGNORECASE,
)
_NOT_BEHIND = re.compile(
    r"[A-Za-z]?[0-9^_\\/{]|\s*[-+*/^=]\s*[0-9(A-Za-z]|\s*[+π]|[A-Za-z](?![A-Za-z])|!|\.\.|…|:[0-9]"
    r"|\s*(?:dozen|hundred|thousand|million|billion|pi|squared|cubed|factorial|plus|minus"
    r"|divided|or|-?ish)\b"
    r"|\s+(?:if|at\s+(?:most|least))\b|[^.\n]{0,12}\bbelow\b"
    r"|\s+and\s+(?:(?:a\s+)?(?:half|[0-9])|up\b|more\b|above\b)"
    r"|\s*(?:(?:is|was|are|can|could|would|should)(?:\s|(?=n)))?(?:not|n't|never|cannot)\b"
    r"|[^.\n]*(?:\?|\b(?:wrong|incorrect|false)\b)",
    re.IGNORECASE,
)
_POWER = re.compile(r"(?:(?<=[a-z][a-z])|(?<=[0-9 ]m))\^[23](?![0-9])")


def number_in_words(text: str) -> Fraction | None:
    """The number after "the answer is", else the last one of all; None without a certain one."""
    text = _NUMBERING.sub(" ", text[-_MAX_CHARACTERS:])
    phrase = last_phrase(text)
    if phrase is None:
        return _last_number(text)
    if is_recanted(text[phrase.end :]):
        return _last_number(text[phrase.end :])
    return _stated_number(phrase.text if phrase.text.strip() else text[phrase.end :])


def _stated_number(text: str) -> Fraction | None:
    """The number of "the answer is ...": all of its sentence, its first clause, or its only one."""
    end = SENTENCE_END.search(text)
    sentence = text[: end.start()] if end else text
    if end and end[0] == "?":
        return None
    if is_recanted(text[len(sentence) :]):
        return _last_number(text[len(sentence) :])
    number = whole_number(sentence)
    clause = _CLAUSE.match(sentence)
    if number is None and clause:
        behind = _EXPLAINED.sub("", sentence[clause.end() :], count=1)
        is_list = re.match(r"\s*[,;(]?\s*(?:(?:and|or)\b|\W*[0-9])", behind)
        number = None if is_list else whole_number(clause[0])
    if number is None and len(NUMBER.findall(plain_text(sentence.rpartition("=")[2]))) == 1:
        number = _last_number(sentence)
    if _DOUBT.search(sentence):
        return None
    return number


def _last_number(text: str) -> Fraction | None:
    """The last number of a text, if it stands for itself there."""
    plain = _POWER.sub("", plain_text(text))
    matches = list(NUMBER.finditer(plain))
    if not matches:
        return None
    last = matches[-1]
    before, behind = plain[: last.start()], plain[last.end() :]
    is_difference = last[0][0] in "-+" and re.search(r"[\w)\]}]\Z|[0-9)\]}]\s+\Z", before)
    if is_difference or re.search("[0-9]", behind):
        return None
    if _NOT_BEFORE.search(before[-80:]) or _NOT_BEHIND.match(behind):
        return None
    begun = re.split(r"\n|[.?!:]\s", before[-200:])[-1]
    if _DOUBT.search(begun + SENTENCE_END.split(behind.partition("\n")[0], maxsplit=1)[0]):
        return None
    return value(last[0])
