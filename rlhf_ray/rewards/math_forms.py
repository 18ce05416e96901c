r"""What kind of answer a mathematical text is, and what can be said of two without algebra.

Much of what makes answers differ is lost where they become terms: units, the brackets of an
interval, the base of a number, a word's letters (to a parser `no` is n times o). It is compared
here, and so are plain numbers, exactly. Only what is left is a matter of algebra.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rlhf_ray.rewards.numbers import bare_number, is_unit, plain_characters

# A unit's spelling, by its names.
_SPELLINGS = {
    name: unit
    for unit, names in {
        "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
        "m": "meter metre", "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile",
        "l": "liter litre", "ml": "milliliter millilitre", "g": "gram", "kg": "kilogram",
        "mg": "milligram", "lb": "pound", "oz": "ounce", "s": "second sec", "min": "minute",
        "h": "hour hr", "%": "percent percentage", "°": "degree deg", "": "unit",
    }.items()
    for name in names.split()
}  # fmt: skip
_KNOWN_UNITS = "|".join(
    sorted({*_SPELLINGS, *(unit for unit in _SPELLINGS.values() if len(unit) > 1)}, key=len)
)
_DEGREE_SIGN = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*$")
_PERCENT_SIGN = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*\\?%\s*\})\s*$")
_STYLED_UNIT = re.compile(
    r"\s*\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{\s*(?P<name>[A-Za-z][A-Za-z ./]*)\}"
    r"\s*(?P<power>\^\{?[23]\}?)?\s*$"
)
_PLAIN_UNIT = re.compile(
    rf"(?:(?<=[0-9)}}])\s*|\s+)(?P<name>(?:{_KNOWN_UNITS})s?)\.?\s*(?P<power>\^\{{?[23]\}}?)?\s*$",
    re.IGNORECASE,
)
_UNIT_IN_WORDS = re.compile(r"\s+(?P<name>[A-Za-z]{3,}(?:[ /][A-Za-z]+)*)(?P<power>)\s*$")


def with_unit(term: str) -> tuple[str, str]:
    """A term without its unit, and the unit."""
    if _PERCENT_SIGN.search(term):
        return _PERCENT_SIGN.sub("", term), "%"
    bare = _DEGREE_SIGN.sub("", term)
    if bare != term and bare_number(bare) is not None:
        return bare, "°"
    for pattern in (_STYLED_UNIT, _PLAIN_UNIT, _UNIT_IN_WORDS):
        match = pattern.search(term)
        before = term[: match.start()].strip() if match else ""
        if match is None or not before or before[-1] in ",;=+-*/^_\\":
            continue
        if pattern is not _PLAIN_UNIT and not is_unit(f" {match['name'].strip()}"):
            continue
        if pattern is not _UNIT_IN_WORDS or bare_number(before) is not None:
            power = re.sub("[^23]", "", match["power"] or "")
            return before, _spelling(match["name"]) + power
    return term, ""


def _spelling(name: str) -> str:
    words = name.lower().replace(".", " ").split()
    powers = {"square": "2", "sq": "2", "cubic": "3"}
    power = powers.get(words[0], "") if len(words) > 1 else ""
    if power:
        words = words[1:]
    singular = [word.rstrip("s") or word for word in words]
    return "".join(_SPELLINGS.get(word, word) for word in singular) + power


_MAX_CHARACTERS = 1000
# With styles and space, which take quadratic time to remove.
_MAX_WRITTEN = 4000
_NAMES = {
    "∞": "infty", "∪": "cup", "∩": "cap", "≤": "le", "≥": "ge", "≠": "ne", "∈": "in",
    "±": "pm", "×": "times", "·": "cdot", "÷": "div", "π": "pi", "∅": "emptyset",
    "ℝ": "mathbb{R}", "ℤ": "mathbb{Z}", "ℕ": "mathbb{N}", "ℚ": "mathbb{Q}",
}  # fmt: skip
_TEX_NAMES = {ord(character): rf"\{name} " for character, name in _NAMES.items()}
_DECORATION: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"√\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z])|\(([^()]*)\))", r"\\sqrt{\1\2}"),
        (r"(?<=[\w)}\]])\*\*(?=[\w({-])", "^"),  # Python's power, no bold text
        (r",\\!\s*", ","),
        (r"\\varnothing", r"\\emptyset"),
        (r"\\text\s*\{\s*([-+]?[0-9][^{}]*)\}", r"\1"),
        (r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])\.?|\\!|\\\$|\$|\*\*|`", ""),
        (r"(?<!\\)\\(?:[() ;:]|\[(?![0-9])|\](?![0-9]))|\\q?quad(?![A-Za-z])", " "),
        (r"(?<=[0-9])\\,(?=[0-9]{3})|\{,\}", ","),
        (r"\\,|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:mathbf|boldsymbol|bm|mathit)\s*\{([^{}]*)\}", r"\1"),
        (r",?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*|,?\s+(?:and|or)\s+", ", "),
        (r"\s+", " "),
    )
)
_STYLED = re.compile(r"\\(?:text|mathrm|textrm|textbf|textit|mbox|operatorname)\s*\{([^{}]*)\}")
_FUNCTION = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|frac|max|min|mod|det|gcd|lcm|infinity|inf|pi|"
    r"alpha|beta|gamma|theta|lim|sum|int)\b",
    re.IGNORECASE,
)
# Fewer letters than three are a product of variables, but for these.
_WORDS = re.compile(r"(?=.*(?:[a-z]{3}|^(?:no|on|up|in)\b))[a-z][a-z'’ -]*", re.IGNORECASE)
_CHOICE = re.compile(r"\(?\s*([A-Z])\s*\)?")
_BASE = re.compile(r"(?P<digits>[0-9A-F]+)_\{?\s*(?:\\text\s*\{)?(?P<base>[0-9]+)\s*\}*")
_RATIO = re.compile(r"[0-9.]+(?:\s*:\s*[0-9.]+)+")
_EQUALS = re.compile(r"(?<![<>!:])=")
_MEMBER = re.compile(r"([A-Za-z])\s*\\in(?![A-Za-z])\s*(.+)")
_NAME = re.compile(r"(?!\s*[0-9(]*[0-9])(?=.*[A-Za-z])[^-+*/^<>=|!]+")
_REPEATING = re.compile(
    r"(?P<whole>[0-9]*)\.(?P<fixed>[0-9]*)\\overline\s*\{?(?P<period>[0-9]+)\}?"
)
_DEGREES = re.compile(r"([0-9.]+)\s*\^\s*\{?\s*\\circ\s*\}?")
_UNFINISHED = re.compile(r"\\[lc]?dots|\.\.|…")
_INFINITE = re.compile(r"[-+]?\s*\\infty")
# What may be a set though it is no list.
_SET = re.compile(
    r"[<>≤≥|]|\\(?:[lg]eq?|[lg]t|[pm][mp]|cup|cap|setminus|in|emptyset|mathbb)(?![a-z])"
)
_OPENING = frozenset(["(", "[", "{", r"\{", r"\langle", r"\begin"])
_CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle", r"\end"])


@dataclass(frozen=True, kw_only=True)
class Form:
    r"""An answer, taken apart.

    Example: of `x = 5 \text{ cm}` the term is `5`, the name `x`, the unit `cm` and the number 5.

    Attributes:
        text: All of it, without decoration.
        term: What an algebra system is asked about: no name, no unit.
        name: Of what it is the value.
        unit: In one spelling; `%` is one.
        number: If it is one.
        word: If it is text or a choice like (B): small letters.
        base: Of a number like `101_2`.
        brackets: Around a list: `()`, `(]`, `[)`, `[]`, or `{}`, which a bare list has as well.
        parts: Of the list, or of a ratio like `3:2`.
    """

    text: str
    term: str
    name: str = ""
    unit: str = ""
    number: Fraction | None = None
    word: str = ""
    base: str = ""
    brackets: str = ""
    parts: tuple[str, ...] = ()

    @property
    def equated(self) -> list[str]:
        """The sides of an equation or of a chain of them; one where it is none."""
        return [side.strip() for side in _EQUALS.split(self.term)]


def read_form(text: str) -> Form | None:
    """An answer's form; `None` if there is nothing to read, or far too much."""
    text = _undecorated(text) if len(text) <= _MAX_WRITTEN else ""
    if not text or len(text) > _MAX_CHARACTERS:
        return None
    word = _word(text)
    if word:
        return Form(text=text, term=text, word=word)
    name, term = _named(text)
    if match := _BASE.fullmatch(term):
        return Form(text=text, term=match["digits"], name=name, base=match["base"])
    if _RATIO.fullmatch(term):
        parts = tuple(part.strip() for part in term.split(":"))
        return Form(text=text, term=term, name=name, brackets=":", parts=parts)
    term, unit = with_unit(_REPEATING.sub(_as_fraction, term))
    term = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", term)
    number = bare_number(term)
    brackets, parts = ("", ()) if number is not None else _list(term)
    return Form(
        text=text,
        term=term,
        name=name,
        unit=unit,
        number=number,
        brackets=brackets,
        parts=parts,
    )


