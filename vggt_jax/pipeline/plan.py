"""The third step of a reconstruction: what will run, decided once before anything does."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vggt_jax import weights
from vggt_jax.errors import InputError
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import ModelConfig, SceneModel
from vggt_jax.models.origin import origin_of
from vggt_jax.models.registry import check_divides_frames
from vggt_jax.pipeline import timing
from vggt_jax.pipeline.inputs import SceneInputs
from vggt_jax.pipeline.memory import MemoryCheck, check_memory
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.placing import mesh_of_devices
from vggt_jax.pipeline.streaming import is_streamed
from vggt_jax.scene.priors import PriorKind
from vggt_jax.trunk.attention.plan import AttentionPlan
from vggt_jax.trunk.attention.sampled import Sampled
from vggt_jax.trunk.token_layout import TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a scene is reconstructed on the default device.

    Attributes:
        config: of the model.
        num_frames: of the scene.
        known: kinds of priors that the model is told.
        padded_frames: as many frames are computed.
        masks_padding: whether the program is told how many frames count, and so serves scenes of
            other numbers of frames, too.
        size: (height, width) of the frames.
        attention: what attention over all frames really is, dense where the scene is too small.
        why_dense: why it is dense although another was asked for; None where it is as asked for.
        streamed: whether maps leave the device in chunks of frames while others are computed.
        compute_dtype: the name of the type of matrix products.
        memory: the estimate beside what is free, of one device.
        mesh: the devices that divide the frames; None for one.
    """

    config: ModelConfig
    num_frames: int
    known: tuple[PriorKind, ...]
    padded_frames: int
    masks_padding: bool
    size: tuple[int, int]
    attention: SceneAttention
    why_dense: str | None
    streamed: bool
    compute_dtype: str
    memory: MemoryCheck
    mesh: Mesh | None = None

    @property
    def seconds(self) -> float | None:
        """How long it will take once compiled, by what was measured on this kind of device; None
        for others, and for several."""
        if self.mesh is not None:
            return None
        return timing.estimate_seconds(
            self.config,
            self.padded_frames,
            *self.size,
            attention=self.attention,
            compute_dtype=self.compute_dtype,
            known=self.known,
        )

    def check_memory(self) -> None:
        """Refuses a scene that by the estimate does not fit.

        Raises:
            InputError: it does not.
        """
        if self.memory.shortage:
            fewer = " fewer frames or" if self.memory.fitting else ""
            raise InputError(
                f"{self.memory.shortage}: use{fewer} a smaller size, or try in spite of this with "
                "memory_check=False"
            )

    def to_dict(self) -> dict[str, Any]:
        """What will run, as JSON can hold it."""
        return {
            "frames": self.num_frames,
            "padded_frames": self.padded_frames,
            "height": self.size[0],
            "width": self.size[1],
            "attention": str(self.attention),
            "why_dense": self.why_dense,
            "compute_dtype": self.compute_dtype,
            "streamed": self.streamed,
            "memory": str(self.memory),
            "fits": not self.memory.shortage,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        height, width = self.size
        padding = ""
        if self.padded_frames > self.num_frames:
            padding = f", padded to {self.padded_frames}"
        maps = "streamed to the host" if self.streamed else "at once"
        time, seconds = "unknown on this device", self.seconds
        if seconds is not None:
            time = f"{timing.said_duration(seconds)}, without compiling"
        lines = {
            "frames": f"{self.num_frames} of {width}x{height}{padding}",
            "known": ", ".join(self.known),
            "attention": f"{self.attention}" + (f" ({self.why_dense})" if self.why_dense else ""),
            "devices": "" if self.mesh is None else f"{self.mesh.size}, which divide the frames",
            "products": self.compute_dtype,
            "maps": maps,
            "memory": f"{self.memory}",
            "time": time,
        }
        return "\n".join(f"{name:>10}: {text}" for name, text in lines.items() if text)


def plan_scene(
    inputs: SceneInputs,
    model: SceneModel,
    options: Options,
    *,
    say: Callable[[str], None] = warnings.warn,
    free: int | None = None,
    refuse: bool = True,
) -> Plan:
    """Decides attention, padding and streaming, and estimates memory and time.

    Args:
        inputs: of `read`.
        say: takes the message that a scene runs dense although another attention was asked for, or
            which one was chosen.
        free: bytes of the device that are free, weights included; by default what it says now.
        refuse: whether to refuse a scene that does not fit, if `options.memory_check` holds; its
            plan can do so later.

    Raises:
        InputError: by the estimate the scene does not fit into the memory.
    """
    num_frames, height, width, _ = inputs.frames.images.shape
    asked = options.scene_attention
    if options.attention == "auto":
        asked = shared_out(asked, model)
    attention, why_dense = _decide(asked, model, (num_frames, height, width))
    if options.attention == "auto":
        say(f"attention: {attention}" + (f", because {why_dense}" if why_dense else ""))
    elif why_dense is not None:
        say(why_dense)
    mesh = mesh_of_devices(options.devices)
    if mesh is not None:
        check_divides_frames(model)
    num_devices = 1 if mesh is None else mesh.size
    padded = bucket(num_frames) if options.pad_frames else num_frames
    padded = -(-padded // num_devices) * num_devices
    streamed = is_streamed(padded, height, width)
    compute_dtype = Precision.from_compute_dtype(options.compute_dtype).compute_dtype
    points = 0 if inputs.query_points is None else len(inputs.query_points)
    memory = check_memory(
        model,
        (padded, height, width, 3),
        num_query_points=points,
        compute_dtype=options.compute_dtype,
        attention=attention,
        streamed=streamed,
        known=inputs.known,
        num_devices=num_devices,
        free=free,
    )
    plan = Plan(
        config=model.config,
        num_frames=num_frames,
        known=inputs.known,
        padded_frames=padded,
        masks_padding=padded > num_frames or (options.pad_frames and is_shared(padded)),
        size=(height, width),
        attention=attention,
        why_dense=why_dense,
        streamed=streamed,
        compute_dtype=np.dtype(compute_dtype).name,
        memory=memory,
        mesh=mesh,
    )
    if refuse and options.memory_check:
        plan.check_memory()
    return plan


def shared_out(sampled: SceneAttention, model: SceneModel) -> SceneAttention:
    """The sample, with its keys shared out over the layers by the plan that ships if this is the
    model that ships."""
    origin = origin_of(model)
    if origin is None or not origin.is_small or not isinstance(sampled, Sampled):
        return sampled
    plan = AttentionPlan.load(weights.small_plan_path()).with_mean_keys(sampled.num_keys)
    return dataclasses.replace(plan, min_tokens=sampled.min_tokens)


def _decide(
    attention: SceneAttention, model: SceneModel, shape: tuple[int, int, int]
) -> tuple[SceneAttention, str | None]:
    """The attention that a scene really gets: dense where it is too small for another.

    Decided before frames are padded, so that padding changes no result.
    """
    num_frames, height, width = shape
    config = model.config
    layout = TokenLayout.for_images(height, width, config.patch_size, config.num_special_tokens)
    why_dense = attention.why_dense(
        num_tokens=num_frames * layout.tokens_per_frame,
        num_patches=num_frames * layout.rows * layout.columns,
    )
    if why_dense is not None:
        return attention.within_frames, f"{num_frames} frames have {why_dense}"
    return attention.decided(), None


def bucket(num_frames: int) -> int:
    """The number of frames that scenes are padded to: sixteen steps to each doubling.

    Up to 32 frames nothing is padded; 33 become 34, 99 become 100, 1000 become 1024.
    """
    step = 2 ** max(0, num_frames.bit_length() - 5)
    return -(-num_frames // step) * step


def is_shared(padded: int) -> bool:
    """Whether several numbers of frames are padded to this `bucket`, whose program masks frames."""
    return bucket(padded - 1) == padded
