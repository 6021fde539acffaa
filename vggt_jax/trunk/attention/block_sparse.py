"""Block-sparse attention over all frames of a scene: settings, layout of its tokens, statistics."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels import block_sparse_attention, select_blocks
from pallas_kernels.block_map import index_dtype
from pallas_kernels.blocks import count_blocks
from pallas_kernels.mosaic_gpu_call import align
from vggt_jax.layers.attention import NotDense
from vggt_jax.layers.few_queries import attend_to_everything
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import (
    AttentionStats,
    HeadGroup,
    SceneAttention,
    SceneTokens,
)
from vggt_jax.layers.shards import FrameShards
from vggt_jax.layers.token_order import TokenOrder
from vggt_jax.trunk.attention.query_rows import QueryRows
from vggt_jax.trunk.attention.rest_sample import with_a_sample_of_the_rest
from vggt_jax.trunk.attention.sampled import draw_patches

# Patches in a sample.
_MOST_SAMPLED = 2**16


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSparse(NotDense):
    """Blocks of patches attend to the blocks that matter most to them, and to all special tokens.

    The method of "Faster VGGT with Block-Sparse Global Attention" (arXiv 2509.07120), without its
    rounding to 8 bits. Which blocks matter is predicted from pooled queries and keys, for every
    scene, layer and head anew; attention to them is exact. Camera and register tokens see and are
    seen by everything.

    Attributes:
        sparse_ratio: the share of the blocks to leave out, in [0, 1]; 0.75 keeps a quarter. One
            number, or one for each layer of the trunk.
        cdf_threshold: keep as many blocks as have this share of the pooled probability, in [0, 1].
            One number, or one for each layer. With both, the larger number of blocks is kept.
        pool_mode: "avg" or "max", how a block becomes one vector.
        token_order: how the patches of a frame follow one another: "raster", row by row; "hilbert",
            along a Hilbert curve, as the paper's code offers; "tiles", 8 by 8. Blocks of the latter
            two are compact regions of the picture. Outputs are in raster order always.
        layers: the layers of the trunk that are sparse, None for all; the others are dense.
        min_tokens: scenes of fewer tokens run dense (`infer` counts their own frames, `model(...)`
            padded ones too), because that is faster: on an H100 attention of a layer of VGGT-1B
            takes 0.10 ms dense and 0.145 keeping 25 % of 2,748 tokens (2 frames of 518x518), 0.26
            and 0.24 of 5,496. 0 for never.
        block_q, block_k: tokens in a block of queries and in a block of keys. Small ones lose much
            less, and take more time for as many keys; with "hilbert", blocks of 64 and 16 are about
            8 by 8 and 4 by 4 patches.
        sample_ratio: the share of the patches, in [0, 1), that every query sees beside its blocks,
            drawn evenly: each stands for those around it that are left out, as `Sampled` tells.
            0, for none, is the paper's method.
        score_block_q: which blocks matter is predicted by so many queries at a time, a part of
            `block_q`; the probabilities of a block are the mean over its parts. None for whole
            blocks, as the paper does.
        seed: of the sample.
        random_seed: keep as many blocks as `sparse_ratio` says, but drawn at random from this seed:
            the floor that a rule is to be measured against, of no use otherwise. The draw differs
            by layer, head and row, and is the same for all scenes. None keeps those that matter
            most.
        implementation: of attention, as `pallas_kernels.block_sparse_attention` names them:
            "mosaic_gpu", "triton", "xla", or None to choose by device.
    """

    gathers_keys: ClassVar[bool] = True
    sparse_ratio: float | tuple[float, ...] | None = None
    cdf_threshold: float | tuple[float, ...] | None = None
    pool_mode: Literal["avg", "max"] = "avg"
    token_order: TokenOrder = "raster"
    layers: tuple[int, ...] | None = None
    min_tokens: int = 4096
    block_q: int = 128
    block_k: int = 64
    sample_ratio: float = 0.0
    score_block_q: int | None = None
    seed: int = 0
    random_seed: int | None = None
    implementation: Literal["mosaic_gpu", "triton", "xla"] | None = None

    def __post_init__(self):
        for name in ("sparse_ratio", "cdf_threshold", "layers"):
            value = getattr(self, name)
            if value is not None:
                as_python = np.asarray(value).tolist()
                value = tuple(as_python) if isinstance(as_python, list) else as_python
                object.__setattr__(self, name, value)
        if self.layers is not None and not isinstance(self.layers, tuple):
            raise ValueError(f"layers={self.layers} must be a sequence of layers")
        if self.sparse_ratio is None and self.cdf_threshold is None:
            raise ValueError("BlockSparse needs sparse_ratio or cdf_threshold, or both")
        if self.random_seed is not None and (
            self.sparse_ratio is None or self.cdf_threshold is not None
        ):
            raise ValueError(
                f"random_seed={self.random_seed} draws a given number of blocks: give "
                f"sparse_ratio, no cdf_threshold"
            )
        if not 0 <= self.sample_ratio < 1:
            raise ValueError(f"sample_ratio={self.sample_ratio} must be in [0, 1)")
        if self.score_block_q is not None and (
            self.score_block_q < 1 or self.block_q % self.score_block_q
        ):
            raise ValueError(
                f"score_block_q={self.score_block_q} must divide block_q={self.block_q}"
            )
        for name in ("sparse_ratio", "cdf_threshold"):
            value = getattr(self, name)
            if value is not None and not np.all((0 <= np.array(value)) & (np.array(value) <= 1)):
                raise ValueError(f"{name}={value} must be in [0, 1]")
        choices = {
            "pool_mode": ("avg", "max"),
            "token_order": get_args(TokenOrder),
            "implementation": (None, "mosaic_gpu", "triton", "xla"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")
        for name, least in (("min_tokens", 0), ("block_q", 1), ("block_k", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def of_layers(self, depth: int) -> list[SceneAttention]:
        """This value with the numbers of each layer, or dense attention.

        Raises:
            ValueError: numbers by layer, or layers, that do not fit the trunk.
        """

        def by_layer(name):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                return [value] * depth
            if len(value) != depth:
                raise ValueError(f"{name} has {len(value)} numbers, but there are {depth} layers")
            return list(value)

        layers = range(depth) if self.layers is None else self.layers
        if not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"{self.layers=} must be layers of the trunk, in [0, {depth})")
        numbers = zip(by_layer("sparse_ratio"), by_layer("cdf_threshold"), strict=True)
        sparse = [
            dataclasses.replace(self, sparse_ratio=ratio, cdf_threshold=threshold, layers=None)
            for ratio, threshold in numbers
        ]
        return [value if i in layers else self.within_frames for i, value in enumerate(sparse)]

    def num_pairs(self, *, num_frames, num_special, num_patches) -> float:
        """As many as `sparse_ratio` leaves; all, where `cdf_threshold` may keep any number."""
        special, patches = float(num_frames * num_special), float(num_frames * num_patches)
        kept = 1.0
        if self.sparse_ratio is not None and self.cdf_threshold is None:
            kept = min(1.0, kept - float(np.mean(self.sparse_ratio)) + self.sample_ratio)
        return patches * (special + kept * patches) + special * (special + patches)

    def why_dense(self, *, num_tokens: int, num_patches: int) -> str | None:
        """Whether there are fewer tokens than `min_tokens`."""
        del num_patches
        if num_tokens >= self.min_tokens:
            return None
        return (
            f"{num_tokens} tokens, fewer than min_tokens={self.min_tokens}: attention is dense, "
            "and there are no attention_stats; min_tokens=0 makes it sparse"
        )

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
        del precision  # Products of float32 have the highest.
        if isinstance(self.sparse_ratio, tuple) or isinstance(self.cdf_threshold, tuple):
            raise ValueError("numbers by layer: of_layers(depth) has the value of each layer")
        if shards is not None and self.random_seed is not None:
            raise NotImplementedError("random blocks are drawn on one device; leave mesh out")
        return sparse_attention(
            q,
            k,
            v,
            num_special=num_special,
            grid=grid,
            token_order=token_order,
            sparse_ratio=self.sparse_ratio,
            cdf_threshold=self.cdf_threshold,
            attention=self,
            layer=layer,
            num_frames=num_frames,
            scene=scene,
            shards=shards,
            heads=heads,
        )

    def extra_bytes(
        self, *, num_frames, num_special, num_patches, num_heads, head_dim, itemsize, num_devices=1
    ) -> int:
        """The lists of kept blocks; the sample, its results and what it leaves out; of several
        devices, values as they are laid out, besides queries and results."""
        tokens = num_frames * (num_special + num_patches)
        all_tokens = num_devices * tokens
        rows, blocks = count_blocks(tokens, self.block_q), count_blocks(all_tokens, self.block_k)
        # A threshold may keep everything.
        left_out = 0
        if self.cdf_threshold is None and self.sparse_ratio is not None:
            left_out = np.min(self.sparse_ratio)
        lists = num_heads * rows * int((1 - left_out) * blocks) * index_dtype(blocks).itemsize
        if num_devices > 1:
            lists += itemsize * (all_tokens + 2 * tokens) * num_heads * head_dim
        if not self.sample_ratio:
            return lists
        sampled = int(self.sample_ratio * num_devices * num_frames * num_patches)
        gathered = 2 * sampled * num_heads * head_dim * itemsize
        # Bits of each head, and what they are made of, of one head at a time.
        masks = num_heads * rows * sampled // 8 + rows * (blocks + sampled)
        results = (itemsize + 4) * tokens * num_heads * head_dim
        return lists + gathered + masks + results


def sparse_attention(
    q: Float[Array, "s p n h"],
    k: Float[Array, "s p n h"],
    v: Float[Array, "s p n h"],
    *,
    num_special: int,
    grid: tuple[int, int],
    sparse_ratio: float | Float[Array, ""] | None,
    cdf_threshold: float | Float[Array, ""] | None,
    attention: BlockSparse,
    token_order: TokenOrder = "raster",
    layer: int | Int[Array, ""] = 0,
    num_frames: Int[Array, ""] | None = None,
    scene: SceneTokens | None = None,
    shards: FrameShards | None = None,
    heads: HeadGroup | None = None,
) -> tuple[Float[Array, "s p n h"], Float[Array, "e n h"] | None, AttentionStats]:
    """Attention over all tokens of one scene, whose frames start with their special tokens.

    Keys are laid out as `[special tokens, of the scene and of all frames | patches of all frames]`,
    the special ones padded to whole blocks, so that no block mixes the two: special keys are sinks,
    and their queries have a map of their own that keeps everything. Padded frames are two tails
    that do not count.

    Args:
        grid: rows and columns of patches that follow them. Tokens beyond do not count, and their
            results are zero.
        sparse_ratio, cdf_threshold: in place of those of `attention`, which has all other settings.
        token_order: how these patches follow one another.
        layer: which layer of the trunk this is, for random blocks and samples to differ.
        num_frames: how many leading frames count, None for all.
        scene: tokens of the scene as a whole, which are special, too.
        shards, heads: see `SceneAttention.attend`. Blocks are those of one device.

    Returns:
        What the tokens of the frames attended to, what those of the scene did, and statistics.
    """
    s, padded, n, h = q.shape
    num_patches, block_k = grid[0] * grid[1], attention.block_k
    p = num_special + num_patches
    num_of_scene = 0 if scene is None else scene.q.shape[0]
    all_frames = s if shards is None else s * shards.num
    total_special = num_of_scene + all_frames * num_special
    scene_q, scene_k, scene_v = (None, None, None) if scene is None else scene
    special = lambda x, of_scene: _special_tokens(x[:, :num_special], of_scene)
    patches = lambda x: _patches(x[:, num_special:p])
    num_sink_blocks = count_blocks(total_special, block_k)
    padding = ((0, num_sink_blocks * block_k - total_special), (0, 0), (0, 0))
    layout = lambda x, y: jnp.concatenate([jnp.pad(special(x, y), padding), patches(x)])

    # One after the other, and both kinds of queries before attention, so that no more than four
    # arrays of all tokens are in memory at a time.
    wait = jax.lax.optimization_barrier
    k, v, q = wait((layout(k, scene_k), v, q))
    k, v, q = wait((k, layout(v, scene_v), q))
    patch_queries, rows = _patches(q[:, num_special:p]), None
    if shards is not None:
        rows = QueryRows(shards, s * num_patches, attention.block_q)
        patch_queries = _aligned(rows.whole(patch_queries[: s * num_patches]))
    special_queries = _special_tokens(q[:, :num_special], scene_q)
    patch_queries, special_queries, k, v = wait((patch_queries, special_queries, k, v))
    frames = np.int32(all_frames) if num_frames is None else num_frames.astype(jnp.int32)
    kv_lengths = _lengths_of_blocks(
        len(k),
        block_k,
        first_patch=num_sink_blocks * block_k,
        num_special=num_of_scene + frames * num_special,
        num_patches=frames * num_patches,
    )

    num_queries: Any = frames * num_patches
    random_key = None
    if attention.random_seed is not None:
        random_key = jax.random.fold_in(jax.random.key(attention.random_seed), layer)
    selection = select_blocks(
        patch_queries,
        k,
        sparse_ratio=sparse_ratio,
        cdf_threshold=cdf_threshold,
        pool_mode=attention.pool_mode,
        block_q=attention.block_q,
        block_k=block_k,
        score_block_q=attention.score_block_q,
        num_sink_blocks=num_sink_blocks,
        q_length=num_queries if rows is None else rows.count(num_queries),
        kv_lengths=kv_lengths,
        random_key=random_key,
        # Blocks are selected by Triton's kernels for either kernel of attention.
        implementation="xla" if attention.implementation == "xla" else None,
    )
    attend = functools.partial(
        block_sparse_attention, kv_lengths=kv_lengths, implementation=attention.implementation
    )
    out, sampled_share = _of_patches(
        *(patch_queries, k, v, selection.block_map, attend),
        attention=attention,
        first_patch=num_sink_blocks * block_k,
        num_frames=all_frames,
        grid=grid,
        token_order=token_order,
        layer=layer,
        frames_that_count=num_frames,
        heads=heads,
    )
    out = out[: s * num_patches] if rows is None else rows.back(out[: rows.num_rows * rows.block])
    out = out.reshape(s, num_patches, n, h)
    out = jnp.pad(out, ((0, 0), (num_special, padded - p), (0, 0), (0, 0)))
    out_of_scene = None
    if total_special:
        blocks = {"block_q": attention.block_q, "block_k": attention.block_k}
        of_special = attend_to_everything(special_queries, k, v, attend, **blocks)
        if scene is not None:
            out_of_scene, of_special = jnp.split(of_special, [num_of_scene])
    if num_special:
        # A copy with room for a few tokens, which are then written there, is three times as fast on
        # a GPU as joining both by `jnp.concatenate`, which XLA would make of it without the
        # barrier.
        out = jax.lax.optimization_barrier(out)
        of_special = of_special.reshape(s, num_special, n, h)
        out = jax.lax.dynamic_update_slice(out, of_special, (np.int32(0),) * 4)

    stats = _stats(
        selection,
        num_patch_blocks=jnp.sum(kv_lengths[num_sink_blocks:] > 0, dtype=jnp.int32),
        num_frames=frames,
        tokens_per_frame=p,
        num_special=num_special,
        num_of_scene=num_of_scene,
        sampled_share=sampled_share,
        error=np.nan if attention.sample_ratio else 0.0,
        shards=shards,
    )
    return out, out_of_scene, stats


def _of_patches(q, k, v, block_map, attend, *, attention, first_patch, heads, **scene):
    """What queries of patches get from kept blocks and, if there is one, a sample of the others.

    Args:
        attend: `block_sparse_attention` with the lengths of the blocks.
        first_patch: where patches begin among the keys.
        scene: arguments of `draw_patches`.

    Returns:
        The results, and which share of the patches was sampled.
    """
    if not attention.sample_ratio:
        return attend(q, k, v, block_map), jnp.float32(0)
    num_heads = q.shape[1]
    patches, *weights = draw_patches(
        attention.seed,
        _MOST_SAMPLED,
        num_heads=num_heads if heads is None else heads.num_all,
        share=attention.sample_ratio,
        **scene,
    )
    if heads is not None:
        patches = heads.of(patches, num_heads)
    return with_a_sample_of_the_rest(
        q,
        k,
        v,
        block_map,
        attend,
        block_q=attention.block_q,
        implementation="xla" if attention.implementation == "xla" else None,
        sample=(patches, *weights),
        first_patch=first_patch,
    )


def _special_tokens(x, of_scene):
    """Special tokens of a scene, if any, and of its frames [s special n h], one after the other."""
    x = x.reshape(-1, *x.shape[2:])
    return x if of_scene is None else jnp.concatenate([of_scene, x])


def _patches(x):
    """Patches of frames [s p n h], one after the other."""
    return _aligned(x.reshape(-1, *x.shape[2:]))


def _aligned(x):
    """Tokens and some of padding."""
    # Kernels want a multiple of 8 tokens; here that costs nothing.
    return jnp.pad(x, ((0, align(len(x)) - len(x)), (0, 0), (0, 0)))


def _lengths_of_blocks(num_keys, block_k, *, first_patch, num_special, num_patches):
    """How many tokens count in each block of keys: those of frames that do, in both parts."""
    starts = block_k * np.arange(count_blocks(num_keys, block_k), dtype=np.int32)
    ends = jnp.where(starts < first_patch, num_special, first_patch + num_patches)
    return jnp.clip(ends - starts, 0, block_k)


def _stats(
    selection,
    *,
    num_patch_blocks,
    num_frames,
    tokens_per_frame,
    num_special,
    num_of_scene,
    sampled_share,
    error,
    shards,
) -> AttentionStats:
    """What attention did to a scene, given what share of its patches was sampled, and the error."""
    block_map, p = selection.block_map, tokens_per_frame
    total = lambda x: x if shards is None else jax.lax.psum(x, shards.axis)
    live = jnp.sum(block_map.counts > 0, axis=-1, dtype=jnp.float32)
    num_live = jnp.maximum(total(live), 1.0)
    density = selection.density
    if shards is not None:
        density = total(density * live) / num_live
    highest = jnp.log(jnp.maximum(num_patch_blocks, 2).astype(jnp.float32))
    kept_pairs = total(jnp.sum(block_map.counts.astype(jnp.float32), axis=-1)) * (
        block_map.block_q * block_map.block_k
    )
    tokens = jnp.maximum(jnp.float32(num_frames * p + num_of_scene), 1.0)
    share_of_patches, share_of_special = (p - num_special) / p, num_special / p
    if num_of_scene:
        share_of_special = jnp.float32(num_of_scene + num_frames * num_special) / tokens
        share_of_patches = 1 - share_of_special
    done = kept_pairs / tokens**2 + sampled_share * share_of_patches**2 + share_of_special
    return AttentionStats(
        density=jnp.minimum(density + sampled_share * share_of_patches, 1.0),
        covered=total(jnp.sum(selection.retained_mass, axis=-1)) / num_live,
        saved=jnp.maximum(1 - done, 0.0),
        entropy=total(jnp.sum(selection.entropy, axis=-1)) / num_live / highest,
        error=jnp.full_like(selection.density, error),
    )
