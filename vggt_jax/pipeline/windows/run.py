"""One scene in windows: reconstructed one after another, joined, and written as one."""

import contextlib
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vggt_jax.errors import InputError
from vggt_jax.evaluation.alignment import Similarity
from vggt_jax.files import RESULTS, Claim
from vggt_jax.images.frames import Frames
from vggt_jax.images.parts import ImageParts, joined, part_of
from vggt_jax.images.video import VideoFrames
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline.inputs import SceneInputs, check_model, of_frames, read_settings
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.origin import fingerprint
from vggt_jax.pipeline.resuming import record_of
from vggt_jax.pipeline.run import reconstructed
from vggt_jax.pipeline.windows.closing import Describer, candidates, close
from vggt_jax.pipeline.windows.graph import chained, compose, optimised, similarity
from vggt_jax.pipeline.windows.joining import Join, depth_of, join
from vggt_jax.pipeline.windows.spans import Span, spans_of
from vggt_jax.pipeline.windows.store import Pair, WindowStore
from vggt_jax.scene import calibration
from vggt_jax.scene.parts import ScenePart, write_parts
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import load_reconstruction
from vggt_jax.scene.stretches import frames_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowNews:
    """How far a scene in windows is.

    Attributes:
        doing: "windows" or "closing loops".
        done, total: of windows, or of pairs of them.
    """

    doing: str
    done: int
    total: int


def infer_in_windows(
    images: ImageParts,
    model: SceneModel,
    options: Options,
    *,
    say: Callable[[str], None] = warnings.warn,
    news: Callable[[WindowNews], object] = lambda news: None,
) -> Reconstruction:
    """Reconstructs a scene in windows of `options.window` frames, of which it has more.

    In memory are two windows, and of all others what their cameras take. Windows lie in
    `options.window_folder`, or in a temporary folder, and the scene in a file there.

    Args:
        say: takes warnings.
        news: is told how far it is.

    Returns:
        The scene; its arrays are maps of the file, which is removed where the folder is temporary.

    Raises:
        InputError: images or options cannot be used, or neighbouring windows cannot be joined.
    """
    check_options(model, options)
    with _folder(options.window_folder) as folder, Claim.of(Path(os.path.realpath(folder))):
        file = write_windows(images, model, options, folder, say=say, news=news)
        return load_reconstruction(file, memory_map=True)


def write_windows(
    images: ImageParts,
    model: SceneModel,
    options: Options,
    folder: Path,
    *,
    say: Callable[[str], None],
    news: Callable[[WindowNews], object],
) -> Path:
    """What `infer_in_windows` does, in a folder that nobody else uses.

    Returns:
        The file of the scene.
    """
    assert options.window is not None and options.shared is not None
    spans = spans_of(len(images), options.window, options.shared)
    # What is done with windows once they are there does not change them.
    of_all = {"loop_closure": False, "known_distance": None, "known_depth": None}
    settings = (
        options.of_results()
        | of_all
        | {
            "model": fingerprint(model),
            "frames": len(images),
            "known": record_of([], dataclasses.replace(options, priors=None)),
        }
    )
    store = WindowStore(folder, settings)
    of_window = dataclasses.replace(
        options.without_windows(), known_distance=None, known_depth=None, progress=False
    )
    runner = _Runner(images, model, of_window, say)
    noted = _forward(runner, store, spans, news)
    joins = [Join.from_dict(one["join"]).similarity for one in noted[1:]]
    depths = np.array([one["depth"] for one in noted])
    closures: dict[Pair, Join] = {}
    if options.loop_closure:
        closures = _close_loops(runner, store, spans, options.window, news)
    similar = {pair: found.similarity for pair, found in closures.items()}
    at = optimised(joins, similar, depths) if similar else chained(joins)
    if model.traits.has_reference_frame:
        # The world of such models is the first camera.
        pose = store.array(0, "camera_from_world")[0].astype(np.float64)
        first_camera = similarity(np.ones(1), pose[None, :, :3], pose[None, :, 3])
        at = compose(first_camera, at)
    scale = 1.0
    if model.traits.length_unit == "metres":
        # Every window is in metres as the model sees it then: the whole, as it does on average.
        scale = float(np.exp(-np.mean(np.log(np.asarray(at.scale)))))
    parts = world_parts(store, spans, at, scale=scale)
    if (known := _known_scale(parts, options)) is not None:
        parts = world_parts(store, spans, at, scale=scale * known)
    first = store.read(0)
    whole = dataclasses.replace(
        first,
        attention_stats=_mean_stats([one["attention"] for one in noted]),
        provenance=_provenance(first.provenance, options, noted, closures),
        length_unit=first.length_unit if known is None else "given",
    )
    file = store.folder / RESULTS
    write_parts(file, whole, parts)
    return file


