"""π³: Permutation-Equivariant Visual Geometry Learning (arXiv:2507.13347)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vggt_jax import geometry
from vggt_jax.heads.frame_decoder import FrameDecoder
from vggt_jax.layers.attention import Dense, Rope
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.rope import rope_tables
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.vit import IMAGE_MEAN, IMAGE_STD, VisionTransformer
from vggt_jax.models.base import ModelTraits, Predicted, TrunkModel
from vggt_jax.models.pi3.config import Pi3Config
from vggt_jax.models.pi3.heads.points import PixelHead, points_from_raw
from vggt_jax.models.pi3.heads.pose import PoseHead
from vggt_jax.models.pi3.outputs import Pi3Output
from vggt_jax.scene.confidence import PointSource
from vggt_jax.trunk.alternation import (
    TrunkOutput,
    frames_per_chunk,
    kept_layers,
    make_trunk_blocks,
    run_trunk,
)
from vggt_jax.trunk.frames import encode_and_aggregate, encode_frames
from vggt_jax.trunk.token_layout import TokenLayout


class Pi3(TrunkModel):
    """π³ with random parameters; `vggt_jax.load_model` reads trained ones.

    No frame is the reference: all have the same special tokens, so that frames in another order
    give the same results in that order. Use it as an immutable pytree: pass it to functions under
    `jax.jit` as an argument.
    """

    output: ClassVar = Pi3Output
    traits: ClassVar = ModelTraits(
        name="pi3",
        title="π³",
        resize_mode="budget",
        confidence_kind="sigmoid",
        has_reference_frame=False,
        compute_type_modules=(
            "encoder.",
            "frame_blocks.",
            "global_blocks.",
            "point_decoder.",
            "conf_decoder.",
            "camera_decoder.",
        ),
    )

    def __init__(self, config: Pi3Config, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.decoder_dim
        # Part of the checkpoint, unlike VGGT's.
        self.image_mean, self.image_std = (
            nnx.Param(jnp.array(values, jnp.float32)) for values in (IMAGE_MEAN, IMAGE_STD)
        )
        # Small at first (official file: pi3/models/pi3.py).
        shape = (config.num_register_tokens, dim)
        registers = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.register_token = nnx.Param(1e-6 * registers)
        self.encoder = VisionTransformer(
            img_size=config.img_size,
            patch_size=config.patch_size,
            dim=config.encoder_dim,
            depth=config.encoder_depth,
            num_heads=config.encoder_num_heads,
            mlp_ratio=config.mlp_ratio,
            num_register_tokens=config.encoder_num_register_tokens,
            rngs=rngs,
        )
        self.frame_blocks, self.global_blocks = (
            make_trunk_blocks(
                dim,
                config.decoder_num_heads,
                config.mlp_ratio,
                config.decoder_depth // 2,
                norm_eps=1e-6,
                layer_scale=0.01,
                rngs=rngs,
            )
            for _ in range(2)
        )
        decoder = lambda out_dim: FrameDecoder(
            2 * dim,
            config.head_dim,
            out_dim,
            depth=config.head_depth,
            num_heads=config.head_num_heads,
            mlp_ratio=config.mlp_ratio,
            rngs=rngs,
        )
        pixels = lambda out_dim: PixelHead(
            config.head_dim, out_dim, patch_size=config.patch_size, rngs=rngs
        )
        self.point_decoder, self.point_head = decoder(config.head_dim), pixels(3)
        self.conf_decoder, self.conf_head = decoder(config.head_dim), pixels(1)
        self.camera_decoder = decoder(config.camera_dim)
        self.camera_head = PoseHead(config.camera_dim, rngs=rngs)

    pixel_centre = 0.5  # see `Reconstruction.pixel_centre`
    predicts: frozenset[Predicted] = frozenset({"cameras", "depth", "points"})
    smallest_tracked_side = None

    @property
    def num_layers(self) -> int:
        """Layers of the trunk: pairs of a frame and a global block."""
        return self.config.decoder_depth // 2

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers of the trunk that the heads read."""
        return kept_layers((), self.num_layers)

    @property
    def point_sources(self) -> tuple[PointSource, ...]:
        """Where a point cloud can come from, the best first: "head" or "depth"."""
        return ("head", "depth")

    def __call__(
        self,
        images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
        *,
        query_points: Float[Array, "b m 2"] | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> Pi3Output:
        """Predicts cameras, points and their confidence.

        Args:
            images: RGB, float in [0, 1] or uint8; sides are multiples of the patch size.
            query_points: must be None, since π³ tracks no points.
            attention: how the tokens of all frames attend to each other: `Dense()`,
                `Sampled(...)` or `BlockSparse(...)`. Layer `i` of the latter is block `2 i + 1` of
                the official decoder.
            num_frames: how many leading frames of each scene count, from 1; the others are
                padding, which changes no output of the valid frames. None: all.
            compute_dtype: of matrix products. `float32` runs at the highest precision; `bfloat16`
                accumulates in float32, and heads run in float32; None is bfloat16 on a GPU.

        Raises:
            ValueError: shapes or types do not fit; query points were given.
        """
        if query_points is not None:
            raise ValueError("query_points were given, but π³ has no track head")
        layout = self.layout(images)
        trunk = encode_and_aggregate(
            self,
            images,
            attention=attention,
            num_frames=num_frames,
            compute_dtype=compute_dtype,
        )
        return self.decode(trunk, layout, attention=attention, compute_dtype=compute_dtype)

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
    ) -> TrunkOutput:
        """Adds the special tokens and runs the trunk, the official decoder.

        Args:
            taps: layers (pairs of a frame and a global block) to keep beside the last; None for no
                others.
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
        )

    def decode_scene(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        query_points: Float[Array, "b m 2"] | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> dict[str, Any]:
        """The outputs that are of all frames together: no head looks at more than one."""
        return {"attention_stats": trunk.attention_stats}

    def decode_frames(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
    ) -> dict[str, Any]:
        """The outputs of the heads, which look at every frame by itself: cameras and maps."""
        precision = Precision.from_compute_dtype(compute_dtype)
        dense, heads = attention.within_frames, precision.heads
        head_dim = self.config.head_dim // self.config.head_num_heads
        rope = Rope(*rope_tables(layout.positions(), head_dim))

        def over_frames(name, decoder, head):
            """What a head makes of the decoded patches of every frame, a chunk at a time."""

            def run(kept):
                tokens = decoder(kept[:, :, -1], rope, dense, precision)
                return head(tokens[:, :, layout.num_special :])

            with jax.named_scope(name):
                b, s = trunk.kept.shape[:2]
                max_chunk = frames_per_chunk(b, s, layout.tokens_per_frame)
                return map_chunks(run, trunk.kept, axis=1, max_chunk=max_chunk)

        camera_poses = over_frames(
            "camera_head", self.camera_decoder, lambda tokens: self.camera_head(tokens, heads)
        )
        conf = over_frames(
            "conf_head", self.conf_decoder, lambda tokens: self.conf_head(tokens, layout, heads)
        )
        local_points = over_frames(
            "point_head",
            self.point_decoder,
            lambda tokens: points_from_raw(self.point_head(tokens, layout, heads)),
        )
        return {
            "points": geometry.transform_point_maps(local_points, camera_poses),
            "local_points": local_points,
            "conf": conf,
            "camera_poses": camera_poses,
        }

    def scene_fields(
        self, outputs: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The fields of a `Reconstruction` that the outputs of all frames together, those of each
        frame, or both give."""
        if "local_points" not in outputs:
            return {"attention_stats": outputs["attention_stats"]}
        return Pi3Output(**outputs).scene()
