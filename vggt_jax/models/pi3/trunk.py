"""What π³ and Pi3X have in common: encoder, trunk, and heads that look at a frame alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vggt_jax.heads.frame_decoder import FrameDecoder
from vggt_jax.layers.attention import Dense, Rope
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.rope import rope_tables
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.shards import FrameShards
from vggt_jax.layers.vit import IMAGE_MEAN, IMAGE_STD
from vggt_jax.models.base import Predicted
from vggt_jax.models.pi3.config import Pi3Fields
from vggt_jax.models.trunk_model import Output, TrunkModel
from vggt_jax.scene.confidence import PointSource
from vggt_jax.trunk.alternation import (
    AfterLayer,
    TrunkOutput,
    frames_per_chunk,
    kept_layers,
    run_trunk,
)
from vggt_jax.trunk.frames import encode_frames
from vggt_jax.trunk.token_layout import TokenLayout


class Pi3Trunk(TrunkModel[Output]):
    """Encoder and trunk with the parameters of π³; heads are up to the model."""

    pixel_centre = 0.5  # see `Reconstruction.pixel_centre`
    predicts: frozenset[Predicted] = frozenset({"cameras", "depth", "points"})

    def __init__(self, config: Pi3Fields, *, rngs: nnx.Rngs):
        self.config = config
        # Part of the checkpoint, unlike VGGT's.
        self.image_mean, self.image_std = (
            nnx.Param(jnp.array(values, jnp.float32)) for values in (IMAGE_MEAN, IMAGE_STD)
        )
        # Small at first (official file: pi3/models/pi3.py).
        shape = (config.num_register_tokens, config.decoder_dim)
        registers = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.register_token = nnx.Param(1e-6 * registers)
        self.encoder = config.encoder.make(rngs)
        self.frame_blocks, self.global_blocks = (config.trunk.make_blocks(rngs) for _ in range(2))

    def make_decoder(self, out_dim: int, rngs: nnx.Rngs) -> FrameDecoder:
        """The decoder of a head."""
        config = self.config
        return FrameDecoder(
            2 * config.decoder_dim,
            config.head_dim,
            out_dim,
            depth=config.head_depth,
            num_heads=config.head_num_heads,
            mlp_ratio=config.mlp_ratio,
            rngs=rngs,
        )

    @property
    def num_layers(self) -> int:
        """Layers of the trunk: pairs of a frame and a global block."""
        return self.config.trunk.depth

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers of the trunk that the heads read."""
        return kept_layers((), self.num_layers)

    @property
    def point_sources(self) -> tuple[PointSource, ...]:
        """Where a point cloud can come from, the best first: "head" or "depth"."""
        return ("head", "depth")

    def encode(
        self,
        images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
    ) -> Float[Array, "b s p c"]:
        """Encodes every frame by itself: normalised tokens of its patches, float32."""
        return encode_frames(
            self.encoder,
            images,
            self.layout(images),
            dense=attention.within_frames,
            precision=Precision.from_compute_dtype(compute_dtype),
            mean=self.image_mean[...],
            std=self.image_std[...],
        )

    def aggregate(
        self,
        patch_tokens: Float[Array, "b s p c"],
        layout: TokenLayout,
        *,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        taps: tuple[int, ...] | None = None,
        compute_dtype: DTypeLike | None = None,
        shards: FrameShards | None = None,
        after_layer: AfterLayer | None = None,
    ) -> TrunkOutput:
        """Adds the special tokens and runs the trunk, the official decoder.

        Args:
            taps: layers (pairs of a frame and a global block) to keep beside the last; None for no
                others.
            shards: see `SceneAttention.attend`.
            after_layer: see `run_trunk`.
        """
        special = self.register_token[...].astype(jnp.float32)
        special = jnp.broadcast_to(special, (*patch_tokens.shape[:2], *special.shape))
        return run_trunk(
            self.frame_blocks,
            self.global_blocks,
            jnp.concatenate([special, patch_tokens], axis=2),
            layout=layout,
            taps=() if taps is None else taps,
            attention=attention,
            num_frames=num_frames,
            precision=Precision.from_compute_dtype(compute_dtype),
            shards=shards,
            after_layer=after_layer,
        )

    def over_frames(
        self,
        name: str,
        trunk: TrunkOutput,
        layout: TokenLayout,
        decoder: FrameDecoder,
        head: Callable[[Array], Any],
        *,
        dense: Dense,
        precision: Precision,
    ) -> Any:
        """What a head makes of the decoded patches of every frame, a chunk at a time.

        Args:
            head: from tokens [b s p d] of patches.
        """
        head_dim = self.config.head_dim // self.config.head_num_heads
        rope = Rope(*rope_tables(layout.positions(), head_dim))

        def run(kept):
            tokens = decoder(kept[:, :, -1], rope, dense, precision)
            return head(tokens[:, :, layout.num_special :])

        with jax.named_scope(name):
            b, s = trunk.kept.shape[:2]
            max_chunk = frames_per_chunk(b, s, layout.tokens_per_frame)
            return map_chunks(run, trunk.kept, axis=1, max_chunk=max_chunk)
