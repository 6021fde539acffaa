"""The configuration of π³: its sizes, those of the released model, and what they must satisfy."""

import dataclasses
from typing import Self

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.models.config import ConfigFields
from vggt_jax.models.parts import EncoderSpec, TrunkSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pi3Fields(
    ConfigFields,
    model="Pi3",
    may_be_zero=("encoder_num_register_tokens", "num_register_tokens"),
):
    """Sizes that π³ and Pi3X have in common; the defaults are those of both released ones."""

    img_size: int = 518
    """Side of the square image, in pixels, whose patch grid the position tables cover."""
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

    @property
    def encoder(self) -> EncoderSpec:
        """The encoder of images."""
        return EncoderSpec(
            img_size=self.img_size,
            patch_size=self.patch_size,
            dim=self.encoder_dim,
            depth=self.encoder_depth,
            num_heads=self.encoder_num_heads,
            mlp_ratio=self.mlp_ratio,
            num_register_tokens=self.encoder_num_register_tokens,
        )

    @property
    def trunk(self) -> TrunkSpec:
        """The trunk, whose layers are pairs of a frame and a global block."""
        return TrunkSpec(
            dim=self.decoder_dim,
            num_heads=self.decoder_num_heads,
            mlp_ratio=self.mlp_ratio,
            depth=self.decoder_depth // 2,
            norm_eps=1e-6,
            layer_scale=0.01,
        )

    def check(self, origin: str) -> None:
        """Checks what the sizes must satisfy together."""
        self.require_multiple("img_size", "patch_size", origin)
        self.require_multiple("encoder_dim", "encoder_num_heads", origin)
        # RoPE turns the halves of a y half and of an x half.
        self.require_multiple("decoder_dim", "decoder_num_heads", origin, factor=4)
        self.require_multiple("head_dim", "head_num_heads", origin, factor=4)
        if self.encoder_dim != self.decoder_dim:
            raise CheckpointError(
                f"{origin}: encoder_dim={self.encoder_dim} and decoder_dim={self.decoder_dim} must "
                "be equal: patches go on as they come"
            )
        if self.decoder_depth % 2:
            raise CheckpointError(
                f"{origin}: decoder_depth={self.decoder_depth} must be even: blocks within frames "
                "and over all frames alternate"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pi3Config(Pi3Fields, model="Pi3"):
    """Sizes of a π³ model; the defaults are the released one.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        vggt_jax.CheckpointError: a size is not positive, or sizes do not fit each other; a
            ValueError.
    """

    @classmethod
    def pi3(cls) -> Self:
        """The released π³: 958,696,738 parameters (official file: pi3/models/pi3.py)."""
        return cls()
