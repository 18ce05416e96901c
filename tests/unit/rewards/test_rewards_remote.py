"""Against a real server on this machine that fails as it is told."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from scoring_services import Service

from rlhf_ray.config.rewards import RemoteRewardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import RewardError, ScoringBatch
from rlhf_ray.rewards.remote import RemoteScorer

MakeBatch = Callable[..., ScoringBatch]


class Lengths(Service):
    """Scores a completion by its length, unless `failures` says otherwise for the next requests."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Any] = []

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.failures:
            return await self.fail(self.failures.pop(0), request)
        await asyncio.sleep(0.01)
        return web.json_response({"scores": [len(text) for text in body["completions"]]})

    async def fail(self, how: Any, request: web.Request) -> web.StreamResponse:
        if how == "hang":
            await asyncio.sleep(30)
        if how == "cut":
            assert request.transport is not None
            request.transport.close()
        if isinstance(how, int):
            headers = {"Location": "/"} if how == 302 else {}
            return web.Response(
                status=how, text=f"told {request.headers.get('Authorization')}", headers=headers
            )
        return web.Response(text=str(how), content_type="text/plain")

    def scorer(self, **config: Any) -> RemoteScorer:
        return RemoteScorer(
            RemoteRewardConfig(url=self.url, **{"backoff_s": 0.01, "timeout_s": 5.0, **config})
        )


@pytest.fixture
async def service() -> AsyncIterator[Lengths]:
    async with Lengths().served() as service:
        yield service


async def test_batches_come_back_in_order(service: Lengths, make_batch: MakeBatch) -> None:
    texts = ["x" * length for length in range(50)]
    batch = make_batch(*texts, answer=list(range(50)))
    assert await service.scorer(batch_size=3).score(batch) == [float(n) for n in range(50)]
    assert len(service.requests) == 17
    assert 1 < service.most_in_flight <= 8
    first = next(body for body in service.requests if body["prompts"][0] == "p0")
    assert first == {
        "prompts": ["p0", "p1", "p2"],
        "completions": ["", "x", "xx"],
        "columns": {"answer": [0, 1, 2]},
    }


async def test_requests_are_limited_over_all_groups(
    service: Lengths, make_batch: MakeBatch
) -> None:
    scorer = service.scorer(batch_size=1)
    scores = await asyncio.gather(*(scorer.score(make_batch("a", "bb")) for _ in range(32)))
    assert scores == [[1.0, 2.0]] * 32
    assert 4 < service.most_in_flight <= 8


async def test_null_means_that_the_service_does_not_apply(
    service: Lengths, make_batch: MakeBatch
) -> None:
    service.failures = ['{"scores": [null, 0.5]}']
    assert await service.scorer().score(make_batch("a", "b")) == [None, 0.5]


@pytest.mark.parametrize("failure", [429, 500, 503, "hang", "cut"])
async def test_what_may_pass_is_tried_again(
    service: Lengths, make_batch: MakeBatch, failure: Any
) -> None:
    service.failures = [failure] * 2
    scorer = service.scorer(retries=2, timeout_s=1.0)
    assert await scorer.score(make_batch("abc")) == [3.0]
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (503, "failed 3 times; last: status 503: 'told None'"),
        ("hang", "failed 3 times; last: no answer within 1 s"),
        ("cut", "failed 3 times; last: ServerDisconnectedError"),
    ],
)
async def test_after_the_last_retry_the_error_says_what_happened(
    service: Lengths, make_batch: MakeBatch, failure: Any, message: str
) -> None:
    service.failures = [failure] * 3
    with pytest.raises(RewardError, match=f"reward service {service.url} {message}"):
        await service.scorer(retries=2, timeout_s=1.0).score(make_batch("a"))
    assert len(service.requests) == 3