def compare_forms(reference: Form, answer: Form) -> bool | None:
    """Whether an answer is its reference, `None` where that takes algebra."""
    if reference.word or answer.word:
        return reference.word == answer.word
    if reference.base or answer.base:
        return (reference.term, reference.base) == (answer.term, answer.base)
    if ":" in (reference.brackets, answer.brackets):
        return reference.parts == answer.parts
    if _UNFINISHED.search(reference.text + answer.text):
        return reference.text == answer.text
    if _INFINITE.fullmatch(reference.term) or _INFINITE.fullmatch(answer.term):
        return reference.term.lstrip("+") == answer.term.lstrip("+")
    if reference.name and answer.name and reference.name != answer.name:
        return False
    if _primes(reference.text) != _primes(answer.text):  # which math-verify leaves out
        return False
    if _differ_in_case(reference.term, answer.term):
        return False
    if bool(reference.brackets) != bool(answer.brackets):
        term = answer.term if reference.brackets else reference.term
        if not _SET.search(term):  # 5 is not 5, 5
            return False
    if reference.unit and answer.unit and reference.unit != answer.unit:
        return False
    if reference.number is not None and answer.number is not None:
        return _equal_numbers(reference, answer, reference.number, answer.number)
    return True if reference.term == answer.term else None


def _equal_numbers(reference: Form, answer: Form, wanted: Fraction, given: Fraction) -> bool:
    """50% is 50 where percents were asked for, and 1/2; 1% is not 1."""
    if (reference.unit == "%") == (answer.unit == "%"):
        return wanted == given
    if wanted == given:
        is_clear = abs(wanted) > 1 or wanted == 0
        return is_clear and (reference.unit == "%" or wanted.denominator == 1)
    percent = Fraction(1, 100)
    return wanted * (percent if reference.unit == "%" else 1) == given * (
        percent if answer.unit == "%" else 1
    )


