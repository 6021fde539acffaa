"""Model configurations: sizes that decide the shapes of parameters, nothing about how to run."""

import dataclasses
import json
import os
from typing import Any, Self

from vggt_jax.errors import InputError

_POSITIVE_INTEGERS = (
    "img_size patch_size embed_dim num_heads depth vit_depth vit_num_heads camera_trunk_depth "
    "camera_num_heads camera_iters dpt_features track_features track_hidden_size track_num_heads "
    "track_num_virtual_tracks track_corr_levels track_corr_radius track_depth track_iters"
).split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGGTConfig:
    """Sizes of a VGGT model; the defaults are the released VGGT-1B.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        ValueError: a size is not positive, or sizes do not fit each other.
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

    def __post_init__(self):
        for name in ("dpt_out_channels", "dpt_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name}={getattr(self, name)} must have 4 entries")
        for name in _POSITIVE_INTEGERS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer")
        if self.num_register_tokens < 0:
            raise ValueError(f"{self.num_register_tokens=} must not be negative")
        if self.img_size % self.patch_size:
            raise ValueError(f"{self.img_size=} must be a multiple of {self.patch_size=}")
        for width, heads, multiple in (
            ("embed_dim", "vit_num_heads", 1),
            ("embed_dim", "num_heads", 4),  # RoPE rotates halves of the y half and of the x half
            ("track_hidden_size", "track_num_heads", 1),
        ):
            if getattr(self, width) % (getattr(self, heads) * multiple):
                raise ValueError(
                    f"{width}={getattr(self, width)} must be a multiple of "
                    f"{multiple} * {heads} = {multiple * getattr(self, heads)}"
                )
        if (2 * self.embed_dim) % self.camera_num_heads:
            raise ValueError(
                f"{2 * self.embed_dim=} must be a multiple of {self.camera_num_heads=}"
            )
        if self.dpt_features % 4 or any(channels % 4 for channels in self.dpt_out_channels):
            raise ValueError(
                f"{self.dpt_features=} and {self.dpt_out_channels=} must be multiples of 4: "
                "their position embedding is made of four parts"
            )
        if self.track_features % 4:
            raise ValueError(f"{self.track_features=} must be a multiple of 4")
        if min(self.dpt_layers) < 0 or max(self.dpt_layers) >= self.depth:
            raise ValueError(f"{self.dpt_layers=} must lie in [0, depth) with {self.depth=}")

    @classmethod
    def vggt_1b(cls) -> Self:
        """The released VGGT-1B: 1,256,537,516 parameters (official file: vggt/models/vggt.py)."""
        return cls()

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Builds a configuration from JSON fields; absent fields take the released value.

        Raises:
            InputError: a field is unknown, or the values do not fit each other.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            raise InputError(f"unknown configuration fields {unknown}; known are {known}")
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise InputError(f"configuration: {error}") from error

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Self:
        """Reads a configuration from a JSON file with these field names."""
        try:
            with open(path, encoding="utf-8") as file:
                fields = json.load(file)
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a readable JSON configuration ({error})") from error
        return cls.from_dict(fields)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @property
    def num_special_tokens(self) -> int:
        """Camera and register tokens of a frame, which come before its patch tokens."""
        return 1 + self.num_register_tokens
