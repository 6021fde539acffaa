"""The configuration of Pi3X: its sizes, those of the released model, and what they must satisfy."""

import dataclasses
from typing import Self

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.models.parts import EncoderSpec, TrunkSpec
from vggt_jax.models.pi3.config import Pi3Fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pi3XConfig(Pi3Fields, model="Pi3X", any_length=("pose_inject_layers", "conv_upsample_dims")):
    """Sizes of a Pi3X model, those of π³ and more; the defaults are the released one.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        vggt_jax.CheckpointError: a size is not positive, or sizes do not fit each other; a
            ValueError.
    """

    pose_inject_layers: tuple[int, ...] = (1, 9, 17, 25, 33)
    """Blocks of the trunk after which known poses are shown to it; odd numbers, ascending."""
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

    @classmethod
    def pi3x(cls) -> Self:
        """The released Pi3X: 1,360,032,439 parameters (official file: pi3/models/pi3x.py)."""
        return cls()

    @property
    def depth_encoder(self) -> EncoderSpec:
        """The encoder of known depth: that of images, but for depth and whether it is known."""
        return dataclasses.replace(self.encoder, in_channels=2)

    @property
    def pose_injection(self) -> TrunkSpec:
        """The blocks that show known poses to the trunk, which are as its own."""
        return dataclasses.replace(self.trunk, depth=len(self.pose_inject_layers))

    def check(self, origin: str) -> None:
        """Checks what the sizes must satisfy together."""
        # Half of a head meets matrices of 4x4 where poses are shown, and the other half is turned
        # as by RoPE.
        self.require_multiple("decoder_dim", "decoder_num_heads", origin, factor=8)
        super().check(origin)
        self.require_multiple("metric_dim", "metric_num_heads", origin, factor=4)
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
