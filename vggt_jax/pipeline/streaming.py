"""One scene of many frames, whose maps leave the device while others are computed."""

import collections
import dataclasses
import functools
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pallas_kernels import tuned
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models import on_devices
from vggt_jax.models.base import CameraSource, SceneModel
from vggt_jax.models.registry import check_camera_source, check_priors
from vggt_jax.pipeline.placing import (
    fetched,
    on_all,
    on_host,
    placed,
    rows_by_device,
    sent_to_host,
    to_be_placed,
)
from vggt_jax.scene.priors import Priors
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.frames import encode_and_aggregate
from vggt_jax.trunk.token_layout import TokenLayout

# Pieces that are computed or copied to the host while the next is waited for.
_MAX_PENDING = 2

# Threads that copy maps to where they stay on the host, for all devices together.
_COPIERS = 8

# What heads read of the trunk, so far as a model has it.
_TOKENS = ("kept", "first_tokens", "encoded", "scene_tokens")


def frames_on_device(num_devices: int = 1) -> int:
    """Frames whose maps are on each of the devices at most."""
    return (_MAX_PENDING + 1) * piece_size(num_devices)


def piece_size(num_devices: int = 1) -> int:
    """Frames whose maps each of the devices computes together: of one device as many as all of
    several do."""
    return max(1, tuned.value("streaming.frames_in_piece") // num_devices)


def is_streamed(num_frames: int, height: int, width: int) -> bool:
    """Whether `infer` and the command line stream the maps of so many frames of this size."""
    return num_frames * height * width >= tuned.value("streaming.from_pixels")


@dataclasses.dataclass(frozen=True)
class Stream:
    """`reconstruct` of one scene as two programs, with results on the host.

    `scene` runs the encoder, the trunk and the heads that look at all frames together. `frames`
    runs the other heads on a few frames; its maps are copied while the next ones are computed. So
    the device never holds all of them, which are 6 GiB for 1000 frames of 518x518 by VGGT-1B.
    """

    scene: Callable[..., tuple[dict[str, jax.Array], dict[str, Any], dict[str, Any]]]
    frames: Callable[..., dict[str, Any]]
    frames_in_piece: int
    mesh: Mesh | None = None

    @classmethod
    def of(
        cls,
        model: SceneModel,
        inputs: dict[str, Any],
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
        camera_source: CameraSource = "head",
        compiled: bool = False,
        frames_in_piece: int | None = None,
        mesh: Mesh | None = None,
    ) -> "Stream":
        """The programs for these arguments of `reconstruct`, compiled now or when first called.

        Args:
            frames_in_piece: frames whose maps a device computes together; None for the tuned
                number.
            mesh: devices that divide the frames; None for one.
        """
        num_frames, height, width, _ = inputs["images"].shape
        num_devices = 1 if mesh is None else mesh.size
        num_frames //= num_devices
        static = {"attention": attention, "compute_dtype": compute_dtype, "mesh": mesh}
        num = min(num_frames, frames_in_piece or piece_size(num_devices))
        check_camera_source(model, camera_source)
        of_frames = static | {"size": (height, width), "num": num, "camera_source": camera_source}
        if not compiled:
            return cls(
                functools.partial(_run_scene, **static),
                functools.partial(_run_frames, **of_frames),
                num,
                mesh,
            )
        model, inputs = to_be_placed(mesh, model, inputs)
        lowered = _run_scene.lower(model, **inputs, **static)
        scene = lowered.compile()
        shape = lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=None if mesh is None else sharding
        )
        tokens, read = jax.tree.map(shape, lowered.out_info[:2], scene.output_shardings[:2])
        frames = _run_frames.lower(model, tokens, np.int32(0), read, **of_frames)
        return cls(scene, frames.compile(), num, mesh)

    def __call__(
        self,
        model: SceneModel,
        *,
        images: np.ndarray,
        query_points: np.ndarray | None = None,
        num_frames: np.int32 | None = None,
        priors: Priors | None = None,
        done: Callable[[int], object] = lambda num: None,
    ) -> Reconstruction:
        """The scene, in NumPy arrays, of its valid frames.

        Args:
            images, query_points, num_frames, priors: those that the programs were made for.
            done: called with the number of frames after each piece.
        """
        inputs = {"images": images, "query_points": query_points, "num_frames": num_frames}
        inputs["priors"] = priors
        inputs = {name: value for name, value in inputs.items() if value is not None}
        model, on_device = placed(self.mesh, model, inputs)
        tokens, read, fields = self.scene(model, **on_device)
        total = len(images) if num_frames is None else int(num_frames)
        size = self.frames_in_piece
        num_devices = 1 if self.mesh is None else self.mesh.size
        of_device = len(images) // num_devices
        maps: dict[str, np.ndarray] = {}
        pending: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()

        def write():
            start, part = pending.popleft()
            copies = []
            for name, x in part.items():
                # It may begin before the end of the piece before, and end in padding.
                wanted = [maps[name][first + start :][:size] for first in firsts]
                rows = rows_by_device(x, num_devices)
                copies += [copiers.submit(_copy, *pair) for pair in zip(wanted, rows, strict=True)]
            for copy in copies:
                copy.result()
            done(sum(min(max(0, total - x), of_device, start + size) for x in firsts))

        firsts = range(0, len(images), of_device)
        with ThreadPoolExecutor(_COPIERS) as copiers:
            for start in range(0, min(total, of_device), size):
                start = min(start, of_device - size)  # early enough for a whole piece
                part = self.frames(model, tokens, on_all(self.mesh, np.int32(start)), read)
                part = {name: sent_to_host(x) for name, x in part.items()}
                if not maps:
                    # The devices are at work on tokens, and this is what the host does meanwhile.
                    maps |= {x: np.empty((total, *y.shape[1:]), y.dtype) for x, y in part.items()}
                    parts = [y for x in maps.values() for y in np.array_split(x, _COPIERS)]
                    list(copiers.map(_prefault, parts))
                pending.append((start, part))
                if len(pending) > _MAX_PENDING:
                    write()
            while pending:
                write()
        fields = fetched(fields)
        stats = fields.pop("attention_stats", None)
        arrays: dict[str, Any] = {name: np.array(x[:total]) for name, x in fields.items()}
        arrays.update(maps)
        return Reconstruction(
            images=images[:total],
            attention_stats=jax.tree.map(np.array, stats),
            confidence_kind=model.traits.confidence_kind,
            pixel_centre=model.pixel_centre,
            length_unit=model.traits.length_unit,
            best_points=next(iter(model.point_sources), None),
            **arrays,
        )


