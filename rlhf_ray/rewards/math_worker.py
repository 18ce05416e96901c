"""Algebra on answers, by math-verify and SymPy; runs in worker processes, as it may hang.

math-verify is lenient where rewards may not be: it rounds to six digits, strips units, takes the
right side of any equation. What it is asked here is exact and bare: decimals are fractions, lists
are compared part by part, and its yes to two numbers is checked with fifty digits.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Float, I, Rational, Symbol

from rlhf_ray.rewards.math_forms import Form, compare_forms, read_form

# It warns that its own time-outs are off: the process has one.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_NORMALIZATION = NormalizationConfig(
    basic_latex=True,
    units=False,
    malformed_operators=True,
    nits=True,
    boxed="none",
    equations=False,
)
_EXTRACTION = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=_NORMALIZATION)
_DIGITS = 50
_MAX_SET = 30


def is_readable(text: str) -> bool:
    """Whether a reference can be compared with anything but itself."""
    form = read_form(text)
    if form is None:
        return False
    if form.word or form.base or form.number is not None or form.brackets == ":":
        return True
    if form.brackets:
        return all(is_readable(part) for part in form.parts)
    return _term(form.term) is not None


def is_same(question: tuple[str, str]) -> bool:
    """Whether an answer is its reference."""
    reference, answer = (read_form(text) for text in question)
    return reference is not None and answer is not None and _same(reference, answer)


def _same(reference: Form, answer: Form) -> bool:
    decided = compare_forms(reference, answer)
    if decided is not None:
        return decided
    if reference.brackets and answer.brackets:
        if reference.brackets != answer.brackets or len(reference.parts) != len(answer.parts):
            return False
        parts = [read_form(part) for part in reference.parts]
        given = [read_form(part) for part in answer.parts]
        if None in parts or None in given or len(parts) > _MAX_SET:
            return False
        return _same_parts(parts, given, ordered=reference.brackets != "{}")
    *before, last = answer.equated
    if (before and reference.name) or (len(reference.equated) > 1 and (before or answer.name)):
        return _equal(reference.text, answer.text)
    if before:
        # The right side of an equation is an answer only where the left side is no other claim.
        return all(_equal(side, last) for side in before) and _equal(reference.term, last)
    return len(reference.equated) == 1 and _equal(reference.term, answer.term)


def _same_parts(reference: list[Any], answer: list[Any], *, ordered: bool) -> bool:
    if ordered:
        return all(_same(*pair) for pair in zip(reference, answer, strict=True))
    left = list(answer)
    for part in reference:
        match = next((index for index, other in enumerate(left) if _same(part, other)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _equal(reference: str, answer: str) -> bool:
    wanted, given = _term(reference), _term(answer)
    if wanted is None or given is None:
        return False
    if not verify(wanted, given, allow_set_relation_comp=True, timeout_seconds=None):
        return False
    return _is_equal_number(wanted, given)


def _is_equal_number(wanted: Any, given: Any) -> bool:
    """A second look at two numbers: `verify` takes anything below 1e-15 for 0."""
    if not all(isinstance(term, Basic) and term.is_number for term in (wanted, given)):
        return True
    if not (wanted.is_finite and given.is_finite):
        return bool(wanted == given)
    difference, size = (abs(term.evalf(_DIGITS)) for term in (wanted - given, wanted))
    return bool(difference <= size * Rational(1, 10**30))


@lru_cache(maxsize=1000)
def _term(tex: str) -> Any:
    """SymPy's term; None where it cannot be read."""
    found = parse(
        f"${tex}$",
        extraction_config=[_EXTRACTION],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return _exact(found[0]) if found else None


def _exact(term: Any) -> Any:
    if not hasattr(term, "atoms"):
        return term
    exact = {decimal: Rational(str(decimal)) for decimal in term.atoms(Float)}
    exact |= {symbol: I for symbol in term.atoms(Symbol) if symbol.name == "i"}
    return term.xreplace(exact) if exact else term
