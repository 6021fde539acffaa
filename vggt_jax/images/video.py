"""Videos to photographs: which frames to take, and decoding them.

A video is decoded twice: once to choose, once to read what was chosen. So only the frames that are
being resized are in memory, however long the video.
"""

import contextlib
import dataclasses
import functools
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vggt_jax.errors import InputError, InputWarning
from vggt_jax.images.files import checked_file
from vggt_jax.images.kinds import VIDEOS, extension

DEFAULT_FPS = 1.0  # official file: demo_gradio.py
# A frame is chosen from the middle half of its share of the video: neighbours stay at least half a
# step and at most one and a half apart.
_WINDOW = 0.5
_MISSING = 0.1  # Share of its length that may be missing from a video without a word.
_WIDTH_FOR_SHARPNESS = 320  # Of the image that sharpness is measured on: noise is averaged out.


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """Frames chosen from a video, still to be decoded; `load_images` takes it for images.

    Attributes:
        path: the file.
        indices: of the chosen frames among all frames of the video, ascending.
        times: of the chosen frames in seconds.
    """

    path: Path
    indices: tuple[int, ...]
    times: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One per chosen frame: the stem of the file and the index of the frame, `clip_000123`."""
        return tuple(_name(self.path, index) for index in self.indices)

    def images(self) -> Iterator[Image.Image]:
        """Decodes the chosen frames, in order, upright as the video says.

        Raises:
            InputError: the video cannot be decoded.
        """
        return decoded_frames(self.path, self.indices)

    def readers(self) -> list[Callable[[], Image.Image]]:
        """A function for each image, for threads that call them in about this order."""
        images, turn, state = self.images(), threading.Condition(), {"next": 0, "failed": False}

        def read(i: int) -> Image.Image:
            with turn:
                turn.wait_for(lambda: state["next"] == i or state["failed"])
                if state["failed"]:
                    raise InputError(f"{self.path}: an earlier frame cannot be read")
                try:
                    return next(images)
                except BaseException:
                    state["failed"] = True
                    raise
                finally:
                    state["next"] += 1
                    turn.notify_all()

        return [functools.partial(read, i) for i in range(len(self.indices))]


def decoded_frames(path: Path, indices: Sequence[int]) -> Iterator[Image.Image]:
    """Decodes frames of a video by their indices, which ascend; upright as the video says.

    Raises:
        InputError: the video cannot be decoded, or has fewer frames.
    """
    chosen = set(indices)
    with contextlib.closing(_decode(path)) as frames:
        for index, frame in enumerate(frames):
            if index in chosen:
                yield _upright(frame)
            if index == indices[-1]:
                return
    raise InputError(f"{path}: ends before frame {indices[-1]}, which it had; give the same video")


def indices_of_names(path: str | os.PathLike, names: Sequence[str]) -> tuple[int, ...]:
    """The indices of frames in a video, by the names that `VideoFrames` gave them.

    Raises:
        InputError: a name is not that of a frame of this video.
    """
    path = Path(path)
    indices = []
    for name in names:
        index = name.removeprefix(f"{path.stem}_")
        if not index.isdecimal() or _name(path, int(index)) != name:
            raise InputError(
                f"{path}: is not the video that was reconstructed: its frames are called "
                f"{_name(path, 0)} and so on, and not {name}"
            )
        indices.append(int(index))
    return tuple(indices)


def _name(path: Path, index: int) -> str:
    return f"{path.stem}_{index:06d}"


def is_video(path: Any) -> bool:
    """Whether a path ends like a video file."""
    return isinstance(path, str | os.PathLike) and extension(Path(path)) in VIDEOS


def choose_frames(
    path: str | os.PathLike,
    *,
    fps: float | None = None,
    frames: int | None = None,
    sharpest: bool = True,
    progress: bool = False,
) -> VideoFrames:
    """Chooses frames of a video, evenly spread and each the sharpest around its place.

    The video is cut into as many equal parts as frames are wanted, and of each part's middle half
    the sharpest frame is taken. Sharpness is the variance of the Laplacian of the luma, 320 pixels
    wide.

    Args:
        path: any file that PyAV (FFmpeg) reads.
        fps: frames to take for each second, up to all that there are. 1 if neither is given, as in
            the official `demo_gradio.py`.
        frames: how many to take in all; not together with `fps`.
        sharpest: False takes the middle frame of each part.
        progress: shows a progress bar.

    Raises:
        InputError: PyAV is not installed, the file cannot be read as a video, has fewer frames than
            asked for, or an argument is out of its range.

    Warns:
        InputWarning: the file is damaged or cut, and a part of it is used.
    """
    path = Path(path)
    if fps is not None and frames is not None:
        raise InputError(f"{fps=} and {frames=} say the same in two ways; give one of them")
    if frames is not None and frames < 1:
        raise InputError(f"{frames=} must be at least 1")
    if fps is not None and not 0 < fps < float("inf"):
        raise InputError(f"{fps=} must be above 0")
    times, sharpness = _survey(path, sharpest=sharpest, progress=progress)
    if frames is not None:
        if frames > len(times):
            raise InputError(f"{path}: has {len(times)} frames, fewer than {frames=}; take fewer")
        # By index and not by time, so that no part is empty.
        position = np.arange(len(times)) * frames / len(times)
        half_frame = frames / (2 * len(times))
    else:
        if len(times) > 1 and times[-1] == times[0]:
            raise InputError(
                f"{path}: its frames have no times; take a number of them with --frames"
            )
        step = 1 / (DEFAULT_FPS if fps is None else fps)
        # A frame on a border belongs to what begins there, though times are rounded to the video's
        # clock (milliseconds in Matroska, 3 % of a frame).
        position = (times - times[0]) / step + 0.02
        half_frame = 0.0
    part = position.astype(int)
    off_middle = np.abs(position - part - 0.5 + half_frame)
    chosen = []
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(part)], strict=True):
        middle = start + np.flatnonzero(off_middle[start:end] <= _WINDOW / 2)
        if sharpest and len(middle):
            chosen.append(int(middle[np.argmax(sharpness[middle])]))
        else:
            chosen.append(int(start + np.argmin(off_middle[start:end])))
    return VideoFrames(
        path=path, indices=tuple(chosen), times=tuple(float(times[i]) for i in chosen)
    )


def laplacian_variance(luma: UInt8[np.ndarray, "height width"]) -> float:
    """How sharp an image is: the variance of its Laplacian, 0 where it is smaller than 3x3."""
    x = luma.astype(np.float32)
    if min(x.shape) < 3:
        return 0.0
    around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return float(np.var(around - 4 * x[1:-1, 1:-1]))


def _survey(
    path: Path, *, sharpest: bool, progress: bool
) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """The time in seconds of every frame, and how sharp it is (0 if nobody asks)."""
    import tqdm

    times, sharpness, damage = [], [], _Damage()
    with (
        contextlib.closing(_decode(path, damage)) as frames,
        tqdm.tqdm(desc="choosing frames", unit="frame", disable=not progress, leave=False) as bar,
    ):
        for frame in frames:
            # A frame without a time follows the one before.
            earlier = times[-1] if times else 0.0
            times.append(max(earlier, earlier if frame.time is None else frame.time))
            sharpness.append(_sharpness(frame) if sharpest else 0.0)
            bar.update()
    if not times:
        raise InputError(f"{path}: holds no frame that can be decoded; convert it to MP4")
    if (what := damage.said(times)) is not None:
        warnings.warn(
            InputWarning(
                f"{path}: is damaged or cut ({what}); {len(times)} of its frames, to "
                f"{times[-1]:.1f} s, can be decoded and are used"
            ),
            stacklevel=3,
        )
    return np.array(times), np.array(sharpness)


def _sharpness(frame: Any) -> float:
    width = min(frame.width, _WIDTH_FOR_SHARPNESS)
    height = max(1, round(frame.height * width / frame.width))
    return laplacian_variance(
        frame.reformat(width=width, height=height, format="gray").to_ndarray()
    )


@dataclasses.dataclass
class _Damage:
    """What went wrong while frames came before or after it, and how long the file says it is."""

    problems: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def said(self, times: Sequence[float]) -> str | None:
        """What is missing beside frames at these times; None if nothing seems to be."""
        if self.problems:
            return f"{len(self.problems)} times: {self.problems[0]}"
        # Sound may be a little longer than pictures.
        if self.seconds - (times[-1] - times[0]) > max(1.0, _MISSING * self.seconds):
            return f"it says that it has {self.seconds:.1f} s"
        return None


def _decode(path: Path, damage: _Damage | None = None) -> Generator[Any, None, None]:
    """The frames of a file's video, but those that are damaged.

    Args:
        path: the file.
        damage: is told what went wrong.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise InputError(
            f"{path}: videos are read by PyAV, which is not installed; "
            "pip install 'vggt-jax[video]'"
        ) from error
    checked_file(path)
    decoded, problems = 0, []
    try:
        with _opened(av, path) as container:
            stream = _main_stream(container, path)
            stream.thread_type = "AUTO"
            if damage is not None:
                damage.seconds = (container.duration or 0) / av.time_base
            for frame in _good_frames(container, stream, problems):
                yield frame
                decoded += 1
    except av.error.FFmpegError as error:
        problems.append(error.strerror or str(error))
    except (ValueError, MemoryError) as error:
        problems.append(str(error))
    if problems and not decoded:
        raise InputError(
            f"{path}: cannot be read as a video ({problems[0]}); convert it to MP4 with H.264, or "
            "give photographs"
        )
    if damage is not None:
        damage.problems += problems


