"""Attention over all frames by a sample of the patches that stands for all of them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import block_sparse_attention
from pallas_kernels.blocks import count_blocks, leading
from vggt_jax.layers.attention import NotDense, bytes_of_scores, dense_attention
from vggt_jax.layers.few_queries import attend_on_all_devices
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import AttentionStats, SceneTokens
from vggt_jax.layers.shards import FrameShards
from vggt_jax.layers.token_order import TokenOrder, patch_order
from vggt_jax.trunk.attention.sampling_error import NUM_PROBES, probes, sampling_error

# Products of places in the sample must be within 32 bits.
MOST_KEYS = 2**16

# Keys come in whole tiles of the kernels, so that none needs a mask.
_TILE = 64

# From so many frames on special tokens see the sample alone: on 192 frames of a trained model with
# sharp attention nothing was lost by it (docs/attention.md), and there they take little time.
_MANY_FRAMES = 512

# The golden ratio less one, as a fraction of 2**32. Its multiples, without what is before the
# point, are as evenly spread as any sequence, wherever it is cut.
_GOLDEN = np.uint32(2654435769)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled(NotDense):
    """Patches attend to a fixed number of patches of the scene, and to all special tokens.

    The sampled keys are the same for all queries of a head, and differ by layer and head. They are
    spread evenly over the frames and in each picture. Each stands for the patches around it that
    were left out: its score is raised by the logarithm of how many there are for each in the
    sample, so that the softmax estimates that over all patches. Special tokens (camera and
    registers) see and are seen by everything, exactly. With as many keys as there are patches this
    is dense attention.

    The error falls with the number of keys, whatever the number of frames, so the time of attention
    grows linearly with frames; docs/attention.md has the measurements. `AttentionStats.error` says
    how large it is in the scene at hand: for 128 queries of patches attention is computed by each
    half of the sample alone, and half of the root mean square of the difference is the estimate.

    Attributes:
        num_keys: how many patches are sampled for each layer and head, from 1 to 65,536.
        seed: of the draw. The same seed gives the same sample for all scenes of as many frames.
        min_tokens: scenes of fewer tokens run dense, and so do those of no more patches than
            `num_keys` (`infer` counts their own frames, `model(...)` padded ones too); 0 leaves it
            to the number of patches.
        sample_special_queries: whether special tokens see what patches see, instead of everything.
            Their exact attention grows with the square of the frames; of 1000 frames of 518x518 it
            is 9 % of the time of VGGT-1B with 10,240 sampled keys. None: from 512 frames on.
        implementation: of attention: "mosaic_gpu", "triton" or "xla", as `Dense` names them, or
            None to choose by device and type.
    """

    num_keys: int = 8192
    seed: int = 0
    min_tokens: int = 4096
    sample_special_queries: bool | None = None
    implementation: Literal["mosaic_gpu", "triton", "xla"] | None = None

    def __post_init__(self):
        for name, least, most in (
            ("num_keys", 1, MOST_KEYS),
            ("seed", 0, 2**32 - 1),
            ("min_tokens", 0, None),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r} must be a whole number")
            if value < least or (most is not None and value > most):
                limits = f"at least {least}" if most is None else f"in [{least}, {most}]"
                raise ValueError(f"{name}={value} must be {limits}")
            object.__setattr__(self, name, int(value))
        if self.sample_special_queries not in (None, False, True):
            found = f"sample_special_queries={self.sample_special_queries!r}"
            raise ValueError(f"{found} must be True, False or None")
        if self.implementation not in (None, "mosaic_gpu", "triton", "xla"):
            raise ValueError(
                f"implementation={self.implementation!r} is unknown; use 'mosaic_gpu', 'triton', "
                "'xla' or None"
            )

    def why_dense(self, *, num_tokens: int, num_patches: int) -> str | None:
        """Whether there are fewer tokens than `min_tokens`, or no more patches than `num_keys`."""
        if num_patches <= self.num_keys:
            found = f"{num_patches} patches, no more than num_keys={self.num_keys}"
        elif num_tokens < self.min_tokens:
            found = f"{num_tokens} tokens, fewer than min_tokens={self.min_tokens}"
        else:
            return None
        return f"{found}: attention is dense, and there are no attention_stats"

    def samples_special_queries(self, num_frames: int) -> bool:
        """Whether special tokens see the sample alone, in a scene of so many frames."""
        if self.sample_special_queries is None:
            return num_frames >= _MANY_FRAMES
        return self.sample_special_queries

    def with_keys_times(self, factors: Sequence[float]) -> "Sampled":
        """In steps of 512 keys, so that few programs serve all scenes."""
        wanted = math.ceil(self.num_keys * max(factors) / 512) * 512
        return dataclasses.replace(self, num_keys=min(max(wanted, self.num_keys), MOST_KEYS))

    def attend_scene(
        self,
        q,
        k,
        v,
        *,
        num_special,
        grid,
        token_order,
        layer,
        num_frames,
        precision: Precision,
        scene,
        shards,
        heads,
    ):
        del heads  # All of them.
        return sampled_attention(
            q,
            k,
            v,
            num_special=num_special,
            grid=grid,
            token_order=token_order,
            attention=self,
            layer=layer,
            num_frames=num_frames,
            precision=precision.matmul,
            scene=scene,
            shards=shards,
        )

    def num_pairs(self, *, num_frames, num_special, num_patches) -> float:
        special, patches = num_frames * num_special, num_frames * num_patches
        seen = float(special + min(self.num_keys, patches))
        of_special = seen if self.samples_special_queries(num_frames) else float(special + patches)
        return patches * seen + special * of_special

    def extra_bytes(
        self, *, num_frames, num_special, num_patches, num_heads, head_dim, itemsize, num_devices=1
    ) -> int:
        """Sampled keys and values, scores of the probes, and in plain JAX of some queries."""
        all_frames = num_devices * num_frames
        num_keys = all_frames * num_special + min(self.num_keys, all_frames * num_patches)
        gathered = 2 * num_keys * num_heads * head_dim * itemsize
        gathered += 3 * 4 * num_heads * NUM_PROBES * num_keys
        if itemsize == 2:
            return gathered
        tokens = num_frames * (num_special + num_patches)
        return gathered + bytes_of_scores(num_heads, tokens, num_keys)


def draw_patches(
    seed: int,
    slots: int,
    *,
    num_heads: int,
    num_frames: int,
    grid: tuple[int, int],
    token_order: TokenOrder = "raster",
    layer: int | Int[Array, ""] = 0,
    frames_that_count: int | Int[Array, ""] | None = None,
    share: float = 1.0,
) -> tuple[Int[Array, "keys n"], Int[Array, ""], Float[Array, ""]]:
    """Which patches of a scene are sampled in a layer: a systematic sample for each head.

    All patches of the frames that count form one line: frame after frame, each along a Hilbert
    curve that starts somewhere else in each frame. The sample takes every so many of them, from an
    offset on. Offset and starts differ by layer and head, drawn from the seed.

    Args:
        slots: how many to draw at most.
        num_frames: frames of the scene, padded ones included.
        grid: rows and columns of patches in a frame.
        token_order: how these patches follow one another.
        frames_that_count: how many leading ones do, None for all.
        share: of the patches that count, how many to draw at most.

    Returns:
        The sampled patches, counted from the first of the scene on, in the order of the tokens; no
        patch stands twice among those that count. Their number, no more than there are patches. And
        of how many patches each is one.
    """
    per_frame = grid[0] * grid[1]
    slots = min(slots, num_frames * per_frame)
    frames = num_frames if frames_that_count is None else frames_that_count
    num_patches = jnp.int32(frames) * per_frame
    wanted = jnp.ceil(num_patches.astype(jnp.float32) * np.float32(share)).astype(jnp.int32)
    num_keys = jnp.clip(jnp.minimum(wanted, slots), 1, jnp.maximum(num_patches, 1))

    key = jax.random.fold_in(jax.random.key(seed), layer)
    offset, start = jax.random.bits(key, (2, num_heads), jnp.uint32)
    # Sample i is at (i * patches + offset) // keys. Patches and offset are taken apart into
    # multiples of `keys` and the rest, so that all products are within 32 bits.
    i = jnp.arange(slots, dtype=jnp.uint32)[:, None]
    keys, patches = num_keys.astype(jnp.uint32), num_patches.astype(jnp.uint32)
    offset = _share_of(offset, num_patches).astype(jnp.uint32)
    place = i * (patches // keys) + (offset // keys)[None]
    place += (i * (patches % keys) + (offset % keys)[None]) // keys
    place = jnp.clip(place.astype(jnp.int32), 0, num_frames * per_frame - 1)

    frame, step = jnp.divmod(place, per_frame)
    start = start[None] + frame.astype(jnp.uint32) * _GOLDEN
    along = (step + _share_of(start, per_frame)) % per_frame
    place_of_patch = np.argsort(patch_order(token_order, *grid))
    along_curve = place_of_patch[patch_order("hilbert", *grid)]
    patch = frame * per_frame + jnp.asarray(along_curve, jnp.int32)[along]
    weight = num_patches.astype(jnp.float32) / num_keys.astype(jnp.float32)
    return patch, num_keys, weight


def _share_of(bits, number):
    """Of bits uniform in [0, 2**32), as large a share of a whole number: in [0, number)."""
    share = (bits >> 8).astype(jnp.float32) * 2.0**-24
    return jnp.minimum((share * jnp.float32(number)).astype(jnp.int32), number - 1)


def sampled_attention(
    q: Float[Array, "s p n h"],
    k: Float[Array, "s p n h"],
    v: Float[Array, "s p n h"],
    *,
    num_special: int,
    grid: tuple[int, int],
    attention: Sampled,
    token_order: TokenOrder = "raster",
    layer: int | Int[Array, ""] = 0,
    num_frames: Int[Array, ""] | None = None,
    precision: lax.Precision = lax.Precision.HIGHEST,
    scene: SceneTokens | None = None,
    shards: FrameShards | None = None,
) -> tuple[Float[Array, "s p n h"], Float[Array, "e n h"] | None, AttentionStats]:
    """Attention over all tokens of one scene, whose frames start with their special tokens.

    Args:
        grid: rows and columns of patches that follow. Tokens beyond do not count, and their results
            mean nothing.
        token_order: how these patches follow one another.
        layer: which layer of the trunk this is.
        num_frames: how many leading frames count, None for all.
        precision: of float32 products.
        scene: tokens of the scene as a whole, which are special, too.
        shards: see `SceneAttention.attend`. The sample is that of one device; sampled keys, special
            ones and what special queries get are all that is exchanged.

    Returns:
        What the tokens of the frames attended to, what those of the scene did, and statistics.
    """
    s, width, n, h = q.shape
    all_frames = s if shards is None else s * shards.num
    num_of_scene = 0 if scene is None else scene.q.shape[0]
    num_patches = grid[0] * grid[1]
    p = num_special + num_patches
    frames = jnp.int32(all_frames) if num_frames is None else num_frames
    patches, num_sampled, weight = draw_patches(
        attention.seed,
        attention.num_keys,
        num_heads=n,
        num_frames=all_frames,
        grid=grid,
        token_order=token_order,
        layer=layer,
        frames_that_count=num_frames,
    )

    # The keys that queries of patches see: special tokens, those of the scene first, sampled
    # patches, and what is missing to whole tiles, which biases leave out.
    flat = lambda x: x.reshape(s * width, n, h)
    of_special = np.arange(all_frames)[:, None] * width + np.arange(num_special)
    of_special = np.broadcast_to(of_special.reshape(-1, 1), (all_frames * num_special, n))
    of_patches = patches // num_patches * width + num_special + patches % num_patches
    of_special = np.pad(of_special, ((num_of_scene, 0), (0, 0)))
    total_special = len(of_special)
    tokens = jnp.concatenate([jnp.asarray(of_special, jnp.int32), of_patches])
    hidden = np.float32(-np.inf)
    biases = [
        jnp.where(
            leading(num_of_scene + frames * num_special, total_special), np.float32(0), hidden
        ),
        jnp.where(leading(num_sampled, len(patches)), jnp.log(weight), hidden),
    ]
    # The weights have tiles of their own: one bias for all keys of a tile costs kernels nothing.
    tokens, biases = _in_tiles(total_special, tokens, biases)
    heads = np.arange(n, dtype=np.int32)[None]

    def take(x, tokens):
        if shards is not None:
            return shards.take(flat(x), tokens)
        return flat(x).at[tokens, heads].get(mode="promise_in_bounds")

    def gather(x, of_scene):
        gathered = take(x, tokens)
        return gathered if of_scene is None else gathered.at[:num_of_scene].set(of_scene)

    attend = functools.partial(
        dense_attention, precision=precision, implementation=attention.implementation
    )
    everywhere = lambda bias: jnp.broadcast_to(bias[None, None], (1, n, len(bias)))
    of_scene = (None, None) if scene is None else scene[1:]
    keys, values = (gather(x, y) for x, y in zip((k, v), of_scene, strict=True))
    to_sample = functools.partial(attend, key_bias=everywhere(biases))
    out = to_sample(flat(q)[None], keys[None], values[None])
    error = sampling_error(
        take(q, probes(frames * num_patches, num_patches, num_special, width)[:, None]),
        keys,
        values,
        biases,
        first_sampled=count_blocks(total_special, _TILE) * _TILE,
    )
    out = out.reshape(s, width, n, h)
    out_of_scene = None
    special_see_sample = attention.samples_special_queries(all_frames)
    if special_see_sample:
        if scene is not None:
            out_of_scene = to_sample(scene.q[None], keys[None], values[None])[0]
    elif total_special:
        special = _of_special_queries(
            *(q, k, v),
            num_special=num_special,
            tokens_per_frame=p,
            num_frames=num_frames,
            scene=scene,
            attend=attend,
            implementation=attention.implementation,
            shards=shards,
        )
        if scene is not None:
            out_of_scene, special = jnp.split(special, [num_of_scene])
        if num_special:
            # Written into what is there; see `sparse_attention`.
            out = lax.optimization_barrier(out)
            special = special.reshape(s, num_special, n, h)
            out = lax.dynamic_update_slice(out, special, (np.int32(0),) * 4)

    stats = _stats(
        n,
        frames=frames,
        tokens_per_frame=p,
        num_special=num_special,
        num_of_scene=num_of_scene,
        num_sampled=num_sampled,
        special_see_sample=special_see_sample,
        error=error,
    )
    return out, out_of_scene, stats


def _stats(
    num_heads,
    *,
    frames,
    tokens_per_frame,
    num_special,
    num_of_scene,
    num_sampled,
    special_see_sample,
    error,
) -> AttentionStats:
    """What attention did in each head, given how many patches were sampled, and the error."""
    p = tokens_per_frame
    of_frames = jnp.maximum(jnp.float32(frames), 1.0)
    seen = of_frames * num_special + num_of_scene + num_sampled.astype(jnp.float32)
    seen /= of_frames * p + num_of_scene
    # Queries that see the sample, and those that see everything, but for tokens of the scene.
    exact = 0 if special_see_sample else num_special
    done = ((p - exact) * seen + exact) / p
    of_heads = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (num_heads,))
    return AttentionStats(
        density=of_heads(seen),
        covered=of_heads(jnp.nan),
        saved=of_heads(1 - done),
        entropy=of_heads(jnp.nan),
        error=jnp.where(num_sampled < frames * (p - num_special), error, 0.0),
    )


def _of_special_queries(
    q, k, v, *, num_special, tokens_per_frame, num_frames, scene, attend, implementation, shards
) -> Float[Array, "t n h"]:
    """What special queries of a scene [s p n h] and of its frames get, who see everything but
    padding: those of the scene, and of the frames of this device.

    Args:
        tokens_per_frame: how many of them count.
        attend: `dense_attention` with its settings.
        implementation: of attention to the keys of one device of several.
    """
    s, width, n, h = q.shape
    hidden = np.float32(-np.inf)
    special = q[:, :num_special].reshape(s * num_special, n, h)
    counts, bias = (np.arange(width) < tokens_per_frame)[None], None
    if num_frames is not None:
        here = num_frames if shards is None else num_frames - shards.first(s)
        counts = leading(here, s)[:, None] & counts
    if num_frames is not None or width > tokens_per_frame:
        counts = jnp.broadcast_to(counts, (s, width))
        bias = jnp.where(counts, np.float32(0), hidden).reshape(-1)
    k, v = (x.reshape(s * width, n, h) for x in (k, v))
    if shards is None:
        return _to_everything(special, k, v, bias, scene=scene, attend=attend)
    if scene is not None:
        # Its keys are everywhere, and count on the first device alone.
        bias = jnp.zeros(len(k), jnp.float32) if bias is None else bias
        on_first = jnp.where(shards.first(1) == 0, np.float32(0), hidden)
        bias = jnp.concatenate([bias, jnp.broadcast_to(on_first, (len(scene.k),))])
        k, v = (jnp.concatenate(pair) for pair in zip((k, v), scene[1:], strict=True))
    queries = shards.all(special, axis=0)
    if scene is not None:
        queries = jnp.concatenate([scene.q, queries])
    key_bias = None if bias is None else jnp.broadcast_to(bias[None], (n, len(bias)))
    partly = functools.partial(
        block_sparse_attention, key_bias=key_bias, implementation=implementation
    )
    out = attend_on_all_devices(queries, k, v, partly, shards, block_q=128, block_k=64)
    of_scene, special = jnp.split(out, [len(out) - s * num_special * shards.num])
    return jnp.concatenate([of_scene, shards.own(special, s * num_special)])


def _to_everything(q, k, v, bias, *, scene: SceneTokens | None, attend) -> Float[Array, "t n h"]:
    """Queries, those of the scene before them, that see all keys and those of the scene.

    Args:
        bias: of each key, the same for all heads; None for 0.
    """
    if scene is not None:
        q = jnp.concatenate([scene.q, q])
        k, v = (jnp.concatenate(pair) for pair in zip((k, v), scene[1:], strict=True))
        bias = None if bias is None else jnp.pad(bias, (0, len(scene.k)))
    key_bias = None
    if bias is not None:
        key_bias = jnp.broadcast_to(bias[None, None], (1, q.shape[1], len(bias)))
    return attend(q[None], k[None], v[None], key_bias=key_bias)[0]


def _in_tiles(num_special, tokens, biases):
    """Tokens [keys n] and biases, those of special tokens and of patches in whole tiles each."""
    parts = jnp.split(tokens, [num_special])
    missing = [(0, count_blocks(len(x), _TILE) * _TILE - len(x)) for x in parts]
    tokens = [jnp.pad(x, (pad, (0, 0))) for x, pad in zip(parts, missing, strict=True)]
    biases = [
        jnp.pad(x, pad, constant_values=-jnp.inf) for x, pad in zip(biases, missing, strict=True)
    ]
    return jnp.concatenate(tokens), jnp.concatenate(biases)
