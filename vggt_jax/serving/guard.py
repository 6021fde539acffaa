"""What comes before the API and the page: a password, and a limit to what is sent."""

import base64
import binascii
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vggt_jax.errors import InputError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class TooLargeError(Exception):
    """More was sent than is taken."""


class Guard:
    """ASGI middleware that lets requests pass that know the password and are not too large.

    The password is that of HTTP's basic authentication, with any name, which browsers ask for; or a
    bearer token.
    """

    def __init__(self, app: Any, *, password: str | None, most_bytes: int):
        self._app, self._password, self._most_bytes = app, password, most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._password is not None and not self._knows(headers.get(b"authorization", b"")):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await _answer(send, 401, "a password is needed", asks=True)
            return
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._most_bytes:
            await _answer(send, 413, self._too_large())
            return
        seen, is_answered = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most_bytes:
                raise TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal is_answered
            if seen <= self._most_bytes:
                await send(message)
            elif not is_answered:  # Whatever the application made of the error.
                is_answered = True
                await _answer(send, 413, self._too_large())

        try:
            await self._app(scope, counted, noted)
        except TooLargeError:
            if not is_answered:
                await _answer(send, 413, self._too_large())

    def _too_large(self) -> str:
        return f"more than {self._most_bytes / 1e6:,.0f} MB; send less"

    def _knows(self, authorization: bytes) -> bool:
        kind, _, value = authorization.partition(b" ")
        given = b""
        if kind.lower() == b"bearer":
            given = value.strip()
        elif kind.lower() == b"basic":
            try:
                given = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        return secrets.compare_digest(given, (self._password or "").encode())


def check_address(host: str, password: str | None) -> None:
    """Checks that nobody serves other machines without a password.

    Raises:
        InputError: `host` is another address than this machine's own, and there is no password.
    """
    try:
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    if not is_own and not password:
        raise InputError(
            f"host={host} serves other machines, for which a password is needed: give --password, "
            "or VGGT_JAX_PASSWORD in the environment"
        )


async def _answer(send: Send, status: int, text: str, *, asks: bool = False) -> None:
    body = f'{{"detail": "{text}"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if asks:
        headers.append((b"www-authenticate", b'Basic realm="vggt-jax"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