def check_options(model: SceneModel, options: Options) -> None:
    """Finds options that windows cannot honour.

    Raises:
        InputError: there is one.
    """
    check_model(model, options)
    for name, why in (
        ("query_points", "points are tracked within one window"),
        ("query_pixels", "points are tracked within one window"),
        ("stretch", "it needs all photographs at once"),
    ):
        if getattr(options, name) not in (None, False):
            raise InputError(f"{name} cannot be used with window={options.window}: {why}")
    if options.reference not in (0, "0"):
        raise InputError(
            f"reference={options.reference!r} cannot be used with window={options.window}: the "
            "first camera is the world; leave it out"
        )
    if not {"cameras"} <= model.predicts or not model.point_sources:
        raise InputError(
            f"window={options.window}: this model predicts no cameras or no points by which "
            "windows could be joined"
        )


def first_window(images: ImageParts, model: SceneModel, options: Options) -> SceneInputs:
    """What the first window is reconstructed from.

    Raises:
        InputError: images or options cannot be used.
    """
    check_options(model, options)
    settings = read_settings(images.sources, model, options)
    frames = images.read(0, options.window or len(images), **settings)
    plain = dataclasses.replace(options, masks=None, intrinsics=None)
    return of_frames(frames, dataclasses.replace(plain, known_distance=None, known_depth=None))


