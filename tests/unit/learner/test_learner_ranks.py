"""Two processes take the step that one takes, under every ZeRO stage."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gathers import HeadTask, step_of
from learning import largest_gap, learner_config
from two_ranks import MAX_GRAD_NORM, SUMMANDS, SUMS, answer_of

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.specs import SupervisedSpec
from rlhf_ray.types import SftExample

# Where CPUAdam is used for the first time on a machine it is compiled: two minutes of a core.
pytestmark = [pytest.mark.timeout(900), pytest.mark.set_up_once]
KINDS = {
    "sft": (SftConfig, {}),
    "reward": (RmConfig, {"loss_type": "plackett_luce", "center_rewards_coefficient": 0.1}),
    "sigmoid": (DpoConfig, {"rpo_alpha": 0.5}),
    "aot": (DpoConfig, {"loss_type": ["aot"]}),
    "adapted": (DpoConfig, {}),
    "kto": (DpoConfig, {"loss_type": ["kto"]}),
}
# What makes logits: the model's settings, and whether it is the embedding.
HEADS = {
    "trained": ({}, False),
    "tied": ({}, True),
    "frozen": ({"lora": {"rank": 3}, "gradient_checkpointing": True}, False),
    "adapted": ({"lora": {"rank": 3, "target_modules": ["q_proj", "lm_head"]}}, False),
}
# With one row, the second rank has a micro-batch without any.
CASES = [
    *((kind, stage, "all") for kind in KINDS for stage in (0, 2, 3)),
    *((kind, stage, "one") for kind in ("sft", "reward", "sigmoid", "kto") for stage in (0, 1, 3)),
]


def task_of(kind, stage, path, rows):
    config, settings = KINDS[kind]
    learner = {"optim": {"max_grad_norm": 1e9}, "zero": {"stage": stage}}
    if kind == "adapted":
        learner["model"] = {"lora": {"rank": 3}}
    role = "reward" if config is RmConfig else "policy"
    job = config.model_validate(
        {"data": {"path": "unused"}, role: learner_config(path, learner), **settings}
    )
    return {"spec": SupervisedSpec(job=job, total_steps=10, replay_folder=""), "rows": rows}


@pytest.fixture(scope="module")
def tasks(make_model, rankings, pairs, labelled):
    examples = []
    for row in rankings:
        token_ids_T = np.concatenate(row.answer_ids_K)
        trained_T = token_ids_T % 3 > 0
        trained_T[0] = False  # nothing predicts it
        examples.append(
            SftExample(example_id=row.example_id, token_ids_T=token_ids_T, trained_T=trained_T)
        )
    rows = {"sft": examples, "reward": rankings, "kto": labelled}
    tasks = {}
    for kind, stage, num in CASES:
        some = rows.get(kind, pairs)[: None if num == "all" else 1]
        tasks[f"{kind} {stage} {num}"] = task_of(kind, stage, make_model("llama"), some)
    for head, (model, tied) in HEADS.items():
        path = make_model("llama", tie_word_embeddings=tied)
        tasks[f"head {head}"] = HeadTask(path=path, model=model)
    return tasks


@pytest.fixture(scope="module")
def of_two(tasks, tmp_path_factory):
    """Each rank's answers to all tasks."""
    folder = tmp_path_factory.mktemp("two_ranks")
    (folder / "tasks.pkl").write_bytes(pickle.dumps(tasks))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    script = Path(__file__).with_name("two_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(store.port), str(folder)],
            # The root, for benchmarks/; pytest's own setting of it ends with this process.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[3])},
            stderr=(folder / f"rank{rank}.err").open("wb"),
        )
        for rank in (0, 1)
    ]
    try:
        codes = [rank.wait(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    errors = [(folder / f"rank{rank}.err").read_text()[-3000:] for rank in (0, 1)]
    assert codes == [0, 0], "\n".join(errors)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in (0, 1)]


@pytest.mark.parametrize(("kind", "stage", "num"), CASES)
def test_two_ranks_take_the_step_of_one(tasks, of_two, kind, stage, num):
    name = f"{kind} {stage} {num}"
    one = answer_of(tasks[name], num_ranks=1)
    for two in (of_two[0][name], of_two[1][name]):
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6)
        assert two["evaluated"].metrics == pytest.approx(
            one["evaluated"].metrics, rel=1e-5, abs=1e-6
        )
        np.testing.assert_allclose(
            np.concatenate(two["evaluated"].outcomes_B),
            np.concatenate(one["evaluated"].outcomes_B),
            atol=1e-5,
        )
        assert largest_gap(two["gradients"], one["gradients"]) < 1e-5
        assert two["written"] == one["written"]


@pytest.mark.parametrize(("stage", "alone", "offload"), SUMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_micro_batches_and_ranks_are_summed_in_float32(
    of_two, dtype, stage, alone, offload
):
    """`alone`: of some weights one rank has a gradient and the other has none."""
    totals = [sum(slopes) for slopes in SUMMANDS]
    wanted = {"first": sum(totals), "second": totals[0] if alone else sum(totals)}
    norm = math.sqrt(33 * wanted["first"] ** 2 + 7 * wanted["second"] ** 2)
    for answers in of_two:
        answer = answers[f"{dtype} {stage} {alone} {offload}"]
        assert answer["grad_norm"] == pytest.approx(norm, rel=1e-6)
        for name, moments in answer["moments"].items():
            clipped = wanted[name] * MAX_GRAD_NORM / norm
            assert moments.tolist() == pytest.approx([clipped] * moments.numel(), rel=1e-5)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_gathered_once_forward_and_once_backward(tasks, of_two, head, num_ranks):
    """However many chunks of logits a pass has, and each rank other ones."""
    name = f"head {head}"
    ranks = [of_two[0][name], of_two[1][name]] if num_ranks == 2 else [step_of(tasks[name], 1)]
    plain, _ = step_of(replace(tasks[name], zero={"stage": 0}), 1)
    for gradients, gathers in ranks:
        assert largest_gap(gradients, plain) < 1e-6
        # Before the order is known, an embedding has a gather of its own.
        known = slice(3 if head == "tied" else 0, None)
        assert max(gathers.forward[known]) == max(gathers.backward[known]) == 1
        # Loading looks at the model by its own forward, once; later passes follow the first one's.
        assert gathers.invalidated == [1]


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ranks_that_leave_their_devices_take_the_same_steps(of_two, dtype, stage):
    for answers in of_two:
        stayed, moved = (answers["steps"][f"{dtype} {stage} {moves}"] for moves in (False, True))
        assert stayed.keys() == moved.keys()
        for name, tensor in stayed.items():
            assert torch.equal(moved[name], tensor), name
        assert not torch.equal(stayed["first"], torch.ones_like(stayed["first"]))
