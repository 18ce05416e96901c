from __future__ import annotations

from rlhf_ray.rewards.contains import contains_word, near_length


def test_a_word_counts_whole_and_in_either_case() -> None:
    texts = ["She was Happy.", "unhappy", "happyness", "happy", "HAPPY-ish", "", "ha ppy"]
    wanted = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert contains_word(list(texts), word="happy", prompts=[]) == wanted
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    assert contains_word(list(chat), word="happy") == wanted
    assert contains_word(["a+b", "aab"], word="a+b") == [1.0, 0.0]


def test_length_falls_off_to_both_sides() -> None:
    texts = ["", "one two", "one two three four", "a b c d e f", "a b c d e f g h i j k l"]
    assert near_length(list(texts), num_words=4) == [0.0, 0.5, 1.0, 0.5, 0.0]
