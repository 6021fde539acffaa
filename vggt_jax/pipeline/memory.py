"""How much memory a reconstruction takes, before it starts."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike

from vggt_jax.config import Pi3Config, VGGTConfig
from vggt_jax.heads import dpt
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.loading import Model
from vggt_jax.pipeline.streaming import FRAMES_ON_DEVICE
from vggt_jax.trunk import alternation as trunk
from vggt_jax.trunk.token_layout import TokenLayout

# The share of a GPU's memory that programs can use: their temporaries are one piece, and so are the
# tokens kept. On an H100, 1,700 frames that took 94.9 % of it ran, and 1,750, which would have
# taken 97.6 %, did not.
_USABLE = 0.96


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
    """

    weights: int
    images: int
    outputs: int
    kept_tokens: int
    trunk: int
    heads: int
    tracks: int

    @property
    def total(self) -> int:
        common = self.weights + self.images + self.outputs + self.kept_tokens
        return common + max(self.trunk, self.heads, self.tracks)

    def __str__(self) -> str:
        parts = (
            f"{name.replace('_', ' ')} {gib(value)}"
            for name, value in dataclasses.asdict(self).items()
            if value
        )
        return f"{gib(self.total)} GiB ({', '.join(parts)})"


def estimate_memory(
    config: VGGTConfig | Pi3Config,
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
) -> MemoryEstimate:
    """Estimates the peak of a forward pass from the arrays that are alive together.

    The terms mirror `trunk/alternation.py` and the heads; docs/performance.md sets the estimate
    beside measured peaks.

    Args:
        weights: bytes of the parameters.
        image_bytes: bytes of a colour value: 1 for uint8, 4 for float32.
        compute_dtype, attention: as for `reconstruct`.
        streamed: whether maps leave the device in pieces (`streaming.is_streamed`).
    """
    layout = TokenLayout.for_images(height, width, config.patch_size, config.num_special_tokens)
    precision = Precision.from_compute_dtype(compute_dtype)
    pixels = height * width
    trunk_of = functools.partial(_trunk, layout, num_frames, precision, attention)
    if isinstance(config, Pi3Config):
        parts = _parts_of_pi3(config, layout, num_frames, pixels, precision, trunk_of)
    else:
        parts = _parts_of_vggt(config, num_frames, pixels, num_query_points, trunk_of)
    if streamed:
        parts["outputs"] = parts["outputs"] * min(num_frames, FRAMES_ON_DEVICE) // num_frames
    return MemoryEstimate(weights=weights, images=image_bytes * 3 * num_frames * pixels, **parts)


def _trunk(
    layout: TokenLayout,
    num_frames: int,
    precision: Precision,
    attention: SceneAttention,
    *,
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    taps: tuple[int, ...],
) -> dict[str, int]:
    wide = precision.compute_dtype.itemsize
    tokens = num_frames * layout.tokens_per_frame
    stream = 4 * tokens * dim
    patches = layout.rows * layout.columns
    if attention.why_dense(num_tokens=tokens, num_patches=num_frames * patches):
        attention = attention.within_frames
    extra = max(
        value.extra_bytes(
            num_frames=num_frames,
            num_special=layout.num_special,
            num_patches=patches,
            num_heads=num_heads,
            head_dim=dim // num_heads,
            itemsize=wide,
        )
        for value in set(attention.of_layers(depth))
    )
    if wide == 2:
        # Normalised tokens; queries, keys and values, each turned before the next; and one more,
        # which the compiler needs less or more by how it lays out the others.
        before_attention = (1 + 3 + 1) * wide * tokens * dim
        # Queries, keys, values; the results of attention; and what attention needs besides.
        during_attention = (3 + 1) * wide * tokens * dim + extra
    else:
        # Normalised tokens; queries, keys and values; queries and keys once more, normalised and
        # turned.
        before_attention = (1 + 3 + 2) * wide * tokens * dim
        # Queries, keys, values; the results of attention as computed and in the order of the
        # tokens.
        during_attention = (3 + 2) * wide * tokens * dim + extra
    chunk_tokens = _frames_of_chunk(layout, num_frames) * layout.tokens_per_frame
    after_attention = wide * dim * (tokens + 2 * mlp_ratio * chunk_tokens)
    return {
        "kept_tokens": wide * len(trunk.kept_layers(taps, depth)) * tokens * 2 * dim,
        "trunk": int(stream + max(before_attention, during_attention, after_attention)),
    }


