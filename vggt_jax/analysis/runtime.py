"""How long the parts of a model take, by the number of frames."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vggt_jax.layers.attention import Dense, dense_attention
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline.reconstruct import reconstruct_jit
from vggt_jax.trunk.alternation import frames_per_chunk

PARTS = ("encoder", "frame attention", "global attention", "rest of the trunk", "heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """Seconds of a reconstruction and of its parts, medians of some calls, without compiling.

    Attributes:
        num_frames: of the scene.
        total: from images on the device to all results there.
        encoder: patch embedding and encoder of every frame.
        trunk: what follows up to the tokens that heads read.
        frame_attention, global_attention: softmax attention alone, of queries, keys and values that
            are there, in all layers of the trunk.
    """

    num_frames: int
    total: float
    encoder: float
    trunk: float
    frame_attention: float
    global_attention: float

    def parts(self) -> dict[str, float]:
        """Seconds by `PARTS`, whose sum is `total`.

        Projections, norms and MLPs are the rest of the trunk. The rest and the heads are
        differences of measured times, and 0 where noise makes them negative.
        """
        rest = self.trunk - self.frame_attention - self.global_attention
        values = (
            self.encoder,
            self.frame_attention,
            self.global_attention,
            max(0.0, rest),
            max(0.0, self.total - self.encoder - self.trunk),
        )
        return dict(zip(PARTS, values, strict=True))


def time_parts(
    model: SceneModel,
    images: np.ndarray,
    *,
    numbers: Sequence[int],
    attention: SceneAttention = Dense(),
    compute_dtype: DTypeLike | None = None,
    repeats: int = 3,
    say: Callable[[str], Any] = lambda text: None,
) -> list[Runtime]:
    """Times reconstructions of so many frames, for each of some numbers.

    Args:
        images: [s height width 3], as the model sees them; repeated where more are asked for.
        numbers: of frames.
        attention: over all frames; scenes too small for it are dense.
        repeats: timed calls, after one that compiles.
        say: called with what runs next.
    """
    results = []
    for number in numbers:
        say(f"{number} frames")
        frames = np.resize(images, (number, *images.shape[1:]))
        scene = jax.device_put(frames)
        results.append(
            _time(model, scene, attention=attention, compute_dtype=compute_dtype, repeats=repeats)
        )
    return results


def _time(model, images, *, attention, compute_dtype, repeats) -> Runtime:
    options = {"attention": attention, "compute_dtype": compute_dtype}
    median = functools.partial(_median_seconds, repeats)
    total = median(functools.partial(reconstruct_jit, **options), model, images)
    encode = jax.jit(
        functools.partial(_encode, attention=attention.within_frames, compute_dtype=compute_dtype)
    )
    aggregate = jax.jit(functools.partial(_aggregate, **options))
    tokens = encode(model, images)
    num_frames = len(images)
    shape = _attention_shape(model, images)
    dtype = Precision.from_compute_dtype(compute_dtype).compute_dtype
    noise = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    over_frames, within = _attentions(model, images, **options)
    return Runtime(
        num_frames=num_frames,
        total=total,
        encoder=median(encode, model, images),
        trunk=median(aggregate, model, images, tokens),
        frame_attention=model.num_layers * median(within, noise),
        global_attention=sum(median(one, noise) * times for one, times in over_frames),
    )


def _encode(model, images, **options):
    return model.encode(images[None], **options)


def _aggregate(model, images, tokens, **options):
    return model.aggregate(tokens, model.layout(images[None]), **options)


def _attention_shape(model, images) -> tuple[int, ...]:
    """Of queries, keys and values."""
    attention: Any = getattr(model, "global_blocks").attn  # noqa: B009
    dim = attention.proj.kernel.shape[-1]
    layout = model.layout(images[None])
    heads = attention.num_heads
    return (1, len(images), layout.tokens_per_frame, heads, dim // heads)


def _attentions(model, images, *, attention, compute_dtype):
    """Each way in which layers attend over all frames, with the number of such layers; and that
    within frames."""
    layout = model.layout(images[None])
    precision = Precision.from_compute_dtype(compute_dtype)
    patches = len(images) * layout.rows * layout.columns
    tokens = len(images) * layout.tokens_per_frame
    values = attention.for_scene(model.num_layers, num_tokens=tokens, num_patches=patches)

    def attend(value, x):
        return value.attend(
            x,
            x,
            x,
            num_special=layout.num_special,
            grid=(layout.rows, layout.columns),
            token_order=attention.token_order,
            layer=jnp.int32(0),
            num_frames=None,
            precision=precision,
        )[0]

    dense = attention.within_frames

    def within(x):
        one = lambda y: dense_attention(
            y, y, y, precision=precision.matmul, implementation=dense.implementation
        )
        chunk = frames_per_chunk(1, x.shape[1], x.shape[2])
        return map_chunks(one, x[0], axis=0, max_chunk=chunk)

    over_frames = [
        (jax.jit(functools.partial(attend, value)), values.count(value))
        for value in dict.fromkeys(values)
    ]
    return over_frames, jax.jit(within)


def _median_seconds(repeats: int, function: Callable, *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
