"""The configuration of MapAnything: its sizes, those of the released models, and their checks."""

import dataclasses
from typing import Self

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.models.config import ConfigFields
from vggt_jax.models.parts import EncoderSpec, TrunkSpec

_FFN = ("mlp", "swiglu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapAnythingConfig(
    ConfigFields,
    model="MapAnything",
    may_be_zero=("encoder_num_register_tokens", "encoder_pos_embed_offset"),
):
    """Sizes of a MapAnything model; the defaults are the released V1.1.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        vggt_jax.CheckpointError: a size is not positive, or sizes do not fit each other; a
            ValueError.
    """

    img_size: int = 518
    """Side of the square image, in pixels, whose patch grid the position table covers."""
    patch_size: int = 14
    """Side of a patch in pixels; image sides must be multiples of it."""
    encoder_dim: int = 1536
    encoder_depth: int = 24
    encoder_num_heads: int = 24
    encoder_ffn: str = "swiglu"
    """"mlp" (two layers with GELU) or "swiglu", two thirds as wide."""
    encoder_num_register_tokens: int = 0
    encoder_norm: bool = False
    """Whether tokens of the encoder are normalised at its end."""
    encoder_pos_embed_antialias: bool = False
    """How the table of positions is resized: antialiased to the exact size, or not and as if to
    sides that are longer by the offset."""
    encoder_pos_embed_offset: float = 0.1
    info_sharing_dim: int = 1536
    """Width of the trunk, which the official code calls information sharing."""
    info_sharing_depth: int = 16
    """Number of blocks of the trunk: those at even places see all frames, those at odd places
    one."""
    info_sharing_num_heads: int = 24
    info_sharing_ffn: str = "swiglu"
    info_sharing_layer_scale: bool = True
    info_sharing_indices: tuple[int, ...] = (7, 11)
    """Blocks that the dense head reads beside the encoder and the last."""
    mlp_ratio: float = 4.0
    """Hidden width of "mlp" over the width, of encoder and trunk."""
    use_encoder_cls_token: bool = True
    """Whether the encoder's class token goes on into the trunk, as a special token of its frame."""
    dense_input_dims: tuple[int, ...] = (588, 768, 1024)
    """Channels in the encoders of given rays and depth: after the first convolution, and after each
    of two residual units."""
    global_input_dims: tuple[int, ...] = (128, 256, 512)
    """Channels in the encoders of given poses and scales."""
    dpt_features: int = 256
    dpt_layer_dims: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of the four layers that the dense head reads."""
    pose_hidden_dim: int = 784
    pose_num_blocks: int = 2
    scale_hidden_dim: int = 196
    scale_num_layers: int = 2

    @classmethod
    def v1_1(cls) -> Self:
        """The released V1.1: 1,228,492,758 parameters, the buffer among them.

        The official file is configs/model/mapanything.yaml.
        """
        return cls()

    @classmethod
    def v1(cls) -> Self:
        """The older release: 563,336,150 parameters (official file: mapanything_v1.yaml)."""
        return cls(
            encoder_dim=1024,
            encoder_num_heads=16,
            encoder_ffn="mlp",
            encoder_norm=True,
            info_sharing_dim=768,
            info_sharing_depth=24,
            info_sharing_num_heads=12,
            info_sharing_ffn="mlp",
            info_sharing_layer_scale=False,
            info_sharing_indices=(11, 17),
            use_encoder_cls_token=False,
        )

    @classmethod
    def of_width(cls, dim: int, num_heads: int) -> Self:
        """As released, but with transformers of another number of channels and of heads."""
        return cls(
            encoder_dim=dim,
            encoder_num_heads=num_heads,
            info_sharing_dim=dim,
            info_sharing_num_heads=num_heads,
        )

    @property
    def num_special_tokens(self) -> int:
        """Tokens of a frame that come before those of its patches: the class token, if any."""
        return int(self.use_encoder_cls_token)

    @property
    def num_layers(self) -> int:
        """Layers of the trunk: pairs of a global and a frame block."""
        return self.info_sharing_depth // 2

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
            num_register_tokens=self.encoder_num_register_tokens or None,
            ffn=self.encoder_ffn,  # pyright: ignore[reportArgumentType]  the check allows no other
            position_offset=(
                None if self.encoder_pos_embed_antialias else self.encoder_pos_embed_offset
            ),
            has_norm=self.encoder_norm,
            keeps_class_token=self.use_encoder_cls_token,
        )

    @property
    def trunk(self) -> TrunkSpec:
        """The trunk, whose layers are pairs of a global and a frame block."""
        # Official file: uniception/models/info_sharing/alternating_attention_transformer.py
        return TrunkSpec(
            dim=self.info_sharing_dim,
            num_heads=self.info_sharing_num_heads,
            mlp_ratio=self.mlp_ratio,
            depth=self.num_layers,
            norm_eps=1e-6,
            layer_scale=1e-5 if self.info_sharing_layer_scale else None,
            qk_norm=False,
            ffn=self.info_sharing_ffn,  # pyright: ignore[reportArgumentType]
        )

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers of the trunk that the dense head reads, the last one included."""
        return (*(block // 2 for block in self.info_sharing_indices), self.num_layers - 1)

    def check(self, origin: str) -> None:
        """Checks what the sizes must satisfy together."""
        self.require_multiple("img_size", "patch_size", origin)
        self.require_multiple("encoder_dim", "encoder_num_heads", origin)
        self.require_multiple("info_sharing_dim", "info_sharing_num_heads", origin)
        for name in ("encoder_ffn", "info_sharing_ffn"):
            if getattr(self, name) not in _FFN:
                raise CheckpointError(
                    f"{origin}: {name}={getattr(self, name)!r} must be one of {', '.join(_FFN)}"
                )
        if self.encoder_pos_embed_antialias and self.encoder_pos_embed_offset:
            raise CheckpointError(
                f"{origin}: encoder_pos_embed_offset={self.encoder_pos_embed_offset} must be 0 "
                "with encoder_pos_embed_antialias=true"
            )
        if self.info_sharing_depth % 2:
            raise CheckpointError(
                f"{origin}: info_sharing_depth={self.info_sharing_depth} must be even: blocks over "
                "all frames and within frames alternate"
            )
        first, second = self.info_sharing_indices
        if first >= second:
            raise CheckpointError(
                f"{origin}: info_sharing_indices={list(self.info_sharing_indices)} must ascend"
            )
        for block in self.info_sharing_indices:
            if block % 2 == 0 or block >= self.info_sharing_depth:
                raise CheckpointError(
                    f"{origin}: info_sharing_indices={list(self.info_sharing_indices)} must be "
                    f"blocks within frames, the odd ones below {self.info_sharing_depth}"
                )