def _frames_of_chunk(layout: TokenLayout, num_frames: int) -> int:
    return trunk.frames_per_chunk(1, num_frames, layout.tokens_per_frame)


def _parts_of_vggt(
    config: VGGTConfig,
    num_frames: int,
    pixels: int,
    num_query_points: int,
    trunk_of: Callable[..., dict[str, int]],
) -> dict[str, int]:
    heads = tracks = 0
    if config.enable_depth or config.enable_point:
        decoded = min(num_frames, max(1, dpt.PIXELS_PER_CHUNK // pixels)) * pixels
        heads = int(3.5 * 4 * decoded * config.dpt_features / 2)
    if num_query_points:
        features = 4 * num_frames * (pixels // 4) * config.track_features
        hidden = 4 * num_frames * config.track_hidden_size
        tracks = int(2.34 * features) + 6 * hidden * (
            num_query_points + config.track_num_virtual_tracks
        )
    values = 2 * config.enable_depth + 4 * config.enable_point
    return {
        "outputs": 4 * values * num_frames * pixels,
        "heads": heads,
        "tracks": tracks,
        **trunk_of(
            dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            taps=config.dpt_layers,
        ),
    }


def _parts_of_pi3(
    config: Pi3Config,
    layout: TokenLayout,
    num_frames: int,
    pixels: int,
    precision: Precision,
    trunk_of: Callable[..., dict[str, int]],
) -> dict[str, int]:
    wide = precision.compute_dtype.itemsize
    frames = _frames_of_chunk(layout, num_frames)
    tokens = frames * layout.tokens_per_frame
    dim = config.head_dim
    # The stream twice and the tokens kept; beside them queries, keys and values with the result, or
    # the hidden layer twice, or the raw pixels before and after they are put in order.
    decoder = 2 * 4 * tokens * dim + 2 * wide * tokens * config.decoder_dim
    inner = wide * tokens * dim * max(3 + 3 + 1, 2 * config.mlp_ratio)
    raw = 2 * 4 * 3 * frames * pixels
    return {
        # Points in two coordinate systems, and the confidence.
        "outputs": 4 * (3 + 3 + 1) * num_frames * pixels,
        "heads": int(decoder + max(inner, raw)),
        "tracks": 0,
        **trunk_of(
            dim=config.decoder_dim,
            depth=config.decoder_depth // 2,
            num_heads=config.decoder_num_heads,
            mlp_ratio=config.mlp_ratio,
            taps=(),
        ),
    }


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
            f"{jax.devices()[0].device_kind} has {gib(self.free)} GiB; {fit}"
        )

    def __str__(self) -> str:
        if self.free is None:
            return f"about {self.needed}"
        return f"about {self.needed} of {gib(self.free)} GiB on {jax.devices()[0].device_kind}"


def check_memory(
    model: Model,
    shape: tuple[int, ...],
    *,
    num_query_points: int = 0,
    compute_dtype: DTypeLike | None = None,
    attention: SceneAttention = Dense(),
    streamed: bool = False,
    free: int | None = None,
) -> MemoryCheck:
    """Compares what a scene of uint8 frames [s height width 3] needs with the free memory.

    Args:
        streamed: whether maps go to the host in pieces; on a CPU, that is the same memory.
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
        )

    free = free_memory(model) if free is None else free
    fitting = num_frames
    while free is not None and fitting and estimate(fitting).total > free:
        fitting -= 1
    return MemoryCheck(shape=shape, needed=estimate(num_frames), free=free, fitting=fitting)


def free_memory(model: Model) -> int | None:
    """Free bytes for a model's programs, its weights included, which are on the device already;
    None where the device does not tell."""
    free = available_memory()
    return None if free is None else free + weight_bytes(model)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a program did not fit into the memory of the device."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def weight_bytes(model: Model) -> int:
    """Bytes of a model's parameters."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(model))


def available_memory() -> int | None:
    """Bytes of the default device that programs can still use, None where it does not tell."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return max(0, int(_USABLE * stats["bytes_limit"]) - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # the limit of a container
        limit, used = (
            int(pathlib.Path(f"/sys/fs/cgroup/memory.{name}").read_text())
            for name in ("max", "current")
        )
    except (OSError, ValueError):
        return free
    return min(free, limit - used)


def gib(num_bytes: int) -> str:
    """Bytes as GiB with two significant places, without the unit."""
    return f"{num_bytes / 2**30:.2f}" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.1f}"
