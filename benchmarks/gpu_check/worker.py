"""The process that runs some checks: `python -m benchmarks.gpu_check.worker FOLDER`.

`FOLDER/work.json` says which. What happens goes to `FOLDER/events.jsonl`, a line at a time, so that
whoever watches knows what was being done when the process died.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.machine import Card
from benchmarks.gpu_check.records import Check, NotApplicable
from benchmarks.gpu_check.scale import SCALES
from benchmarks.gpu_check.setting import Setting


def main(folder: Path) -> None:
    work = json.loads((folder / "work.json").read_text())
    with (folder / "events.jsonl").open("a") as events:

        def tell(**event: Any) -> None:
            events.write(json.dumps(event) + "\n")
            events.flush()

        setting = Setting(
            scale=SCALES[work["scale"]],
            cards=tuple(Card(**card) for card in work["cards"]),
            folder=folder,
            tell=tell,
        )
        for fields in work["checks"]:
            _run(Check(**fields), setting, tell)
        tell(event="closing")
        setting.close()


def _run(check: Check, setting: Setting, tell: Any) -> None:
    tell(event="begin", check=check.name)
    print(f"== {check.name}", flush=True)
    started_s = time.monotonic()
    reason, applies = "", True
    try:
        module, _, name = check.function.partition(":")
        for measurement in getattr(importlib.import_module(module), name)(setting):
            tell(event="measurement", check=check.name, measurement=asdict(measurement))
    except NotApplicable as why:
        reason, applies = str(why), False
    except Exception as error:  # of whatever kind: the next check is none of its business
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    tell(
        event="end",
        check=check.name,
        reason=reason,
        applies=applies,
        seconds=time.monotonic() - started_s,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
