"""A stream of events to one client, which has to take them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from starlette.responses import StreamingResponse
from starlette.types import Message, Send


class Events(StreamingResponse):
    """Events as they come, for a client that takes them.

    Args:
        events: their texts.
        seconds: in which the client has to take each; after that it is left.
    """

    def __init__(self, events: AsyncGenerator[str, None], seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self.events, self.seconds = events, seconds

    async def stream_response(self, send: Send) -> None:
        """Send them; the row of an answer that nobody takes is free again."""

        async def in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), self.seconds)

        try:
            with suppress(asyncio.TimeoutError):
                await super().stream_response(in_time)
        finally:
            await self.events.aclose()
