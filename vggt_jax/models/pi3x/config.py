"""The configuration of Pi3X: its sizes, those of the released model, and what they must satisfy."""

import dataclasses
from typing import Self

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.models.config import ConfigFields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pi3XConfig(
    ConfigFields,
    model="Pi3X",
    may_be_zero=("encoder_num_register_tokens", "num_register_tokens"),
    any_length=("pose_inject_layers", "conv_upsample_dims"),
):
    """Sizes of a Pi3X model; the defaults are the released one.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        vggt_jax.CheckpointError: a size is not positive, or sizes do not fit each other; a
            ValueError.
    """

    img_size: int = 518
    """Side of the square image, in pixels, whose patch grid the position tables cover."""
    patch_size: int = 14
    """Side of a patch in pixels; image sides must be multiples of it."""
    encoder_dim: int = 1024
    """Width of the two encoders, of images and of depth."""
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
    pose_inject_layers: tuple[int, ...] = (1, 9, 17, 25, 33)
    """Blocks of the trunk after which known poses are shown to it; odd numbers, ascending."""
    head_dim: int = 1024
    """Width of the decoders of points, confidence and cameras."""
    head_depth: int = 5
    head_num_heads: int = 16
    camera_dim: int = 512
    """Width of the camera head."""
    metric_dim: int = 512
    """Width of the decoder of the metric scale."""
    metric_depth: int = 5
    metric_num_heads: int = 8
    conv_upsample_dims: tuple[int, ...] = (256, 128, 64)
    """Channels after each stage of the convolutional heads."""
    conv_hidden_ratio: int = 2
    """Channels between the two convolutions of a unit, over those around them."""
    conv_res_blocks: int = 2
    """Units of a stage."""
    conv_last_channels: int = 32
    """Channels before the outputs."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs over their width, everywhere."""

    @classmethod
    def pi3x(cls) -> Self:
        """The released Pi3X: 1,360,032,439 parameters (official file: pi3/models/pi3x.py)."""
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

    def check(self, origin: str) -> None:
        """Checks what the sizes must satisfy together."""
        self.require_multiple("img_size", "patch_size", origin)
        self.require_multiple("encoder_dim", "encoder_num_heads", origin)
        # RoPE turns the halves of a y half and of an x half. Half of a head meets matrices of 4x4
        # where poses are shown, and the other half is turned so.
        self.require_multiple("decoder_dim", "decoder_num_heads", origin, factor=8)
        self.require_multiple("head_dim", "head_num_heads", origin, factor=4)
        self.require_multiple("metric_dim", "metric_num_heads", origin, factor=4)
        if self.encoder_dim != self.decoder_dim:
            raise CheckpointError(
                f"{origin}: encoder_dim={self.encoder_dim} and decoder_dim={self.decoder_dim} must "
                "be equal: patches go on as they come"
            )
        if self.decoder_depth % 2:
            raise CheckpointError(
                f"{origin}: decoder_depth={self.decoder_depth} must be even: blocks alternate "
                "between frames and scene"
            )
        layers = self.pose_inject_layers
        if list(layers) != sorted(set(layers)) or not all(
            layer % 2 and layer < self.decoder_depth for layer in layers
        ):
            raise CheckpointError(
                f"{origin}: pose_inject_layers={list(layers)} must be odd, ascending and below "
                f"decoder_depth={self.decoder_depth}"
            )
        for dim in self.conv_upsample_dims:
            hidden = self.conv_hidden_ratio * dim
            if hidden < 32 or hidden % (hidden // 32):
                raise CheckpointError(
                    f"{origin}: conv_upsample_dims={list(self.conv_upsample_dims)} times "
                    f"conv_hidden_ratio={self.conv_hidden_ratio} must split into groups of 32 "
                    "channels, or evenly into fewer groups"
                )
