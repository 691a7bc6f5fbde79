"""The web application: chat completions in OpenAI's form, health, and metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as WebRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from transformers import LogitsProcessor

from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import Encoded, EncodingError
from v1lit.data.encode.given_regions import RegionError
from v1lit.data.encode.prompt import encode_prompt
from v1lit.serving.answering import AnswerError, Answering
from v1lit.serving.asking import Ask, AskError, read_ask
from v1lit.serving.engine import Engine, EngineFullError
from v1lit.serving.events import Events
from v1lit.serving.limits import ServerLimits
from v1lit.serving.metrics import render_metrics
from v1lit.serving.pictures import open_images
from v1lit.steering import Vocabulary

Result = TypeVar("Result")
LOOK_SECONDS = 0.25
"""Between two looks at whether a client is still there."""
FINISH = {"stop": "stop", "length": "length", "timeout": "length", "cancelled": "stop"}
"""Reasons of an engine, as OpenAI calls them."""


class RefusalError(Exception):
    """An answer in OpenAI's form for what is not done."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        headers = {"retry-after": "1"} if self.status in (429, 503) else {}
        if self.status in (408, 413):
            headers["connection"] = "close"  # or all the rest of the body would be received
        return JSONResponse({"error": error}, status_code=self.status, headers=headers)


