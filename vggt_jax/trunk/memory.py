"""What the trunk takes on the device, from the arrays that are alive together."""

import dataclasses
from collections.abc import Collection

from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.trunk.alternation import frames_per_chunk, kept_layers
from vggt_jax.trunk.frames import decoded_together
from vggt_jax.trunk.head_groups import heads_at_a_time
from vggt_jax.trunk.token_layout import TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """A forward pass of one scene, as far as its memory depends on it.

    Attributes:
        layout: of the tokens of a frame.
        num_frames: frames of the scene that a device has.
        pixels: of a frame.
        num_query_points: points that are tracked.
        precision: of its products.
        attention: over all frames.
        known: what is known of the scene, kinds of priors (`scene.priors.PriorKind`).
        num_devices: that divide the frames of the scene.
    """

    layout: TokenLayout
    num_frames: int
    pixels: int
    num_query_points: int
    precision: Precision
    attention: SceneAttention
    known: Collection[str] = ()
    num_devices: int = 1

    @property
    def frames_per_chunk(self) -> int:
        """Frames that run together where frames run by themselves."""
        tokens = self.layout.tokens_per_frame
        return frames_per_chunk(1, self.num_frames, tokens, num_devices=self.num_devices)

    @property
    def decoded_frames(self) -> int:
        """Frames whose maps run together in a head with convolutions over whole images."""
        return min(self.num_frames, decoded_together(self.pixels, self.num_devices))


def trunk_memory(
    forward: ForwardPass,
    *,
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    taps: tuple[int, ...],
    keeps_both: bool = True,
) -> dict[str, int]:
    """Bytes of the tokens that are kept and of the temporaries while the trunk runs.

    The terms mirror `trunk/alternation.py`.

    Args:
        dim, num_heads, mlp_ratio: of the blocks.
        depth: number of layers, pairs of a frame and a global block.
        taps: layers that heads read beside the last.
        keeps_both: see `Alternation`.
    """
    wide = forward.precision.compute_dtype.itemsize
    num_frames, layout, attention = forward.num_frames, forward.layout, forward.attention
    tokens = num_frames * layout.tokens_per_frame
    stream = 4 * tokens * dim
    patches = layout.rows * layout.columns
    all_tokens = forward.num_devices * tokens

    def extra(value: SceneAttention, heads: int) -> int:
        return value.extra_bytes(
            num_frames=num_frames,
            num_special=layout.num_special,
            num_patches=patches,
            num_heads=heads,
            head_dim=dim // num_heads,
            itemsize=wide,
            num_devices=forward.num_devices,
        )

    values = set(
        attention.for_scene(
            depth,
            num_tokens=all_tokens,
            num_patches=forward.num_devices * num_frames * patches,
        )
    )
    in_groups = [x for x in values if forward.num_devices > 1 and x.gathers_keys]
    at_once = [x for x in values if x not in in_groups]
    group_attention = 0
    if in_groups:
        own_bytes = 2 * wide * tokens * dim
        heads = heads_at_a_time(num_heads, own_bytes=own_bytes)
        groups = min(2, num_heads // heads)
        # Normalised tokens and results of all heads; queries of two groups, keys and values of the
        # next, in float32 queries and keys once more, before they are normalised and turned; and of
        # both groups keys and values of all devices.
        projected = (4 if wide == 2 else 6) * wide * tokens * dim * heads // num_heads
        gathered = groups * forward.num_devices * own_bytes * heads // num_heads
        group_attention = (1 + 1) * wide * tokens * dim + projected + gathered
        group_attention += max(extra(x, heads) for x in in_groups)
    before_attention = during_attention = 0
    if not at_once:
        pass
    elif wide == 2:
        # Normalised tokens; queries, keys and values, each turned before the next; and one more,
        # which the compiler needs less or more by how it lays out the others.
        before_attention = (1 + 3 + 1) * wide * tokens * dim
        # Queries, keys, values; the results of attention; and what attention needs besides.
        during_attention = (3 + 1) * wide * tokens * dim + max(extra(x, num_heads) for x in at_once)
    else:
        # Normalised tokens; queries, keys and values; queries and keys once more, normalised and
        # turned.
        before_attention = (1 + 3 + 2) * wide * tokens * dim
        # Queries, keys, values; the results of attention as computed and in the order of the
        # tokens.
        during_attention = (3 + 2) * wide * tokens * dim + max(extra(x, num_heads) for x in at_once)
    chunk_tokens = forward.frames_per_chunk * layout.tokens_per_frame
    after_attention = wide * dim * (tokens + 2 * mlp_ratio * chunk_tokens)
    kept_width = 2 * dim if keeps_both else dim
    return {
        "kept_tokens": wide * len(kept_layers(taps, depth)) * tokens * kept_width,
        "trunk": int(
            stream + max(before_attention, during_attention, group_attention, after_attention)
        ),
    }