async def test_a_service_that_is_not_there_is_named(
    make_batch: MakeBatch, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/"
    config = RemoteRewardConfig(url=url, retries=1, backoff_s=0.01)
    with pytest.raises(RewardError, match=f"{url} failed 2 times; last: ClientConnector"):
        await RemoteScorer(config).score(make_batch("a"))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (400, "answered with status 400: 'told None'"),
        (404, "answered with status 404"),
        (302, "answered with status 302"),
        ("oops", "did not answer in JSON: 'oops'"),
        ('{"rewards": [1]}', r'must answer with {"scores": \[...\]}, got \'{"rewards": \[1\]}\''),
        ("[1]", "must answer with"),
        ('{"scores": [1]}', "must return 2 scores, got 1"),
        ('{"scores": 1}', "must return a list of 2 scores, got int"),
        ('{"scores": [1, NaN]}', "score of prompt 'train:1' must be a finite number or None"),
        ('{"scores": [1, "2"]}', "score of prompt 'train:1' must be a finite number or None"),
    ],
)
async def test_what_will_not_pass_is_not_tried_again(
    service: Lengths, make_batch: MakeBatch, failure: Any, message: str
) -> None:
    service.failures = [failure]
    with pytest.raises(RewardError, match=message):
        await service.scorer().score(make_batch("a", "b"))
    assert len(service.requests) == 1


async def test_one_failed_batch_stops_the_others(service: Lengths, make_batch: MakeBatch) -> None:
    service.failures = [400, *["hang"] * 9]
    scorer = service.scorer(batch_size=1, timeout_s=20.0)
    with pytest.raises(RewardError, match="status 400"):
        async with asyncio.timeout(5):
            await scorer.score(make_batch(*"abcdefghij"))


async def test_the_token_is_sent_and_never_shown(
    service: Lengths,
    make_batch: MakeBatch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SCORER_TOKEN", "s3cret")
    scorer = service.scorer(token_env="SCORER_TOKEN", retries=1)
    with caplog.at_level(logging.DEBUG):
        await scorer.score(make_batch("a"))
        service.failures = [401]
        with pytest.raises(RewardError, match=r"status 401: 'told Bearer \*\*\*'"):
            await scorer.score(make_batch("a"))
    assert [headers["Authorization"] for headers in service.headers] == ["Bearer s3cret"] * 2
    assert "s3cret" not in caplog.text


async def test_without_a_token_none_is_sent(service: Lengths, make_batch: MakeBatch) -> None:
    await service.scorer().score(make_batch("a"))
    assert "Authorization" not in service.headers[0]


async def test_columns_that_json_cannot_hold_are_an_error(
    service: Lengths, make_batch: MakeBatch
) -> None:
    with pytest.raises(RewardError, match=r"cannot be sent .*: Object of type set is not JSON"):
        await service.scorer().score(make_batch("a", tags=[{"x"}]))
    assert not service.requests


async def test_a_login_in_the_url_is_not_shown(make_batch: MakeBatch, unused_tcp_port: int) -> None:
    url = f"http://me:PLANTED@127.0.0.1:{unused_tcp_port}/"
    config = RemoteRewardConfig(url=url, retries=0)
    with pytest.raises(RewardError, match=r"http://\*\*\*@127\.0\.0\.1") as caught:
        await RemoteScorer(config).score(make_batch("a"))
    assert "PLANTED" not in str(caught.value)


async def test_a_key_in_the_url_is_not_shown_when_the_service_repeats_it(
    service: Lengths, make_batch: MakeBatch
) -> None:
    service.failures = ["no such place: /?api_key=PLANTED&n=3"]
    service.url += "?api_key=PLANTED&n=3"
    with pytest.raises(RewardError, match="no such place") as caught:
        await service.scorer().score(make_batch("a"))
    assert "PLANTED" not in str(caught.value)
    assert str(caught.value).count("?api_key=***&n=3") == 2


async def test_a_false_url_shows_no_key_either(make_batch: MakeBatch) -> None:
    scorer = RemoteScorer(RemoteRewardConfig(url="nonsense?api_key=PLANTED"))
    with pytest.raises(RewardError, match="is not a valid URL") as caught:
        await scorer.score(make_batch("a"))
    assert "PLANTED" not in "".join(traceback.format_exception(caught.value))


async def test_a_false_url_is_an_error_at_once(make_batch: MakeBatch) -> None:
    with pytest.raises(RewardError, match="nonsense is not a valid URL"):
        await RemoteScorer(RemoteRewardConfig(url="nonsense")).score(make_batch("a"))


def test_a_token_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="token_env names 'SCORER_TOKEN', which is not set"):
        RemoteScorer(RemoteRewardConfig(url="http://x", token_env="SCORER_TOKEN"))
