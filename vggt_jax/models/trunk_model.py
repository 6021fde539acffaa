"""What all models are alike in: the call, the order of the heads, the layout of tokens."""

from collections.abc import Collection
from typing import Any, ClassVar, Generic, TypeVar, cast

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vggt_jax.images.resizing import Mode
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models import on_devices
from vggt_jax.models.base import ModelTraits, SceneModel
from vggt_jax.scene.priors import PriorKind, Priors
from vggt_jax.trunk.alternation import TrunkOutput, kept_layers
from vggt_jax.trunk.frames import encode_and_aggregate, layout_of_images
from vggt_jax.trunk.token_layout import TokenLayout

Output = TypeVar("Output")
"""What a call of a model returns."""


class TrunkModel(nnx.Module, Generic[Output]):
    """What all models are alike in: a base of those that give the rest of `SceneModel`.

    Attributes:
        output: the dataclass that a call returns, of the outputs of `decode_scene` and
            `decode_frames`.
    """

    output: ClassVar[type]
    traits: ClassVar[ModelTraits]
    config: Any
    predicts: Any

    def __repr__(self) -> str:
        """On one line: parameters and their types, the size of images, and what is predicted."""
        counts: dict[str, int] = {}
        for leaf in jax.tree.leaves(self):
            counts[str(leaf.dtype)] = counts.get(str(leaf.dtype), 0) + leaf.size
        total = sum(counts.values())
        types = " and ".join(sorted(counts, key=lambda name: -counts[name]))
        return (
            f"<{type(self).__name__}: {total:,} parameters in {types}, images of "
            f"{self.config.img_size}, predicts {', '.join(sorted(self.predicts))}>"
        )

    def __str__(self) -> str:
        """As `repr`, and not every parameter."""
        return repr(self)

    @property
    def resize_mode(self) -> Mode:
        """See `SceneModel`; that of all models of this kind."""
        return self.traits.resize_mode

    @property
    def num_dense_heads(self) -> int:
        """Heads with convolutions over whole images, which take long."""
        return 0

    @property
    def smallest_tracked_side(self) -> int | None:
        """See `SceneModel`; None, since no points are tracked."""
        return None

    @property
    def num_layers(self) -> int:
        """See `SceneModel`; that of the configuration."""
        return self.config.num_layers

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """See `SceneModel`; the taps of the configuration and the last one."""
        return kept_layers(self.config.taps, self.num_layers)

    def num_prior_layers(self, known: Collection[PriorKind]) -> int:
        """Layers of dense attention over the patches of all frames that show what is known."""
        del known
        return 0

    def check_known(self, priors: Priors, *, first: int) -> None:
        """See `SceneModel`; everything is fine."""
        del priors, first

    def layout(self, images: Array) -> TokenLayout:
        """Where the tokens of these images lie.

        Raises:
            ValueError: images are no `[b s height width 3]` of fitting sides and type.
        """
        return layout_of_images(
            images,
            patch_size=self.config.patch_size,
            num_special=self.config.num_special_tokens,
        )

    def __call__(
        self,
        images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
        *,
        query_points: Float[Array, "b m 2"] | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        compute_dtype: DTypeLike | None = None,
        priors: Priors | None = None,
        mesh: Mesh | None = None,
    ) -> Output:
        """Predicts cameras, depth, points and, if asked for, tracks.

        Args:
            images: RGB, float in [0, 1] or uint8; sides are multiples of the patch size.
            query_points: pixels `(x, y)` of the first frame to follow through all frames, by a
                model with a track head.
            attention: how the tokens of all frames attend to each other: `Dense()`,
                `Sampled(...)` or `BlockSparse(...)`.
            num_frames: how many leading frames of each scene count, from 1; the others are
                padding, which changes no output of the valid frames. None: all.
            compute_dtype: of matrix products. `float32` runs at the highest precision; `bfloat16`
                accumulates in float32, and heads run in float32; None is bfloat16 on a GPU.
            priors: what is already known, with the scene axis, for a model that takes any
                (`ModelTraits.takes`).
            mesh: of one axis, whose devices divide the frames evenly and in their order; each has
                all parameters. None for one device. Values are those of one, but for rounding.

        Raises:
            ValueError: shapes or types do not fit; tracks are asked of a model without track head,
                or priors given to one that takes none.
        """
        title = self.traits.title
        if query_points is not None and "tracks" not in self.predicts:
            raise ValueError(f"query_points were given, but this {title} has no track head")
        if priors is not None and not self.traits.takes:
            raise ValueError(f"priors were given, but {title} takes none")
        layout = self.layout(images)
        b = images.shape[0]
        if query_points is not None and (
            query_points.ndim != 3 or query_points.shape[::2] != (b, 2) or not query_points.size
        ):
            raise ValueError(f"query_points must be [{b} m 2], not {query_points.shape}")
        trunk = encode_and_aggregate(
            self,
            images,
            attention=attention,
            num_frames=num_frames,
            compute_dtype=compute_dtype,
            priors=priors,
            mesh=mesh,
        )
        return self.decode(
            trunk,
            layout,
            query_points=query_points,
            attention=attention,
            num_frames=num_frames,
            compute_dtype=compute_dtype,
            mesh=mesh,
        )

    def encode(
        self,
        images: Array,
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
    ) -> Array:
        """See `SceneModel`."""
        raise NotImplementedError

    def aggregate(
        self,
        patch_tokens: Array,
        layout: TokenLayout,
        *,
        attention: SceneAttention = Dense(),
        num_frames: Array | None = None,
        taps: tuple[int, ...] | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> TrunkOutput:
        """See `SceneModel`."""
        raise NotImplementedError

    def decode(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        query_points: Float[Array, "b m 2"] | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        compute_dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
        **of_frames_alone: Any,
    ) -> Output:
        """Runs the heads; the arguments are those of the call, which checks them.

        Args:
            of_frames_alone: what else `decode_frames` of a model takes. Its outputs count where
                `decode_scene` has them, too.
        """
        model = cast(SceneModel, self)
        of_scene = on_devices.decode_scene(
            mesh,
            model,
            trunk,
            layout,
            query_points=query_points,
            attention=attention,
            num_frames=num_frames,
            compute_dtype=compute_dtype,
        )
        of_frames = on_devices.decode_frames(
            mesh,
            model,
            trunk,
            layout,
            attention=attention,
            compute_dtype=compute_dtype,
            read={name: of_scene[name] for name in self.traits.frames_read},
            **of_frames_alone,
        )
        return self.output(**(of_scene | of_frames))

    def decode_scene(
        self, trunk: TrunkOutput, layout: TokenLayout, **options: Any
    ) -> dict[str, Any]:
        """See `SceneModel`."""
        raise NotImplementedError

    def decode_frames(
        self, trunk: TrunkOutput, layout: TokenLayout, **options: Any
    ) -> dict[str, Any]:
        """See `SceneModel`."""
        raise NotImplementedError
