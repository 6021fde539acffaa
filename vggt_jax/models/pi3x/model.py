"""Pi3X: π³ that takes what is already known of cameras and depth, and answers in metres."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vggt_jax import geometry
from vggt_jax.heads.conv_head import ConvHead
from vggt_jax.heads.pixels import points_from_raw
from vggt_jax.heads.pose import PoseHead
from vggt_jax.layers.attention import Dense, Rope
from vggt_jax.layers.linear import Conv, Linear
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.rope import rope_tables
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.shards import FrameShards
from vggt_jax.layers.vit import embed_patches
from vggt_jax.models.base import ModelTraits
from vggt_jax.models.pi3.trunk import Pi3Trunk
from vggt_jax.models.pi3x.config import Pi3XConfig
from vggt_jax.models.pi3x.injection import PoseInjection
from vggt_jax.models.pi3x.metric import ContextDecoder
from vggt_jax.models.pi3x.outputs import Pi3XOutput, scene_of
from vggt_jax.models.pi3x.prompts import Prompts
from vggt_jax.scene.priors import PriorKind, Priors
from vggt_jax.trunk.alternation import TrunkOutput, frames_per_chunk
from vggt_jax.trunk.frames import encode_frames
from vggt_jax.trunk.token_layout import TokenLayout

_LARGEST_LOG_DEPTH = 15.0  # official file: pi3/models/pi3x.py
_SMALLEST_LENGTH = 1e-12  # torch.nn.functional.normalize


class Pi3X(Pi3Trunk[Pi3XOutput]):
    """Pi3X with random parameters; `vggt_jax.load_model` reads trained ones.

    No frame is the reference: all have the same special tokens. It tracks no points. Layer `i` of
    attention over all frames is block `2 i + 1` of the official decoder; attention that shows known
    poses is dense always.

    Known lengths are divided by their scale, so that only ratios of lengths count, whatever their
    unit; `Prompts.of_priors` says how. The pose of a single frame says nothing.

    Use it as an immutable pytree: pass it to functions under `jax.jit` as an argument.
    """

    output: ClassVar = Pi3XOutput
    traits: ClassVar = ModelTraits(
        name="pi3x",
        title="Pi3X",
        resize_mode="budget",
        confidence_kind="sigmoid",
        has_reference_frame=False,
        divides_frames=True,
        compute_type_modules=(
            "encoder.",
            "depth_encoder.",
            "ray_embed.",
            "pose_injection.",
            "frame_blocks.",
            "global_blocks.",
            "point_decoder.",
            "conf_decoder.",
            "camera_decoder.",
            "metric_decoder.",
        ),
        takes=("intrinsics", "rays", "poses", "depth"),
        prior_modules=(
            ("intrinsics", "ray_embed."),
            ("rays", "ray_embed."),
            ("poses", "pose_injection."),
            ("depth", "depth_encoder."),
        ),
        length_unit="metres",
        frames_read=("metric",),
    )

    def __init__(self, config: Pi3XConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c, dim = config, config.decoder_dim
        self.depth_encoder = c.depth_encoder.make(rngs)
        self.depth_emb = nnx.Param(jnp.zeros(dim, jnp.float32))
        self.ray_embed = Conv(2, dim, c.patch_size, rngs=rngs)
        self.pose_injection = PoseInjection(c.pose_injection.make_blocks(rngs))
        conv_head = lambda *out_dims: ConvHead(
            c.head_dim,
            out_dims,
            patch_size=c.patch_size,
            stage_dims=c.conv_upsample_dims,
            hidden_ratio=c.conv_hidden_ratio,
            units_per_stage=c.conv_res_blocks,
            last_dim=c.conv_last_channels,
            rngs=rngs,
        )
        self.point_decoder = self.make_decoder(c.head_dim, rngs)
        self.point_head = conv_head(2, 1)
        self.conf_decoder = self.make_decoder(c.head_dim, rngs)
        self.conf_head = conv_head(1)
        self.camera_decoder = self.make_decoder(c.camera_dim, rngs)
        self.camera_head = PoseHead(c.camera_dim, rngs=rngs)
        # Small at first (official file: pi3/models/pi3x.py).
        token = jax.random.normal(rngs.params(), (1, 2 * dim), jnp.float32)
        self.metric_token = nnx.Param(1e-6 * token)
        self.metric_decoder = ContextDecoder(
            2 * dim,
            c.metric_dim,
            depth=c.metric_depth,
            num_heads=c.metric_num_heads,
            mlp_ratio=c.mlp_ratio,
            rngs=rngs,
        )
        self.metric_head = Linear(c.metric_dim, 1, rngs=rngs)

    @property
    def num_dense_heads(self) -> int:
        """Heads with convolutions over whole images, which take long."""
        return 2

    def num_prior_layers(self, known: Collection[PriorKind]) -> int:
        """Layers of dense attention over the patches of all frames that show what is known."""
        return len(self.config.pose_inject_layers) if "poses" in known else 0

    def encode(
        self,
        images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
        priors: Priors | None = None,
        shards: FrameShards | None = None,
    ) -> Float[Array, "b s p c"]:
        """Encodes every frame by itself, with known rays and depth: tokens of its patches, float32.

        Without priors tokens are normalised.

        Args:
            shards: see `SceneAttention.attend`.
        """
        tokens = super().encode(images, attention=attention, compute_dtype=compute_dtype)
        if priors is None:
            return tokens
        prompts = Prompts.of_priors(priors, images, shards)
        options: dict[str, Any] = {"attention": attention, "compute_dtype": compute_dtype}
        for shown, embedded in (
            (prompts.rays_shown, self.embed_rays(prompts, **options)),
            (prompts.depth_shown, self.embed_depth(prompts, **options)),
        ):
            if shown is not None and embedded is not None:
                zero = jnp.zeros((), jnp.float32)
                tokens = tokens + jnp.where(shown[..., None, None], embedded, zero)
        return tokens

    def embed_rays(
        self, prompts: Prompts, *, attention: SceneAttention, compute_dtype: DTypeLike | None
    ) -> Float[Array, "b s p c"] | None:
        """What is added to the tokens of patches for known rays, float32; None without any."""
        del attention
        if prompts.rays is None:
            return None
        flat = prompts.rays.reshape(-1, *prompts.rays.shape[2:])
        precision = Precision.from_compute_dtype(compute_dtype)
        tokens = embed_patches(self.ray_embed, flat, precision)
        return tokens.reshape(*prompts.rays.shape[:2], *tokens.shape[1:])

    def embed_depth(
        self, prompts: Prompts, *, attention: SceneAttention, compute_dtype: DTypeLike | None
    ) -> Float[Array, "b s p c"] | None:
        """What is added to the tokens of patches for known depth, float32; None without any."""
        if prompts.depth is None:
            return None
        height, width = prompts.depth.shape[2:4]
        layout = TokenLayout.for_images(
            height, width, self.config.patch_size, self.config.num_special_tokens
        )
        tokens = encode_frames(
            self.depth_encoder,
            prompts.depth,
            layout,
            dense=attention.within_frames,
            precision=Precision.from_compute_dtype(compute_dtype),
            mean=(0.0, 0.0),
            std=(1.0, 1.0),
        )
        return tokens + self.depth_emb[...].astype(jnp.float32)[None, None, None]

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
        priors: Priors | None = None,
    ) -> TrunkOutput:
        """Adds the special tokens and runs the trunk, which known poses are shown to.

        Args:
            taps: layers (pairs of a frame and a global block) to keep beside the last; None for no
                others.
            shards: see `SceneAttention.attend`.
        """
        after_layer = None
        if priors is not None and priors.camera_from_world is not None:
            after_layer = self._show_poses(
                priors, patch_tokens.shape[:2], layout, attention, compute_dtype, shards
            )
        return super().aggregate(
            patch_tokens,
            layout,
            attention=attention,
            num_frames=num_frames,
            taps=taps,
            compute_dtype=compute_dtype,
            shards=shards,
            after_layer=after_layer,
        )

    def _show_poses(self, priors, frames, layout, attention, compute_dtype, shards):
        """What shows known poses to the trunk, after those layers that have a block for it."""
        side = self.config.patch_size
        size = (layout.rows * side, layout.columns * side)
        num_scenes, num_frames = frames
        images = jax.ShapeDtypeStruct((num_scenes, num_frames, *size, 3), jnp.uint8)
        prompts = Prompts.of_priors(priors, images, shards)
        poses, shown = prompts.poses, prompts.poses_shown
        assert poses is not None and shown is not None
        layers = [block // 2 for block in self.config.pose_inject_layers]

        def inject(number, tokens, positions):
            return self.pose_injection(
                number,
                tokens,
                poses,
                shown,
                positions,
                num_special=layout.num_special,
                dense=attention.within_frames,
                precision=Precision.from_compute_dtype(compute_dtype),
                frames_per_chunk=frames_per_chunk(num_scenes, num_frames, layout.tokens_per_frame),
                shards=shards,
            )

        def after_layer(tokens, layer, positions):
            number = jnp.sum(jnp.array(layers, jnp.int32) < layer, dtype=jnp.int32)
            return jax.lax.cond(
                jnp.any(jnp.array(layers, jnp.int32) == layer),
                lambda tokens: inject(number, tokens, positions),
                lambda tokens: tokens,
                tokens,
            )

        return after_layer

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
        """The outputs that are of all frames together: the metric scale."""
        precision = Precision.from_compute_dtype(compute_dtype)
        with jax.named_scope("metric_head"):
            token = jnp.broadcast_to(
                self.metric_token[...], (len(trunk.kept), *self.metric_token.shape)
            )
            head_dim = self.config.metric_dim // self.config.metric_num_heads
            decoded = self.metric_decoder(
                token,
                trunk.kept[:, :, -1],
                Rope(*rope_tables(layout.positions(), head_dim)),
                num_frames=num_frames,
                dense=attention.within_frames,
                precision=precision,
            )
            metric = jnp.exp(self.metric_head(decoded, precision.heads)[:, 0, 0])
        return {"metric": metric, "attention_stats": trunk.attention_stats}

    def decode_frames(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        metric: Float[Array, " b"] | None = None,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
    ) -> dict[str, Any]:
        """The outputs of the heads that look at every frame by itself: cameras and maps.

        Args:
            metric: of `decode_scene`, which all lengths are multiplied by; None leaves them as the
                trunk sees them.
        """
        if metric is None:
            metric = jnp.ones(trunk.kept.shape[:1], jnp.float32)
        precision = Precision.from_compute_dtype(compute_dtype)
        heads = precision.heads

        def over_frames(name, decoder, head):
            dense = attention.within_frames
            options: dict[str, Any] = {"dense": dense, "precision": precision}
            return self.over_frames(name, trunk, layout, decoder, head, **options)

        poses = over_frames(
            "camera_head", self.camera_decoder, lambda tokens: self.camera_head(tokens, heads)
        )
        conf = over_frames(
            "conf_head", self.conf_decoder, lambda tokens: self.conf_head(tokens, layout, heads)
        )
        raw = over_frames(
            "point_head", self.point_decoder, lambda tokens: self.point_head(tokens, layout, heads)
        )
        by_pixel = metric[:, None, None, None, None]
        local_points = points_from_raw(raw, largest=_LARGEST_LOG_DEPTH)
        points = geometry.transform_point_maps(local_points, poses) * by_pixel
        position = poses[..., :3, 3:] * metric[:, None, None, None]
        upper = jnp.concatenate([poses[..., :3, :3], position], axis=-1)
        return {
            "points": points,
            "local_points": local_points * by_pixel,
            "rays": _rays(raw[..., :2]),
            "conf": conf,
            "camera_poses": jnp.concatenate([upper, poses[..., 3:, :]], axis=-2),
        }

    def scene_fields(
        self, outputs: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The fields of a `Reconstruction` that the outputs of all frames together, those of each
        frame, or both give."""
        fields = {"attention_stats": outputs.get("attention_stats")}
        return fields | (scene_of(outputs) if "local_points" in outputs else {})


def _rays(xy: Float[Array, "*b 2"]) -> Float[Array, "*b 3"]:
    """Unit vectors along (x, y, 1)."""
    rays = jnp.concatenate([xy, jnp.ones_like(xy[..., :1])], axis=-1)
    length = jnp.sqrt(jnp.sum(rays * rays, axis=-1, keepdims=True))
    return rays / jnp.maximum(length, jnp.float32(_SMALLEST_LENGTH))