class Server:
    """The handlers of one model.

    Args:
        engine: that answers; started and closed with the application.
        name: of the model, which requests may name.
        limits: what a request may ask.
        key: that every request has to bring, if any.
        closing_seconds: time that answers have when the server is closed.
    """

    def __init__(
        self, engine: Engine, name: str, limits: ServerLimits, key: str | None, closing_seconds: float
    ) -> None:
        self.engine, self.name, self.limits, self.key = engine, name, limits, key
        self.closing_seconds = closing_seconds
        self.closing = False
        self.began = int(time.time())
        self.preparing = asyncio.Semaphore(limits.preparing)
        text = engine.model.config.get_text_config()
        self.encoding = EncodingConfig(max_tokens=int(getattr(text, "max_position_embeddings", 32768)))

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the engine, and close it at the end."""
        self.engine.start()
        try:
            yield
        finally:
            self.closing = True
            await run_in_threadpool(partial(self.engine.close, self.closing_seconds))

    async def health(self, request: WebRequest) -> Response:
        """Whether the process can answer at all."""
        return PlainTextResponse(
            "ok\n" if self.engine.alive else "the engine has ended\n", 200 if self.engine.alive else 500
        )

    async def ready(self, request: WebRequest) -> Response:
        """Whether a request would be taken now."""
        room = self.engine.alive and not self.closing and self.engine.has_room
        return PlainTextResponse("ready\n" if room else "busy\n", 200 if room else 503)

    async def metrics(self, request: WebRequest) -> Response:
        """Counts in Prometheus' format."""
        return PlainTextResponse(render_metrics(self.engine), media_type="text/plain; version=0.0.4")

    async def models(self, request: WebRequest) -> Response:
        """The one model."""
        self._check_key(request)
        entry = {"id": self.name, "object": "model", "created": self.began, "owned_by": "v1lit"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def completions(self, request: WebRequest) -> Response:
        """A chat completion, whole or as a stream of events."""
        self._check_key(request)
        ask = read_ask(_parsed(await _body(request, self.limits)), self.limits)
        if ask.model != self.name:
            raise RefusalError(
                404,
                f"there is no model {ask.model!r} here; this is {self.name!r}",
                "model",
                "model_not_found",
            )
        if self.closing:
            raise RefusalError(503, "the server is being closed")
        async with self.preparing:
            prompt, rules = await run_in_threadpool(self._prepare, ask)
        answers = [
            Answering(self.engine, ask, prompt, own, self.limits.seconds, number)
            for number, own in enumerate(rules)
        ]
        identity = f"chatcmpl-{secrets.token_hex(12)}"
        if ask.stream:
            return await self._stream(request, ask, answers, identity)
        return await self._whole(request, answers, identity)

    def _prepare(self, ask: Ask) -> tuple[Encoded, list[list[LogitsProcessor]]]:
        """The prompt, and the rules of every choice: they remember what a row has said."""
        images, of = open_images(ask.images, self.limits), self.engine.processor
        config = replace(self.encoding, coordinates=ask.coordinates)
        prompt = encode_prompt("the conversation", ask.messages, images, of, config, ask.regions)
        vocabulary = self.vocabulary if ask.steering.uses_grammar else None
        maps, tokens = [prompt.patch_maps], len(prompt.input_ids)
        try:
            rules = [ask.steering.rules(of, maps, tokens, vocabulary) for _ in range(ask.choices)]
        except ValueError as error:
            raise AskError("steer", str(error)) from None
        return prompt, rules

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What every token writes; a grammar needs it."""
        return Vocabulary.of(self.engine.processor)

    async def _whole(self, request: WebRequest, answers: Sequence[Answering], identity: str) -> Response:
        async def collect(answer: Answering) -> str:
            return "".join([piece async for piece in answer.pieces()])

        tasks = [asyncio.create_task(collect(answer)) for answer in answers]
        try:
            texts = await _while_there(request, asyncio.gather(*tasks))
        finally:
            await _end(tasks)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "v1lit": _details(answer)},
                "finish_reason": FINISH[str(answer.reason)],
                "logprobs": None,
            }
            for index, (text, answer) in enumerate(zip(texts, answers, strict=True))
        ]
        head = self._head("chat.completion", identity)
        return JSONResponse({**head, "choices": choices, "usage": _usage(answers)})

    async def _stream(
        self, request: WebRequest, ask: Ask, answers: Sequence[Answering], identity: str
    ) -> Response:
        """Events as they come; the first piece is awaited, so that refusals have their own status."""
        queue: asyncio.Queue[tuple[int, str | None, Exception | None]] = asyncio.Queue()

        async def listen(index: int, answer: Answering) -> None:
            error = None
            try:
                async for piece in answer.pieces():
                    queue.put_nowait((index, piece, None))
            except Exception as raised:
                error = raised
            queue.put_nowait((index, None, error))

        tasks = [asyncio.create_task(listen(*pair)) for pair in enumerate(answers)]
        try:
            first = await _while_there(request, asyncio.create_task(queue.get()))
            if first[1] is None and first[2] is not None:
                raise first[2]
        except BaseException:
            await _end(tasks)
            raise
        head = self._head("chat.completion.chunk", identity)

        async def events() -> AsyncGenerator[str, None]:
            left, heard = len(answers), first
            try:
                for index in range(len(answers)):
                    yield _event(head, index, {"role": "assistant", "content": ""})
                while True:
                    index, piece, error = heard
                    if piece is not None:
                        yield _event(head, index, {"content": piece})
                    elif error is not None:
                        yield _data({"error": {"message": str(error), "type": "server_error"}})
                        return
                    else:
                        answer, left = answers[index], left - 1
                        delta = {"v1lit": _details(answer)}
                        yield _event(head, index, delta, FINISH[str(answer.reason)])
                    if not left:
                        break
                    heard = await queue.get()
                if ask.usage:
                    yield _data({**head, "choices": [], "usage": _usage(answers)})
                yield "data: [DONE]\n\n"
            finally:
                await _end(tasks)

        return Events(events(), self.limits.reader_seconds)

    def _head(self, kind: str, identity: str) -> dict[str, Any]:
        return {"id": identity, "object": kind, "created": int(time.time()), "model": self.name}

    def _check_key(self, request: WebRequest) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.key is not None and not hmac.compare_digest(given, self.key.encode()):
            raise RefusalError(
                401, "the key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key"
            )


def make_app(
    engine: Engine,
    name: str,
    limits: ServerLimits | None = None,
    key: str | None = None,
    hosts: Sequence[str] = ("*",),
    closing_seconds: float = 30.0,
) -> Starlette:
    """The application, for any ASGI server; `hosts` are names under which it may be addressed."""
    server = Server(engine, name, limits or ServerLimits(), key, closing_seconds)
    routes = [
        Route("/health", server.health),
        Route("/ready", server.ready),
        Route("/metrics", server.metrics),
        Route("/v1/models", server.models),
        Route("/v1/chat/completions", server.completions, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=server.lifespan,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={
            RefusalError: _refused,
            AskError: _misasked,
            RegionError: _misplaced,
            EncodingError: _too_long,
            EngineFullError: _busy,
            AnswerError: _failed,
            ClientDisconnect: _gone,
        },
    )


async def _refused(request: WebRequest, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return error.response()


async def _misasked(request: WebRequest, error: Exception) -> Response:
    return RefusalError(400, str(error), getattr(error, "field", None), "invalid_value").response()


async def _misplaced(request: WebRequest, error: Exception) -> Response:
    return RefusalError(400, str(error), "regions", "invalid_value").response()


async def _too_long(request: WebRequest, error: Exception) -> Response:
    return RefusalError(400, str(error), "messages", "context_length_exceeded").response()


async def _busy(request: WebRequest, error: Exception) -> Response:
    return RefusalError(429, str(error), code="server_busy").response()


async def _failed(request: WebRequest, error: Exception) -> Response:
    return RefusalError(500, str(error)).response()


async def _gone(request: WebRequest, error: Exception) -> Response:
    return Response(status_code=499)


async def _while_there(request: WebRequest, work: asyncio.Future[Result]) -> Result:
    """What comes of some work. Raises ClientDisconnect, with the work cancelled, once nobody waits for it."""
    try:
        while not work.done():
            await asyncio.wait([work], timeout=LOOK_SECONDS)
            if not work.done() and await request.is_disconnected():
                raise ClientDisconnect
        return work.result()
    finally:
        if work.cancel():
            await asyncio.gather(work, return_exceptions=True)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End the tasks that still listen to answers, which frees their rows."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _body(request: WebRequest, limits: ServerLimits) -> bytes:
    """The body. Raises RefusalError where it is too slow, or too large, before all of it has come."""
    body, most = bytearray(), limits.body_bytes

    async def receive() -> None:
        async for piece in request.stream():
            body.extend(piece)
            if len(body) > most:
                why = f"the body has more than {most} bytes; send smaller images"
                raise RefusalError(413, why, code="too_large")

    try:
        await asyncio.wait_for(receive(), limits.body_seconds)
    except asyncio.TimeoutError:
        why = f"the body did not come within {limits.body_seconds:g} s"
        raise RefusalError(408, why, code="too_slow") from None
    return bytes(body)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise RefusalError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise RefusalError(400, f"the body is not JSON: {error}") from None


def _details(answer: Answering) -> dict[str, Any]:
    """Where the model looked, in the documented field `v1lit`."""
    told = answer.prediction().to_json()
    told["ended_by"] = answer.reason
    return {key: told[key] for key in ("answer", "trace", "looks", "images", "score", "ended_by")}


def _usage(answers: Sequence[Answering]) -> dict[str, int]:
    prompt = len(answers[0].prompt.input_ids)
    completion = sum(len(answer.ids) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(head: dict[str, Any], index: int, delta: dict[str, Any], reason: str | None = None) -> str:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return _data({**head, "choices": [choice]})


def _data(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"
