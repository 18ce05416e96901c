"""Memory that log-probabilities take at 4,096 tokens of 128k words, over that of full logits.

    python -m benchmarks.logprob_memory

Log-probabilities and entropies of given tokens, from hidden states of 64 numbers, and their
gradients, in float32 on the CPU: by chunks of logits, as learners compute them by default, and by
`log_softmax` of all logits at once. Each runs in a process of its own; what counts is the peak of
its resident memory, less what it had with hidden states and head in place. The ratio is the
largest of the pairs'.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from rlhf_ray.algorithms.logprobs import token_logprobs
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.metrics.usage import peak_memory_gb

GOAL = 0.15
TOKENS, VOCABULARY, WIDTH = 4096, 128 * 1024, 64
WAYS = ("chunks", "full")
LIMIT_S = 300.0


def main() -> int:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=2, help="processes of either")
    parser.add_argument("--quick", action="store_true", help="one pair, for a rehearsal")
    parser.add_argument("--way", choices=WAYS, help="what a process of its own is told")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(_peak_gb(arguments.way)))
        return 0
    found = logprob_memory(1 if arguments.quick else arguments.pairs)
    print(json.dumps(found))
    return int(not found["holds"])


def logprob_memory(pairs: int) -> dict[str, Any]:
    """The ratio, the goal, whether it holds, and the peaks (GiB) of each pair."""
    peaks = [{f"{way}_gb": round(_in_a_process(way), 3) for way in WAYS} for _ in range(pairs)]
    ratio = max(pair["chunks_gb"] / pair["full_gb"] for pair in peaks)
    return {"ratio": round(ratio, 3), "goal": GOAL, "holds": ratio <= GOAL, "pairs": peaks}


def _in_a_process(way: str) -> float:
    command = [sys.executable, "-m", "benchmarks.logprob_memory", "--way", way]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    return float(done.stdout)


def _peak_gb(way: str) -> float:
    """What is above what was there before."""
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=True)
    targets_T = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight.grad = torch.zeros_like(head.weight)
    # What kernels take at their first call, forward and backward, is no tensor's.
    head(hidden_TD[:8]).log_softmax(-1).sum().backward()
    before_gb = peak_memory_gb()
    if way == "chunks":
        scores = token_logprobs(
            hidden_TD,
            head,
            targets_T,
            chunk_tokens=ForwardConfig().chunk_tokens(VOCABULARY),
            with_entropy=True,
            entropy_gradient=False,
        )
        logprobs_T = scores.logprobs_T
    else:
        log_p_TV = head(hidden_TD).log_softmax(-1)
        logprobs_T = log_p_TV.gather(-1, targets_T[:, None])
        with torch.no_grad():
            -(log_p_TV.exp() * log_p_TV).sum(-1)
    logprobs_T.sum().backward()
    return peak_memory_gb() - before_gb


if __name__ == "__main__":
    raise SystemExit(main())
