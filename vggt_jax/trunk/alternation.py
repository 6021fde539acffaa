"""The trunk: blocks that alternate between attention within a frame and over all frames."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels import tuned
from vggt_jax.layers.attention import Rope
from vggt_jax.layers.block import Block, FfnKind, stack_modules
from vggt_jax.layers.chunking import update_chunks
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.rope import rope_tables
from vggt_jax.layers.scene_attention import AttentionStats, SceneAttention, SceneTokens
from vggt_jax.layers.shards import FrameShards
from vggt_jax.trunk.head_groups import attention_on_devices
from vggt_jax.trunk.token_layout import TokenLayout

AfterLayer: TypeAlias = Callable[[Array, Array, np.ndarray], Array]
"""What `run_trunk` calls after each layer: with tokens [b s p c], of which it returns the next, the
number of the layer, and the positions [p 2] of the tokens of a frame (see `TokenLayout`); tokens
beyond those are padding."""

# From how many tokens on a layer that no head reads is not written: the host waits at a branch.
MIN_TOKENS_TO_BRANCH = 16384


def frames_per_chunk(
    num_scenes: int,
    num_frames: int,
    tokens_per_frame: int,
    tokens_per_chunk: int | None = None,
    *,
    num_devices: int = 1,
) -> int:
    """How many frames of each scene make a chunk of what runs frame by frame, at most.

    Args:
        tokens_per_chunk: the limit; None for the tuned one.
        num_devices: that divide the frames: of several, each has its share of the limit, and half
            of that, because attention by groups of heads needs little more besides.
    """
    limit = tokens_per_chunk
    if limit is None:
        limit = tuned.value("trunk.tokens_per_chunk")
    if num_devices > 1:
        limit //= 2 * num_devices
    of_limit = limit // (num_scenes * tokens_per_frame)
    return min(num_frames, max(1, of_limit))


def make_trunk_blocks(
    dim: int,
    num_heads: int,
    mlp_ratio: float,
    depth: int,
    *,
    norm_eps: float,
    layer_scale: float | None,
    qk_norm: bool = True,
    ffn: FfnKind = "mlp",
    rngs: nnx.Rngs,
) -> Block:
    """`depth` stacked blocks; the arguments are those of `Block`."""
    make = lambda rngs: Block(
        dim,
        num_heads,
        mlp_ratio,
        norm_eps=norm_eps,
        layer_scale=layer_scale,
        qk_norm=qk_norm,
        ffn=ffn,
        rngs=rngs,
    )
    return stack_modules(make, depth, rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternation:
    """In what the trunks of models differ, whatever their sizes.

    Attributes:
        global_first: whether the global block of a layer runs before its frame block.
        keeps_both: whether the output of both blocks of a layer is kept, side by side in the order
            in which they run; else that of the layer alone.
        has_rope: whether queries and keys are turned by their position in the picture.
        patches_alike: whether all patches have the position of the first one where tokens see those
            of all frames.
    """

    global_first: bool = False
    keeps_both: bool = True
    has_rope: bool = True
    patches_alike: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkOutput:
    """What the heads read.

    `c2` is the trunk's width where the output of a layer is kept alone, and twice as much where
    that of both of its blocks is (`Alternation.keeps_both`).

    Attributes:
        kept: tokens after the layers in `layers`, in the compute type. One array, because heads
            read a few frames of it at a time and nothing is to copy it whole.
        layers: the layers kept, ascending; the last one always among them.
        first_tokens: the first token of every frame after the last layer, float32.
        encoded: tokens of the encoder, special ones included, in the compute type, of a model whose
            heads read them.
        scene_tokens: tokens of the scene as a whole after each layer, float32, of a model that has
            some.
        attention_stats: of attention that is not dense; None if all of it is.
    """

    kept: Float[Array, "b s l p c2"]
    layers: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    first_tokens: Float[Array, "b s c2"]
    encoded: Float[Array, "b s p d"] | None = None
    scene_tokens: Float[Array, "b all e c"] | None = None
    attention_stats: AttentionStats | None = None

    def tap(self, layer: int) -> Float[Array, "b s p c2"]:
        """Tokens after one of the layers kept."""
        return self.kept[:, :, self.layers.index(layer)]

    def parts(self) -> tuple[dict[str, Array | None], dict[str, Any]]:
        """The arrays of frames, and what is of scenes, by their names."""
        names = ("scene_tokens", "attention_stats")
        of_frames = {x: y for x, y in vars(self).items() if x not in ("layers", *names)}
        return of_frames, {name: getattr(self, name) for name in names}

    def of_frames(self, take: Callable[[Array], Array]) -> "TrunkOutput":
        """The same of some frames.

        Args:
            take: applied to every array of all frames, [b s ...].
        """
        return dataclasses.replace(
            self,
            kept=take(self.kept),
            first_tokens=take(self.first_tokens),
            encoded=None if self.encoded is None else take(self.encoded),
        )


def kept_layers(taps: Collection[int], depth: int) -> tuple[int, ...]:
    """The layers that `run_trunk` keeps: the last one always among them."""
    return tuple(sorted({*taps, depth - 1}))


def run_trunk(
    frame_blocks: Block,
    global_blocks: Block,
    tokens: Float[Array, "b s p c"],
    *,
    layout: TokenLayout,
    taps: Collection[int],
    attention: SceneAttention,
    num_frames: Int[Array, " b"] | None,
    precision: Precision,
    alternation: Alternation = Alternation(),
    scene_tokens: Float[Array, "b e c"] | None = None,
    lead_block: Block | None = None,
    after_layer: AfterLayer | None = None,
    shards: FrameShards | None = None,
    recompute: bool = False,
    tokens_per_chunk: int | None = None,
    min_tokens_to_branch: int = MIN_TOKENS_TO_BRANCH,
) -> TrunkOutput:
    """Runs pairs of a frame and a global block, in this order or the other, and keeps the output of
    the tapped pairs only.

    Args:
        frame_blocks, global_blocks: stacked blocks of equal number.
        tokens: float32.
        taps: layers (pairs) to keep.
        num_frames: valid leading frames of each scene, the others are hidden from them.
        scene_tokens: tokens of each scene as a whole, float32: they go through the global blocks.
        lead_block: a global block that runs first, a layer by itself, before those that are pairs;
            None for none.
        after_layer: what changes the tokens once more at the end of each layer; None for nothing.
        shards: how the frames of scenes are divided over devices; `tokens` are those of this one,
            and `num_frames` counts those of all. None where this one has all.
        recompute: whether a backward pass computes each block again instead of keeping its
            intermediate values.
        tokens_per_chunk: what runs frame by frame is cut into chunks of so many tokens at most;
            None for the tuned one.
        min_tokens_to_branch: from how many tokens on a layer that is not kept is not written.
    """
    b, s, p, c = tokens.shape
    num_leading = int(lead_block is not None)
    depth = num_leading + frame_blocks.norm1.scale.shape[0]
    if taps and not 0 <= min(taps) <= max(taps) < depth:
        raise ValueError(f"{taps=} must be layers of the trunk, in [0, {depth})")
    dense = attention.within_frames
    grid = (layout.rows, layout.columns)
    frames = s if shards is None else s * shards.num
    size = {"num_tokens": frames * p, "num_patches": frames * grid[0] * grid[1]}
    distinct, branch_of_layer = attention.branches(depth, **size)
    if distinct == [dense]:
        attention = dense
    # The patches of a frame change places here, and change back wherever they are kept.
    order = layout.order(attention.token_order).astype(np.int32)
    moved = not np.array_equal(order, np.arange(p))
    tokens = tokens[:, :, order] if moved else tokens
    positions = layout.positions()[order]
    rope = global_rope = None
    if alternation.has_rope:
        tables = lambda positions: Rope(*rope_tables(positions, c // frame_blocks.attn.num_heads))
        rope = tables(positions)
        if alternation.patches_alike:
            global_rope = tables(np.minimum(positions, 1))
            _, global_rope = frame_blocks.pad_tokens(tokens, global_rope, dense, precision)
    tokens, rope = frame_blocks.pad_tokens(tokens, rope, dense, precision)
    global_rope = global_rope or rope
    num_devices = 1 if shards is None else shards.num
    chunk = frames_per_chunk(b, s, p, tokens_per_chunk, num_devices=num_devices)

    def frame_layer(block: Block, x):
        run = lambda x: block.within_frames(x, rope, dense, precision, num_valid=p)
        return update_chunks(run, x, axis=1, max_chunk=chunk)

    def branch_of(setting: SceneAttention) -> Callable[..., Any]:
        attend = functools.partial(
            setting.attend,
            num_special=layout.num_special,
            grid=grid,
            token_order=attention.token_order,
            num_frames=num_frames,
            precision=precision,
            shards=shards,
        )
        if shards is not None:
            return attention_on_devices(
                setting,
                attend,
                rope=global_rope,
                shards=shards,
                num_tokens=layout.num_special + grid[0] * grid[1],
                precision=precision,
                implementation=dense.around,
            )
        return lambda q, k, v, layer, scene: attend(q, k, v, layer=layer, scene=scene)

    branches = [branch_of(setting) for setting in distinct]

    def global_layer(block: Block, x, of_scene, branch, index):
        before = functools.partial(block.before, precision=precision, implementation=dense.around)
        # Several devices make queries, keys and values of some heads at a time.
        operands: tuple[Any, ...] = (
            before(x, global_rope) if shards is None else (block, block.norm1(x))
        )
        scene = None if of_scene is None else SceneTokens(*before(of_scene, None))
        attended, scene_attended, stats = (
            branches[0](*operands, index, scene)
            if len(branches) == 1
            else jax.lax.switch(branch, branches, *operands, index, scene)
        )
        after = lambda x, attended: block.after(x, attended, precision, implementation=dense.around)
        if of_scene is not None:
            of_scene = after(of_scene, scene_attended)
        return update_chunks(after, x, attended, axis=1, max_chunk=chunk), of_scene, stats

    if recompute:
        frame_layer, global_layer = jax.checkpoint(frame_layer), jax.checkpoint(global_layer)

    # One buffer, updated in place. Few tokens are written without a branch, by a layer that is not
    # kept to the place of the next one that is.
    layers = kept_layers(taps, depth)
    is_kept_layer = np.isin(np.arange(depth), layers)
    place_of_layer = np.searchsorted(layers, np.arange(depth)).astype(np.int32)
    width = 2 * c if alternation.keeps_both else c
    kept = jnp.zeros((b, s, len(layers), p, width), precision.compute_dtype)

    zero = np.int32(0)  # JAX's default integers may be wider than `place`.

    def keep(kept, x, is_kept, place, offset):
        def write(kept, x):
            with jax.named_scope("trunk/keep"):
                x = x[:, :, np.argsort(order).astype(np.int32)] if moved else x[:, :, :p]
                x = x.astype(kept.dtype)[:, :, None]
                start = (zero, zero, place, zero, np.int32(offset))
                return jax.lax.dynamic_update_slice(kept, x, start)

        if b * s * p < min_tokens_to_branch:
            return write(kept, x)
        return jax.lax.cond(is_kept, write, lambda kept, x: kept, kept, x)

    def layer(carry, inputs):
        x, of_scene, kept = carry
        frame_block, global_block, (is_kept, place), branch, index = inputs
        stats = None

        def run(kind, x, of_scene, stats):
            with jax.named_scope(f"trunk/{kind}"):
                if kind == "frame":
                    return frame_layer(frame_block, x), of_scene, stats
                return global_layer(global_block, x, of_scene, branch, index)

        first, second = ("global", "frame") if alternation.global_first else ("frame", "global")
        x, of_scene, stats = run(first, x, of_scene, stats)
        firsts = []
        if alternation.keeps_both:
            kept = keep(kept, x, is_kept, place, 0)
            firsts = [x[:, :, 0]]
        # The stream is updated in place from here on, so what reads it comes before.
        x, kept, firsts = jax.lax.optimization_barrier((x, kept, firsts))
        x, of_scene, stats = run(second, x, of_scene, stats)
        if after_layer is not None:
            with jax.named_scope("trunk/after"):
                x = after_layer(x, index, positions)
        kept = keep(kept, x, is_kept, place, width - c)
        firsts = jnp.concatenate([*firsts, x[:, :, 0]], axis=-1)
        return (x, of_scene, kept), (firsts, of_scene, stats)

    lead_stats = None
    if lead_block is not None:
        place = (jnp.asarray(is_kept_layer[0]), jnp.asarray(place_of_layer[0]))
        if alternation.keeps_both:
            kept = keep(kept, tokens, *place, 0)
        with jax.named_scope("trunk/global"):
            tokens, scene_tokens, lead_stats = global_layer(
                lead_block, tokens, scene_tokens, jnp.asarray(branch_of_layer[0]), jnp.int32(0)
            )
        kept = keep(kept, tokens, *place, width - c)

    (_, _, kept), (firsts, of_scene, stats) = jax.lax.scan(
        layer,
        (tokens, scene_tokens, kept),
        (
            frame_blocks,
            global_blocks,
            (jnp.asarray(is_kept_layer[num_leading:]), jnp.asarray(place_of_layer[num_leading:])),
            jnp.asarray(branch_of_layer[num_leading:]),
            jnp.arange(num_leading, depth, dtype=jnp.int32),
        ),
    )
    if lead_stats is not None:
        stats = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), lead_stats, stats)
    of_scene, by_scene = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (of_scene, stats))
    return TrunkOutput(
        kept=kept,
        layers=layers,
        first_tokens=firsts[-1],
        scene_tokens=of_scene,
        attention_stats=None if attention == dense else by_scene,
    )
