"""The histogram of lengths, and text that is safe to print."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rlhf_ray.data.chat.borders import printable, shortened, spans
from rlhf_ray.data.rows.report import histogram


@pytest.mark.parametrize(
    "lengths",
    [[1], [7, 7], [0, 3], list(range(1000)), [1, 1_000_000], [500, 501, 512], [10] * 500 + [10**6]],
)
def test_every_row_is_in_one_bin_and_bins_join(lengths):
    bins = histogram(np.array(lengths))
    assert sum(each.count for each in bins) == len(lengths)
    assert bins[0].first <= min(lengths)
    assert bins[-1].last == max(lengths)
    assert all(one.last + 1 == other.first for one, other in itertools.pairwise(bins))
    assert len(bins) <= 12
    for each in bins:
        assert each.count == sum(each.first <= length <= each.last for length in lengths)


def test_one_book_does_not_flatten_the_bins_of_short_texts():
    bins = histogram([*range(100, 300), 600_000])
    assert len(bins) >= 10
    assert bins[0].last < 130
    assert (bins[-1].last, bins[-1].count) == (600_000, 1)


def test_spaces_and_parted_characters_are_the_later_runs(make_tokenizer):
    tokenizer = make_tokenizer()
    ids_T = tokenizer("aé b", add_special_tokens=False)["input_ids"]
    assert len(ids_T) == 5
    parted = list(spans(tokenizer, ids_T, [False, False, True, True, True]))
    assert [(span.text, span.is_trained) for span in parted] == [("a", False), ("é b", True)]
    turns = list(spans(tokenizer, ids_T, [True, True, True, False, True]))
    assert [span.text for span in turns] == ["aé", " ", "b"]


def test_what_a_terminal_acts_upon_is_escaped_and_letters_are_not():
    assert printable("a\x1b[2J\r\u202eb\x9b\ud800") == r"a\x1b[2J\r\u202eb\x9b\ud800"
    assert printable("日本\n\té 👩‍👩‍👧 [b]") == "日本\n\té 👩‍👩‍👧 [b]"


def test_of_a_long_text_beginning_and_end_are_shown():
    assert shortened("ab" * 10, 20) == "ab" * 10
    assert shortened("a" * 60 + "b" * 60, 8) == "aaaaaa [... 112 characters ...] bb"
