"""The server, asked by the `openai` package and by clients that misbehave."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from helpers.served import FAMILY, NAME, Served, picture, question, serving

from v1lit.data.encode.encoding import Encoded
from v1lit.inference.predictor import Predictor
from v1lit.inference.prompt import AboutRegions
from v1lit.serving.answering import Answering
from v1lit.serving.engine import EngineLimits, Request
from v1lit.serving.events import Events
from v1lit.serving.limits import ServerLimits
from v1lit.serving.running_batch import Row
from v1lit.testing.models import noise, prefers_pointing, processor

openai = pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    limits = ServerLimits(body_bytes=200_000, pixels=7_000, new_tokens=500)
    with serving(limits, EngineLimits(rows=8, waiting=400)) as one:
        yield one


def until(condition: Any, tries: int = 6000) -> None:
    """Wait until it holds, a minute at most."""
    for _ in range(tries):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never")


def get(served: Served, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(served.url + path, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def send(served: Served, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, Any]:
    """A body as it is."""
    request = urllib.request.Request(served.url + path, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


# ---------------------------------------------------------------- what it answers


def test_an_answer_is_the_predictors_and_says_where_it_looked(served: Served) -> None:
    asked = served.client().chat.completions.create(
        model=NAME, messages=question("Where is it?", picture()), max_tokens=24
    )
    predictor = Predictor(prefers_pointing(FAMILY), processor(FAMILY))
    prediction = predictor(noise((84, 56)), "Where is it?", max_new_tokens=24)
    (choice,) = asked.choices
    assert choice.message.content == prediction.text
    assert choice.finish_reason in ("stop", "length")
    told, expected = choice.message.model_extra["v1lit"], prediction.to_json()
    assert [look["tokens"] for look in told["looks"]] == [look["tokens"] for look in expected["looks"]]
    assert [look["regions"] for look in told["looks"]] == [look["regions"] for look in expected["looks"]]
    for own, other in zip(told["looks"], expected["looks"], strict=True):
        assert own["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
        assert own["entropies"] == pytest.approx(other["entropies"], abs=1e-3)
    assert told["looks"]
    assert told["score"] == pytest.approx(expected["score"], abs=1e-4)
    assert asked.usage.prompt_tokens == prediction.counts.prompt


def test_a_stream_is_the_whole_answer_in_pieces(served: Served) -> None:
    client, ask = served.client(), {"model": NAME, "messages": question("What?", picture()), "max_tokens": 16}
    whole = client.chat.completions.create(**ask)
    stream = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in stream if part.choices)
    assert text == whole.choices[0].message.content
    last = [part for part in stream if part.choices][-1].choices[0]
    assert last.finish_reason == whole.choices[0].finish_reason
    assert last.delta.model_extra["v1lit"] == whole.choices[0].message.model_extra["v1lit"]
    assert stream[-1].usage == whole.usage
    assert sum(bool(part.choices and part.choices[0].delta.content) for part in stream) > 1


def test_samples_are_repeated_by_their_seed_and_several_are_answered_at_once(served: Served) -> None:
    def draw(seed: int) -> list[str]:
        asked = served.client().chat.completions.create(
            model=NAME, messages=question("Any?", picture()), max_tokens=12, temperature=1.5, seed=seed, n=2
        )
        return [choice.message.content for choice in asked.choices]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len(set(draw(1))) == 2


def test_it_is_steered(served: Served) -> None:
    def looks(**steer: Any) -> list[dict[str, Any]]:
        asked = served.client().chat.completions.create(
            model=NAME, messages=question("It?", picture()), max_tokens=40, extra_body={"steer": steer}
        )
        found: list[dict[str, Any]] = asked.choices[0].message.model_extra["v1lit"]["looks"]
        return found

    assert looks(points=False) == []
    assert {token for look in looks(inside=[[0, 0, 20, 20]]) for token in look["tokens"]} == {0}
    assert any(look["query"] == "the red box" for look in looks(queries=["the red box"]))


def test_a_question_points_at_regions(served: Served) -> None:
    words, place = "What is <|region_1|>?", [0, 0, 40, 40]
    messages = question(words, picture())
    predictor = Predictor(prefers_pointing(FAMILY), processor(FAMILY))
    for coordinates in (False, True):
        more = {"regions": [place], "region_coordinates": coordinates}
        asked = served.client().chat.completions.create(
            model=NAME, messages=messages, max_tokens=9, extra_body=more
        )
        about = AboutRegions(words, [tuple(place)], coordinates)
        prediction = predictor(noise((84, 56)), about, max_new_tokens=9)
        assert asked.choices[0].message.content == prediction.text
        assert asked.usage.prompt_tokens == prediction.counts.prompt


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({"regions": [[0, 0, 400, 40]]}, "regions", "<|region_1|>: it reaches from [0.0, 0.0, 400.0, 40.0]"),
        ({"regions": [[0, 0, 9, 9]] * 2}, "regions", "<|region_2|>: it is given, but never named"),
        (
            {"steer": {"inside": [[900, 0, 901, 9]]}},
            "steer",
            "steer: no image token sees something of inside",
        ),
    ],
)
def test_a_place_that_is_none_is_refused(served: Served, more: dict[str, Any], field: str, said: str) -> None:
    messages = question("What is <|region_1|>?", picture())
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().chat.completions.create(model=NAME, messages=messages, extra_body=more)
    assert caught.value.param == field
    assert said in str(caught.value)


def test_a_conversation_goes_on(served: Served) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *question("Where?", picture()),
        {"role": "assistant", "content": "There."},
        *question("And now?", picture(seed=1)),
    ]
    asked = served.client().chat.completions.create(model=NAME, messages=messages, max_tokens=5)
    assert asked.usage.completion_tokens <= 5


def test_200_at_once_all_get_what_they_get_alone(served: Served) -> None:
    alone = [
        served.client().chat.completions.create(
            model=NAME, messages=question(f"Is it {n}?", *[picture()] * (n % 2)), max_tokens=4 + n
        ).choices[0].message.content
        for n in range(4)
    ]  # fmt: skip

    async def ask(client: Any, n: int) -> str:
        asked = await client.chat.completions.create(
            model=NAME, messages=question(f"Is it {n % 4}?", *[picture()] * (n % 2)), max_tokens=4 + n % 4
        )
        return str(asked.choices[0].message.content)

    async def all_of_them() -> list[str]:
        options = {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 300}
        async with openai.AsyncOpenAI(**options) as client:
            return await asyncio.gather(*(ask(client, n) for n in range(200)))

    assert asyncio.run(all_of_them()) == [alone[n % 4] for n in range(200)]


# ---------------------------------------------------------------- what it does not


def test_mistakes_are_errors_of_the_package_with_the_field(served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.BadRequestError, match="temperature: it is a number from 0 to 2") as caught:
        client.chat.completions.create(model=NAME, messages=question(), temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=question())
    with pytest.raises(openai.BadRequestError, match="tools: this server does not offer it"):
        client.chat.completions.create(
            model=NAME, messages=question(), tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.BadRequestError, match="image 1: "):
        client.chat.completions.create(model=NAME, messages=question("It?", picture((100, 80))))
    remote = {"type": "image_url", "image_url": {"url": f"{served.url}/health"}}
    with pytest.raises(openai.BadRequestError, match="this server fetches no images"):
        client.chat.completions.create(model=NAME, messages=question("It?", remote))
    with pytest.raises(openai.BadRequestError, match=r"steer\.max_lucks: there is no such option"):
        client.chat.completions.create(
            model=NAME, messages=question(), extra_body={"steer": {"max_lucks": 1}}
        )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[" * 100_000, 400), (b"\xff\xfe", 400), (b"null", 400),
        (b'{"model": "tiny"}', 400),
        (b'{"a": "' + b"x" * 300_000 + b'"}', 413),
    ],
    ids=["empty", "broken", "deep", "no text", "null", "no messages", "large"],
)  # fmt: skip
def test_bodies_that_are_none_have_their_error(body: bytes, status: int, served: Served) -> None:
    code, answer = send(served, body)
    assert code == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_body_is_counted_as_it_comes_whatever_its_header_says(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        except OSError:
            pass  # it has hung up
        assert sent < 20_000_000
    assert get(served, "/health") == (200, "ok\n")


def test_who_hangs_up_frees_the_row(served: Served) -> None:
    before = served.engine.counts.ended.get("cancelled", 0)
    ask = {
        "model": NAME,
        "messages": question("It?", picture()),
        "max_tokens": 500,
        "extra_body": {"steer": {"points": False}},
    }
    stream = served.client().chat.completions.create(**ask, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        served.client(timeout=0.3).chat.completions.create(**{**ask, "n": 8})
    until(lambda: not served.engine.running and not served.engine.waiting)
    assert served.engine.counts.ended["cancelled"] > before


def test_who_vanishes_while_waiting_is_forgotten_before_the_turn_comes() -> None:
    with serving(ServerLimits(new_tokens=5000), EngineLimits(rows=1, waiting=2)) as tight:
        ask = {"model": NAME, "messages": question("It?", picture()), "max_tokens": 5000, "stream": True}
        ask["extra_body"] = {"steer": {"points": False}}
        first = tight.client().chat.completions.create(**ask)
        next(iter(first))
        with pytest.raises(openai.APITimeoutError):
            tight.client(timeout=0.3).chat.completions.create(**ask)
        until(lambda: tight.engine.counts.ended == {"cancelled": 1})
        assert (tight.engine.running, tight.engine.waiting) == (1, 0)
        first.close()
        until(lambda: tight.engine.counts.ended == {"cancelled": 2})


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is over goes at once, or stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kept() -> int:
    """How many objects of requests there are, also those that only the collector would find."""
    return sum(type(thing) in (Request, Row, Encoded, Answering) for thing in gc.get_objects())


@pytest.mark.usefixtures("without_collector")
def test_nothing_of_a_request_is_kept_behind_its_end_and_nothing_is_said_of_clients_that_leave(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    client, before = served.client(), kept()
    for n in range(3):
        ask = {"model": NAME, "messages": question("It?", picture()), "max_tokens": 500, "n": 1 + n}
        ask["extra_body"] = {"steer": {"points": False}}
        with pytest.raises(openai.APITimeoutError):
            served.client(timeout=0.05).chat.completions.create(**ask)
        stream = client.chat.completions.create(**ask, stream=True)
        next(iter(stream))
        stream.close()
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**{**ask, "messages": question("It?", picture((100, 80)))})
        client.chat.completions.create(**{**ask, "max_tokens": 3})

    until(lambda: not served.engine.running and not served.engine.waiting)
    until(lambda: kept() <= before, tries=100)
    assert served.engine.batch.kept is None
    assert capfd.readouterr().err == ""


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with serving(ServerLimits(body_seconds=0.2)) as hasty:
        with socket.create_connection(("127.0.0.1", hasty.port), timeout=30) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
            connection.sendall(head + b'{"model"')
            answer = connection.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 408 ")
        assert "the body did not come within 0.2 s" in answer
        assert get(hasty, "/health") == (200, "ok\n")


def test_who_takes_nothing_of_a_stream_is_left() -> None:
    ended = []

    async def events() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "data: more\n\n"
        finally:
            ended.append(True)

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    asyncio.run(Events(events(), 0.05).stream_response(stuck))
    assert ended == [True]


def test_a_slow_reader_holds_nobody_up(served: Served) -> None:
    body = json.dumps(
        {"model": NAME, "messages": question("It?"), "max_tokens": 400, "stream": True}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as slow:
        slow.sendall(head + body)
        asked = served.client().chat.completions.create(model=NAME, messages=question(), max_tokens=4)
        assert asked.usage.completion_tokens <= 4


def test_where_there_is_no_room_to_wait_one_is_told_to_come_again() -> None:
    with serving(ServerLimits(new_tokens=5000), EngineLimits(rows=1, waiting=0)) as tight:
        ask = {"model": NAME, "messages": question("It?", picture()), "max_tokens": 5000}
        stream = tight.client().chat.completions.create(**ask, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="requests are waiting"):
            tight.client().chat.completions.create(**ask)
        assert get(tight, "/ready") == (503, "busy\n")
        assert get(tight, "/health") == (200, "ok\n")
        stream.close()
        until(lambda: not tight.engine.running)
        tight.client().chat.completions.create(**{**ask, "max_tokens": 1})


def test_an_answer_that_takes_too_long_ends_as_it_is() -> None:
    with serving(ServerLimits(seconds=0.05, new_tokens=5000)) as hasty:
        asked = hasty.client().chat.completions.create(
            model=NAME, messages=question("It?", picture()), extra_body={"steer": {"points": False}}
        )
        assert asked.choices[0].finish_reason == "length"
        assert asked.choices[0].message.model_extra["v1lit"]["ended_by"] == "timeout"
        assert asked.usage.completion_tokens < 5000


def test_with_a_key_nobody_else_is_answered() -> None:
    with serving(key="secret") as locked:
        assert locked.client().models.list().data[0].id == NAME
        wrong = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
            wrong.chat.completions.create(model=NAME, messages=question())
        assert get(locked, "/v1/models")[0] == 401
        assert get(locked, "/health")[0] == 200


# ---------------------------------------------------------------- how it is run


def test_health_readiness_and_metrics(served: Served) -> None:
    assert get(served, "/health") == (200, "ok\n")
    assert get(served, "/ready") == (200, "ready\n")
    code, text = get(served, "/metrics")
    assert code == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["v1lit_tokens_generated_total"]) == served.engine.counts.tokens
    assert 'v1lit_requests_ended_total{reason="stop"}' in values
    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(set(kinds)) == len(kinds)


def test_at_the_end_answers_in_flight_are_finished() -> None:
    with serving() as one:
        stream = iter(
            one.client().chat.completions.create(
                model=NAME, messages=question("It?", picture()), max_tokens=30, stream=True
            )
        )
        next(stream)
        one.server.should_exit = True
        last = [part for part in stream if part.choices][-1].choices[0]
        assert last.finish_reason in ("length", "stop")
        assert last.delta.model_extra["v1lit"]["ended_by"] in ("length", "stop")
