"""MapAnything: Universal Feed-Forward Metric 3D Reconstruction (arXiv:2509.13414)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from vggt_jax import geometry
from vggt_jax.heads.dpt import DPT, DPTStyle, frames_per_decoding
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.chunking import map_chunks, update_chunks
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.shards import FrameShards, of_all
from vggt_jax.models.base import ModelTraits, Predicted
from vggt_jax.models.mapanything.config import MapAnythingConfig
from vggt_jax.models.mapanything.encoders import DenseEncoder, GlobalEncoder
from vggt_jax.models.mapanything.geometric_inputs import (
    GeometricInputs,
    check_known,
    lengths,
    log_of_depth,
    log_scale,
    scale_of_depth,
    without_scale,
)
from vggt_jax.models.mapanything.heads.pose import PoseHead, normalized
from vggt_jax.models.mapanything.heads.scale import ScaleHead, scale_from_raw
from vggt_jax.models.mapanything.outputs import MapAnythingOutput, pose_matrices, scene_of_frames
from vggt_jax.models.trunk_model import TrunkModel
from vggt_jax.scene.confidence import PointSource
from vggt_jax.scene.priors import Priors
from vggt_jax.trunk.alternation import (
    Alternation,
    TrunkOutput,
    frames_per_chunk,
    run_trunk,
)
from vggt_jax.trunk.frames import encode_frames
from vggt_jax.trunk.token_layout import TokenLayout

# Official files: mapanything/models/mapanything/model.py,
# uniception/models/info_sharing/alternating_attention_transformer.py.
_NORM_EPS = 1e-6
_RAW_CHANNELS = 6  # ray 3, depth, confidence, mask

ALTERNATION = Alternation(global_first=True, keeps_both=False, has_rope=False)
"""How the blocks of the trunk alternate."""

_DENSE_STYLE = DPTStyle(
    has_norm=False, has_positions=False, skips_after_relu=False, doubles=True, output_hidden=None
)


class MapAnything(TrunkModel[MapAnythingOutput]):
    """MapAnything with random parameters; `vggt_jax.load_model` reads trained ones.

    The first frame's camera is about the world, and lengths are metres. It tracks no points. Layer
    `i` of attention over all frames is block `2 i` of the official information sharing.

    Use it as an immutable pytree: pass it to functions under `jax.jit` as an argument.
    """

    output: ClassVar = MapAnythingOutput
    traits: ClassVar = ModelTraits(
        name="mapanything",
        title="MapAnything",
        resize_mode="cover",
        confidence_kind="one_plus_exp",
        has_reference_frame=True,
        divides_frames=True,
        compute_type_modules=("encoder.", "frame_blocks.", "global_blocks."),
        takes=("intrinsics", "rays", "poses", "depth"),
        # Those of poses and scales see one vector a frame.
        prior_modules=(
            ("intrinsics", "ray_dirs_encoder."),
            ("rays", "ray_dirs_encoder."),
            ("depth", "depth_encoder."),
        ),
        length_unit="metres",
    )

    def __init__(self, config: MapAnythingConfig, *, rngs: nnx.Rngs):
        self.config = config
        c, encoded, dim = config, config.encoder_dim, config.info_sharing_dim
        self.encoder = c.encoder.make(rngs)
        dense = lambda channels: DenseEncoder(
            channels, c.dense_input_dims, encoded, patch_size=c.patch_size, rngs=rngs
        )
        of_vector = lambda size: GlobalEncoder(size, c.global_input_dims, encoded, rngs=rngs)
        self.ray_dirs_encoder, self.depth_encoder = dense(3), dense(1)
        self.cam_rot_encoder, self.cam_trans_encoder = of_vector(4), of_vector(3)
        self.depth_scale_encoder, self.cam_trans_scale_encoder = of_vector(1), of_vector(1)
        self.fusion_norm = LayerNorm(encoded, eps=_NORM_EPS)
        normal = lambda *shape: jax.random.normal(rngs.params(), shape, jnp.float32)
        self.scale_token = nnx.Param(0.02 * normal(encoded))
        self.proj_embed = None if encoded == dim else Linear(encoded, dim, rngs=rngs)
        # Sines and cosines of the position 0, which checkpoints hold.
        zeros_and_ones = jnp.arange(dim, dtype=jnp.int32)[None] % 2
        self.view_pos_table = nnx.Param(zeros_and_ones.astype(jnp.float32))
        self.global_blocks, self.frame_blocks = (c.trunk.make_blocks(rngs) for _ in range(2))
        self.norm = LayerNorm(dim, eps=_NORM_EPS)
        self.dense_head = DPT(
            (encoded, dim, dim, dim),
            patch_size=c.patch_size,
            features=c.dpt_features,
            out_channels=c.dpt_layer_dims,
            layers=c.taps,
            out_dim=_RAW_CHANNELS,
            style=_DENSE_STYLE,
            rngs=rngs,
        )
        self.pose_head = PoseHead(dim, c.pose_hidden_dim, num_blocks=c.pose_num_blocks, rngs=rngs)
        self.scale_head = ScaleHead(
            dim, c.scale_hidden_dim, num_layers=c.scale_num_layers, rngs=rngs
        )

    pixel_centre = 0.5  # see `Reconstruction.pixel_centre`
    predicts: frozenset[Predicted] = frozenset({"cameras", "depth", "points"})

    @property
    def num_dense_heads(self) -> int:
        """Heads with convolutions over whole images, which take long."""
        return 1

    @property
    def point_sources(self) -> tuple[PointSource, ...]:
        """Where a point cloud can come from, the best first: "head" or "depth"."""
        return ("head", "depth")

    def check_known(self, priors: Priors, *, first: int) -> None:
        """Finds depth of frames whose rays are unknown, and poses relative to none that is known.

        Raises:
            vggt_jax.InputError: there is some; see `SceneModel`.
        """
        check_known(priors, first=first)

    def encode(
        self,
        images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
        *,
        priors: Priors | None = None,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
        shards: FrameShards | None = None,
    ) -> Float[Array, "b s p c"]:
        """Encodes every frame by itself, and what is known of it: tokens of its class, if that goes
        on, and its patches, float32.

        Args:
            shards: see `SceneAttention.attend`.
        """
        precision = Precision.from_compute_dtype(compute_dtype)
        tokens = encode_frames(
            self.encoder,
            images,
            self.layout(images),
            dense=attention.within_frames,
            precision=precision,
        )
        known = GeometricInputs() if priors is None else GeometricInputs.of(priors, images, shards)
        return self.fuse(tokens, known, precision, shards)

    def fuse(
        self,
        tokens: Float[Array, "b s p c"],
        known: GeometricInputs,
        precision: Precision,
        shards: FrameShards | None = None,
    ) -> Float[Array, "b s p c"]:
        """Adds what is known to the tokens of patches, and normalises these, in float32.

        Args:
            shards: see `SceneAttention.attend`.
        """
        with jax.named_scope("fusion"):
            heads = precision.heads
            vectors = None
            for is_known, encoded in self.encoded_vectors(known, heads, shards).values():
                added = jnp.where(is_known[..., None], encoded, 0.0)
                vectors = added if vectors is None else vectors + added
            depth = None if known.depth is None else log_of_depth(known.depth)

            def run(tokens, vectors, rays, rays_known, depth, depth_known):
                special, patches = jnp.split(tokens, [self.config.num_special_tokens], axis=2)
                if vectors is not None:
                    patches += vectors[:, :, None]
                for maps, is_known, encoder in (
                    (rays, rays_known, self.ray_dirs_encoder),
                    (None if depth is None else depth[..., None], depth_known, self.depth_encoder),
                ):
                    if maps is not None:
                        encoded = encoder(maps, heads)
                        patches += jnp.where(is_known[..., None, None], encoded, 0.0)
                return jnp.concatenate([special, self.fusion_norm(patches)], axis=2)

            max_chunk = frames_per_chunk(*tokens.shape[:3])
            others = (vectors, known.rays, known.rays_known, depth, known.depth_known)
            return update_chunks(run, tokens, *others, axis=1, max_chunk=max_chunk)

    def encoded_vectors(
        self, known: GeometricInputs, precision: Precision, shards: FrameShards | None = None
    ) -> dict[str, tuple[Bool[Array, "b s"], Float[Array, "b s c"]]]:
        """What is added to all patches of a frame alike, by the names of the encoders: poses, and
        scales in metres. Of which frames, and what it is."""
        found = {}
        if known.depth is not None:
            assert known.depth_known is not None and known.depth_is_metric is not None
            scale = log_scale(scale_of_depth(known.depth))
            told = known.depth_known & known.depth_is_metric[:, None]
            found["depth_scale_encoder"] = told, self.depth_scale_encoder(scale, precision)
        if known.rotation is not None:
            is_known = known.poses_known
            assert is_known is not None and known.poses_are_metric is not None
            assert known.translation is not None
            translation = jnp.where(is_known[..., None], known.translation, 0.0)
            # The first frame, and others in its place, have no length that could be a scale.
            length = lengths(translation)
            counts = is_known & (length > 0)
            scale = without_scale(of_all(shards, length), of_all(shards, counts))
            shape = translation / scale[:, None, None]
            of_scale = self.cam_trans_scale_encoder(log_scale(scale), precision)[:, None]
            of_scale = jnp.broadcast_to(of_scale, (*is_known.shape, of_scale.shape[-1]))
            told = is_known & known.poses_are_metric[:, None]
            found |= {
                "cam_rot_encoder": (is_known, self.cam_rot_encoder(known.rotation, precision)),
                "cam_trans_encoder": (is_known, self.cam_trans_encoder(shape, precision)),
                "cam_trans_scale_encoder": (told, of_scale),
            }
        return found

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
        recompute: bool = False,
        alternation: Alternation = ALTERNATION,
    ) -> TrunkOutput:
        """Adds the token of the scene and runs the trunk, the official information sharing.

        Args:
            patch_tokens: as `encode` returns them, the class token of every frame among them.
            taps: layers (pairs of a global and a frame block) to keep; None for those that the
                heads read.
            shards: see `SceneAttention.attend`.
            priors: what is known is in the tokens already.
            recompute: for training, see `run_trunk`.
            alternation: may keep more than heads read.
        """
        del priors
        precision = Precision.from_compute_dtype(compute_dtype)
        b, s = patch_tokens.shape[:2]
        tokens, scene = patch_tokens, self.scale_token[...].astype(jnp.float32)[None]
        if (proj_embed := self.proj_embed) is not None:
            project = lambda x: proj_embed(x, precision).astype(jnp.float32)
            max_chunk = frames_per_chunk(*patch_tokens.shape[:3])
            tokens, scene = map_chunks(project, tokens, axis=1, max_chunk=max_chunk), project(scene)
        first = np.int32(0) if shards is None else shards.first(s)
        is_first = (first + jnp.arange(s, dtype=jnp.int32) == 0)[None, :, None, None]
        tokens = tokens + jnp.where(is_first, self.view_pos_table[...][None, None], 0.0)
        # Rounded before the trunk runs: it would hold them in float32 until its end.
        encoded = patch_tokens.astype(precision.compute_dtype)
        tokens, encoded = jax.lax.optimization_barrier((tokens, encoded))
        output = run_trunk(
            self.frame_blocks,
            self.global_blocks,
            tokens,
            layout=layout,
            taps=self.config.taps if taps is None else taps,
            attention=attention,
            num_frames=num_frames,
            precision=precision,
            alternation=alternation,
            scene_tokens=jnp.broadcast_to(scene, (b, *scene.shape)),
            shards=shards,
            recompute=recompute,
        )
        return dataclasses.replace(output, encoded=encoded)

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
        """The outputs that are of all frames together: the scale."""
        precision = Precision.from_compute_dtype(compute_dtype)
        return {
            "attention_stats": trunk.attention_stats,
            "metric_scaling_factor": self._scale(trunk, precision),
        }

    def _scale(self, trunk: TrunkOutput, precision: Precision) -> Float[Array, "b 1"]:
        assert trunk.scene_tokens is not None
        with jax.named_scope("scale_head"):
            token = self.norm(trunk.scene_tokens[:, -1, 0])
            return scale_from_raw(self.scale_head(token, precision.heads))

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
        raw, position, quaternion = self.decode_raw(trunk, layout, precision)
        scale = self._scale(trunk, precision)[:, None]  # [b 1 1]
        rays, depth = normalized(raw[..., :3]), jnp.exp(raw[..., 3:4])
        quaternion, position = normalized(quaternion), position * scale
        depth *= scale[..., None, None]
        points = rays * depth
        return {
            "ray_directions": rays,
            "depth_along_ray": depth,
            "pts3d": geometry.transform_point_maps(points, pose_matrices(quaternion, position)),
            "pts3d_cam": points,
            "cam_trans": position,
            "cam_quats": quaternion,
            "conf": 1 + jnp.exp(raw[..., 4]),
            "non_ambiguous_mask": jax.nn.sigmoid(raw[..., 5]) > 0.5,
            "non_ambiguous_mask_logits": raw[..., 5],
        }

    def decode_raw(
        self, trunk: TrunkOutput, layout: TokenLayout, precision: Precision
    ) -> tuple[Float[Array, "b s height width 6"], Float[Array, "b s 3"], Float[Array, "b s 4"]]:
        """Raw maps, positions and quaternions, before activations and scale."""

        def run(tokens):
            kept, encoded = tokens
            patches = lambda x: x[:, :, layout.num_special :]
            taps = [self.norm(patches(kept[:, :, trunk.layers.index(i)])) for i in self.config.taps]
            with jax.named_scope("dense_head"):
                raw = self.dense_head.decode([patches(encoded), *taps], layout, precision.heads)
            with jax.named_scope("pose_head"):
                return raw, *self.pose_head(taps[-1], precision.heads)

        max_chunk = frames_per_decoding(trunk.kept.shape[0], layout, self.config.patch_size)
        return map_chunks(run, (trunk.kept, trunk.encoded), axis=1, max_chunk=max_chunk)

    def scene_fields(
        self, outputs: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The fields of a `Reconstruction` that the outputs of all frames together, those of each
        frame, or both give."""
        fields = {}
        if "attention_stats" in outputs:
            fields["attention_stats"] = outputs["attention_stats"]
        if "pts3d_cam" in outputs:
            fields |= scene_of_frames(dict(outputs))
        return fields
