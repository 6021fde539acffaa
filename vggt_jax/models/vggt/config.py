"""The configuration of VGGT: its sizes, those of the released model, and what they must satisfy."""

import dataclasses
from typing import Self, get_args

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.images.resizing import Mode
from vggt_jax.models.config import ConfigFields
from vggt_jax.models.parts import EncoderSpec, TrunkSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGGTConfig(
    ConfigFields,
    model="VGGT",
    may_be_zero=("num_register_tokens", "dpt_layers", "pixel_centre"),
):
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
    resize_mode: Mode = "crop"
    """How photographs are resized where the user does not say: "crop" for the official models,
    "area" for the one that ships; see `load_images`."""

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

    @property
    def encoder(self) -> EncoderSpec:
        """The encoder of images."""
        return EncoderSpec(
            img_size=self.img_size,
            patch_size=self.patch_size,
            dim=self.embed_dim,
            depth=self.vit_depth,
            num_heads=self.vit_num_heads,
            mlp_ratio=self.mlp_ratio,
            num_register_tokens=self.num_register_tokens,
        )

    @property
    def trunk(self) -> TrunkSpec:
        """The trunk, whose layers are pairs of a frame and a global block."""
        return TrunkSpec(
            dim=self.embed_dim,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            depth=self.depth,
            norm_eps=1e-5,
            layer_scale=0.01,
        )

    def check(self, origin: str) -> None:
        """Checks what the sizes must satisfy together."""
        self.require_multiple("img_size", "patch_size", origin)
        # RoPE turns the halves of a y half and of an x half.
        self.require_multiple("embed_dim", "num_heads", origin, factor=4)
        self.require_multiple("embed_dim", "vit_num_heads", origin)
        self.require_multiple("track_hidden_size", "track_num_heads", origin)
        if 2 * self.embed_dim % self.camera_num_heads:
            raise CheckpointError(
                f"{origin}: 2 * embed_dim={2 * self.embed_dim} must be a multiple of "
                f"camera_num_heads={self.camera_num_heads}"
            )
        # Their position embeddings have four parts: sines and cosines of x and of y.
        for name, values in (
            ("dpt_features", [self.dpt_features]),
            ("dpt_out_channels", self.dpt_out_channels),
            ("track_features", [self.track_features]),
        ):
            if any(value % 4 for value in values):
                value = self.to_dict()[name]
                raise CheckpointError(f"{origin}: {name}={value} must be a multiple of 4")
        if self.dpt_features % 8 and (self.enable_depth or self.enable_point):
            # These heads embed positions in half of them, too.
            raise CheckpointError(
                f"{origin}: dpt_features={self.dpt_features} must be a multiple of 8 for the heads "
                "of depth and points"
            )
        if self.resize_mode not in get_args(Mode):
            known = ", ".join(get_args(Mode))
            raise CheckpointError(
                f"{origin}: resize_mode={self.resize_mode[:60]!r} must be one of {known}"
            )
        if self.pixel_centre >= 1:
            raise CheckpointError(f"{origin}: pixel_centre={self.pixel_centre} must be below 1")
        if max(self.dpt_layers) >= self.depth:
            raise CheckpointError(
                f"{origin}: dpt_layers={list(self.dpt_layers)} must be below depth={self.depth}"
            )
