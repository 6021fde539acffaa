"""π³: Permutation-Equivariant Visual Geometry Learning (arXiv:2507.13347)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vggt_jax import geometry
from vggt_jax.heads.pixels import PixelHead, points_from_raw
from vggt_jax.heads.pose import PoseHead
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import ModelTraits
from vggt_jax.models.pi3.config import Pi3Config
from vggt_jax.models.pi3.outputs import Pi3Output
from vggt_jax.models.pi3.trunk import Pi3Trunk
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.token_layout import TokenLayout


class Pi3(Pi3Trunk[Pi3Output]):
    """π³ with random parameters; `vggt_jax.load_model` reads trained ones.

    No frame is the reference: all have the same special tokens, so that frames in another order
    give the same results in that order. It tracks no points. Layer `i` of attention over all frames
    is block `2 i + 1` of the official decoder.

    Use it as an immutable pytree: pass it to functions under `jax.jit` as an argument.
    """

    output: ClassVar = Pi3Output
    traits: ClassVar = ModelTraits(
        name="pi3",
        title="π³",
        resize_mode="budget",
        confidence_kind="sigmoid",
        has_reference_frame=False,
        divides_frames=True,
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
        super().__init__(config, rngs=rngs)
        pixels = lambda out_dim: PixelHead(
            config.head_dim, out_dim, patch_size=config.patch_size, rngs=rngs
        )
        self.point_decoder = self.make_decoder(config.head_dim, rngs)
        self.point_head = pixels(3)
        self.conf_decoder = self.make_decoder(config.head_dim, rngs)
        self.conf_head = pixels(1)
        self.camera_decoder = self.make_decoder(config.camera_dim, rngs)
        self.camera_head = PoseHead(config.camera_dim, rngs=rngs)

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
        heads = precision.heads

        def over_frames(name, decoder, head):
            dense = attention.within_frames
            options: dict[str, Any] = {"dense": dense, "precision": precision}
            return self.over_frames(name, trunk, layout, decoder, head, **options)

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
