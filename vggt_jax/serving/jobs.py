"""Jobs: a bounded queue, one thread that does them in turn, and folders with what they gave."""

import collections
import dataclasses
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vggt_jax.errors import InputError
from vggt_jax.export.format import ExportOptions, FolderFormat, format_named, format_names
from vggt_jax.export.reconstruction import write_export
from vggt_jax.export.scene_pictures import write_scene_pictures
from vggt_jax.files import OVERVIEW, RESULTS
from vggt_jax.images.resizing import Mode
from vggt_jax.scene.confidence import allowed_pixels
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import load_reconstruction

State = Literal["queued", "running", "done", "failed", "cancelled"]
_ENDED = ("done", "failed", "cancelled")
_log = logging.getLogger(__name__)


class FullError(Exception):
    """The queue is full: try again later."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes.

    Attributes:
        queue: jobs that may wait.
        files: photographs of a job.
        frames: that are taken of a video.
        megabytes: of a job's files together.
        kept: jobs whose results are kept, the last ones.
        hours: for which they are kept.
    """

    queue: int = 16
    files: int = 200
    frames: int = 100
    megabytes: int = 1000
    kept: int = 50
    hours: float = 24.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"{name}={value} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a client may choose.

    Attributes:
        model: one of those that the server offers.
        attention: "dense", "auto", "keys=8192" (sampled) or "keep=25" (so many percent of the
            blocks).
        frames, fps: of a video.
        size, mode: see `vggt_jax.Options`.
    """

    model: str
    attention: str = "dense"
    frames: int | None = None
    fps: float | None = None
    size: int | None = None
    mode: Mode | None = None


Say = Callable[[str], object]
Run = Callable[[Sequence[Path], JobOptions, Say], Reconstruction]
"""Reconstructs files, a video or photographs in their order, and says how far it is."""


class Job:
    """One scene to reconstruct.

    Attributes:
        id: cannot be guessed; who knows it may have the result.
        state, step, error: how far it is, in words; why it failed.
        folder: its files; those that were sent are in `uploads`, the results in `scene`.
    """

    def __init__(self, folder: Path, files: Sequence[Path], options: JobOptions):
        self.id = folder.name
        self.folder, self.files, self.options = folder, tuple(files), options
        self.state: State = "queued"
        self.step, self.error = "waiting", ""
        self.created, self.ended = time.time(), 0.0
        self.summary: dict[str, Any] = {}
        self.lock = threading.Lock()  # Of what is exported.

    @property
    def scene(self) -> Path:
        """The folder of results."""
        return self.folder / "scene"


class Queue:
    """Does jobs one after another, in the order in which they came.

    Works as a context manager, which removes all files at its end.

    Attributes:
        limits: what is taken.
        folder: of the files of all jobs.
    """

    def __init__(self, run: Run, limits: Limits | None = None, *, folder: Path | None = None):
        """Starts the thread.

        Args:
            folder: for files of jobs; by default a new one among the system's temporary files.
        """
        self.limits = limits or Limits()
        self._run = run
        self.folder = Path(tempfile.mkdtemp(prefix="vggt-jax-jobs-", dir=folder))
        self._jobs: dict[str, Job] = {}
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends after the job that is being done, and removes all files."""
        with self._changed:
            self._is_closed = True
            for job in self._waiting:
                job.state = "cancelled"
            self._waiting.clear()
            self._changed.notify_all()
        self._worker.join(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_folder(self) -> Path:
        """A folder for the files of a job that is to be submitted, or discarded.

        Raises:
            FullError: the queue is full already.
        """
        self._check_room()
        folder = self.folder / secrets.token_urlsafe(16)
        (folder / "uploads").mkdir(parents=True)
        return folder

    def submit(self, folder: Path, files: Sequence[Path], options: JobOptions) -> Job:
        """Puts a job into the queue.

        Args:
            folder: of `new_folder`; it is removed where the job is refused.
            files: in it, in their order.

        Raises:
            FullError: the queue is full.
        """
        job = Job(folder, files, options)
        with self._changed:
            if len(self._waiting) >= self.limits.queue or self._is_closed:
                shutil.rmtree(folder, ignore_errors=True)
                raise FullError(f"{len(self._waiting)} jobs are waiting")
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def job(self, id: str) -> Job | None:  # noqa: A002
        """The job of this id; None where there is none, or no more."""
        return self._jobs.get(id)

    def place(self, job: Job) -> int:
        """How many jobs come before this one; 0 for one that does not wait."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue, without the one that is being done."""
        return len(self._waiting)

    def cancel(self, job: Job) -> None:
        """Takes a job out of the queue, or gives up its result, and removes its files."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            was_running = job.state == "running"
            job.state, job.ended = "cancelled", time.time()
            self._jobs.pop(job.id, None)
        if not was_running:  # Otherwise whoever does it removes them.
            shutil.rmtree(job.folder, ignore_errors=True)

    def wait(self, job: Job, seconds: float) -> None:
        """Waits until something about jobs has changed, at most so long."""
        with self._changed:
            if job.state not in _ENDED:
                self._changed.wait(seconds)

    def exported(self, job: Job, name: str) -> Path:
        """A file of a finished job: "npz", "overview" or the name of a format, a folder as .zip;
        written when it is first asked for.

        Raises:
            InputError: there is no such format, or the scene cannot be written in it.
        """
        if name == "npz":
            return job.scene / RESULTS
        if name == "overview":
            return self._overview(job)
        format = format_named(name)
        is_folder = isinstance(format, FolderFormat)
        called = {"mesh": "mesh.ply"}.get(name, f"scene.{name}")
        file = job.folder / (f"{name}.zip" if is_folder else called)
        with job.lock:
            if file.exists():
                return file
            recon = load_reconstruction(job.scene)
            if not is_folder:
                write_export(recon, file, ExportOptions(format=name))
                return file
            is_video = len(job.files) == 1 and len(recon.names) > 1
            images = job.files[0] if is_video else job.files
            place = job.folder / name
            write_export(recon, place, ExportOptions(format=name, images=images, overwrite=True))
            (place / ".vggt-jax.json").unlink(missing_ok=True)
            made = Path(shutil.make_archive(str(job.folder / f"{name}.part"), "zip", place))
            shutil.rmtree(place)
            return made.replace(file)

    def _overview(self, job: Job) -> Path:
        file = job.folder / OVERVIEW
        with job.lock:
            if not file.exists():
                recon = load_reconstruction(job.scene)
                write_scene_pictures(job.folder, recon, allowed_pixels(recon))
        return file

    def _check_room(self) -> None:
        with self._changed:
            if len(self._waiting) >= self.limits.queue:
                raise FullError(f"{len(self._waiting)} jobs are waiting")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                job = self._waiting.popleft()
                job.state = "running"
            self._do(job)
            self._forget_old()

    def _do(self, job: Job) -> None:
        state, error = "done", ""
        try:
            recon = self._run(job.files, job.options, lambda step: self._say(job, step))
            recon.save(job.scene)
            job.summary = {
                "frames": len(recon.images),
                "names": list(recon.names),
                "warning": recon.warning or None,
                "provenance": recon.provenance.to_dict(),
            }
        except InputError as problem:
            state, error = "failed", str(problem)
        except Exception:  # noqa: BLE001  # The server goes on; what happened is in its log.
            _log.exception("job %s", job.id)
            state, error = "failed", "an error of the server; its log has more"
        with self._changed:
            if job.state == "cancelled":
                shutil.rmtree(job.folder, ignore_errors=True)
            else:
                job.state, job.error, job.step, job.ended = state, error, state, time.time()
            self._changed.notify_all()

    def _say(self, job: Job, step: str) -> None:
        with self._changed:
            job.step = step
            self._changed.notify_all()

    def _forget_old(self) -> None:
        oldest = time.time() - 3600 * self.limits.hours
        with self._changed:
            ended = sorted(
                (job for job in self._jobs.values() if job.state in _ENDED), key=lambda x: x.ended
            )
            too_many = ended[: max(0, len(ended) - self.limits.kept)]
            old = {job.id: job for job in ended if job.ended < oldest} | {x.id: x for x in too_many}
            for name in old:
                del self._jobs[name]
        for job in old.values():
            shutil.rmtree(job.folder, ignore_errors=True)


def downloads() -> tuple[str, ...]:
    """What `Queue.exported` can give."""
    return ("npz", "overview", *format_names())
