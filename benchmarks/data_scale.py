r"""What large data costs the driver: memory and seconds to the first batch, first and again.

    python -m benchmarks.data_scale --rows 1000000

Writes a file of Alpaca's form and lengths (52,002 rows of it are 22.8 MB) in words that a seed made
up, and a byte-level BPE tokenizer of 8,000 tokens trained on them. Then an SFT job prepares itself
twice, each time in a process of its own: configuration, data, what a checkpoint would hold of them,
and the first batch. The second finds the tokenized rows of the first. Printed are seconds, the
driver's `VmHWM` (the most that was ever resident, mapped files included) and the bytes on disk.
Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BATCH_SIZE = 128
MAX_LENGTH = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept, with file and cache")
    parser.add_argument("--prepare", action="store_true", help="what each measured process does")
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare_job(arguments.folder, arguments.workers)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "rows.jsonl").exists():
            write_rows(folder / "rows.jsonl", arguments.rows)
            write_model(folder)
        size_mb = (folder / "rows.jsonl").stat().st_size / 1e6
        print(f"{arguments.rows:,} rows, {size_mb:,.0f} MB of JSON lines")
        for start in ("first start", "second start"):
            command = [sys.executable, "-m", "benchmarks.data_scale", "--prepare"]
            command += ["--folder", str(folder), "--workers", str(arguments.workers)]
            cache = {"RLHF_RAY_CACHE": str(folder / "cache")}
            print(f"{start}:", flush=True)
            subprocess.run(command, env={**os.environ, **cache}, check=True)
        kept = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
        print(f"kept on disk: {kept / 1e6:,.0f} MB")
    return 0


def prepare_job(folder: Path, workers: int) -> None:
    """What the driver of an SFT job does up to its first batch."""
    began_s = time.monotonic()
    from rlhf_ray.config.supervised import SftConfig
    from rlhf_ray.data.order import RowsInOrder
    from rlhf_ray.jobs.sft import SFT
    from rlhf_ray.loops.setup import setup_of

    config = SftConfig.model_validate(
        {
            "run_dir": str(folder / "run"),
            "data": {
                "path": str(folder / "rows.jsonl"),
                "over_length": "truncate",
                "workers": workers,
            },
            "policy": {"model": {"path": str(folder / "model"), "chat_template": "alpaca"}},
            "max_length": MAX_LENGTH,
            "batch_size": BATCH_SIZE,
            "epochs": 1.0,
        }
    )
    imported_s = time.monotonic()
    job = SFT.prepare(config)
    rows = job.data.rows
    setup_of(job.config, rows)
    order = RowsInOrder(rows, seed=config.seed)
    batch = order.take(BATCH_SIZE)
    done_s, processor_s = time.monotonic(), time.process_time()
    num_tokens = sum(row.num_tokens for row in batch) / len(batch)
    print(
        f"  {done_s - began_s:,.1f} s to the first batch, {done_s - imported_s:,.1f} s of them "
        f"after imports, {processor_s:,.1f} s of the driver's processor\n  {len(rows):,} rows of "
        f"{num_tokens:.0f} tokens; peak {_status_mb('VmHWM'):,.0f} MB, now "
        f"{_status_mb('RssAnon'):,.0f} MB of its own and "
        f"{_status_mb('RssFile'):,.0f} MB of mapped files"
    )
    for _ in range(200):
        batch = order.take(BATCH_SIZE)
    took_ms = (time.monotonic() - done_s) / 200 * 1e3
    print(f"  {took_ms:.1f} ms a further batch of {BATCH_SIZE}; peak {_status_mb('VmHWM'):,.0f} MB")


def write_rows(path: Path, num_rows: int) -> None:
    """Rows of Alpaca's form; how long its parts are is like Alpaca's too."""
    generator = random.Random(0)
    words = _words(generator)
    with path.open("w") as file:
        for _ in range(num_rows):
            given = _text(words, generator, 10) if generator.random() < 0.4 else ""
            row = {
                "instruction": _text(words, generator, 10),
                "input": given,
                "output": _text(words, generator, 44),
            }
            file.write(json.dumps(row) + "\n")


def _words(generator: random.Random) -> list[str]:
    syllables = [c + v + e for c in "bdfgklmnprst" for v in "aeiou" for e in ("", "n", "r", "s")]
    return ["".join(generator.choices(syllables, k=generator.randint(1, 3))) for _ in range(20_000)]


def _text(words: list[str], generator: random.Random, mean_words: int) -> str:
    num_words = max(1, round(generator.gammavariate(1.2, mean_words / 1.2)))
    # A word's share falls with its rank, as in any language.
    ranks = (int(len(words) ** generator.random()) - 1 for _ in range(num_words))
    return " ".join(words[rank] for rank in ranks).capitalize() + "."


def write_model(folder: Path) -> None:
    """A model's description and a tokenizer; weights are not needed for data."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8_000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_lines(folder / "rows.jsonl", 20_000), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.save_pretrained(folder / "model")
    shape = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 1024}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **shape)
    config.save_pretrained(folder / "model")


def _lines(path: Path, num_lines: int) -> Iterator[str]:
    with path.open() as file:
        for _, line in zip(range(num_lines), file, strict=False):
            yield line


def _status_mb(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
