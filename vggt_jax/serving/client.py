"""`vggt-jax infer --server`: photographs to a server, and its reconstruction back."""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from vggt_jax.errors import InputError
from vggt_jax.images.files import checked_file, short_names
from vggt_jax.images.video import is_video
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import load_reconstruction

_SECONDS = 120.0  # For which a server may be silent.
_FULL_SECONDS = 600.0  # For which to try again where the queue is full.
_MANY_FILES = 1000  # More than a connection need hold open is refused by servers anyway.


def infer_on_server(
    url: str,
    files: Sequence[str | os.PathLike],
    *,
    say: Callable[[str], object] = lambda step: None,
    password: str | None = None,
    **options: Any,
) -> Reconstruction:
    """Has a server of `vggt-jax serve` reconstruct files, and gives up the job where this is
    interrupted.

    Args:
        url: such as "http://127.0.0.1:8000"; a password may be in it, `http://any:PASSWORD@host`.
        files: photographs in their order, or one video.
        say: takes news of how far it is.
        options: fields of `serving.jobs.JobOptions`; without a model, the server's first.

    Returns:
        The scene, with the names that the files have here.

    Raises:
        InputError: the server cannot be reached, refuses, or fails.
    """
    httpx = _import_httpx()
    paths = [Path(file) for file in files]
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url}: is no address of a server, such as http://127.0.0.1:8000")
    password = parts.password or password
    where = urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")
    )
    headers = {"Authorization": f"Bearer {password}"} if password else {}
    given = {name: str(value) for name, value in options.items() if value is not None}
    is_safe = parts.scheme == "https"  # Otherwise there is nothing to verify, which takes long.
    with httpx.Client(base_url=where, headers=headers, timeout=_SECONDS, verify=is_safe) as client:
        try:
            job = _submitted(client, paths, given, say)
            with _given_up(client, job["id"]):
                while job["state"] in ("queued", "running"):
                    waiting = job["before_it"]
                    say(f"{waiting - 1} jobs before this one" if waiting > 1 else job["step"])
                    job = _answer(client.get(f"/jobs/{job['id']}", params={"wait": 10}))
                if job["state"] != "done":
                    raise InputError(f"{where}: {job['error'] or job['state']}")
                say("fetching the result")
                recon = _fetched(client, job["id"])
            client.delete(f"/jobs/{job['id']}")
        except httpx.HTTPError as error:
            raise InputError(
                f"{where}: {error or type(error).__name__}; does `vggt-jax serve` run there?"
            ) from error
    if len(paths) > 1 or not is_video(paths[0]):
        recon = dataclasses.replace(recon, names=tuple(short_names(paths)))
    return recon


def _submitted(
    client: Any, files: Sequence[Path], given: dict[str, str], say: Any
) -> dict[str, Any]:
    """The job, once there is room for it."""
    until = time.monotonic() + _FULL_SECONDS
    while True:
        with contextlib.ExitStack() as opened:
            if len(files) > _MANY_FILES:
                raise InputError(f"{len(files)} files are too many for a server; run without one")
            parts = [
                ("files", (path.name, opened.enter_context(checked_file(path).open("rb"))))
                for path in files
            ]
            response = client.post("/jobs", files=parts, data=given)
        if response.status_code != 503 or time.monotonic() > until:
            return _answer(response)
        say("the server has much to do, waiting")
        time.sleep(min(float(response.headers.get("Retry-After", 5)), 30.0))


@contextlib.contextmanager
def _given_up(client: Any, id: str):  # noqa: A002
    """Tells the server that nobody wants a job any more, where the block ends by an exception."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, RuntimeError, _import_httpx().HTTPError):
            client.delete(f"/jobs/{id}", timeout=2)
        raise


def _fetched(client: Any, id: str) -> Reconstruction:  # noqa: A002
    with tempfile.TemporaryDirectory(prefix="vggt-jax-") as folder:
        file = Path(folder) / "predictions.npz"
        with client.stream("GET", f"/jobs/{id}/files/npz") as response, file.open("wb") as out:
            if response.is_error:
                response.read()
                _answer(response)
            for piece in response.iter_bytes():
                out.write(piece)
        return load_reconstruction(file)


def _answer(response: Any) -> dict[str, Any]:
    """What a server says, as JSON.

    Raises:
        InputError: that it refuses, or nothing of ours.
    """
    try:
        document = response.json()
    except ValueError as error:
        raise InputError(f"{response.url}: no server of vggt-jax answers there") from error
    if response.is_error:
        detail = document.get("detail", "") if isinstance(document, dict) else ""
        if isinstance(detail, list):  # How FastAPI tells of values that cannot be.
            detail = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in detail)
        raise InputError(f"{response.url.host}: refused ({response.status_code}): {detail}")
    if not isinstance(document, dict) or "state" not in document:
        raise InputError(f"{response.url}: no server of vggt-jax answers there")
    return document


def _import_httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise InputError(
            "a server is asked with httpx; install it with: pip install 'vggt-jax[serve]'"
        ) from error
    return httpx