def _differ_in_case(reference: str, answer: str) -> bool:
    """Whether the variables are others only by their case, which a parser may not see."""
    letters = [
        set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", term)))
        for term in (reference, answer)
    ]
    small = [{letter.lower() for letter in each} for each in letters]
    return letters[0] != letters[1] and small[0] == small[1]


def _primes(text: str) -> int:
    return len(re.findall(r"['’′]|\\prime(?![a-z])", text))


def _undecorated(text: str) -> str:
    text = plain_characters(text).translate(_TEX_NAMES)
    for pattern, replacement in _DECORATION:
        text = pattern.sub(replacement, text)
    return re.sub(r"(?<!\.)[.,;]$", "", text.strip()).strip()


def _word(text: str) -> str:
    """Small letters of a text or choice; empty for anything else."""
    bare = _STYLED.sub(r"\1", text).strip(" .\"'")
    if choice := _CHOICE.fullmatch(bare):
        return choice[1].lower()
    is_text = _WORDS.fullmatch(bare) and not _FUNCTION.search(bare)
    if not is_text and not (_STYLED.fullmatch(text) and re.fullmatch(r"[A-Za-z][a-z -]+", bare)):
        return ""
    return re.sub(r"^(?:the|an?)\s+", "", " ".join(bare.lower().split()))


def _named(text: str) -> tuple[str, str]:
    r"""Name and value of `x = 5` or `x \in [0, 1)`; an empty name for anything else."""
    if match := _MEMBER.fullmatch(text):
        return match[1], match[2]
    sides = _EQUALS.split(text)
    if len(sides) == 2 and _NAME.fullmatch(sides[0]) and not _FUNCTION.search(sides[0]):
        return re.sub(r"\s|[{}]", "", _STYLED.sub(r"\1", sides[0])), sides[1].strip()
    return "", text


def _list(term: str) -> tuple[str, tuple[str, ...]]:
    """Brackets and parts of a list, `{}` if it has none; nothing for what is no list."""
    tokens = re.findall(r"\\[{}]|\\[A-Za-z]+|.", term)
    wraps = len(tokens) > 2 and tokens[0] in _OPENING and tokens[-1] in _CLOSING
    if wraps and _depths(tokens)[:-1].count(0) == 0:
        brackets = (tokens[0] + tokens[-1]).replace("\\", "")
        tokens = tokens[1:-1]
    else:
        brackets = "{}"
    depths, parts = _depths(tokens), [""]
    for token, depth in zip(tokens, depths, strict=True):
        if token in ",;" and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return (brackets, tuple(part.strip() for part in parts)) if len(parts) > 1 else ("", ())


def _depths(tokens: list[str]) -> list[int]:
    """How many brackets are open behind each token."""
    depth, depths = 0, []
    for token in tokens:
        depth += (token in _OPENING) - (token in _CLOSING)
        depths.append(depth)
    return depths


def _as_fraction(match: re.Match[str]) -> str:
    r"""A repeating decimal, 0.1\overline{6}, as a fraction: 15/90."""
    before, period = (match["whole"] or "0") + match["fixed"], match["period"]
    top = int(before + period) - int(before)
    bottom = (10 ** len(period) - 1) * 10 ** len(match["fixed"])
    return rf"\frac{{{top}}}{{{bottom}}}"