def _good_frames(container: Any, stream: Any, problems: list[str]) -> Iterator[Any]:
    """Decodes packet by packet, past those that are damaged."""
    import av.error

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:  # The file ends here.
            problems.append(error.strerror or str(error))
            return
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            problems.append(error.strerror or str(error))
            continue
        for frame in frames:
            # Decoders fill what they miss with grey, or with an earlier frame.
            if frame.is_corrupt:
                problems.append("frames with missing parts")
            else:
                yield frame


def _opened(av: Any, path: Path) -> Any:
    """A container whose titles and places may be in any encoding: nobody asks for them."""
    try:
        return av.open(str(path), metadata_errors="replace")
    except TypeError:  # From PyAV 19 on there is no such argument, and nothing fails by them.
        return av.open(str(path))


def _main_stream(container: Any, path: Path) -> Any:
    """The video itself: cover art and thumbnails are streams of video, too."""
    from av.stream import Disposition

    stream = container.streams.best("video")  # FFmpeg's choice: no picture where there is more.
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    if stream is None or stream.disposition & pictures:
        only = "other streams" if stream is None else "a cover picture"
        raise InputError(f"{path}: holds no video, only {only}; give another file")
    return stream


# By PyAV's `rotation`: how far to turn the image counterclockwise, in degrees.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def _upright(frame: Any) -> Image.Image:
    image = frame.to_image()
    turn = _TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def check_is_not_in_list(paths: Sequence[Any]) -> None:
    """Checks that a sequence of images holds no video.

    Raises:
        InputError: it does.
    """
    for path in paths:
        if is_video(path):
            raise InputError(f"{path}: a video inside a list of images; give the video alone")
