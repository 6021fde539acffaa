"""Model configurations: sizes that decide the shapes of parameters, nothing about how to run."""

import dataclasses
import os
import types
from typing import Any, ClassVar, Self

from vggt_jax.checkpoints import pi3_config, vggt_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fields:
    """What configurations have in common: JSON, and checks that stand in `checkpoints`."""

    _rules: ClassVar[types.ModuleType]

    def __init_subclass__(cls, *, rules: types.ModuleType):
        cls._rules = rules

    def __post_init__(self):
        fields = self._rules.complete_config(dataclasses.asdict(self), type(self).__name__)
        for name, value in fields.items():
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Builds a configuration from JSON fields; absent fields take the released value.

        Raises:
            vggt_jax.CheckpointError: a field is unknown, or the values do not fit each other.
        """
        return cls(**cls._rules.complete_config(fields, "configuration"))

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Self:
        """Reads a configuration from a JSON file with these field names.

        Raises:
            vggt_jax.CheckpointError: the file is no JSON, or `from_dict` refuses its fields.
        """
        return cls(**cls._rules.read_config(path))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGGTConfig(_Fields, rules=vggt_config):
    """Sizes of a VGGT model; the defaults are the released VGGT-1B.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        vggt_jax.CheckpointError: a size is not positive, or sizes do not fit each other; a
            ValueError.
    """

    img_size: int = 518
    """Side of the square image, in pixels, whose patch grid the position table covers."""
    patch_size: int = 14
    """Side of a patch in pixels; image sides must be multiples of it."""
    embed_dim: int = 1024
    num_heads: int = 16
    depth: int = 24
    """Number of frame blocks, and of global blocks."""
    vit_depth: int = 24
    vit_num_heads: int = 16
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs over their width, in encoder, trunk and camera head."""
    num_register_tokens: int = 4
    """Register tokens of a frame, in the encoder and (others) in the trunk."""
    camera_trunk_depth: int = 4
    camera_num_heads: int = 16
    camera_iters: int = 4
    dpt_features: int = 256
    dpt_out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    dpt_layers: tuple[int, int, int, int] = (4, 11, 17, 23)
    """Trunk layers (pairs of a frame and a global block) that the dense heads read."""
    track_features: int = 128
    track_hidden_size: int = 384
    track_num_heads: int = 8
    track_num_virtual_tracks: int = 64
    track_corr_levels: int = 7
    track_corr_radius: int = 4
    track_depth: int = 6
    track_iters: int = 4
    enable_camera: bool = True
    enable_depth: bool = True
    enable_point: bool = True
    enable_track: bool = True
    pixel_centre: float = 0.0
    """Where the centre of the first pixel lies in the coordinates that the model's principal point
    is given in: 0 for the official models, 0.5 for those trained here; see docs/conventions.md."""

    @classmethod
    def vggt_1b(cls) -> Self:
        """The released VGGT-1B: 1,256,537,516 parameters (official file: vggt/models/vggt.py)."""
        return cls()

    @classmethod
    def of_width(cls, dim: int, num_heads: int) -> Self:
        """As released, but with transformers of another number of channels and of heads."""
        return cls(
            embed_dim=dim,
            num_heads=num_heads,
            vit_num_heads=num_heads,
            camera_num_heads=num_heads,
        )

    @property
    def num_special_tokens(self) -> int:
        """Camera and register tokens of a frame, which come before its patch tokens."""
        return 1 + self.num_register_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pi3Config(_Fields, rules=pi3_config):
    """Sizes of a π³ model; the defaults are the released one.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        vggt_jax.CheckpointError: a size is not positive, or sizes do not fit each other; a
            ValueError.
    """

    img_size: int = 518
    """Side of the square image, in pixels, whose patch grid the position table covers."""
    patch_size: int = 14
    """Side of a patch in pixels; image sides must be multiples of it."""
    encoder_dim: int = 1024
    encoder_depth: int = 24
    encoder_num_heads: int = 16
    encoder_num_register_tokens: int = 4
    decoder_dim: int = 1024
    """Width of the trunk, which the official code calls decoder; that of the encoder."""
    decoder_depth: int = 36
    """Number of blocks of the trunk: those at even places see a frame, those at odd places all."""
    decoder_num_heads: int = 16
    num_register_tokens: int = 5
    """Register tokens of a frame in the trunk, the same for every frame."""
    head_dim: int = 1024
    """Width of the decoders of points, confidence and cameras."""
    head_depth: int = 5
    head_num_heads: int = 16
    camera_dim: int = 512
    """Width of the camera head."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs over their width, everywhere."""

    @classmethod
    def pi3(cls) -> Self:
        """The released π³: 958,696,738 parameters (official file: pi3/models/pi3.py)."""
        return cls()

    @classmethod
    def of_width(cls, dim: int, num_heads: int) -> Self:
        """As released, but with transformers of another number of channels and of heads."""
        return cls(
            encoder_dim=dim,
            encoder_num_heads=num_heads,
            decoder_dim=dim,
            decoder_num_heads=num_heads,
        )

    @property
    def num_special_tokens(self) -> int:
        """Register tokens of a frame, which come before its patch tokens."""
        return self.num_register_tokens
