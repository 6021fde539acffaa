"""VGGT: Visual Geometry Grounded Transformer (arXiv:2503.11651)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vggt_jax.heads.dpt import DPT, activate
from vggt_jax.images.resizing import Mode
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.shards import FrameShards
from vggt_jax.models.base import ModelTraits, Predicted
from vggt_jax.models.trunk_model import TrunkModel
from vggt_jax.models.vggt.config import VGGTConfig
from vggt_jax.models.vggt.heads.camera import CameraHead
from vggt_jax.models.vggt.heads.track import Tracker, TrackHead
from vggt_jax.models.vggt.outputs import VGGTOutput
from vggt_jax.scene.confidence import PointSource
from vggt_jax.trunk.alternation import TrunkOutput, kept_layers, run_trunk
from vggt_jax.trunk.frames import encode_frames
from vggt_jax.trunk.token_layout import TokenLayout


class VGGT(TrunkModel[VGGTOutput]):
    """VGGT with random parameters; `vggt_jax.load_model` reads trained ones.

    The first frame's camera is the world. Use it as an immutable pytree: pass it to functions under
    `jax.jit` as an argument.
    """

    output: ClassVar = VGGTOutput
    traits: ClassVar = ModelTraits(
        name="vggt",
        title="VGGT",
        resize_mode=VGGTConfig.resize_mode,
        confidence_kind="one_plus_exp",
        has_reference_frame=True,
        divides_frames=True,
        compute_type_modules=("encoder.", "frame_blocks.", "global_blocks."),
    )

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.embed_dim
        # Small at first, so that all frames start alike (official: vggt/models/aggregator.py).
        draw = lambda *shape: jax.random.normal(rngs.params(), shape, jnp.float32)
        normal = lambda *shape: nnx.Param(1e-6 * draw(*shape))
        self.camera_token = normal(2, 1, dim)
        self.register_token = normal(2, config.num_register_tokens, dim)
        self.encoder = config.encoder.make(rngs)
        self.frame_blocks, self.global_blocks = (config.trunk.make_blocks(rngs) for _ in range(2))
        camera = lambda: CameraHead(
            2 * dim,
            depth=config.camera_trunk_depth,
            num_heads=config.camera_num_heads,
            mlp_ratio=config.mlp_ratio,
            num_iterations=config.camera_iters,
            rngs=rngs,
        )
        dpt = lambda out_dim, features: DPT(
            2 * dim,
            patch_size=config.patch_size,
            features=features,
            out_channels=config.dpt_out_channels,
            layers=config.dpt_layers,
            out_dim=out_dim,
            rngs=rngs,
        )
        tracker = lambda: Tracker(
            config.track_features,
            config.track_hidden_size,
            num_heads=config.track_num_heads,
            num_virtual_tracks=config.track_num_virtual_tracks,
            corr_levels=config.track_corr_levels,
            corr_radius=config.track_corr_radius,
            depth=config.track_depth,
            num_iterations=config.track_iters,
            rngs=rngs,
        )
        track = lambda: TrackHead(dpt(None, config.track_features), tracker())
        self.camera_head = camera() if config.enable_camera else None
        self.depth_head = dpt(2, config.dpt_features) if config.enable_depth else None
        self.point_head = dpt(4, config.dpt_features) if config.enable_point else None
        self.track_head = track() if config.enable_track else None

    @property
    def pixel_centre(self) -> float:
        """See `Reconstruction.pixel_centre`."""
        return self.config.pixel_centre

    @property
    def resize_mode(self) -> Mode:
        """See `SceneModel`; that of the configuration."""
        return self.config.resize_mode

    @property
    def num_layers(self) -> int:
        """Layers of the trunk: pairs of a frame and a global block."""
        return self.config.depth

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers of the trunk that the heads read."""
        return kept_layers(self.config.dpt_layers, self.config.depth)

    @property
    def predicts(self) -> frozenset[Predicted]:
        """What this model has heads for."""
        heads: dict[Predicted, Any] = {
            "cameras": self.camera_head,
            "depth": self.depth_head,
            "points": self.point_head,
            "tracks": self.track_head,
        }
        return frozenset(name for name, head in heads.items() if head is not None)

    @property
    def smallest_tracked_side(self) -> int | None:
        """The least side of frames, in pixels, in which points can be tracked."""
        return None if self.track_head is None else self.track_head.tracker.smallest_image_side

    @property
    def num_dense_heads(self) -> int:
        """Heads with convolutions over whole images."""
        return sum(head is not None for head in (self.depth_head, self.point_head))

    @property
    def point_sources(self) -> tuple[PointSource, ...]:
        """Where a point cloud can come from, the best first: "depth" (and cameras) or "head"."""
        has_depth = {"depth", "cameras"} <= self.predicts
        sources: dict[PointSource, bool] = {"depth": has_depth, "head": "points" in self.predicts}
        return tuple(name for name, is_there in sources.items() if is_there)

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
        recompute: bool = False,
    ) -> TrunkOutput:
        """Adds the special tokens and runs the trunk.

        Args:
            taps: layers to keep; None for those that the heads read.
            shards: see `SceneAttention.attend`.
            recompute: for training, see `run_trunk`.
        """
        b, s = patch_tokens.shape[:2]
        # Index 0 is for the first frame, 1 for all others.
        special = jnp.concatenate([self.camera_token[...], self.register_token[...]], axis=1)
        first_or_other = np.minimum(np.arange(s, dtype=np.int32), 1)
        if shards is not None:
            first_or_other = jnp.minimum(shards.first(s) + first_or_other, 1)
        special = jnp.broadcast_to(special[first_or_other], (b, s, *special.shape[1:]))
        tokens = jnp.concatenate([special.astype(jnp.float32), patch_tokens], axis=2)
        return run_trunk(
            self.frame_blocks,
            self.global_blocks,
            tokens,
            layout=layout,
            taps=self.config.dpt_layers if taps is None else taps,
            attention=attention,
            num_frames=num_frames,
            precision=Precision.from_compute_dtype(compute_dtype),
            shards=shards,
            recompute=recompute,
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
        """The outputs of the heads that look at all frames together: cameras and tracks."""
        precision = Precision.from_compute_dtype(compute_dtype)
        outputs = {"attention_stats": trunk.attention_stats}
        if self.camera_head is not None:
            with jax.named_scope("camera_head"):
                encodings = self.camera_head(trunk.first_tokens, precision.heads, num_frames)
            outputs |= {"pose_enc": encodings[-1], "pose_enc_list": encodings}
        if query_points is not None:
            assert self.track_head is not None
            with jax.named_scope("track_head"):
                track, vis, conf = self.track_head(
                    trunk, layout, query_points, precision.heads, num_frames
                )
            outputs |= {"track": track, "vis": vis, "conf": conf}
        return outputs

    def decode_frames(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
    ) -> dict[str, Any]:
        """The outputs of the heads that look at every frame by itself: maps of depth and points."""
        precision = Precision.from_compute_dtype(compute_dtype)
        outputs = {}
        if self.depth_head is not None:
            with jax.named_scope("depth_head"):
                depth, conf = activate(self.depth_head(trunk, layout, precision.heads), "exp")
            outputs |= {"depth": depth, "depth_conf": conf}
        if self.point_head is not None:
            with jax.named_scope("point_head"):
                points, conf = activate(self.point_head(trunk, layout, precision.heads), "inv_log")
            outputs |= {"world_points": points, "world_points_conf": conf}
        return outputs

    def scene_fields(
        self, outputs: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The fields of a `Reconstruction` that some of the outputs give, or all of them."""
        return VGGTOutput(**outputs).scene(image_size)
