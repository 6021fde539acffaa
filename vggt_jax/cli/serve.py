"""`vggt-jax serve` and `vggt-jax app`."""

import dataclasses
import os
import sys
from typing import Annotated

import tyro

from vggt_jax.cli.attending import OptionalText
from vggt_jax.cli.generated import Flag
from vggt_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve:
    """Keep a model loaded and reconstruct what programs send over HTTP.

    `vggt-jax infer --server` uses it; /docs in a browser describes the rest.

        vggt-jax serve --models facebook/VGGT-1B
        vggt-jax infer photographs/ --server http://127.0.0.1:8000 --out scene
    """

    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")] = (
        "small",
    )
    """Models that clients may choose, as --model names them, the default first; small is the one
    that ships with the project."""
    host: str = "127.0.0.1"
    """Address to serve at. Another than this machine's own needs a password."""
    port: int = 8000
    """Port to serve at."""
    password: OptionalText = None
    """What clients must know: as bearer token, or with any name where a browser asks. The
    environment variable VGGT_JAX_PASSWORD is safer, since other users see commands."""
    queue: int = 16
    """Jobs that may wait; more are refused."""
    max_files: int = 200
    """Most photographs of a scene."""
    max_frames: int = 100
    """Most frames of a video."""
    max_megabytes: int = 1000
    """Most megabytes of a scene's photographs, or of a video."""
    quiet: Flag = False
    """Print nothing but warnings and errors."""

    def run(self) -> None:
        self._serve(with_page=False)

    def _serve(self, *, with_page: bool) -> None:
        from vggt_jax.cli.programs import keep_compiled_programs
        from vggt_jax.serving import Limits, ModelRunner, Queue
        from vggt_jax.serving.api import create_api, import_fastapi
        from vggt_jax.serving.guard import check_address
        from vggt_jax.viewer.ports import checked_port

        import_fastapi()
        password = self.password or os.environ.get("VGGT_JAX_PASSWORD") or None
        check_address(self.host, password)
        checked_port(self.host, self.port)
        limits = Limits(
            queue=self.queue,
            files=self.max_files,
            frames=self.max_frames,
            megabytes=self.max_megabytes,
        )
        if with_page:
            from vggt_jax.serving.page import create_page, import_gradio, mount_page

            import_gradio()
        runner = ModelRunner(self.models, limits=limits)
        keep_compiled_programs()
        runner.warm_up()
        with Queue(runner, limits) as queue:
            app = create_api(queue, runner.models, password=password)
            if with_page:
                app = mount_page(app, create_page(queue, runner.models), queue)
            self._run(app)

    def _run(self, app: object) -> None:
        import uvicorn

        if not self.quiet:
            where = "127.0.0.1" if self.host == "0.0.0.0" else self.host
            print(f"http://{where}:{self.port}   (Ctrl-C ends it)", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            app,  # pyright: ignore[reportArgumentType]
            host=self.host,
            port=self.port,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        server.run()
        if not server.started:
            raise InputError(f"--port {self.port} at {self.host} cannot be used; choose another")


@dataclasses.dataclass(frozen=True, kw_only=True)
class App(Serve):
    """A web page to reconstruct photographs and videos with: drop them, look, download.

    The API of `vggt-jax serve` is there, too.

        vggt-jax app
        vggt-jax app --models facebook/VGGT-1B small --port 7860
    """

    port: int = 7860
    """Port to serve at."""

    def run(self) -> None:
        self._serve(with_page=True)
