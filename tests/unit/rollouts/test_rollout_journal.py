"""Decided draws come back as they were; what is damaged costs a segment's end, and is logged."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import io
import os
import random
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.errors import FAILURE_CAUSES, ConfigError, RunError
from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.rollouts import journal as journal_module
from rlhf_ray.rollouts.journal import FORMAT, Journal
from rlhf_ray.rollouts.recorder import Recorder
from rlhf_ray.rollouts.records import RecordedGroup
from rlhf_ray.types import Prompt, Rollout, RolloutSummary, Score, Turn

IDENTITY = {"seed": 0, "the data's rows (digest)": "ab12"}


def prompt_of(draw):
    return Prompt(prompt_id=f"train:{draw % 7}", token_ids_T=(1, draw), text="Once")


def group_of(draw, *, lengths_G=(3, 0), accepted=True, version=0, text="a", total=0.5):
    """A group whose every value says of which draw, sample and version it is."""
    samples = list(enumerate(lengths_G))
    return RecordedGroup(
        draw=draw,
        prompt_id=prompt_of(draw).prompt_id,
        is_accepted=accepted,
        scores_G=tuple(Score(total=total, parts={"length": float(n)}) for _, n in samples),
        summaries_G=tuple(
            RolloutSummary(
                sample=sample,
                num_prompt_tokens=2,
                num_response_tokens=length,
                num_action_tokens=length,
                finish_reason="stop",
                version_min=version,
                version_max=version,
                version_sum=version * length,
            )
            for sample, length in samples
        ),
        rollouts_G=tuple(
            Rollout(
                prompt=prompt_of(draw),
                draw=draw,
                sample=sample,
                response_ids_T=np.arange(length, dtype=np.int32) + 100 * draw + 10 * sample,
                logprobs_T=-np.arange(length, dtype=np.float32) - draw,
                versions_T=np.full(length, version, np.int32),
                action_mask_T=np.arange(length) % 2 == 0,
                finish_reason="stop",
                text=f"{text}{draw}/{sample}",
            )
            for sample, length in samples
            if accepted
        ),
    )


def plain(value):
    """What `==` can compare: arrays as their kind and bytes."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tobytes())
    if dataclasses.is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    return [plain(one) for one in value] if isinstance(value, tuple) else value


def write(folder, *groups, identity=IDENTITY):
    """What a process leaves that is killed: nothing is closed."""
    journal = Journal(folder, identity=identity)
    for group in groups:
        journal.append(group)
    return journal


def everything(folder, frontier=0):
    """As plain values: draw -> group."""
    replay = Journal(folder, identity=IDENTITY).replay(frontier)
    return {draw: plain(replay.take(draw, prompt_of(draw))) for draw in sorted(replay.draws)}


def segments(folder):
    return sorted(path.name for path in folder.glob("*"))


floats = st.floats(allow_nan=False, allow_infinity=False)
# Halves of surrogate pairs are strings in Python, and no UTF-8.
texts = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20)


