"""The supervised loop behind a fake policy: which rows it trains, when it evaluates and stops."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from fake_sink import FakeSink
from fake_supervised import Completing, FakeSupervised, SlowSupervised
from fakes import COSTS, CountedUsage

from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.config.tools.layers import lay_over
from rlhf_ray.data.rows.records import EXAMPLES
from rlhf_ray.data.rows.report import Converted
from rlhf_ray.data.rows.streaming import RowStream, SourceStream, StreamSettings
from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.supervised import SupervisedLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.log import Table
from rlhf_ray.roles.reports import Hardware
from rlhf_ray.types import SftExample

KEEP_ALL = {"every": 1, "keep": 10}
NUM_EXAMPLES = 10


def make_examples(count, name="train"):
    """Of 2 and more tokens, of which the first and every third are not trained."""
    return [
        SftExample(
            example_id=f"{name}:{n}",
            token_ids_T=np.arange(2 + n % 4, dtype=np.int32),
            trained_T=np.arange(2 + n % 4) % 3 != 0,
        )
        for n in range(count)
    ]


def make_config(run_dir, **settings):
    return SftConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": 5,
            "batch_size": 4,
            "data": {"path": "examples.jsonl"},
            "policy": {"model": {"path": "model"}},
            **settings,
        }
    )


def loop_of(config, policy, *, held_out=0, recorder=None, **keywords):
    log = MetricsLog([recorder or FakeSink()])
    examples, eval_examples = make_examples(NUM_EXAMPLES), make_examples(held_out, "held_out")
    return SupervisedLoop(config, policy, examples, eval_examples, log, **keywords)


async def test_an_epoch_has_every_row_once_also_where_batches_do_not_divide_it(tmp_path):
    policy, recorder = FakeSupervised(), FakeSink()
    await loop_of(make_config(tmp_path), policy, recorder=recorder).run(None)
    assert [len(batch) for batch in policy.batches] == [4] * 5
    taken = [example for batch in policy.batches for example in batch]
    all_of_them = Counter(example.example_id for example in make_examples(NUM_EXAMPLES))
    first, second = taken[:NUM_EXAMPLES], taken[NUM_EXAMPLES:]
    assert Counter(first) == Counter(second) == all_of_them
    assert first != second
    assert list(recorder.steps) == [0, 1, 2, 3, 4, 5]
    assert recorder.steps[5]["data/epoch"] == 2.0
    assert recorder.steps[3]["sft/loss"] == 0.5
    # A name with a group of its own keeps it: TRL's users look for it there.
    assert recorder.steps[3]["rewards/margins"] == 1.5


async def test_a_step_says_where_its_time_and_its_processes_went(tmp_path):
    recorder = FakeSink()
    loop = loop_of(make_config(tmp_path), FakeSupervised(), recorder=recorder, usage=CountedUsage())
    await loop.run(None)
    told = recorder.steps[5]
    assert told["wait/policy"] == 6
    assert told["share/score"] + told["share/update"] <= 1.0
    assert told["perf/samples_per_s"] == pytest.approx(4 / told["time/step"])
    assert "perf/mfu" not in told  # the peak of a CPU is not known


async def test_a_step_lasts_from_log_to_log(tmp_path):
    """With the checkpoint before it and its own evaluation."""
    recorder = FakeSink()
    config = make_config(tmp_path, eval={"every": 1}, checkpoint=KEEP_ALL)
    await loop_of(config, FakeSupervised(), held_out=2, recorder=recorder).run(None)
    assert "time/checkpoint" not in recorder.steps[1]
    told = recorder.steps[5]
    parts = [told[f"time/{part}"] for part in ("checkpoint", "score", "update", "evaluate")]
    assert told["time/step"] >= sum(parts) > 0


async def test_utilisation_is_there_where_the_peak_is_known(tmp_path):
    policy, recorder = FakeSupervised(), FakeSink()

    async def hardware():
        return Hardware(flops=COSTS, device_name="NVIDIA H100 80GB", num_devices=2)

    policy.hardware = hardware
    await loop_of(make_config(tmp_path), policy, recorder=recorder).run(None)
    trained = [row for row in make_examples(NUM_EXAMPLES) if row.example_id in policy.batches[4]]
    num_flops = COSTS.of(
        [row.num_tokens for row in trained],
        num_scored=sum(row.num_trained_tokens for row in trained),
    )
    told = recorder.steps[5]
    assert told["perf/mfu"] == pytest.approx(num_flops / (told["time/update"] * 2 * 989e12))


async def test_rows_stand_in_the_order_of_the_data_where_nothing_is_shuffled(tmp_path):
    policy = FakeSupervised()
    data = {"path": "examples.jsonl", "shuffle": False}
    await loop_of(make_config(tmp_path, data=data), policy).run(None)
    taken = [example for batch in policy.batches for example in batch]
    assert taken == [f"train:{n}" for n in range(NUM_EXAMPLES)] * 2


async def test_a_batch_is_one_optimiser_step_over_its_trained_tokens(tmp_path):
    policy = FakeSupervised()
    config = make_config(tmp_path, placement={"policy": {"ranks": 2}})
    await loop_of(config, policy).run(None)
    trained = {e.example_id: int(e.trained_T.sum()) for e in make_examples(NUM_EXAMPLES)}
    for batch, plan in zip(policy.batches, policy.plans, strict=True):
        [minibatch] = plan.minibatches
        assert minibatch.num_tokens == sum(trained[example] for example in batch)
        assert len(minibatch.micro_batches_by_rank) == 2
        rows = [row for rank in minibatch.micro_batches_by_rank for mb in rank for row in mb]
        assert sorted(rows) == [0, 1, 2, 3]


@pytest.mark.parametrize(("every", "expected"), [(0, [0, 5]), (2, [0, 2, 4, 5]), (5, [0, 5])])
async def test_held_out_examples_are_evaluated_before_every_few_and_after(
    tmp_path, every, expected
):
    policy, recorder = FakeSupervised(), FakeSink()
    config = make_config(tmp_path, eval={"every": every})
    await loop_of(config, policy, held_out=3, recorder=recorder).run(None)
    told = {step: m["eval/loss"] for step, m in recorder.steps.items() if "eval/loss" in m}
    # The fake's loss says how many updates it had seen.
    assert told == {step: 2.0 - step for step in expected}
    assert policy.evaluated == [["held_out:0", "held_out:1", "held_out:2"]] * len(expected)


async def test_a_job_without_held_out_examples_evaluates_nothing(tmp_path):
    policy = FakeSupervised()
    await loop_of(make_config(tmp_path, eval={"every": 1}), policy).run(None)
    assert policy.calls == ["update"] * 5 + ["save"]


def stream_of(examples):
    """The same as a stream, read four at a time and shuffled by six."""

    def read(start):
        for at in range(start, len(examples), 4):
            table = EXAMPLES.table(examples[at : at + 4])
            yield Converted(num_rows=len(table), table=table)

    settings = StreamSettings(seed=0, shuffle=True, block_rows=6)
    source = SourceStream(read, EXAMPLES, settings)
    return RowStream([source], [1.0], settings, digest="d", longest=9)


@pytest.mark.parametrize("last", [1, 2, 3, 4])
async def test_a_stream_is_resumed_behind_the_last_batch_that_was_trained(tmp_path, last):
    def looping(policy, folder, steps, recorder=None):
        config = make_config(folder, total_steps=steps, checkpoint=KEEP_ALL)
        log = MetricsLog([recorder or FakeSink()])
        return SupervisedLoop(config, policy, stream_of(make_examples(NUM_EXAMPLES)), [], log)

    whole, first, rest, recorder = FakeSupervised(), FakeSupervised(), FakeSupervised(), FakeSink()
    await looping(whole, tmp_path / "whole", 5, recorder).run(None)
    assert recorder.steps[5]["data/epoch"] == 2.0
    taken = Counter(example for batch in whole.batches for example in batch)
    assert set(taken.values()) == {2}
    await looping(first, tmp_path / "cut", last).run(None)
    checkpoint = CheckpointStore(tmp_path / "cut", keep=10).latest()
    await looping(rest, tmp_path / "cut", 5).run(checkpoint)
    assert first.batches + rest.batches == whole.batches


async def test_a_resumed_loop_trains_the_rows_that_were_left(tmp_path):
    whole = FakeSupervised()
    await loop_of(make_config(tmp_path / "whole"), whole).run(None)

    config = make_config(tmp_path / "cut", checkpoint=KEEP_ALL)
    cut = FakeSupervised(fails_at=4)
    with pytest.raises(OSError, match="power cut"):
        await loop_of(config, cut).run(None)
    checkpoint = CheckpointStore(tmp_path / "cut", keep=10).latest()
    assert checkpoint.step == 3

    resumed, recorder = FakeSupervised(), FakeSink()
    await loop_of(config, resumed, held_out=2, recorder=recorder).run(checkpoint)
    assert resumed.calls[:2] == ["restore", "update"]
    assert cut.batches + resumed.batches == whole.batches
    assert resumed.plans == whole.plans[3:]
    assert resumed.num_updates == 5
    assert list(recorder.steps) == [4, 5]
    assert recorder.steps[5]["data/epoch"] == 2.0


@pytest.mark.parametrize(("every", "kept"), [(0, [5]), (2, [2, 4, 5])])
async def test_checkpoints_are_written_every_few_and_at_the_end(tmp_path, every, kept):
    config = make_config(tmp_path, checkpoint={"every": every, "keep": 10})
    await loop_of(config, FakeSupervised()).run(None)
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == [f"step_{step:08d}" for step in kept]


async def test_steps_go_on_while_a_checkpoint_is_committed(tmp_path, monkeypatch):
    """It may take until the next is due, and the run ends behind the last."""
    loop = loop_of(make_config(tmp_path, checkpoint={"every": 3, "keep": 10}), FakeSupervised())
    done, commit = [], loop.keeper.store.commit

    def slow_commit(step, state, *, roles):
        while step == 3 and len(loop.role.batches) < 5:
            time.sleep(0.01)
        commit(step, state, roles=roles)
        done.append((step, len(loop.role.batches)))

    monkeypatch.setattr(loop.keeper.store, "commit", slow_commit)
    await loop.run(None)
    assert done == [(3, 5), (5, 5)]
    assert loop.keeper.store.latest().step == 5


@pytest.mark.parametrize(("failing", "trained"), [(2, 4), (5, 5)], ids=["next save", "end"])
async def test_a_commit_that_fails_ends_the_run_where_it_is_waited_for(
    tmp_path, monkeypatch, failing, trained
):
    loop = loop_of(make_config(tmp_path, checkpoint={"every": 2, "keep": 10}), FakeSupervised())
    commit = loop.keeper.store.commit

    def failing_commit(step, state, *, roles):
        if step == failing:
            raise RunError(f"the checkpoint of step {step} is not committed")
        commit(step, state, roles=roles)

    monkeypatch.setattr(loop.keeper.store, "commit", failing_commit)
    with pytest.raises(RunError, match=f"the checkpoint of step {failing} is not committed"):
        await loop.run(None)
    assert len(loop.role.batches) == trained
    whole = CheckpointStore(tmp_path, keep=10).latest()
    assert (whole and whole.step) == (4 if failing == 5 else None)


async def test_steps_that_are_not_finite_stop_the_run_when_they_come_in_a_row(tmp_path):
    config = make_config(tmp_path, total_steps=9)
    policy, recorder = FakeSupervised(skipped=[1, 2, 0, 1, 2, 3]), FakeSink()
    with pytest.raises(RunError, match=r"step 6: .* not finite in 3 optimiser steps in a row .sft"):
        await loop_of(config, policy, recorder=recorder).run(None)
    assert policy.num_updates == 6
    assert recorder.steps[6]["sft/skipped_in_a_row"] == 3, "the last step is logged as well"
    assert "save" not in policy.calls


async def test_a_batch_is_completed_while_the_one_before_trains(tmp_path):
    policy = SlowSupervised()
    reference = policy.reference = Completing(policy)
    await loop_of(make_config(tmp_path), policy, prepare=reference).run(None)
    assert [rows for _, rows in reference.asked] == policy.batches
    # Asked for before the update of the step before was over, and not once too often.
    assert [done for done, _ in reference.asked] == [0, 0, 1, 2, 3]


async def test_a_checkpoint_does_not_count_the_batch_that_was_completed_ahead(tmp_path):
    whole = FakeSupervised()
    await loop_of(make_config(tmp_path / "whole"), whole, prepare=Completing(whole)).run(None)

    config = make_config(tmp_path / "cut", checkpoint=KEEP_ALL)
    cut = FakeSupervised(fails_at=3)
    with pytest.raises(OSError, match="power cut"):
        await loop_of(config, cut, prepare=Completing(cut)).run(None)
    resumed = FakeSupervised()
    checkpoint = CheckpointStore(tmp_path / "cut", keep=10).latest()
    await loop_of(config, resumed, prepare=Completing(resumed)).run(checkpoint)
    assert cut.batches + resumed.batches == whole.batches


async def test_held_out_rows_are_completed_once_and_shown_after_each_evaluation(tmp_path):
    policy, recorder = FakeSupervised(), FakeSink()
    reference = Completing(policy)

    async def show(step, rows, evaluated):
        outcomes = [outcome[0] for outcome in evaluated.outcomes_B]
        cells = list(zip([row.example_id for row in rows], outcomes, strict=True))
        return [Table(step=step, name="pairs", columns=("row", "reward"), rows=cells)]

    config = make_config(tmp_path, eval={"every": 2})
    loop = loop_of(config, policy, held_out=2, recorder=recorder, prepare=reference, show=show)
    await loop.run(None)
    held_out = [rows for _, rows in reference.asked if rows[0].startswith("held_out")]
    assert held_out == [["held_out:0", "held_out:1"]]
    assert [table.step for table in recorder.tables] == [0, 2, 4, 5]
    assert recorder.tables[0].rows == [("held_out:0", 0.0), ("held_out:1", 0.0)]
    assert recorder.steps[4]["eval/rewards/margins"] == 1.0


@pytest.mark.parametrize(("epochs", "steps"), [(0, 5), (1, 3), (2, 5), (0.5, 2), (4, 10)])
def test_epochs_become_steps(tmp_path, epochs, steps):
    values = make_config(tmp_path).model_dump(exclude_unset=True)
    config = SftConfig.model_validate(lay_over(SftConfig, values, {"epochs": epochs}))
    assert config.for_rows(NUM_EXAMPLES).total_steps == steps
