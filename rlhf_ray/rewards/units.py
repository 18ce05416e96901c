"""What may stand behind a number without changing it: `dollars per day`, `km/h`, `cm^2`, `%`."""

from __future__ import annotations

import re

_MAX_WORDS = 8

# Other one or two letters may be variables (`42x`), multiples (`42k`) or functions.
_SHORT_UNIT = re.compile(
    r"[ghmsl]|[cmkn]m|[km]g|[mdc]l|lb|oz|ft|mi|yd|hr|ha|[kmgt]b|hz|kw|[ap]m|cc|sq|pc|st|nd|rd|th"
)
_SHORT_WORD = re.compile(r"an?|at|he|i[nst]|o[fn]|so|we")
# After these the number is another one, is not exact, or is not the answer.
_CHANGING = re.compile(
    r"and|or|but|not?|nor|isn|minus|plus|divided|multiplied|over|to|than|by|if|unless|"
    r"ish|squared|cubed|factorial|pi|sqrt|root|log|ln|sin|cos|tan|mod|negative|below|remainder|"
    r"approximately|about|roughly|nearly|almost|around|maybe|perhaps|wrong|incorrect|false|"
    r"least|most|minimum|maximum|dozens?|scores?|gross|lakhs?|crores?|pairs?|half|halves|quarters?|thirds?|mil|mio|mn|bn|infinity|inf|nan|zero|one|"
    r"two|three|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|\w+illion)(?:ths?)|"
    r"(?:four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|\w+illion)s?|\w+teen|"
    r"(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)\w*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")
_UNIT = re.compile(
    r"(?P<percent>\s*%)?"
    r"(?P<words>(?:\s*[^\W\d_]+(?:\^[23](?![0-9]))?)?"
    r"(?:[\s/]+\(?[^\W\d_]+(?:\^[23](?![0-9]))?\)?(?:['’-][^\W\d_]+)?[.,]?)*)\s*"
)


def is_unit(text: str) -> bool:
    """Whether all of `text`, which stands behind a number, is a unit or words that leave it be."""
    if not _UNIT.fullmatch(text):
        return False
    if re.search(r"\bM\b", text):  # million
        return False
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) > _MAX_WORDS or any(_CHANGING.fullmatch(word) for word in words):
        return False
    is_spaced = text[:1].isspace()
    return all(
        len(word) > 2 or _SHORT_UNIT.fullmatch(word) or (is_spaced and _SHORT_WORD.fullmatch(word))
        for word in words
    )
