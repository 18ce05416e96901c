"""A judge behind OpenAI's protocol, against a real server on this machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError
from scoring_services import Service

from rlhf_ray.config.rewards import JudgeConfig, RewardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import RewardError, ScoringBatch
from rlhf_ray.rewards.functions import check_columns
from rlhf_ray.rewards.judge import Judge, grade_of, prompt_of
from rlhf_ray.types import Prompt

MakeBatch = Callable[..., ScoringBatch]
TEMPLATE = "Q: {prompt}\nA: {completion}"


class Server(Service):
    """Says of an answer "Grade: " and its length, unless `say` has something for the request."""

    base, endpoint = "/v1", "/chat/completions"

    def __init__(self) -> None:
        super().__init__()
        self.say: Callable[[dict[str, Any]], Any] = lambda body: None

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        answer = self.say(body)
        if answer == "hang":
            await asyncio.sleep(30)
        if isinstance(answer, web.Response):
            return answer
        if answer is None:
            completion = body["messages"][0]["content"].rpartition("A: ")[2]
            answer = f"I first thought Grade: 9, but no.\nGrade: {len(completion)}"
        message = {"role": "assistant", "content": answer}
        return web.json_response({"choices": [{"message": message}]})

    def config(self, **config: Any) -> JudgeConfig:
        return JudgeConfig.model_validate(
            {"url": self.url, "model": "big", "template": TEMPLATE, "backoff_s": 0.01, **config}
        )

    def judge(self, **config: Any) -> Judge:
        return Judge(self.config(**config))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().served() as server:
        yield server


async def test_grades_come_back_in_order_as_shares_of_the_best(
    server: Server, make_batch: MakeBatch
) -> None:
    texts = ["x" * length for length in (3, 10, 0, 7)]
    assert await server.judge().score(5, make_batch(*texts)) == [0.3, 1.0, 0.0, 0.7]
    first = next(r for r in server.requests if r["messages"][0]["content"].startswith("Q: p0"))
    assert first == {
        "model": "big",
        "messages": [{"role": "user", "content": "Q: p0\nA: xxx"}],
        "temperature": 0.0,
        "max_tokens": 1024,
        "seed": 5,
    }


async def test_each_vote_has_a_seed_of_its_own_and_the_same_one_again(
    server: Server, make_batch: MakeBatch
) -> None:
    server.say = lambda body: f"Grade: {body['seed'] % 3}"
    judge = server.judge(votes=3, temperature=1.0)
    scores = await judge.score(100, make_batch("a", "b"))
    assert scores == pytest.approx([0.1, 0.1])
    seeds = sorted(request["seed"] for request in server.requests)
    assert seeds == [*range(100, 106)]
    await judge.score(100, make_batch("a", "b"))
    assert sorted(request["seed"] for request in server.requests[6:]) == seeds


async def test_a_vote_that_cannot_be_read_is_asked_for_again_with_another_seed(
    server: Server, make_batch: MakeBatch
) -> None:
    def say(body: dict[str, Any]) -> Any:
        return {7: "no idea", 1016: "Grade: 11", 2025: "hang"}.get(body["seed"], "**Grade: ** 4")

    server.say = say
    judge = server.judge(timeout_s=0.5, pattern=r"Grade:\W*(\d+)")
    assert await judge.score(7, make_batch("a")) == [0.4]
    assert [request["seed"] for request in server.requests] == [7, 1016, 2025, 3034]


async def test_no_score_is_invented_where_no_more_than_half_can_be_read(
    server: Server, make_batch: MakeBatch
) -> None:
    server.say = lambda body: "no idea" if body["seed"] % 1009 in (1, 2) else "Grade: 5"
    judge = server.judge(votes=3, temperature=1.0, retries=0)
    assert await judge.score(2, make_batch("a")) == [0.5], "two of three"
    message = (
        r"failed 1 times; last: no grade by the pattern in 'no idea' \(1 of 3 votes on a "
        r"completion of prompt 'train:0' could be read\)"
    )
    with pytest.raises(RewardError, match=message):
        await judge.score(1, make_batch("a"))


@pytest.mark.parametrize(
    ("answer", "num_asked", "message"),
    [
        (web.Response(status=503, text="busy"), 3, "failed 3 times; last: status 503: 'busy'"),
        ("hang", 3, "failed 3 times; last: no answer within 0.5 s"),
        (web.Response(status=404, text="no such model"), 1, "status 404: 'no such model'"),
        (web.Response(text="{}"), 1, "must answer as OpenAI's chats do, got '{}'"),
        (web.Response(text="oops"), 1, "must answer as OpenAI's chats do, got 'oops'"),
        ("", 3, "no grade by the pattern in ''"),
    ],
    ids=["busy", "hang", "model", "json", "text", "empty"],
)
async def test_what_a_server_does_wrong_is_said(
    server: Server, make_batch: MakeBatch, answer: Any, num_asked: int, message: str
) -> None:
    text, status = (answer.text, answer.status) if isinstance(answer, web.Response) else ("", 0)
    server.say = lambda body: web.Response(text=text, status=status) if status else answer
    with pytest.raises(RewardError, match=message):
        await server.judge(retries=2, timeout_s=0.5).score(0, make_batch("a"))
    assert len(server.requests) == num_asked


async def test_requests_are_limited_over_all_groups(server: Server, make_batch: MakeBatch) -> None:
    judge = server.judge(requests=5)
    groups = (judge.score(0, make_batch("a", "bb", "ccc")) for _ in range(10))
    assert await asyncio.gather(*groups) == [[0.1, 0.2, 0.3]] * 10
    assert server.most_in_flight == 5


async def test_the_token_is_sent(
    server: Server, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    await server.judge(token_env="JUDGE_TOKEN").score(0, make_batch("a"))
    assert Counter(h["Authorization"] for h in server.headers) == {"Bearer s3cret": 1}
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(ConfigError, match=r"reward.judge.token_env names 'JUDGE_TOKEN'"):
        server.judge(token_env="JUDGE_TOKEN")


@pytest.mark.parametrize(
    ("text", "config", "score"),
    [
        ("7", {}, 0.7),
        ("-1", {}, None),
        ("10.5", {}, None),
        ("many", {}, None),
        ("1", {"worst": 1, "best": 5}, 0.0),
        ("4", {"worst": 1, "best": 5}, 0.75),
        ("1", {"worst": 6, "best": 1}, 1.0),
        (" Yes", {"grades": {"yes": 2.0, "no": -1.0}}, 2.0),
        ("maybe", {"grades": {"yes": 2.0, "no": -1.0}}, None),
    ],
)
def test_a_grade_is_a_number_in_its_bounds_or_a_known_word(
    text: str, config: dict[str, Any], score: float | None
) -> None:
    assert grade_of(text, JudgeConfig.model_validate(config)) == score


def test_a_template_has_prompt_completion_and_columns(
    make_batch: MakeBatch, make_rollout: Callable[..., Any]
) -> None:
    batch = make_batch("4 {x}", answer=["{prompt}"])
    text = prompt_of("{prompt} {completion} {answer} {{}}", batch, 0)
    assert text == "p0 4 {x} {prompt} {}"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    batch = ScoringBatch.from_rollouts([make_rollout(0, chat, "4", {})])
    assert prompt_of(TEMPLATE, batch, 0) == "Q: system: Be brief.\nuser: 2+2?\nA: 4"


def test_a_column_that_the_template_names_must_be_there() -> None:
    judge = {"url": "http://x", "model": "big", "template": "{completion} {gold}"}
    reward = RewardConfig.model_validate({"judge": judge})
    prompt = Prompt(prompt_id="p", token_ids_T=(1,), text="?", columns={"golden": "4"})
    message = r"data: reward.judge.template needs 'gold'.*set data.columns: {gold: golden}"
    with pytest.raises(ConfigError, match=message):
        check_columns(reward, [prompt], key="data")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": ""}, "model must name the judge"),
        ({"template": "{prompt}"}, "template must have {completion}"),
        ({"template": "{completion"}, "template must have its other braces doubled"),
        ({"template": "{completion} {a.b}"}, "template must name columns between braces"),
        ({"pattern": r"Grade: \d+"}, "pattern must have a group around the grade"),
        ({"pattern": "("}, "pattern is no regular expression"),
        ({"best": 0}, "best must differ from worst, got 0 for both"),
        ({"votes": 3}, "temperature must be above 0 for votes 3"),
        ({"grades": {"Yes": 1}}, "grades must be words in small letters"),
    ],
)
def test_a_judge_that_cannot_work_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeConfig.model_validate({"url": "http://x", "model": "big", **config})


def test_a_judge_alone_is_a_reward() -> None:
    reward = RewardConfig.model_validate({"judge": {"url": "http://x/v1", "model": "m"}})
    assert (reward.services, reward.needs_workers, reward.num_scorers) == ({"judge": 1.0}, True, 1)
