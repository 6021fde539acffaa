"""The queue over HTTP; `/docs` and `/openapi.json` describe it."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import vggt_jax
from vggt_jax.errors import InputError, printable
from vggt_jax.images.kinds import is_picture
from vggt_jax.images.resizing import Mode
from vggt_jax.images.video import is_video
from vggt_jax.serving.guard import Guard
from vggt_jax.serving.jobs import FullError, Job, JobOptions, Queue, downloads
from vggt_jax.serving.runner import attention_named

_LONGEST_NAME = 120  # Characters of the name of a file.
_RETRY_SECONDS = 2
_PIECE = 2**20  # Bytes.
_POLL_SECONDS = 0.1


def create_api(queue: Queue, models: Sequence[str], *, password: str | None = None) -> Any:
    """The FastAPI application.

    Args:
        queue: does the jobs.
        models: names that clients may choose, the default first.
        password: that clients must know; None for none.

    Raises:
        InputError: FastAPI is not installed.
    """
    fastapi = import_fastapi()
    from fastapi import File, Form, Query, UploadFile
    from fastapi.responses import FileResponse

    app = fastapi.FastAPI(
        title="vggt-jax",
        version=vggt_jax.__version__,
        description="Photographs in; cameras, depth, point maps and tracks out.",
    )
    limits = queue.limits
    app.add_middleware(Guard, password=password, most_bytes=limits.megabytes * 10**6)

    def found(id: str) -> Job:  # noqa: A002
        if (job := queue.job(id)) is None:
            raise fastapi.HTTPException(404, "there is no such job, or no more")
        return job

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the server works, and how much it has to do."""
        return {
            "status": "ok",
            "version": vggt_jax.__version__,
            "models": list(models),
            "waiting": queue.num_waiting,
            "limits": vars(limits),
            "downloads": downloads(),
        }

    @app.post("/jobs", status_code=202)
    def submit(
        files: Annotated[list[UploadFile], File(description="photographs in order, or one video")],
        model: Annotated[str, Form()] = models[0],
        attention: Annotated[str, Form(description="dense, auto, keys=8192 or keep=25")] = "dense",
        frames: Annotated[int | None, Form(ge=1)] = None,
        fps: Annotated[float | None, Form(gt=0)] = None,
        size: Annotated[int | None, Form(ge=14, le=2048)] = None,
        mode: Annotated[Mode | None, Form()] = None,
    ) -> dict[str, Any]:
        """Puts a scene into the queue."""
        options = JobOptions(
            model=model, attention=attention, frames=frames, fps=fps, size=size, mode=mode
        )
        folder = None
        try:
            names = [upload.filename or "" for upload in files]
            options = checked(names, options, models, queue)
            folder = queue.new_folder()
            paths = []
            for i, (name, upload) in enumerate(zip(names, files, strict=True)):
                paths.append(place_of(folder / "uploads", i, name))
                with paths[-1].open("wb") as file:
                    shutil.copyfileobj(upload.file, file, _PIECE)
            return described(queue, queue.submit(folder, paths, options))
        except InputError as error:
            raise fastapi.HTTPException(422, str(error)) from error
        except FullError as error:
            headers = {"Retry-After": str(_RETRY_SECONDS)}
            raise fastapi.HTTPException(503, f"{error}; try again", headers) from error
        except OSError:
            shutil.rmtree(folder or "", ignore_errors=True)
            raise

    @app.get("/jobs/{id}")
    async def status(
        id: str,  # noqa: A002
        wait: Annotated[float, Query(ge=0, le=30)] = 0,
    ) -> dict[str, Any]:
        """How far a job is; waits up to so many seconds for something new."""
        job = found(id)
        until, before = time.monotonic() + wait, (job.state, job.step)
        # Without a thread for each of many clients that wait.
        while job.state in ("queued", "running") and time.monotonic() < until:
            if (job.state, job.step) != before:
                break
            await asyncio.sleep(_POLL_SECONDS)
        return described(queue, job)

    @app.delete("/jobs/{id}")
    def cancel(id: str) -> dict[str, str]:  # noqa: A002
        """Takes a job out of the queue, and removes its files."""
        queue.cancel(found(id))
        return {"state": "cancelled"}

    @app.get("/jobs/{id}/files/{name}")
    def download(id: str, name: str) -> FileResponse:  # noqa: A002
        """A result: npz, ply, glb; colmap or nerfstudio as .zip."""
        job = found(id)
        if job.state != "done":
            raise fastapi.HTTPException(409, f"the job is {job.state}")
        if name not in downloads():
            raise fastapi.HTTPException(404, f"there are {', '.join(downloads())}")
        try:
            file = queue.exported(job, name)
        except InputError as error:
            raise fastapi.HTTPException(422, str(error)) from error
        return FileResponse(file, filename=file.name)

    return app


def described(queue: Queue, job: Job) -> dict[str, Any]:
    """A job as clients see it."""
    return {
        "id": job.id,
        "state": job.state,
        "step": job.step,
        "before_it": queue.place(job),
        "error": job.error,
        "seconds": round((job.ended or time.time()) - job.created, 1),
        **job.summary,
    }


def checked(
    names: Sequence[str], options: JobOptions, models: Sequence[str], queue: Queue
) -> JobOptions:
    """The options of a job as they will be done, after what can be known before it is has been
    checked.

    Raises:
        InputError: something cannot be.
    """
    limits = queue.limits
    if options.model not in models:
        raise InputError(f"model={options.model[:60]!r} must be one of {', '.join(models)}")
    attention_named(options.attention)
    if len(names) > limits.files:
        raise InputError(f"{len(names)} files are more than {limits.files}; send fewer")
    videos = [name for name in names if is_video(name)]
    if bad := [x for x in names if not is_video(x) and not is_picture(Path(x))]:
        raise InputError(f"{bad[0][:60]!r}: is neither a photograph nor a video by its name")
    if videos and len(names) > 1:
        raise InputError(f"{videos[0][:60]!r}: a video is a scene by itself; send it alone")
    if not videos and len(names) < 2:
        raise InputError("one photograph is no scene; send two or more")
    if not videos and (options.frames is not None or options.fps is not None):
        raise InputError("frames and fps are for a video; leave them out")
    if (options.frames or 0) > limits.frames:
        raise InputError(f"frames={options.frames} are more than {limits.frames}; take fewer")
    return options


def place_of(folder: Path, number: int, name: str) -> Path:
    """Where to put a file that was sent: under its own name, which cannot lead elsewhere, in a
    folder of its own."""
    last = printable(PurePosixPath(name.replace("\\", "/")).name).lstrip(".")
    stem, ending = PurePosixPath(last).stem, PurePosixPath(last).suffix
    place = folder / f"{number:04d}"
    place.mkdir(parents=True)
    return place / f"{stem[:_LONGEST_NAME] or 'photograph'}{ending}"


def import_fastapi() -> Any:
    """The module fastapi.

    Raises:
        InputError: it, or what it needs to take files, is not installed.
    """
    try:
        import fastapi
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"the server needs {error.name}; install it with: pip install 'vggt-jax[serve]'"
        ) from error
    return fastapi
