"""Lets a client finish sending before it is refused.

A server that closes a connection with unread bytes resets it, and the client may lose the answer
that says why (RFC 9112, section 9.6).
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The most bytes and seconds that are spent on a client that is refused.
LARGEST = 64 * 2**20
LONGEST = 20.0


class TakeUnread:
    """Reads and drops the rest of a request that an application did not read, before it responds.

    A client that waits to be asked for the body (`Expect: 100-continue`), or was too slow to send
    it (408), is answered at once.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        unread = not any(name == b"expect" for name, _ in scope["headers"])

        async def watched() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] != 408:
                total = 0
                try:
                    async with asyncio.timeout(LONGEST):
                        while unread and total < LARGEST:
                            total += len((await watched()).get("body", b""))
                except TimeoutError:
                    pass
            await send(message)

        await self._app(scope, watched, answer)
