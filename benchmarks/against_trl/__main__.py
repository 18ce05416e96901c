r"""One step of TRL over one of this project, in turns on this machine: each case as JSON.

    python -m benchmarks.against_trl grpo
    python -m benchmarks.against_trl dpo rm --pairs 5
    python -m benchmarks.against_trl ppo --quick     # tiny, to see that it runs

Both sides start at once, warm up, and then have the machine by turns, as they wait for each other
after every turn. This project runs as its command does: Ray, vLLM and DeepSpeed, a pool of actors
that is up before the first turn. A turn is a step, or three where one is short. `ratio` is the
median over pairs of turns of TRL's seconds over ours, `cpu_ratio` the same of processor seconds,
and `idle_share` what the resting side took of a turn, at most.

PPO is TRL 1.12's, the last that has it: `make bench` puts it into `.venv-trl`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.against_trl.cases import CASES, Case
from benchmarks.against_trl.turns import Side, Turn, take_turns
from launch.run.signals import interrupt_when_stopped

ROOT = Path(__file__).parents[2]
PAIRS = 3
# A side that takes more of a processor while it should rest has made the other one slower.
IDLE_SHARE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against_trl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument(
        "--pairs", type=int, default=0, help=f"of turns; {PAIRS}, or 1 with --quick"
    )
    parser.add_argument("--quick", action="store_true", help="tiny: no figure, but all of the way")
    options = parser.parse_args(argv)
    interrupt_when_stopped()
    pairs = options.pairs or (1 if options.quick else PAIRS)
    found = {name: against_trl(name, pairs=pairs, quick=options.quick) for name in options.cases}
    print(json.dumps(found if len(found) > 1 else next(iter(found.values())), indent=1))
    return int(not all(result["holds"] for result in found.values()))


def against_trl(name: str, *, pairs: int = PAIRS, quick: bool = False) -> dict[str, Any]:
    """One case."""
    case = CASES[name]
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as temporary:
        folder = Path(temporary)
        steps = case.steps_a_turn * (pairs + 1)
        # One more step than is wanted: what a step prepares for the next one counts in each.
        made = case.make(folder, steps + 1, quick)
        sides: list[Side] = []
        try:
            for module, given in (("theirs", made.theirs), ("ours", {"config": made.config})):
                file = folder / f"{module}.json"
                own = {"job": case.job, "steps_a_turn": case.steps_a_turn}
                file.write_text(json.dumps(given | own))
                log = folder / f"{module}.log"
                sides.append(Side(module, file, log, _environment(module, case)))
            turns = take_turns(sides, pairs)
        finally:
            for side in sides:
                side.end()
    return result_of(case, turns)


def _environment(module: str, case: Case) -> dict[str, str]:
    """Threads as a user has them: all for TRL, for ours what the configuration says."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if module == "theirs":
        environment["OMP_NUM_THREADS"] = str(os.cpu_count())
        path.insert(0, str(ROOT / case.packages) if case.packages else "")
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return environment | offline | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def result_of(case: Case, turns: Sequence[tuple[Turn, Turn]]) -> dict[str, Any]:
    """Ratios of pairs of turns, TRL's first.

    Raises:
        RuntimeError: One side worked in the other's turn.
    """
    idle_share = max(turn.idle_cpu_s / turn.seconds for pair in turns for turn in pair)
    if idle_share > IDLE_SHARE:
        raise RuntimeError(f"a side that should have rested took {idle_share:.0%} of a processor")
    pairs = []
    for theirs, ours in turns:
        work = ours.num_tokens / theirs.num_tokens if case.by_tokens else 1.0
        pairs.append(
            {
                "ratio": round(work * theirs.seconds / ours.seconds, 3),
                "cpu_ratio": round(work * theirs.cpu_s / ours.cpu_s, 3),
                "trl_s": round(theirs.seconds, 2),
                "ours_s": round(ours.seconds, 2),
            }
        )
    ratio = median(pair["ratio"] for pair in pairs)
    return {
        "ratio": ratio,
        "goal": case.goal,
        "holds": ratio >= case.goal,
        "pairs": pairs,
        "cpu_ratio": median(pair["cpu_ratio"] for pair in pairs),
        "idle_share": round(idle_share, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
