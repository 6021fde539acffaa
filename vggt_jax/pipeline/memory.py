"""How much memory a reconstruction takes, before it starts."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator

import jax
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels import tuned
from vggt_jax.errors import InputError
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import ModelConfig, SceneModel
from vggt_jax.models.registry import family_of
from vggt_jax.pipeline.host_memory import free_host_memory
from vggt_jax.pipeline.streaming import frames_on_device
from vggt_jax.scene.priors import PriorKind, prior_bytes
from vggt_jax.trunk.memory import ForwardPass
from vggt_jax.trunk.token_layout import TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the device at the peak of a forward pass of one scene.

    Attributes:
        weights: parameters.
        images: the frames.
        outputs: maps of depth, points and their confidences.
        kept_tokens: tokens of the layers that the heads read.
        trunk: temporaries while the trunk runs.
        heads: temporaries while a dense head or frame decoder runs; not at the same time as the
            trunk's.
        tracks: feature maps of the tracker, if points are tracked.
        priors: what is known of the scene, as it is given.
        known: temporaries while that is encoded beside the frames; before the trunk's.
    """

    weights: int
    images: int
    outputs: int
    kept_tokens: int
    trunk: int
    heads: int
    tracks: int
    priors: int = 0
    known: int = 0

    @property
    def total(self) -> int:
        common = self.weights + self.images + self.priors + self.outputs + self.kept_tokens
        return common + max(self.known, self.trunk, self.heads, self.tracks)

    def __str__(self) -> str:
        parts = (
            f"{name.replace('_', ' ')} {gib(value)}"
            for name, value in dataclasses.asdict(self).items()
            if value
        )
        return f"{gib(self.total)} GiB ({', '.join(parts)})"


def estimate_memory(
    config: ModelConfig,
    *,
    weights: int,
    num_frames: int,
    height: int,
    width: int,
    num_query_points: int = 0,
    image_bytes: int = 1,
    compute_dtype: DTypeLike | None = None,
    attention: SceneAttention = Dense(),
    streamed: bool = False,
    known: Collection[PriorKind] = (),
    num_devices: int = 1,
) -> MemoryEstimate:
    """Estimates the peak of a forward pass from the arrays that are alive together, on each device.

    The terms are `trunk/memory.py`'s and those of the model's folder; docs/performance.md sets the
    estimate beside measured peaks.

    Args:
        weights: bytes of the parameters.
        image_bytes: bytes of a colour value: 1 for uint8, 4 for float32.
        compute_dtype, attention: as for `reconstruct`.
        streamed: whether maps leave the device in pieces (`streaming.is_streamed`).
        known: kinds of priors that the model is told.
        num_devices: that divide the frames.
    """
    num_frames = -(-num_frames // num_devices)
    forward = ForwardPass(
        layout=TokenLayout.for_images(height, width, config.patch_size, config.num_special_tokens),
        num_frames=num_frames,
        pixels=height * width,
        num_query_points=num_query_points,
        precision=Precision.from_compute_dtype(compute_dtype),
        attention=attention,
        known=known,
        num_devices=num_devices,
    )
    parts = family_of(config).memory(config, forward)
    parts["priors"] = sum(
        prior_bytes(kind, num_frames=num_frames, pixels=forward.pixels) for kind in known
    )
    if streamed:
        parts["outputs"] = (
            parts["outputs"] * min(num_frames, frames_on_device(num_devices)) // num_frames
        )
    images = image_bytes * 3 * num_frames * forward.pixels
    return MemoryEstimate(weights=weights, images=images, **parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """What a scene needs beside what there is.

    Attributes:
        shape: of its frames, [s height width 3].
        needed: the estimate.
        free: bytes that it can have, weights included; None where the device does not tell.
        fitting: how many such frames fit.
    """

    shape: tuple[int, ...]
    needed: MemoryEstimate
    free: int | None
    fitting: int

    @property
    def shortage(self) -> str | None:
        """Why the frames do not fit, and how many do; None where they fit or nobody knows."""
        if self.free is None or self.fitting >= self.shape[0]:
            return None
        num_frames, height, width, _ = self.shape
        fit = f"about {self.fitting} frames fit" if self.fitting else "not even one fits"
        return (
            f"{num_frames} frames of {width}x{height} need about {gib(self.needed.total)} GiB and "
            f"{jax.local_devices()[0].device_kind} has {gib(self.free)} GiB; {fit}"
        )

    def __str__(self) -> str:
        if self.free is None:
            return f"about {self.needed}"
        return (
            f"about {self.needed} of {gib(self.free)} GiB on {jax.local_devices()[0].device_kind}"
        )


def check_memory(
    model: SceneModel,
    shape: tuple[int, ...],
    *,
    num_query_points: int = 0,
    compute_dtype: DTypeLike | None = None,
    attention: SceneAttention = Dense(),
    streamed: bool = False,
    known: Collection[PriorKind] = (),
    num_devices: int = 1,
    free: int | None = None,
) -> MemoryCheck:
    """Compares what a scene of uint8 frames [s height width 3] needs with the free memory.

    Args:
        streamed: whether maps go to the host in pieces; on a CPU, that is the same memory.
        known: kinds of priors that the model is told.
        num_devices: that divide the frames, alike in their memory.
        free: what is free, weights included; by default what `free_memory` says now.
    """
    num_frames, height, width, _ = shape
    weights = weight_bytes(model)

    def estimate(num_frames: int) -> MemoryEstimate:
        return estimate_memory(
            model.config,
            weights=weights,
            num_frames=num_frames,
            height=height,
            width=width,
            num_query_points=num_query_points,
            compute_dtype=compute_dtype,
            attention=attention,
            streamed=streamed and jax.default_backend() != "cpu",
            known=known,
            num_devices=num_devices,
        )

    free = free_memory(model) if free is None else free
    fitting = num_frames
    while free is not None and fitting and estimate(fitting).total > free:
        fitting -= 1
    return MemoryCheck(shape=shape, needed=estimate(num_frames), free=free, fitting=fitting)


def free_memory(model: SceneModel) -> int | None:
    """Free bytes for a model's programs, its weights included, which are on the device already;
    None where the device does not tell."""
    free = available_memory()
    return None if free is None else free + weight_bytes(model)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a program did not fit into the memory of the device."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def out_of_memory_is_an_input_error(num_frames: int, smaller: str) -> Iterator[None]:
    """Turns that error of JAX into what the user can do.

    Args:
        num_frames: of the scene that runs in it.
        smaller: what messages call a smaller size.

    Raises:
        InputError: the scene did not fit into the memory of the device.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"{num_frames} frames do not fit into the memory of the device; use fewer, or {smaller}"
        ) from error


def weight_bytes(model: SceneModel) -> int:
    """Bytes of a model's parameters."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(model))


def available_memory() -> int | None:
    """Bytes of the default device that programs can still use, None where it does not tell."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        usable = int(tuned.value("memory.usable_share") * stats["bytes_limit"])
        return max(0, usable - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    return free_host_memory()


def gib(num_bytes: int) -> str:
    """Bytes as GiB with two significant places, without the unit."""
    return f"{num_bytes / 2**30:.2f}" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.1f}"
