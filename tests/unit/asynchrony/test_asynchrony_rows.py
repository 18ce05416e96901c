"""What the benchmarks of asynchrony say of metrics, without running a job."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from contextlib import nullcontext
from xml.etree import ElementTree

import pytest

from benchmarks.asynchrony import curves, overhead, overlap, slow_prompt
from benchmarks.asynchrony.curves import STALENESS, Cell, Result
from benchmarks.asynchrony.rewards import share_of_letter
from benchmarks.asynchrony.runs import ROOT, inner, middle
from rlhf_ray.config.online import GrpoConfig

SVG = "{http://www.w3.org/2000/svg}"


def result(cell, last):
    return Result(
        cell=cell,
        lr=1e-3,
        steps=8,
        rewards={0: 0.1, 4: 0.5, 8: last},
        last=last,
        staleness_mean=float(cell.staleness),
        ess=0.9,
        kl_old=0.01,
        seconds=4.0,
    )


def results(last_of):
    return [result(cell, last_of(cell)) for cell in curves.cells()]


def test_every_staleness_has_a_run_of_each_seed_with_correction_and_without():
    runs = [(cell.staleness, cell.correction, cell.seed) for cell in curves.cells((5, 7))]
    assert len(runs) == len(set(runs)) == 2 * (2 * len(STALENESS) - 1)
    assert (0, "none", 5) not in runs, "there is nothing to correct"


@pytest.mark.parametrize(
    ("loss", "holds"), [(-0.1, True), (0.03, True), (0.06, False)], ids=["more", "near", "less"]
)
def test_staleness_4_is_compared_with_0(loss, holds):
    said = curves.summary(
        results(lambda cell: 0.8 + 0.01 * cell.seed - loss * (cell.staleness == 4))
    )
    assert said["holds"] is holds
    assert said["4 below 0, corrected"] == pytest.approx(loss)


def test_one_seed_is_no_comparison():
    assert "holds" not in curves.summary([r for r in results(lambda _: 0.5) if not r.cell.seed])


def test_what_is_written_is_read_again_and_drawn(tmp_path):
    kept = results(lambda cell: 0.9 - 0.01 * cell.staleness)
    path = tmp_path / "results/staleness.json"
    curves.write(path, kept)
    assert curves.read(path) == kept
    assert json.loads(path.read_text())["holds"] is True
    picture = ElementTree.parse(path.with_suffix(".svg")).getroot()
    assert len(picture.findall(f".//{SVG}polygon")) == 2 * len(STALENESS)
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts.count("max_staleness 8") == 2


def test_a_run_that_is_there_is_not_run_again(tmp_path):
    class Runs:
        trained = []

        def train(self, config):
            self.trained.append((config.max_staleness, config.algorithm.correction.kind))
            return METRICS

    kept = [r for r in results(lambda _: 0.5) if r.cell.seed == 0 and r.cell.staleness != 8]
    measured = curves.measure(
        Runs(), curves.cells([0]), steps=8, lr=1e-3, folder=tmp_path, found=kept
    )
    assert [r.cell.staleness for r in measured] == [8, 8]
    assert Runs.trained == [(8, "truncated"), (8, "none")]


STEP = {
    "async/staleness_mean": 1.0,
    "mismatch/ess": 0.9,
    "policy/kl_old": 0.01,
    "time/step": 0.5,
}
METRICS = [
    {"step": 0, "eval/reward_mean": 0.1},
    *({"step": step, **STEP} for step in range(1, 8)),
    {"step": 8, **STEP, "eval/reward_mean": 0.6},
]


def test_the_end_of_a_run_is_what_counts():
    cell = Cell(staleness=8, correction="none", seed=0)
    found = curves.result_of(cell, METRICS, lr=1e-3)
    assert (found.steps, found.last, found.rewards) == (8, 0.6, {0: 0.1, 8: 0.6})


@pytest.mark.parametrize(
    ("text", "share"), [("Ee, be!", 0.75), ("12 . ", 0.0), ("", 0.0)], ids=["some", "no", "empty"]
)
def test_a_letter_counts_among_letters(text, share):
    assert share_of_letter([text], letter="e") == [share]


GOOD = {
    "rollout/trained_groups": slow_prompt.PROMPTS,
    "rollout/left_out_groups": 0.0,
    "rollout/refilled_groups": 0.0,
    "rollout/response_tokens_mean": 2.0,
    "async/staleness_max": 1.0,
}
# 14 answers of 2 tokens and 2 of 400.
SLOW = {"step": float(slow_prompt.SLOW_STEPS[0]), **GOOD, "rollout/response_tokens_mean": 51.75}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (SLOW, ""),
        ({**SLOW, "async/staleness_max": 2.0}, "staleness 2"),
        ({**SLOW, "rollout/trained_groups": 7.0}, "trained_groups is 7, not 8"),
        ({**SLOW, "rollout/response_tokens_mean": 2.0}, "response_tokens_mean is 2, not 51.75"),
        ({**SLOW, "step": 5.0}, "response_tokens_mean is 51.75, not 2"),
    ],
    ids=["holds", "stale", "dropped", "slow one left out", "slow one late"],
)
def test_what_does_not_hold_of_a_slow_prompt_is_said(row, fault):
    found = slow_prompt.faults([{"step": 1.0, **GOOD}, row], max_staleness=1, has_slow=True)
    assert len(found) == bool(fault)
    assert not fault or fault in found[0]


def test_time_is_lost_by_each_slow_prompt(monkeypatch, tmp_path):
    quick = [{"step": float(n), **GOOD, "time/step": 1.0} for n in range(1, slow_prompt.STEPS + 1)]
    slow = [
        {**row, "time/step": 3.0, "rollout/response_tokens_mean": 51.75}
        if row["step"] in slow_prompt.SLOW_STEPS
        else row
        for row in quick
    ]

    class Runs:
        def train(self, config):
            has_slow = config.run_dir.rpartition("/")[2].startswith("slow")
            return [{}, *(slow if has_slow else quick)]

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(slow_prompt, "save_model", lambda folder: None)
    monkeypatch.setattr(slow_prompt, "open_runs", lambda config: nullcontext(Runs()))
    said = slow_prompt.slow_prompt(tmp_path)
    assert said["faults"] == [f"step {n}: staleness 1" for _ in range(2) for n in range(1, 15)]
    assert said["max_staleness 1"]["time lost for each slow prompt"] == 2.0
    assert said["max_staleness 1"]["groups trained"] == said["max_staleness 1"]["groups sampled"]


def test_the_model_answers_the_slow_prompt_without_end_and_others_at_once(
    tmp_path, shared_data, monkeypatch
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(slow_prompt, "TOKENIZER", shared_data / "models/stories260K")
    slow_prompt.save_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    lengths = []
    for prompt in (slow_prompt.QUICK_PROMPT, slow_prompt.SLOW_PROMPT):
        given = tokenizer(prompt, return_tensors="pt")
        answered = model.generate(**given, max_new_tokens=30, do_sample=True)
        lengths.append(answered.shape[1] - given.input_ids.shape[1])
    assert lengths == [slow_prompt.SHORT, 30]


def test_steps_with_and_without_are_compared_one_by_one():
    def run(times, reward=0.5):
        return [
            {"step": n, "time/step": s, "rollout/reward_mean": reward} for n, s in enumerate(times)
        ]

    assert overhead.ratios_of([run([2.0, 4.0])], [run([3.0, 4.0])]) == [[1.5, 1.0]]
    with pytest.raises(ValueError, match="step 0 was not the same"):
        overhead.ratios_of([run([1.0])], [run([1.0], reward=0.6)])


def test_a_median_has_an_interval():
    # Conover, "Practical Nonparametric Statistics", table of signs: of 16 values the 4th and 13th.
    ranked = [float(value) for value in range(1, 17)]
    assert overhead.median_within(ranked[::-1]) == (5.0, 8.5, 12.0)
    assert overhead.median_within([2.0, 1.0]) == (1.0, 1.5, 2.0)


def test_what_the_driver_writes_is_timed(monkeypatch):
    monkeypatch.setattr(overhead.Timed, "spent_s", spent := defaultdict(float))

    class Loop(overhead.Timed):
        def __init__(self):
            pass

    timed = Loop()._timed(lambda number, *, by: number * by, "append")
    assert timed(2, by=3) == 6
    assert list(spent) == ["append"]
    assert 0 < spent["append"] < 1


def test_first_and_last_step_are_left_out():
    rows = [{}, *({"time/step": s} for s in (90.0, 1.0, 2.0, 3.0, 80.0))]
    assert middle(inner(rows), "time/step") == 2.0


@pytest.mark.parametrize("staleness", STALENESS)
def test_the_jobs_are_valid(staleness, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cell = Cell(staleness=staleness, correction="none", seed=3)
    jobs = [
        curves.config_of(cell, steps=4, lr=1e-3, folder=tmp_path),
        overlap.config_of(tmp_path, max_staleness=staleness, steps=4),
        overhead.config_of(tmp_path, every=1, steps=4),
        slow_prompt.config_of(tmp_path, max_staleness=staleness, has_slow=True),
    ]
    assert all(isinstance(job, GrpoConfig) for job in jobs)
    assert len({job.run_dir for job in jobs}) == len(jobs)
    assert not any(job.uses_reference_role for job in jobs)


def test_the_command_says_what_it_has():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.asynchrony", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "{overlap,slow-prompt,overhead,curves}" in done.stdout
