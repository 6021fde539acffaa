"""A model that nobody trained, in one file: what another model has to bring, and no more.

Patches are embedded without an encoder, the trunk is that of all models, and every head is one
linear layer. Its family is what `vggt_jax.models.register` takes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax import geometry
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.models import ConfigFields, ModelFamily, ModelTraits, TrunkModel, TrunkSpec
from vggt_jax.trunk.alternation import TrunkOutput, kept_layers, run_trunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeUpConfig(ConfigFields, model="made-up model"):
    img_size: int = 56
    patch_size: int = 14
    dim: int = 16
    num_heads: int = 2
    depth: int = 2
    num_special_tokens: int = 1

    @classmethod
    def of_width(cls, dim, num_heads):
        return cls(dim=dim, num_heads=num_heads)

    @property
    def trunk(self):
        return TrunkSpec(
            dim=self.dim,
            num_heads=self.num_heads,
            mlp_ratio=2.0,
            depth=self.depth,
            norm_eps=1e-5,
            layer_scale=0.1,
        )

    def check(self, origin):
        self.require_multiple("img_size", "patch_size", origin)
        self.require_multiple("dim", "num_heads", origin, factor=4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeUpOutput:
    pose: Float[Array, "b s 9"]
    pixels: Float[Array, "b s height width 5"]  # of depth, points and confidence
    attention_stats: AttentionStats | None


class MadeUp(TrunkModel[MadeUpOutput]):
    output: ClassVar = MadeUpOutput
    traits: ClassVar = ModelTraits(
        name="made_up",
        title="the made-up model",
        resize_mode="crop",
        confidence_kind="sigmoid",
        has_reference_frame=False,
        divides_frames=True,
        compute_type_modules=("patches.", "frame_blocks.", "global_blocks."),
    )
    pixel_centre = 0.5
    predicts = frozenset({"cameras", "depth", "points"})
    point_sources = ("head", "depth")
    smallest_tracked_side = None

    def __init__(self, config: MadeUpConfig, *, rngs: nnx.Rngs):
        self.config = c = config
        self.special = nnx.Param(jax.random.normal(rngs.params(), (c.num_special_tokens, c.dim)))
        self.patches = Linear(3 * c.patch_size**2, c.dim, rngs=rngs)
        self.frame_blocks, self.global_blocks = (c.trunk.make_blocks(rngs) for _ in range(2))
        self.camera_head = Linear(2 * c.dim, 9, rngs=rngs)
        self.pixel_head = Linear(2 * c.dim, 5 * c.patch_size**2, rngs=rngs)

    @property
    def num_layers(self):
        return self.config.depth

    @property
    def kept_layers(self):
        return kept_layers((), self.num_layers)

    def encode(self, images, *, attention=Dense(), compute_dtype=None):
        if images.dtype == jnp.uint8:
            images = images / 255
        side, layout = self.config.patch_size, self.layout(images)
        tiles = images.reshape(*images.shape[:2], layout.rows, side, layout.columns, side, 3)
        tiles = jnp.einsum("bsryxuc->bsrxyuc", tiles).reshape(*images.shape[:2], -1, 3 * side**2)
        precision = Precision.from_compute_dtype(compute_dtype)
        return self.patches(tiles - 0.5, precision).astype(jnp.float32)

    def aggregate(
        self,
        patch_tokens,
        layout,
        *,
        attention=Dense(),
        num_frames=None,
        taps=None,
        compute_dtype=None,
        shards=None,
    ):
        b, s = patch_tokens.shape[:2]
        special = jnp.broadcast_to(self.special[...], (b, s, *self.special.shape))
        return run_trunk(
            self.frame_blocks,
            self.global_blocks,
            jnp.concatenate([special, patch_tokens], axis=2),
            layout=layout,
            taps=taps or (),
            attention=attention,
            num_frames=num_frames,
            precision=Precision.from_compute_dtype(compute_dtype),
            shards=shards,
        )

    def decode_scene(
        self,
        trunk: TrunkOutput,
        layout,
        *,
        query_points=None,
        attention=Dense(),
        num_frames=None,
        compute_dtype=None,
    ):
        heads = Precision.from_compute_dtype(compute_dtype).heads
        raw = self.camera_head(trunk.first_tokens, heads)
        # A step, a small turn, and fields of view of about a radian.
        pose = raw.at[..., 6].add(1).at[..., 7:].set(1 + 0.2 * jnp.tanh(raw[..., 7:]))
        return {"pose": pose, "attention_stats": trunk.attention_stats}

    def decode_frames(self, trunk, layout, *, attention=Dense(), compute_dtype=None):
        heads, side = Precision.from_compute_dtype(compute_dtype).heads, self.config.patch_size
        x = self.pixel_head(trunk.kept[:, :, -1, layout.num_special :], heads)
        x = x.reshape(*x.shape[:2], layout.rows, layout.columns, side, side, 5)
        x = jnp.einsum("bsrxyuc->bsryxuc", x)
        return {"pixels": x.reshape(*x.shape[:2], layout.rows * side, layout.columns * side, 5)}

    def scene_fields(self, outputs: Mapping[str, Any], image_size: tuple[int, int]):
        fields = {}
        if "pose" in outputs:
            cameras = geometry.camera_from_pose_encoding(outputs["pose"], image_size)
            fields |= dict(zip(("camera_from_world", "intrinsics"), cameras, strict=True))
            fields["attention_stats"] = outputs["attention_stats"]
        if "pixels" in outputs:
            pixels = outputs["pixels"]
            confidence = jax.nn.sigmoid(pixels[..., 4])
            fields |= {
                "depth": jnp.exp(pixels[..., 0]),
                "depth_confidence": confidence,
                "world_points": pixels[..., 1:4],
                "world_points_confidence": confidence,
            }
        return fields


def memory_of_made_up(config: MadeUpConfig, forward):
    maps = 4 * 5 * forward.num_frames * forward.pixels
    return {"outputs": maps, "heads": maps, "tracks": 0, **config.trunk.memory(forward)}


FAMILY = ModelFamily(model=MadeUp, config=MadeUpConfig, memory=memory_of_made_up)