def _prefault(x: np.ndarray):
    """Touches every page of a new array, so that its memory is allocated now."""
    x.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE] = 0


def _copy(wanted: np.ndarray, x: Any):
    """The first rows of an array, so many as are wanted."""
    wanted[:] = on_host(x)[: len(wanted)]


@functools.partial(jax.jit, static_argnames=("attention", "compute_dtype", "mesh"))
def _run_scene(
    model,
    images,
    query_points=None,
    num_frames=None,
    priors=None,
    *,
    attention,
    compute_dtype,
    mesh=None,
):
    """Tokens of all frames, outputs of the scene that the heads of frames read, and the fields of a
    reconstruction that come of all frames together."""
    if priors is not None:
        check_priors(model, priors)
    images, query_points, num_frames, priors = jax.tree.map(
        lambda x: jnp.asarray(x)[None], (images, query_points, num_frames, priors)
    )
    trunk = encode_and_aggregate(
        model,
        images,
        attention=attention,
        num_frames=num_frames,
        compute_dtype=compute_dtype,
        priors=priors,
        mesh=mesh,
    )
    decoded = on_devices.decode_scene(
        mesh,
        model,
        trunk,
        model.layout(images),
        query_points=query_points,
        attention=attention,
        num_frames=num_frames,
        compute_dtype=compute_dtype,
    )
    fields = model.scene_fields(decoded, images.shape[2:4])
    tokens = {name: getattr(trunk, name) for name in _TOKENS}
    tokens = {name: x for name, x in tokens.items() if x is not None}
    read = {name: decoded[name] for name in model.traits.frames_read}
    return tokens, read, _of_one_scene(fields)


@functools.partial(
    jax.jit, static_argnames=("size", "num", "attention", "compute_dtype", "camera_source", "mesh")
)
def _run_frames(
    model,
    tokens,
    start,
    read,
    *,
    size,
    num,
    attention,
    compute_dtype,
    camera_source="head",
    mesh=None,
):
    """The fields that come of a frame alone, of `num` frames of each device from `start` on."""
    static = {"attention": attention, "compute_dtype": compute_dtype}
    if camera_source != "head":
        static["camera_source"] = camera_source
    trunk = TrunkOutput(layers=model.kept_layers, **tokens)
    height, width = size
    layout = TokenLayout.for_images(
        height, width, model.config.patch_size, model.config.num_special_tokens
    )
    decoded = on_devices.decode_frames(
        mesh,
        model,
        trunk,
        layout,
        read=read,
        start=start,
        num=num,
        **static,
    )
    return _of_one_scene(model.scene_fields(decoded, size))


def _of_one_scene(fields: dict[str, Any]) -> dict[str, Any]:
    """Those that there are, without the scene axis."""
    return {
        name: jax.tree.map(lambda x: x[0], field)
        for name, field in fields.items()
        if field is not None
    }
