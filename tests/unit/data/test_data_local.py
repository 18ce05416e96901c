"""Folders with splits, folders that `datasets` saved, patterns, and what cannot be opened."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
from loads import load_sft

from rlhf_ray.config.checks.references import data_fault
from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.files.local import local_data
from rlhf_ray.data.files.sources import find_data, log_files, read_rows
from rlhf_ray.data.row import Row
from rlhf_ray.errors import DataError

README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: [b/*.jsonl, a.jsonl]
  - split: held_out
    path: c.jsonl
---
# A data set
"""
TWO_SUBSETS = """---
configs:
- {config_name: en, data_files: en/*.jsonl}
- {config_name: de, data_files: de/*.jsonl}
---
"""
LAYOUTS = {
    "shards": ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl",
               "data/test-00000-of-00001.jsonl", "data/extra_1-00000-of-00001.jsonl"],
    "files": ["train.jsonl", "test.jsonl", "notes.jsonl"],
    "numbered": ["train_0.jsonl", "train_1.jsonl", "val_0.jsonl"],
    "behind": ["gsm8k-train.json", "gsm8k-test.json"],
    "folders": ["train/a.jsonl", "train/b.jsonl", "test/train-1.jsonl"],
    "nested": ["data/main/training/a.jsonl", "data/main/eval/b.jsonl"],
    "subset": ["main/train-00000-of-00001.jsonl", "main/dev-00000-of-00001.jsonl"],
    "none": ["a.jsonl", "b.jsonl", "sub/c.jsonl", "contest.jsonl", "trained.jsonl"],
    "hidden": ["a.jsonl", ".cache/train.jsonl", "__MACOSX/train.jsonl", ".test.jsonl"],
    "readme": ["a.jsonl", "b/2.jsonl", "b/1.jsonl", "c.jsonl", "d.jsonl"],
}  # fmt: skip