@st.composite
def groups(draw):
    num_samples = draw(st.integers(0, 3))
    is_accepted = draw(st.booleans())
    prompt = Prompt(prompt_id=draw(texts), token_ids_T=(1,), text="")
    position = draw(st.integers(0, 2**40))

    def array(kind, length):
        return np.frombuffer(draw(st.binary(min_size=4 * length, max_size=4 * length)), kind)

    rollouts, summaries = [], []
    rewards = st.none() | floats
    turn = st.builds(
        Turn, num_tokens=st.integers(1, 9), reward=rewards, num_calls=st.integers(0, 2)
    )
    for sample in range(num_samples):
        length = draw(st.integers(0, 5))
        reason = draw(st.sampled_from(["stop", "length"]))
        rollouts.append(
            Rollout(
                prompt=prompt,
                draw=position,
                sample=sample,
                response_ids_T=array(np.int32, length),
                logprobs_T=array(np.float32, length),
                versions_T=array(np.int32, length),
                action_mask_T=array(np.int32, length) > 0,
                finish_reason=reason,
                text=draw(texts),
                turns=(turns := tuple(draw(st.lists(turn, max_size=2)))),
                messages=({"role": "tool", "content": draw(texts)},) * len(turns),
            )
        )
        summaries.append(
            RolloutSummary(
                sample=sample,
                num_prompt_tokens=1,
                num_response_tokens=length,
                num_action_tokens=length,
                finish_reason=reason,
                version_min=0,
                version_max=2,
                version_sum=2**40,
                environment_reward=draw(st.none() | floats),
                num_turns=draw(st.integers(0, 3)),
            )
        )
    is_skipped = draw(st.booleans())
    causes = st.lists(st.sampled_from(FAILURE_CAUSES), max_size=3)
    score = st.builds(
        Score,
        total=st.none() if is_skipped else st.none() | floats,
        parts=st.dictionaries(texts, st.none() | floats, max_size=2),
        is_cut=st.none() | st.booleans(),
    )
    return RecordedGroup(
        draw=position,
        prompt_id=prompt.prompt_id,
        is_accepted=is_accepted,
        scores_G=tuple(draw(score) for _ in range(num_samples)),
        summaries_G=tuple(summaries),
        rollouts_G=tuple(rollouts) if is_accepted else (),
        unsampled=tuple(draw(causes)),
        failed=tuple(draw(causes)),
        is_skipped=is_skipped,
    )


@settings(max_examples=100, deadline=None)
@given(written=st.lists(groups(), max_size=3))
def test_what_was_written_is_read_bit_for_bit(tmp_path_factory, written):
    """NaN, infinities and -0 of log-probabilities, empty responses, and texts that are no UTF-8."""
    folder = tmp_path_factory.mktemp("run") / "rollouts"
    write(folder, *written)
    replay = Journal(folder, identity=IDENTITY).replay(0)
    expected = {group.draw: group for group in written}
    assert set(replay.draws) == set(expected)
    for draw, group in expected.items():
        prompt = Prompt(prompt_id=group.prompt_id, token_ids_T=(5, 6), text="from the data")
        read = replay.take(draw, prompt)
        assert all(rollout.prompt is prompt for rollout in read.rollouts_G)
        of_that = [dataclasses.replace(rollout, prompt=prompt) for rollout in group.rollouts_G]
        assert plain(read) == plain(dataclasses.replace(group, rollouts_G=tuple(of_that)))
    assert not replay.draws


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_score_that_is_not_finite_is_refused_and_leaves_nothing(tmp_path, value):
    """A resumed run would meet it again, each time."""
    journal = write(tmp_path, group_of(0))
    with pytest.raises(ValueError, match=r"scores of draw 1 must be finite, got \[Score\(total="):
        journal.append(group_of(1, total=value))
    journal.append(group_of(2))
    assert list(everything(tmp_path)) == [0, 2]