class _Runner:
    """Reads and reconstructs frames of one scene."""

    def __init__(
        self,
        images: ImageParts,
        model: SceneModel,
        options: Options,
        say: Callable[[str], None],
    ):
        self.images, self.model, self.options = images, model, options
        self._said: set[str] = set()
        self._say = say
        self._read: tuple[Span, Frames] | None = None

    def frames(self, span: Span) -> Frames:
        """The frames of a window; those that it shares with the last one are not read again."""
        settings = read_settings(self.images.sources, self.model, self.options)
        kept: list[Frames] = []
        start = span.start
        if self._read is not None and self._read[0].stop > span.start:
            last, frames = self._read
            kept, start = [part_of(frames, last.part(span.start, last.stop))], last.stop
        found = joined([*kept, self.images.read(start, span.stop, **settings)])
        self._read = (span, found)
        return found

    def run(self, frames: Frames, start: int) -> Reconstruction:
        """Reconstructs frames that begin at one of the scene, for what is known of each."""
        options, total = self.options, len(self.images)
        for name in ("masks", "intrinsics"):
            value = getattr(options, name)
            is_list = not isinstance(value, str | os.PathLike | Mapping | None)
            if is_list and len(value) == total and np.ndim(value) != 2:
                part = value[start : start + len(frames.images)]
                options = dataclasses.replace(options, **{name: part})
        return self._reconstructed(frames, options, reference=len(frames.images) // 2)

    def _reconstructed(self, frames: Frames, options: Options, *, reference: int) -> Reconstruction:
        """Reconstructs frames as seen from one of them, if the model has a reference frame.

        What is far from that frame comes out a little too small, or too large. Seen from the middle
        it is so at both ends of a window alike, and joins do not change the scale each time.
        """
        if self.model.traits.has_reference_frame:
            options = dataclasses.replace(options, reference=reference)
        inputs = of_frames(frames, options)
        return reconstructed(inputs, self.model, options, say=self.say_once)

    def run_known(self, frames: Frames) -> Reconstruction:
        """Reconstructs frames of any windows, without what is known of pixels."""
        options = dataclasses.replace(self.options, masks=None, intrinsics=None, background=())
        return self._reconstructed(frames, options, reference=len(frames.images) // 4)

    def say_once(self, message: str) -> None:
        """Says what has not been said of an earlier window."""
        if message not in self._said:
            self._said.add(message)
            self._say(message)

    def record(self, span: Span) -> dict[str, Any]:
        """What tells whether the images of a window have changed."""
        if isinstance(self.images.sources, VideoFrames):
            video = self.images.sources
            state = record_of(video.path, Options())
            return state | {"frames": list(video.indices[span.start : span.stop])}
        return dict(record_of(self.images.sources[span.start : span.stop], Options()))


def _forward(
    runner: _Runner,
    store: WindowStore,
    spans: Sequence[Span],
    news: Callable[[WindowNews], object],
) -> list[dict[str, Any]]:
    """Reconstructs the windows that are not there, each joined to the one before.

    Returns:
        What is noted of each: its join into the one before, depth, names and so on.
    """
    noted: list[dict[str, Any]] = []
    before: Reconstruction | None = None
    all_there = True
    for k, span in enumerate(spans):
        news(WindowNews(doing="windows", done=k, total=len(spans)))
        record = runner.record(span)
        if all_there and (found := store.found(k, record)) is not None:
            noted.append(found)
            continue
        if all_there:
            store.forget_closures()
            before = store.read(k - 1) if k else None
        all_there = False
        recon = runner.run(runner.frames(span), span.start)
        into_before = None
        if before is not None:
            last = spans[k - 1]
            shared = [
                frames_of(x, of.part(span.start, last.stop))
                for x, of in ((recon, span), (before, last))
            ]
            into_before = join(*shared).to_dict()
        note = {
            "join": into_before,
            "depth": _usual_depth(recon),
            "attention": _stats_as_json(recon.attention_stats),
            "seconds": recon.provenance.seconds,
            "agreement": recon.agreement,
        }
        store.write(k, recon, record, **note)
        noted.append(note)
        before = recon
    news(WindowNews(doing="windows", done=len(spans), total=len(spans)))
    return noted


def _close_loops(
    runner: _Runner,
    store: WindowStore,
    spans: Sequence[Span],
    num_frames: int,
    news: Callable[[WindowNews], object],
) -> dict[Pair, Join]:
    """Closures between windows that show the same place."""
    describe = Describer(runner.model)
    described = [describe(store.array(k, "images")) for k in range(len(spans))]
    pairs = candidates(described, spans)
    found = store.closures()
    for i, pair in enumerate(pairs):
        news(WindowNews(doing="closing loops", done=i, total=len(pairs)))
        if pair in found:
            continue
        sides = [store.read(k) for k in pair]
        closure = close(*sides, runner.run_known, num_frames)
        found[pair] = closure and closure.to_dict()
        store.write_closures(found)
    news(WindowNews(doing="closing loops", done=len(pairs), total=len(pairs)))
    kept = {pair: found[pair] for pair in pairs}
    return {pair: Join.from_dict(value) for pair, value in kept.items() if value is not None}


def world_parts(
    store: WindowStore, spans: Sequence[Span], at: Similarity, *, scale: float = 1.0
) -> list[ScenePart]:
    """What each window gives to the scene.

    Args:
        at: where windows lie in the world of the first, stacked.
        scale: the unit of the scene in that of the first window's world.
    """
    parts = []
    for k, span in enumerate(spans):
        names, transforms = store.frames(k)
        parts.append(
            ScenePart(
                file=store.file(k),
                frames=span.own,
                scale=float(at.scale[k]) * scale,
                rotation=np.asarray(at.rotation[k]),
                translation=np.asarray(at.translation[k]) * scale,
                names=names[span.own],
                transforms=transforms[span.own],
            )
        )
    return parts


def _known_scale(parts: Sequence[ScenePart], options: Options) -> float | None:
    """What lengths are multiplied with for one to be as it is known; None where none is."""
    names = tuple(name for part in parts for name in part.names)
    if options.known_distance is not None:
        *cameras, distance = options.known_distance
        ends = []
        for camera in cameras:
            part, index = _part_of(parts, calibration.frame_index(names, len(names), camera))
            pose = part.array("camera_from_world")[index].astype(np.float64)
            ends.append(-pose[:, :3].T @ pose[:, 3])
        return _ratio(distance, float(np.linalg.norm(ends[0] - ends[1])), "known_distance")
    if options.known_depth is not None:
        frame, x, y, depth = options.known_depth
        part, index = _part_of(parts, calibration.frame_index(names, len(names), frame))
        found = part.array("depth")
        images = np.broadcast_to(np.uint8(0), (*found.shape, 3))
        frames = Frames(images=images, names=part.names, transforms=part.transforms)
        pixel = calibration.nearest_pixel(frames, (index, x, y))
        return _ratio(depth, float(found[pixel]), "known_depth")
    return None


def _part_of(parts: Sequence[ScenePart], frame: int) -> tuple[ScenePart, int]:
    for part in parts:
        if frame < len(part.names):
            return part, frame
        frame -= len(part.names)
    raise IndexError(frame)


def _ratio(known: float, found: float, name: str) -> float:
    if not (np.isfinite(found) and found > 0):
        raise InputError(f"{name}: it is {found} in the scene; choose another")
    return known / found


def _usual_depth(recon: Reconstruction) -> float:
    """A median depth: what translations are measured with."""
    depth = depth_of(recon)
    usable = depth[np.isfinite(depth) & (depth > 0)]
    return float(np.median(usable)) if usable.size else 1.0


def _stats_as_json(stats: AttentionStats | None) -> dict[str, Any] | None:
    if stats is None:
        return None
    return {name: np.asarray(value).tolist() for name, value in vars(stats).items()}


def _mean_stats(of_windows: Sequence[dict[str, Any] | None]) -> AttentionStats | None:
    """The mean of all windows; None where attention was dense."""
    there: list[Mapping[str, Float[np.ndarray, "l n"]]] = [
        {name: np.array(value, np.float32) for name, value in one.items()}
        for one in of_windows
        if one is not None
    ]
    if not there:
        return None
    return AttentionStats(**{
        name: np.mean([one[name] for one in there], axis=0, dtype=np.float32) for name in there[0]
    })  # fmt: skip


def _provenance(
    first: Provenance,
    options: Options,
    noted: Sequence[Mapping[str, Any]],
    closures: Mapping[Pair, Join],
) -> Provenance:
    seconds = [one["seconds"] for one in noted if one["seconds"] is not None]
    # A chain is as good as its weaker links, but of many windows some look wrong by chance.
    known = [x for one in noted if (x := one.get("agreement")) is not None]
    of_windows: dict[str, Any] = {"window": options.window, "overlap": options.shared}
    if options.loop_closure:
        of_windows["loop_closure"] = len(closures)
    return dataclasses.replace(
        first,
        options=dict(first.options) | of_windows,
        seconds=round(sum(seconds), 3) if seconds else None,
        agreement=float(np.quantile(known, 0.25)) if 0 < len(noted) == len(known) else None,
    )


@contextlib.contextmanager
def _folder(given: str | os.PathLike | None) -> Iterator[Path]:
    if given is not None:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="vggt-jax-windows-") as name:
        yield Path(name)
