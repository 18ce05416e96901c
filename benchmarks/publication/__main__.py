"""Does every weight reach an engine of two GPUs over vLLM's own engines, bit for bit?

    python -m benchmarks.publication                  # all families: 10 minutes on 2 cores
    python -m benchmarks.publication mixtral --each   # one, with a line a case

Two ranks of a policy, each a process with the real learner, publish to two workers of an engine
with tensor parallelism 2, each a process with vLLM's real worker, over vLLM's trainer and worker
sides of `nccl` and `ipc`: tied and untied heads, ZeRO 0 and 3, all weights and merged adapters. A
card is not needed: see `fake_cuda.py` for what stands in its place. Each worker's weights are then
compared with those that vLLM loads from files of the same model. Exits with 1 where one differs, or
where a card's streams could have been the cause of one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import transformers

from benchmarks.publication.cases import FAMILIES, Case, matrix
from benchmarks.publication.exchange import Outcome, exchange


def main() -> int:
    """Try all and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=FAMILIES)
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes: dict[Case, Outcome] = {}
    started_s = time.monotonic()
    with exchange() as processes:
        for case in matrix(options.families):
            outcome = outcomes[case] = processes.outcome_of(case)
            if options.each or not outcome.is_right:
                print(f"{case.model}, {case.way}: {in_words(outcome)}", flush=True)
    print_table(outcomes)
    wrong = sum(not outcome.is_right for outcome in outcomes.values())
    print(f"{len(outcomes)} cases, {wrong} wrong, {time.monotonic() - started_s:.0f} s")
    return int(wrong > 0)


def in_words(outcome: Outcome) -> str:
    """All of it."""
    if outcome.is_right:
        return f"all {outcome.num_numbers} numbers of both workers"
    return "; ".join((*outcome.differences, *outcome.races))


def print_table(outcomes: Mapping[Case, Outcome]) -> None:
    """A line a model, a column a way."""
    ways = list(dict.fromkeys(case.way for case in outcomes))
    print(f"\n| model | numbers | {' | '.join(ways)} |\n|---|---|{'---|' * len(ways)}")
    for model in dict.fromkeys(case.model for case in outcomes):
        of_model = {case.way: one for case, one in outcomes.items() if case.model == model}
        cells = ["right" if of_model[way].is_right else "WRONG" for way in ways]
        numbers = max(one.num_numbers for one in of_model.values())
        print(f"| {model} | {numbers:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    raise SystemExit(main())
