"""What each of two ranks runs: `python two_ranks.py RANK PORT FOLDER`, tasks and answers there."""

from __future__ import annotations

import os
import pickle
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from learning import gradients_of, plan_evaluation, plan_rows

from rlhf_ray.learner.supervised import supervised_learner


def answer_of(task: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """One step and one evaluation."""
    rows, settings = task["rows"], {"num_ranks": num_ranks}
    planned = [getattr(row, "row", row) for row in rows]
    learner = supervised_learner(task["spec"], device=torch.device("cpu"))
    try:
        evaluated = learner.evaluate(rows, plan_evaluation(planned, **settings))
        written = []
        if hasattr(learner, "continuations"):
            written = learner.continuations([[5, 6], [7]], max_new_tokens=4, end_ids=[9])
        metrics = learner.update(rows, plan_rows(planned, **settings))
        return {
            "metrics": metrics,
            "gradients": gradients_of(learner),
            "evaluated": evaluated,
            "written": written,
        }
    finally:
        learner.close()


def main(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    deadline = timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=deadline)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=deadline)
    tasks = pickle.loads((folder / "tasks.pkl").read_bytes())
    answers = {name: answer_of(task, num_ranks=2) for name, task in tasks.items()}
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(answers))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