def test_a_group_must_be_of_one_draw_and_whole():
    group = group_of(3)
    for changes, message in (
        ({"draw": 4}, r"rollouts must be of \(4, 'train:3'\).*got {\(3, 'train:3'\)}"),
        ({"scores_G": ()}, "draw 3 has 2 samples.* as many scores.*got 0 and 2"),
        ({"is_accepted": False}, "or, where it is not accepted, none; got 2 and 2"),
        ({"is_skipped": True}, "draw 3 is skipped: it must have no scores"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(group, **changes)


def test_another_kind_of_number_is_not_written(tmp_path):
    group = group_of(0, lengths_G=(2,))
    wide = dataclasses.replace(group.rollouts_G[0], versions_T=np.zeros(2, np.int64))
    with pytest.raises(TypeError, match=r"Cannot cast array data from dtype\('int64'\)"):
        write(tmp_path, dataclasses.replace(group, rollouts_G=(wide,)))


def test_fields_are_those_of_the_format():
    """What is recorded has other fields: then `FORMAT` counts up, and older files are refused."""
    recorded = {
        kind.__name__: sorted(one.name for one in dataclasses.fields(kind))
        for kind in (RecordedGroup, Rollout, RolloutSummary, Score, Turn)
    }
    assert (FORMAT, recorded) == (
        4,
        {
            "RecordedGroup": [
                "draw", "failed", "is_accepted", "is_skipped", "prompt_id", "rollouts_G",
                "scores_G", "summaries_G", "unsampled",
            ],
            "Rollout": [
                "action_mask_T", "draw", "finish_reason", "logprobs_T", "messages", "prompt",
                "response_ids_T", "sample", "text", "turns", "versions_T",
            ],
            "RolloutSummary": [
                "environment_reward", "environment_s", "finish_reason", "num_action_tokens",
                "num_calls", "num_failed_calls", "num_prompt_tokens", "num_response_tokens",
                "num_turns", "sample", "version_max", "version_min", "version_sum",
            ],
            "Score": ["is_cut", "parts", "total"],
            "Turn": ["environment_s", "num_calls", "num_failed_calls", "num_tokens", "reward"],
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three segments of two processes, some draws twice. -> folder, [(end, draw, group)] a file.

    The first of each is its header, which has no draw.
    """
    folder = tmp_path_factory.mktemp("written")
    records: dict[str, list] = {}
    journal = Journal(folder, identity=IDENTITY)
    for number, draws in enumerate([(3, 0, 1, 5), (4, 1, 6, 2), (5, 7, 0, 8, 9)]):
        if number == 2:  # the first process was killed
            journal = Journal(folder, identity=IDENTITY)
            journal.replay(0)
        journal.end_segment()
        for draw in draws:
            group = group_of(draw, version=number, accepted=draw % 4 > 0, text="é" * draw)
            journal.append(group)
            path = folder / segments(folder)[-1]
            header_end = path.read_bytes().index(b"RHJ", 1)
            of_file = records.setdefault(path.name, [(header_end, None, None)])
            of_file.append((path.stat().st_size, draw, plain(group)))
    assert len(records) == 3
    return folder, records


def used_bytes(records, num_sound):
    """Of each file, up to its first damage; nothing, if one before is not used to its end."""
    used = {}
    for name, of_file in records.items():
        is_known = all(used[before] == records[before][-1][0] for before in used)
        ends = [end for end, _, _ in of_file if end <= num_sound.get(name, end)]
        used[name] = max(ends, default=0) if is_known else 0
    return used


def num_equal_bytes(before, after):
    pairs = enumerate(zip(before, after, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(before), len(after)))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_damaged_costs_what_follows_and_is_logged(written, tmp_path, caplog, seed):
    """1,200 times: one or two files of three are cut, lose or zero some bytes, or flip a bit."""
    original, records = written
    chance = random.Random(seed)
    folder = tmp_path / "rollouts"
    for _ in range(300):
        shutil.copytree(original, folder, dirs_exist_ok=True)
        caplog.clear()
        damaged = {}
        for name in chance.sample(sorted(records), chance.randint(1, 2)):
            path = folder / name
            before = path.read_bytes()
            position = chance.randrange(len(before))
            rest = position + chance.randint(1, 40)
            after = chance.choice(
                [
                    before[:position],
                    before[:position] + bytes([before[position] ^ 1 << chance.randrange(8)])
                    + before[position + 1 :],
                    before[:position] + before[rest:],
                    before[:position] + bytes(len(before[position:rest])) + before[rest:],
                ]
            )  # fmt: skip
            path.write_bytes(after)
            if after != before:
                damaged[name] = num_equal_bytes(before, after)
        used = used_bytes(records, damaged)
        assert everything(folder) == {
            draw: group
            for name, of_file in records.items()
            for end, draw, group in of_file[1:]
            if end <= used[name]
        }
        expected = []
        broken = None  # the first file that is not used to its end
        for name, of_file in records.items():
            is_whole_up_to_its_end = (folder / name).stat().st_size == used[name]
            if damaged.get(name, of_file[0][0]) < of_file[0][0]:
                expected.append(f"{name} has no sound header (")
            elif broken:
                expected.append(
                    f"{name} is passed over: it follows from {broken}, of which {used[broken]} of "
                    f"{records[broken][-1][0]} bytes are used"
                )
            elif not is_whole_up_to_its_end:
                num_draws = sum(end <= used[name] for end, _, _ in of_file) - 1
                assert f"the {num_draws} draws before that are used" in caplog.text
                expected.append(f"{name} is damaged at byte {used[name]} (")
            if used[name] < of_file[-1][0]:
                broken = broken or name
        logged = [record.getMessage().removeprefix(f"{folder}/") for record in caplog.records]
        assert len(logged) == len(expected)
        for message, beginning in zip(logged, expected, strict=True):
            assert message.startswith(beginning)


def test_two_bytes_that_are_wrong_in_every_record_are_seen(written, tmp_path):
    """A length, the checksum itself and an array: each ends the segment there."""
    original, records = written
    [name, *_] = records
    data = (original / name).read_bytes()
    starts = [end for end, _, _ in records[name]][:-1]
    for number, start in enumerate(starts):
        for offset in range(16):
            wrong = bytearray(data)
            wrong[start + offset] ^= 0xFF
            (tmp_path / name).write_bytes(wrong)
            expected = [draw for _, draw, _ in records[name][1 : number + 1]]
            assert list(everything(tmp_path)) == sorted(expected)


def test_empty_and_foreign_files_are_passed_over(tmp_path, caplog):
    write(tmp_path, group_of(1))
    (tmp_path / "segment_00000002.rollouts").touch()
    (tmp_path / "segment_00000003.rollouts").write_bytes(b"not one of ours" * 9)
    (tmp_path / "notes.txt").write_text("nobody asks")
    assert list(everything(tmp_path)) == [1]
    assert [record.getMessage().rpartition("/")[2] for record in caplog.records] == [
        "segment_00000002.rollouts has no sound header (the file ends within a record): it is "
        "passed over",
        "segment_00000003.rollouts has no sound header (no record begins there): it is passed over",
    ]
    write(tmp_path, group_of(2))
    assert segments(tmp_path)[-1] == "segment_00000004.rollouts", "it comes after them"
    assert list(everything(tmp_path)) == [1, 2]


def test_a_segment_has_one_header_and_that_first(tmp_path, caplog):
    write(tmp_path, group_of(1))
    path = tmp_path / "segment_00000001.rollouts"
    whole = path.read_bytes()
    path.write_bytes(whole[whole.index(b"RHJ", 1) :])
    assert not everything(tmp_path)
    assert "has no sound header (one header begins a segment)" in caplog.text
    path.write_bytes(whole + whole)
    assert list(everything(tmp_path)) == [1]
    assert f"damaged at byte {len(whole)} (one header begins a segment)" in caplog.text


def test_a_folder_that_is_not_there_has_nothing(tmp_path):
    journal = Journal(tmp_path / "rollouts", identity=IDENTITY)
    assert not journal.replay(0).draws
    journal.sync()
    journal.end_segment()
    journal.prune(9)
    journal.clear()
    assert not (tmp_path / "rollouts").exists()


def test_of_records_of_a_draw_the_last_wins_whatever_process_wrote_it(tmp_path):
    journal = write(tmp_path, group_of(0), group_of(1), group_of(1, version=1))
    journal.append(group_of(2, accepted=False))
    journal.end_segment()
    journal.append(group_of(0, version=2))
    write(tmp_path, group_of(2, version=3))
    assert len(segments(tmp_path)) == 3
    assert everything(tmp_path) == {
        0: plain(group_of(0, version=2)),
        1: plain(group_of(1, version=1)),
        2: plain(group_of(2, version=3)),
    }
    assert list(everything(tmp_path, frontier=1)) == [1, 2]


def test_a_process_replays_its_own_groups_and_goes_on(tmp_path):
    journal = write(tmp_path, group_of(0), group_of(1))
    assert sorted(journal.replay(1).draws) == [1]
    journal.append(group_of(2))
    assert sorted(journal.replay(0).draws) == [0, 1, 2]
    assert len(segments(tmp_path)) == 2


def test_what_a_killed_process_left_half_written_costs_nothing_else(tmp_path):
    """Each goes on from what it can read, and is itself killed while it writes."""
    for draw in range(4):
        journal = Journal(tmp_path, identity=IDENTITY)
        assert sorted(journal.replay(0).draws) == [*range(draw)]
        journal.append(group_of(draw))
        path = tmp_path / segments(tmp_path)[-1]
        num_bytes = path.stat().st_size
        journal.append(group_of(100 + draw))
        os.truncate(path, num_bytes + 1 + 20 * draw)
    assert list(everything(tmp_path)) == [0, 1, 2, 3]


def test_what_follows_from_lost_decisions_is_lost_with_them(tmp_path, caplog):
    """Draw 4 was admitted because 0 to 3 were rejected: made anew, they may all be accepted."""
    journal = write(tmp_path, *(group_of(draw, accepted=False) for draw in range(4)))
    journal.end_segment()
    journal.append(group_of(4))
    first, second = segments(tmp_path)
    os.truncate(tmp_path / first, (tmp_path / first).stat().st_size - 1)
    again = Journal(tmp_path, identity=IDENTITY)
    assert sorted(again.replay(0).draws) == [0, 1, 2]
    assert f"{second} is passed over: it follows from {first}, of which" in caplog.text
    again.append(group_of(3))
    assert list(everything(tmp_path)) == [0, 1, 2, 3], "what was written without it is read"


def test_what_was_pruned_is_not_missed(tmp_path):
    journal = write(tmp_path, group_of(0))
    journal.end_segment()
    journal.append(group_of(1))
    journal.prune(1)
    assert list(everything(tmp_path, frontier=1)) == [1]


def test_what_is_gone_without_being_pruned_is_missed(tmp_path, caplog):
    """A run that goes on from an earlier draw would have had it."""
    journal = write(tmp_path, group_of(0), group_of(2))
    journal.end_segment()
    journal.append(group_of(1))
    first, second = segments(tmp_path)
    (tmp_path / first).unlink()
    again = Journal(tmp_path, identity=IDENTITY)
    assert not again.replay(2).draws
    assert f"{second} is passed over: it follows from {first}, which is gone" in caplog.text
    again.append(group_of(2))
    assert list(everything(tmp_path, frontier=2)) == [2], "what was written without it is read"


def test_segments_that_changed_places_are_seen(tmp_path, caplog):
    journal = write(tmp_path, group_of(0))
    for draw in (1, 2):
        journal.end_segment()
        journal.append(group_of(draw))
    first, second, third = (tmp_path / name for name in segments(tmp_path))
    shutil.copy(first, tmp_path / "aside")
    shutil.copy(second, first)
    shutil.copy(tmp_path / "aside", second)
    assert not everything(tmp_path)
    for path, name in ((first, second.name), (second, first.name)):
        assert f"{path} is passed over: it was written as {name}" in caplog.text
    assert f"{third} is passed over: it follows from {first.name}, of which 0 of" in caplog.text


class Store:
    """Has every rollout of `group_of`."""

    async def fetch(self, groups):
        return [list(group_of(group.draw, lengths_G=(2000,)).rollouts_G) for group in groups]


async def test_groups_are_written_one_after_another_also_where_nobody_waits_any_more(tmp_path):
    journal = Journal(tmp_path, identity=IDENTITY)
    recorder = Recorder(journal, Store(), timeout_s=60)
    tasks = []
    for draw in range(100):
        recorded = group_of(draw, lengths_G=(2000,))
        group = RolloutGroup(
            prompt=recorded.rollouts_G[0].prompt,
            draw=draw,
            summaries_G=recorded.summaries_G,
            rollouts=None,
        )
        scored = ScoredGroup(group=group, scores_G=recorded.scores_G)
        tasks.append(asyncio.ensure_future(recorder.record(scored, accepted=True)))
        other = recorder.sync() if draw % 9 else recorder.next_segment(0)
        tasks.append(asyncio.ensure_future(other))
    await asyncio.sleep(0.01)
    for task in tasks[::7]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await recorder.sync()
    wanted = {n for n in range(100) if not tasks[2 * n].cancelled()}
    assert wanted <= everything(tmp_path).keys() <= {*range(100)}


def test_what_is_discarded_is_not_there(tmp_path):
    write(tmp_path, group_of(0), group_of(1))
    replay = Journal(tmp_path, identity=IDENTITY).replay(0)
    replay.discard([1, 2])
    assert list(replay.draws) == [0]
    with pytest.raises(KeyError):
        replay.take(1, prompt_of(1))


def skipped_of(draw, *failed):
    return dataclasses.replace(group_of(draw, total=None), failed=failed, is_skipped=True)


def test_what_was_skipped_is_known_also_where_it_is_sampled_again(tmp_path):
    write(tmp_path, group_of(0), skipped_of(1, "hung", "crashed"), skipped_of(2), group_of(3))
    replay = Journal(tmp_path, identity=IDENTITY).replay(1)
    assert replay.skipped == {1: ("hung", "crashed"), 2: ()}
    replay.discard([1, 3])
    assert replay.take(2, prompt_of(2)).is_skipped
    assert replay.skipped == {1: ("hung", "crashed"), 2: ()}
    write(tmp_path, group_of(1))
    assert Journal(tmp_path, identity=IDENTITY).replay(0).skipped == {2: ()}, "the last record"


def unsampled_of(draw, *causes):
    nothing = {"scores_G": (), "summaries_G": (), "rollouts_G": ()}
    return dataclasses.replace(group_of(draw), **nothing, unsampled=causes, is_skipped=True)


def test_what_no_environment_could_be_played_for_is_known_by_itself(tmp_path):
    hung = dataclasses.replace(group_of(3), unsampled=("hung",))
    write(tmp_path, unsampled_of(1, "raised", "hung"), skipped_of(2, "crashed"), hung)
    replay = Journal(tmp_path, identity=IDENTITY).replay(0)
    assert replay.unsampled == {1: ("raised", "hung")}, "3 was sampled at last"
    assert replay.skipped == {2: ("crashed",)}
    found = replay.take(1, prompt_of(1))
    assert (found.summaries_G, found.unsampled, found.is_skipped) == ((), ("raised", "hung"), True)
    assert replay.take(3, prompt_of(3)).unsampled == ("hung",)


def test_a_draw_of_another_prompt_is_an_error_and_stays(tmp_path):
    write(tmp_path, group_of(3))
    replay = Journal(tmp_path, identity=IDENTITY).replay(0)
    message = r"segment_00000001.rollouts cannot be replayed: .* draw 3 was 'train:3', is 'train:4'"
    with pytest.raises(ConfigError, match=message):
        replay.take(3, prompt_of(4))
    assert list(replay.draws) == [3]


def test_a_file_that_changes_after_it_was_indexed_gives_no_wrong_group(tmp_path):
    write(tmp_path, group_of(3))
    replay = Journal(tmp_path, identity=IDENTITY).replay(0)
    path = tmp_path / "segment_00000001.rollouts"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"damaged at byte \d+ while .* \(the checksum is wrong\)"):
        replay.take(3, prompt_of(3))


def test_a_segment_of_another_run_names_what_differs(tmp_path):
    write(tmp_path, group_of(0))
    write(tmp_path, group_of(1), identity={"seed": 1, "job": "ppo", **IDENTITY, "lists": (1, 2)})
    with pytest.raises(ConfigError) as caught:
        Journal(tmp_path, identity=IDENTITY).replay(0)
    assert str(caught.value) == (
        f"the rollouts in {tmp_path}/segment_00000002.rollouts cannot be replayed: job was 'ppo', "
        "is None; lists was [1, 2], is None"
    )


def test_what_json_makes_of_an_identity_is_the_same_identity(tmp_path):
    identity = {"tuple": (1, 2), "nested": {"1": None, "share": 0.1}}
    write(tmp_path, group_of(0), identity=identity)
    again = {"nested": {"share": 0.1, 1: None}, "tuple": [1, 2]}
    assert list(Journal(tmp_path, identity=again).replay(0).draws) == [0]


def test_files_of_another_format_are_refused(tmp_path, monkeypatch):
    write(tmp_path, group_of(0))
    monkeypatch.setattr(journal_module, "FORMAT", 5)
    with pytest.raises(ConfigError, match=r"cannot be replayed: the file's format was 4, is 5$"):
        Journal(tmp_path, identity=IDENTITY).replay(0)


def test_pruning_leaves_what_a_checkpoint_needs(tmp_path):
    write(tmp_path, group_of(10), group_of(11))
    (tmp_path / "segment_00000002.rollouts").touch()
    journal = write(tmp_path, group_of(7), group_of(2))
    journal.end_segment()
    journal.append(group_of(12))
    one, empty, two, three = segments(tmp_path)
    journal.prune(9)
    assert segments(tmp_path) == [one, empty, three], "unread files of others and the open one stay"
    journal.replay(9)
    journal.prune(11)
    assert segments(tmp_path) == [one, three]
    journal.end_segment()
    journal.prune(12)
    assert segments(tmp_path) == [three]
    journal.append(group_of(19))
    assert segments(tmp_path) == [three, two.replace("3", "5")], "after all that there are"
    assert list(everything(tmp_path, frontier=12)) == [12, 19]


def test_a_segment_stays_while_one_of_its_draws_is_needed(tmp_path):
    journal = write(tmp_path, group_of(7), group_of(2))
    journal.end_segment()
    again = Journal(tmp_path, identity=IDENTITY)
    again.replay(0)
    for process in (journal, again):
        process.prune(7)
        assert list(everything(tmp_path)) == [2, 7]
    again.prune(8)
    assert not segments(tmp_path)


def test_a_run_that_begins_anew_leaves_nothing_of_another(tmp_path):
    write(tmp_path, group_of(0), identity={"seed": 5})
    (tmp_path / "samples.jsonl").touch()
    journal = Journal(tmp_path, identity=IDENTITY)
    journal.clear()
    assert segments(tmp_path) == ["samples.jsonl"]
    journal.append(group_of(1))
    assert list(everything(tmp_path)) == [1]


class FullDisk(io.FileIO):
    """Takes few bytes at a time, and no more than there is room for."""

    room_bytes: int

    def write(self, data):
        if not type(self).room_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = data[: min(50, type(self).room_bytes)]
        type(self).room_bytes -= len(taken)
        return super().write(taken)


@pytest.mark.parametrize("room_bytes", [0, 10, 2000], ids=["none", "header", "groups"])
def test_a_full_disk_costs_the_group_that_did_not_fit(tmp_path, monkeypatch, room_bytes):
    """Nothing is half written: once there is room again, the segment goes on."""
    new_file = Journal._new_file
    monkeypatch.setattr(Journal, "_new_file", lambda self: FullDisk(new_file(self).name, "r+b"))
    monkeypatch.setattr(FullDisk, "room_bytes", room_bytes, raising=False)
    journal = Journal(tmp_path, identity=IDENTITY)
    with pytest.raises(RunError, match=r"the disk is full: no room for rollouts in .* bytes are"):
        for draw in range(100):
            journal.append(group_of(draw))
    FullDisk.room_bytes = 10**6
    journal.append(group_of(200))
    journal.sync()
    assert list(everything(tmp_path)) == [*range(draw), 200]
    assert (draw > 0) == (room_bytes > 1000)


def test_groups_and_their_folder_are_synced_once(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    journal = write(tmp_path, group_of(0), group_of(1))
    assert not synced
    path = str(tmp_path / "segment_00000001.rollouts")
    journal.sync()
    journal.sync()
    assert synced == [path, str(tmp_path)]
    journal.append(group_of(2))
    journal.end_segment()
    assert synced == [path, str(tmp_path), path], "before another segment begins"
    journal.end_segment()
    assert len(synced) == 3
    journal.append(group_of(3))
    journal.sync()
    assert synced[3:] == [path.replace("1.", "2."), str(tmp_path)]


def test_a_resume_holds_no_groups(tmp_path):
    """Of twenty groups of a megabyte, what stays is where each stands."""
    num_tokens = 80_000
    write(tmp_path, *(group_of(draw, lengths_G=(num_tokens,)) for draw in range(20)))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 20e6
    tracemalloc.start()
    try:
        replay = Journal(tmp_path, identity=IDENTITY).replay(0)
        held, most = tracemalloc.get_traced_memory()
        assert held < 50_000
        assert most < 3e6
        replay.take(7, prompt_of(7))
        assert tracemalloc.get_traced_memory()[0] < 100_000, "what was taken is its taker's"
    finally:
        tracemalloc.stop()
