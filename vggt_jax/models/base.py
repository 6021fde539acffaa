"""What the rest of the package asks of a model, whichever it is."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, Protocol, Self

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from vggt_jax.checkpoints.official import OfficialKeys
from vggt_jax.images.loading import Mode
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.scene.confidence import PointSource
from vggt_jax.scene.priors import PriorKind, Priors
from vggt_jax.scene.reconstruction import LengthUnit
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.memory import ForwardPass
from vggt_jax.trunk.token_layout import TokenLayout

Predicted = Literal["cameras", "depth", "points", "tracks"]
"""What a model may predict of a scene; "points" are those of a head of its own."""

CameraSource = Literal["head", "rays"]
"""Where predicted cameras come from: the model's head for cameras, or its rays of pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """What is true of a model whatever its sizes.

    Attributes:
        name: in our checkpoints and on the command line, such as "vggt".
        title: in messages, such as "VGGT".
        resize_mode: how photographs are resized where neither the user nor the checkpoint says, see
            `load_images`.
        confidence_kind: see `Reconstruction.confidence_kind`.
        has_reference_frame: whether the first frame's camera is the world, so that the result
            depends on which frame is the first.
        chooses_reference: whether the model chooses by what frames show from which one the others
            are seen: of three frames and more whose poses are not known; else it is the first.
        compute_type_modules: how the names of parameters begin whose matrix products run in the
            compute type, bfloat16 on a GPU; heads run in float32.
        takes: what may be known of a scene that this model uses. Where it is not empty, `__call__`,
            `encode` and `aggregate` take `priors` (`scene.priors.Priors`) beside the arguments of
            `SceneModel`.
        prior_modules: of what is known, and how the names of the parameters begin that see it: they
            run only where it is.
        length_unit: see `Reconstruction.length_unit`.
        keeps_given_cameras: whether known poses and intrinsics, which are of all frames then, take
            the place of the predicted ones in results, and depth comes in their unit.
        camera_sources: where predicted cameras can come from. Where that is not the head alone,
            `__call__` and `decode_frames` take `camera_source`, which is one of them.
        divides_frames: whether devices can divide the frames. Then `__call__` and `decode` take
            `mesh`, and `aggregate` takes `shards` (how they are divided, see
            `SceneAttention.attend`) beside the arguments of `SceneModel`; so does `encode` where
            it takes `priors`, which are those of this device's frames then.
        frames_read: names of the outputs of `decode_scene` that `decode_frames` takes besides.
    """

    name: str
    title: str
    resize_mode: Mode
    confidence_kind: str
    has_reference_frame: bool
    compute_type_modules: tuple[str, ...]
    takes: tuple[PriorKind, ...] = ()
    prior_modules: tuple[tuple[PriorKind, str], ...] = ()
    length_unit: LengthUnit = "arbitrary"
    keeps_given_cameras: bool = False
    chooses_reference: bool = False
    camera_sources: tuple[CameraSource, ...] = ("head",)
    divides_frames: bool = False
    frames_read: tuple[str, ...] = ()


class ModelConfig(Protocol):
    """What the rest of the package asks of a configuration: a frozen dataclass that hashes."""

    @property
    def img_size(self) -> int:
        """Side, in pixels, of the square images that the model was made for."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; image sides must be multiples of it."""
        ...

    @property
    def num_special_tokens(self) -> int:
        """Tokens of a frame that come before those of its patches."""
        ...

    @classmethod
    def of_width(cls, dim: int, num_heads: int) -> Self:
        """As released, but with transformers of another number of channels and of heads."""
        ...

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], origin: str = "configuration") -> Self:
        """Builds a configuration from JSON fields, see `ConfigFields.from_dict`.

        Raises:
            vggt_jax.CheckpointError: a field is unknown, or the values do not fit each other.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        ...


class SceneModel(Protocol):
    """What the pipeline asks of a model: an `nnx.Module` with parameters alone.

    Axis letters are those of docs/conventions.md. The arguments that methods share mean the same in
    all of them, see `TrunkModel.__call__`; a method that has no use for one leaves it alone.
    """

    traits: ClassVar[ModelTraits]

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None: ...

    @property
    def config(self) -> ModelConfig:
        """The sizes that this model was built with."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers of the trunk that attend over all frames, those that `attention` speaks of."""
        ...

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers of the trunk that the heads read."""
        ...

    @property
    def pixel_centre(self) -> float:
        """See `Reconstruction.pixel_centre`."""
        ...

    @property
    def resize_mode(self) -> Mode:
        """How photographs are resized where the user does not say, see `load_images`."""
        ...

    @property
    def predicts(self) -> frozenset[Predicted]:
        """What this model has heads for."""
        ...

    @property
    def point_sources(self) -> tuple[PointSource, ...]:
        """Where a point cloud can come from, the best first: "depth" (and cameras) or "head"."""
        ...

    @property
    def num_dense_heads(self) -> int:
        """Heads with convolutions over whole images, which take long."""
        ...

    def num_prior_layers(self, known: Collection[PriorKind]) -> int:
        """Layers of dense attention over the patches of all frames that show what is known."""
        ...

    @property
    def smallest_tracked_side(self) -> int | None:
        """The least side of frames, in pixels, in which points can be tracked; None where the model
        tracks none."""
        ...

    def check_known(self, priors: Priors, *, first: int) -> None:
        """Finds what this model can make nothing of, in priors of kinds that it takes.

        Args:
            priors: of one scene, as `Priors.checked` gives them.
            first: which frame the model sees first.

        Raises:
            vggt_jax.InputError: there is something.
        """
        ...

    def layout(self, images: Array) -> TokenLayout:
        """Where the tokens of images `[b s height width 3]` lie.

        Raises:
            ValueError: images are no such array of fitting sides and type.
        """
        ...

    def encode(
        self,
        images: Array,
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
    ) -> Array:
        """Tokens `[b s p c]` of the patches of every frame by itself, float32."""
        ...

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
        """What the trunk makes of them: the layers `taps`, by default `kept_layers`, and the
        last."""
        ...

    def decode(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        query_points: Array | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Array | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> Any:
        """All outputs, as `__call__` returns them."""
        ...

    def decode_scene(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        query_points: Array | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Array | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> dict[str, Any]:
        """Those outputs, by their names, that come of all frames together."""
        ...

    def decode_frames(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
    ) -> dict[str, Any]:
        """Those outputs, by their names, that come of every frame by itself."""
        ...

    def scene_fields(
        self, outputs: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The fields of a `Reconstruction` that outputs give.

        Args:
            outputs: all, or those of `decode_scene` or `decode_frames`, by their names.
            image_size: (height, width) of the frames.

        Returns:
            Fields by name; None for what there is no output of.
        """
        ...

    def __call__(
        self,
        images: Array,
        *,
        query_points: Array | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Array | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> Any:
        """All outputs under their official names: a dataclass that is a pytree."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A model as the registry knows it: what its folder gives.

    Attributes:
        model: the class of the model, which is built by `model(config, rngs=nnx.Rngs(0))`.
        config: the class of its configuration.
        memory: what a forward pass takes on the device, in bytes, by the names of
            `pipeline.memory.MemoryEstimate`: outputs, heads, tracks, and those of `trunk_memory`.
        keys: its official checkpoints; None where there are none to convert.
    """

    model: type[SceneModel]
    config: type[ModelConfig]
    memory: Callable[[Any, ForwardPass], dict[str, int]]
    keys: OfficialKeys | None = None

    @property
    def name(self) -> str:
        """The model's name in our checkpoints."""
        return self.model.traits.name