def filled(folder: Path, names: list[str]) -> Path:
    """A folder whose files have one row each, which names the file."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    return folder


def texts(path: Path | str, **source: Any) -> list[str]:
    rows = read_rows(SourceConfig(path=str(path), **source))
    return [row.columns["text"] for row in rows if isinstance(row, Row)]


def ids(path: Path | str, **source: Any) -> list[str]:
    rows = read_rows(SourceConfig(path=str(path), **source))
    return [row.row_id for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_has_the_splits_that_datasets_sees(tmp_path: Path, layout: str) -> None:
    folder = filled(tmp_path / "corpus", LAYOUTS[layout])
    if layout == "readme":
        (folder / "README.md").write_text(README)
    of_datasets = datasets.load_dataset_builder(str(folder)).config.data_files
    expected = {str(split): sorted(map(Path, files)) for split, files in of_datasets.items()}
    data = local_data(str(folder))
    assert data is not None
    assert {
        split: sorted(file.path for file in files) for split, files in data.splits.items()
    } == expected
    for split, files in expected.items():
        assert sorted(texts(folder, split=split)) == [
            str(file.relative_to(folder)) for file in files
        ]


def test_training_reads_no_file_of_the_test_split_and_says_which_it_reads(
    tmp_path: Path, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = filled(tmp_path / "corpus", LAYOUTS["shards"])
    with caplog.at_level(logging.INFO):
        loaded = load_sft(DataConfig(path=str(folder)), chat_tokenizer, max_length=99)
    assert [chat_tokenizer.decode(row.token_ids_T) for row in loaded.rows] == [
        f"<s>data/train-0000{number}-of-00002.jsonl</s>" for number in range(2)
    ]
    assert (
        f"{folder}: split train (train-00000-of-00002.jsonl, train-00001-of-00002.jsonl); not "
        "read: split extra_1 (extra_1-00000-of-00001.jsonl), split test "
        "(test-00000-of-00001.jsonl)"
    ) in caplog.messages


def test_splits_are_sliced_and_joined_and_name_their_rows(tmp_path: Path) -> None:
    folder = filled(tmp_path / "corpus", ["train_1.jsonl", "train_2.jsonl", "test.jsonl"])
    assert ids(folder) == ["corpus/train:0", "corpus/train:1"]
    assert ids(folder, split="train[1:]+test[:50%]+train[:-1]+test") == [
        "corpus/train:1", "corpus/train:0", "corpus/test:0",
    ]  # fmt: skip
    assert ids(folder, split="train+test", skip=1, limit=2) == ["corpus/train:1", "corpus/test:0"]


def test_a_folder_without_a_split_says_which_it_has(tmp_path: Path) -> None:
    folder = filled(tmp_path / "corpus", ["test.jsonl", "a.jsonl", "b.jsonl"])
    with pytest.raises(DataError, match=r"no split 'train'; there: split test \(test.jsonl\), no "
                                        r"split \(a.jsonl, b.jsonl\). Take one"):  # fmt: skip
        texts(folder)
    plain = filled(tmp_path / "plain", ["a.jsonl"])
    for place in (plain, plain / "a.jsonl", f"{plain}/*.jsonl"):
        with pytest.raises(DataError, match="one split, 'train', got 'test'"):
            texts(place, split="test")


def test_the_name_of_the_folder_above_is_no_split(tmp_path: Path) -> None:
    folder = filled(tmp_path / "test", ["a.jsonl", "b.jsonl"])
    assert ids(folder) == ["test:0", "test:1"]


def test_a_readme_that_names_absent_files_or_two_subsets_is_refused(tmp_path: Path) -> None:
    folder = filled(tmp_path / "corpus", ["a.jsonl", "en/1.jsonl", "de/1.jsonl"])
    (folder / "README.md").write_text(README)
    with pytest.raises(DataError, match=r"README.md: the split 'held_out' is to be in \['c.jsonl"):
        texts(folder)
    (folder / "README.md").write_text(TWO_SUBSETS)
    with pytest.raises(DataError, match=r"several data sets \(en, de\): name the files of one"):
        texts(folder)
    (folder / "README.md").write_text(TWO_SUBSETS.replace("de, ", "default, data_dir: de, ", 1)
                                      .replace("de/*.jsonl", "'*.jsonl'"))  # fmt: skip
    assert texts(folder) == ["de/1.jsonl"]
    (folder / "README.md").write_text("---\nconfigs: {\n---\n")
    with pytest.raises(DataError, match=r"README.md: what stands before its text is wrong"):
        texts(folder)
    (folder / "README.md").write_text("# Words alone\n")
    assert len(texts(folder)) == 3


def test_folders_that_datasets_saved_are_read_in_its_order(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": [f"t{n}" for n in range(12)]})
    rows.save_to_disk(tmp_path / "one", num_shards=3)
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"left by map")
    assert texts(tmp_path / "one") == [f"t{n}" for n in range(12)]
    assert ids(tmp_path / "one", split="train[-1:]") == ["one:11"]
    both = datasets.DatasetDict({"test": rows.select([0]), "train": rows.select([5, 3])})
    both.save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both") == ["t5", "t3"]
    assert ids(tmp_path / "both", split="test") == ["both/test:0"]
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00003.arrow: no such file, though"):
        texts(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state.json: it must hold '_data_files'"):
        texts(tmp_path / "one")


def test_patterns_take_the_files_that_match_in_the_order_of_names(tmp_path: Path) -> None:
    folder = filled(tmp_path / "corpus", ["b.jsonl", "a.jsonl", "sub/c.jsonl", "[d].jsonl"])
    (folder / "notes.md").write_text("no data")
    assert texts(f"{folder}/*") == ["[d].jsonl", "a.jsonl", "b.jsonl"]
    assert texts(f"{folder}/**/[a-c].jsonl") == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert texts(f"{folder}/[d].jsonl") == ["[d].jsonl"]  # a name that is there is no pattern
    assert ids(f"{folder}/*.jsonl", split="train[1:]") == ["corpus:1", "corpus:2"]
    with pytest.raises(DataError, match=r"no data file matches '.*/\*\.csv'; wanted a \.json"):
        texts(f"{folder}/*.csv")
    with pytest.raises(DataError, match=r"it matches 1 others, such as 'notes.md'; wanted"):
        texts(f"{folder}/*.md")


def test_what_cannot_be_opened_or_has_no_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = filled(tmp_path / "corpus", ["a.jsonl"])
    os.mkfifo(folder / "b.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl: neither a file nor a folder, but a pipe"):
        texts(folder)
    with pytest.raises(DataError, match=r"b\.jsonl: neither"):
        texts(folder / "b.jsonl")
    (folder / "b.jsonl").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jsonl"))
        with pytest.raises(DataError, match=r"s\.jsonl: neither"):
            texts(folder)
    (folder / "s.jsonl").unlink()
    (folder / "c.jsonl").symlink_to("gone.jsonl")
    for place in (folder, folder / "c.jsonl", f"{folder}/*.jsonl"):
        with pytest.raises(DataError, match=r"c\.jsonl: a link to 'gone.jsonl', which is not"):
            texts(place)


def test_a_folder_that_links_lead_to_is_read_once(tmp_path: Path) -> None:
    filled(tmp_path / "elsewhere", ["d.jsonl"])
    folder = filled(tmp_path / "corpus", ["a.jsonl", "one/b.jsonl", "two/c.jsonl"])
    links = {"more": tmp_path / "elsewhere", "again": tmp_path / "elsewhere", "loop": folder}
    links |= {"one/two": folder / "two", "two/one": folder / "one", "one/up": folder}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    expected = ["again/d.jsonl", "a.jsonl", "one/b.jsonl", "two/c.jsonl"]
    for path in (folder, f"{folder}/**/*.jsonl", f"{folder}/**"):
        places = [row.where for row in read_rows(SourceConfig(path=str(path)))]
        assert places == [f"{folder}/{name}:1" for name in sorted(expected)]
        assert data_fault(str(path)) is None
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "more").symlink_to(tmp_path / "elsewhere")
    assert data_fault(str(tmp_path / "links")) is None
    assert texts(tmp_path / "links") == ["d.jsonl"]


def test_what_only_describes_data_is_none_to_the_check_before_a_start(tmp_path: Path) -> None:
    folder = filled(tmp_path / "corpus", ["dataset_info.json", ".cache/a.jsonl"])
    assert "holds no data file" in str(data_fault(str(folder)))
    with pytest.raises(DataError, match="no data files in the folder"):
        texts(folder)


def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path / "corpus", ["a.jsonl"])
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read all
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: permission denied"):
        texts(folder)


def test_nothing_is_said_of_files_that_are_all_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = filled(tmp_path / "corpus", ["a.jsonl", "b.jsonl"])
    with caplog.at_level(logging.INFO):
        log_files(find_data(str(folder)), "train")
    assert not caplog.messages
