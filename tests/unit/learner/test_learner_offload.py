"""States on the node's memory: the steps of the device's, on CPUAdam, saved and gone on from."""

from __future__ import annotations

import fcntl

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.utils import safe_get_full_fp32_param
from learning import plan_of

from benchmarks.gradient_steps import save_model
from benchmarks.gradients import Case, agreements
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.learner.deepspeed.settings import adamw

# At its first use on a machine CPUAdam is compiled: two minutes of a core.
pytestmark = pytest.mark.timeout(900)


OFFLOADED = [
    {"stage": 1, "offload_optimizer": "cpu"},
    {"stage": 2, "offload_optimizer": "cpu"},
    {"stage": 3, "offload_optimizer": "cpu"},
    {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
    {"stage": 3, "offload_param": "cpu"},
]
# Weight decay, bias correction, clipping and a rate that changes: all that an update has.
OPTIM = {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 3, "eps": 1e-3, "max_grad_norm": 0.5}


def masters(learner):
    return {n: safe_get_full_fp32_param(p).clone() for n, p in learner.engine._named_trained()}


def updated(learner, rows, num_steps):
    plan = plan_of(rows, minibatches=1)
    for _ in range(num_steps):
        assert learner.update(rows, plan, 0.0)["skipped_steps"] == 0
    return learner


@pytest.fixture(params=OFFLOADED, ids=lambda zero: "-".join(map(str, zero.values())))
def zero(request):
    return request.param


# A rounding in float32's last place can be one of bfloat16, and then the next gradient differs.
@pytest.mark.parametrize(("dtype", "num_steps"), [("float32", 5), ("bfloat16", 1)])
def test_an_offloaded_optimiser_takes_the_steps_of_the_devices(
    make_policy, rows, zero, dtype, num_steps
):
    model = {"dtype": dtype}
    learner = make_policy(model=model, zero=zero, optim=OPTIM)
    on_cpu = "offload_optimizer" in zero
    assert isinstance(learner.engine.engine.basic_optimizer, DeepSpeedCPUAdam) == on_cpu
    plain = make_policy(model=model, zero={"stage": zero["stage"]}, optim=OPTIM)
    start = masters(plain)
    ours = masters(updated(learner, rows, num_steps))
    theirs = masters(updated(plain, rows, num_steps))
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, atol=1e-6, rtol=1e-6)
        assert (wanted - start[name]).abs().max() > 1e-3


def test_a_resumed_offloaded_optimiser_goes_on_where_it_was(make_policy, rows, zero, tmp_path):
    learner = updated(make_policy(zero=zero, optim=OPTIM), rows, 2)
    learner.save(tmp_path / "saved")
    wanted = masters(updated(learner, rows, 2))
    other = make_policy(zero=zero, optim=OPTIM)
    other.load(tmp_path / "saved")
    ours = masters(updated(other, rows, 2))
    assert all(torch.equal(ours[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("device_first", [True, False], ids=["to the node", "to the device"])
def test_a_checkpoint_does_not_ask_where_states_were(
    make_policy, rows, tmp_path, stage, device_first
):
    ways = [{"stage": stage}, {"stage": stage, "offload_optimizer": "cpu"}]
    before, after = ways if device_first else reversed(ways)
    learner = updated(make_policy(zero=before, optim=OPTIM), rows, 2)
    learner.save(tmp_path / "saved")
    wanted = masters(updated(learner, rows, 2))
    other = make_policy(zero=after, optim=OPTIM)
    other.load(tmp_path / "saved")
    ours = masters(updated(other, rows, 2))
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_that_go_to_the_node_are_those_of_the_whole_step(tmp_path, stage):
    case = Case(learner="sft", dtype="bfloat16", stage=stage, offload=True)
    [found] = agreements(case, save_model(tmp_path), [8]).values()
    assert found.is_within(case.dtype), found


def test_what_a_killed_compiler_left_is_waited_for_by_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    left = tmp_path / "cpu_adam/lock"
    left.parent.mkdir()
    left.touch()

    def compiling(*arguments, **keywords):
        assert not left.exists(), "PyTorch would wait for it to go"
        with (left.parent / "ranks.lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no other rank compiles meanwhile
        return "optimizer"

    monkeypatch.setattr("deepspeed.ops.adam.DeepSpeedCPUAdam", compiling)
    config = LearnerConfig.model_validate({"zero": OFFLOADED[0]})
    assert adamw(torch.nn.Linear(2, 2), config) == "optimizer"
