"""Long texts: truncation tokenizes no more than it keeps, and pieces lose no token."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_families import CHATML, DEEPSEEK, QWEN3
from loads import load_pairs, load_prompts, load_sft
from trained_tokenizers import FAMILIES, OTHER_SCRIPT, TEXT, trained

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.chat.borders import text_tokens
from rlhf_ray.data.chat.turn_end import with_end
from rlhf_ray.data.examples import lengths, sft
from rlhf_ray.errors import DataError


@pytest.fixture(params=[*FAMILIES, "stories260K"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "stories260K":
        from transformers import AutoTokenizer

        folder = request.getfixturevalue("shared_data") / "models/stories260K"
        return AutoTokenizer.from_pretrained(folder)
    return copy.deepcopy(trained(request.param))


def long_texts() -> dict[str, str]:
    """Of 20,000 to 50,000 characters each."""
    generator = random.Random(1)
    page = TEXT[:40_000]
    return {
        "prose": page,
        "one line": " ".join(page.split()),
        "code": "".join(
            f"{'    ' * generator.randint(0, 5)}if x[{n}] == {n**3}:\n\n\n" for n in range(900)
        ),
        "repeated": "ab" * 12_000,
        "numbers": " ".join(str(generator.randrange(10**12)) for _ in range(2_000)),
        "other scripts": "".join(generator.choices(OTHER_SCRIPT, k=20_000)),
        "space": "word" + " " * 12_000 + "word\n" * 3_000 + "\t" * 9_000 + "end",
    }


WITHOUT_WORDS = ("repeated", "other scripts")


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """What loading gives with texts shortened, and with them whole."""

    def both(load: Callable[[], Any]) -> tuple[Any, Any]:
        shortened = load()
        with monkeypatch.context() as patched:
            patched.setattr(lengths, "_enough", lambda texts, *_, **__: len("\n".join(texts)))
            return shortened, load()

    return both


def write(path: Path, *rows: dict[str, Any]) -> DataConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), over_length="truncate", workers=1)


def test_what_truncation_keeps_first_is_the_beginning_of_the_whole(
    tmp_path: Path, tokenizer: Any, both_ways: Any
) -> None:
    rows, pairs = [], []
    for text in long_texts().values():
        rows += [{"prompt": "q: ", "completion": text[skipped:]} for skipped in (0, 1, 2_000)]
        rows.append({"prompt": text, "completion": text})
        pairs.append({"prompt": "q", "chosen": text, "rejected": text[7:]})
    data = write(tmp_path / "a.jsonl", *rows)
    found, expected = both_ways(lambda: load_sft(data, tokenizer, max_length=90))
    assert found.rows.digest == expected.rows.digest
    assert found.report == expected.report and found.report.num_truncated == 3 * len(pairs)
    data = write(tmp_path / "b.jsonl", *pairs)
    found, expected = both_ways(lambda: load_pairs(data, tokenizer, max_length=90))
    assert found.rows.digest == expected.rows.digest


def test_what_it_keeps_last_is_the_end(tmp_path: Path, tokenizer: Any, both_ways: Any) -> None:
    rows, pairs = [], []
    for name, text in long_texts().items():
        if name in WITHOUT_WORDS:
            continue
        rows += [{"prompt": text[: len(text) - cut]} for cut in (0, 1, 2_000)]
        rows.append({"prompt": f"<s>{text}"})
        pairs.append({"prompt": text, "chosen": "yes", "rejected": "no"})
    data = write(tmp_path / "a.jsonl", *rows)
    found, expected = both_ways(lambda: load_prompts(data, tokenizer, context_tokens=80))
    assert found.rows.digest == expected.rows.digest
    data = write(tmp_path / "b.jsonl", *pairs)
    found, expected = both_ways(lambda: load_pairs(data, tokenizer, max_length=90))
    assert found.rows.digest == expected.rows.digest


def test_the_end_of_a_text_without_words_spells_the_same(
    tmp_path: Path, tokenizer: Any, both_ways: Any
) -> None:
    data = write(tmp_path / "a.jsonl", *({"prompt": long_texts()[name]} for name in WITHOUT_WORDS))
    found, expected = both_ways(lambda: load_prompts(data, tokenizer, context_tokens=80))
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert len(one.token_ids_T) == 80
        spelt, whole = tokenizer.decode(one.token_ids_T), tokenizer.decode(other.token_ids_T)
        assert spelt.endswith(whole[4:]) or whole.endswith(spelt[4:])


@pytest.mark.parametrize("template", [CHATML, QWEN3, DEEPSEEK], ids=["chatml", "qwen3", "deepseek"])
@pytest.mark.parametrize("family", ["llama3", "unigram"])
def test_chats_are_shortened_message_by_message(
    tmp_path: Path, family: str, template: str, both_ways: Any
) -> None:
    tokenizer = copy.deepcopy(trained(family))
    marks = ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks, "<|im_end|>"]})
    tokenizer.chat_template = template
    text = long_texts()["prose"].replace("<think>", "").replace("</think>", "")
    chats = [
        [("user", text), ("assistant", "short"), ("user", "and?"), ("assistant", text)],
        [("user", "q"), ("assistant", text), ("user", text), ("assistant", "short")],
        [("user", "q"), ("assistant", f"<think>{text}</think>\n\nanswer {text}")],
        [("user", "q " * 9_000), ("assistant", "a " * 9_000)] * 3,
    ]
    rows = [[{"role": role, "content": said} for role, said in chat] for chat in chats]
    prompts = write(tmp_path / "p.jsonl", *({"prompt": row[:-1]} for row in rows))
    found, expected = both_ways(lambda: load_prompts(prompts, tokenizer, context_tokens=80))
    assert found.rows.digest == expected.rows.digest
    if template == DEEPSEEK:
        return  # its answers cannot be trained: the opening that they are sampled behind has more
    answered = write(
        tmp_path / "a.jsonl", *({"prompt": row[:-1], "completion": row[-1:]} for row in rows)
    )
    answered = answered.model_copy(update={"on_bad_row": "skip"})
    for length in (60, 20_000):
        found, expected = both_ways(lambda n=length: load_sft(answered, tokenizer, max_length=n))
        assert found.rows.digest == expected.rows.digest


def test_of_megabytes_a_few_kilobytes_are_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = copy.deepcopy(trained("llama3"))
    tokenizer.chat_template = CHATML
    text = " ".join(TEXT.replace("think>", "").split()) * 30
    rows = [
        {"prompt": text, "completion": text},
        {"prompt": [{"role": "user", "content": text}], "completion": text},
        {"prompt": "q", "completion": text},
    ]
    lengths: list[int] = []
    kind, call = type(tokenizer), type(tokenizer).__call__

    def recording(self: Any, text: str, *arguments: Any, **settings: Any) -> Any:
        lengths.append(len(text))
        return call(self, text, *arguments, **settings)

    monkeypatch.setattr(kind, "__call__", recording)
    data = write(tmp_path / "a.jsonl", *rows)
    data = data.model_copy(update={"on_bad_row": "skip"})
    load_sft(data, tokenizer, max_length=512)
    load_prompts(data, tokenizer, context_tokens=512)
    load_pairs(
        write(tmp_path / "b.jsonl", {"prompt": text, "chosen": text, "rejected": f"a{text}"}),
        tokenizer,
        max_length=512,
    )
    load_prompts(
        write(tmp_path / "c.jsonl", {"text": text}).model_copy(update={"prompt_tokens": 24}),
        tokenizer,
        context_tokens=512,
    )
    assert len(text) > 1_500_000 and max(lengths) < 40_000


@pytest.fixture
def short_sections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sft, "_SECTION_CHARACTERS", 6_000)
    yield


def test_pieces_train_every_token_of_a_text_once(
    tmp_path: Path, tokenizer: Any, short_sections: None
) -> None:
    texts = [text for name, text in long_texts().items() if name not in (*WITHOUT_WORDS, "space")]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "short"]))
    loaded = load_sft(DataConfig(path=str(path)), tokenizer, max_length=64)
    *pieces_of_all, short = loaded.rows
    assert short.example_id == f"a:{len(texts)}"
    assert all(not row.trained_T[0] and row.trained_T[1:].all() for row in loaded.rows)
    for number, text in enumerate(texts):
        cut = [row for row in pieces_of_all if row.example_id.startswith(f"a:{number}/")]
        whole = with_end(tokenizer, text_tokens(tokenizer, text))
        assert [row.example_id for row in cut] == [f"a:{number}/{n}" for n in range(len(cut))]
        assert all(row.num_tokens == 64 for row in cut[:-1]) and 2 <= cut[-1].num_tokens <= 64
        trained_T = np.concatenate([row.token_ids_T[1:] for row in cut])
        assert [int(cut[0].token_ids_T[0]), *trained_T.tolist()] == whole
        for one, other in itertools.pairwise(cut):
            assert one.token_ids_T[-1] == other.token_ids_T[0]
    report = loaded.report
    assert (report.num_pieces, report.num_truncated) == (len(pieces_of_all), 0)


@pytest.mark.parametrize("name", ["repeated", "other scripts", "space"])
def test_pieces_of_a_text_without_words_spell_it(
    tmp_path: Path, name: str, short_sections: None
) -> None:
    tokenizer = trained("llama3")
    text = long_texts()[name].strip()
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text}) + "\n")
    rows = load_sft(DataConfig(path=str(path)), tokenizer, max_length=64).rows
    ids_T = [int(rows[0].token_ids_T[0]), *(int(i) for row in rows for i in row.token_ids_T[1:])]
    assert tokenizer.decode(ids_T) == f"{text}</s>"


def test_over_length_says_what_becomes_of_a_long_text(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(trained("gpt2"))
    tokenizer.chat_template = CHATML
    texts, chats = tmp_path / "texts.jsonl", tmp_path / "chats.jsonl"
    texts.write_text(json.dumps({"text": "word " * 200}) + "\n" + json.dumps({"text": "w"}) + "\n")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 200}]
    chats.write_text(json.dumps({"messages": chat}) + "\n")

    def kept(path: Path, over_length: str) -> tuple[int, int]:
        data = DataConfig.model_validate({"path": str(path), "over_length": over_length})
        report = load_sft(data, tokenizer, max_length=32).report
        return report.num_kept, report.num_truncated

    assert kept(texts, "auto") == kept(texts, "split") and kept(texts, "auto")[0] > 6
    assert kept(texts, "drop") == (1, 0)
    assert kept(texts, "truncate") == (2, 1)
    assert kept(chats, "split") == kept(chats, "truncate") == (1, 1)
    for path, over_length in ((texts, "error"), (chats, "error"), (chats, "auto")):
        with pytest.raises(DataError, match="set over_length to drop or truncate"):
            kept(path, over_length)


def test_only_sft_cuts_texts_into_pieces() -> None:
    data = {"path": "a/b", "over_length": "split"}
    model = {"model": {"path": "a/b"}}
    SftConfig.model_validate({"data": data, "policy": model})
    with pytest.raises(ValueError, match=r"data.over_length split cuts the texts of sft"):
        DpoConfig.model_validate({"data": data, "policy": model})
