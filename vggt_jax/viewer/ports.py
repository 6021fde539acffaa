"""Which port the viewer listens at."""

import socket

from vggt_jax.errors import InputError

_FIRST_PORT = 8080


def checked_port(host: str, port: int | None) -> int:
    """A port that can be listened at. viser would try others without a word, and wait forever.

    Raises:
        InputError: there is none.
    """
    if port is not None and not 0 <= port <= 65_535:
        raise InputError(f"{port=} must lie between 0 (any free one) and 65535")
    candidates, last = range(_FIRST_PORT, _FIRST_PORT + 100) if port is None else [port], None
    for candidate in candidates:
        try:
            family, kind, *_, address = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM
            )[0]
            with socket.socket(family, kind) as probe:
                # As the server does it: a port whose last connection just closed is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return candidate
        except OSError as error:
            last = error
    raise InputError(
        f"{host} port {port if port is not None else _FIRST_PORT} cannot be listened at ({last}); "
        "choose another --host or --port, or port 0 for any that is free"
    )
