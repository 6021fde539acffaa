"""The configuration of Depth Anything 3: its sizes, those of the released models, and checks."""

import dataclasses
from typing import Self

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.layers.block import FfnKind
from vggt_jax.models.config import ConfigFields
from vggt_jax.models.parts import EncoderSpec, TrunkSpec

_FFN: dict[str, FfnKind] = {"mlp": "mlp", "swiglufused": "swiglu"}
_START = ("alt_start", "qknorm_start", "rope_start")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DA3Config(ConfigFields, model="Depth Anything 3"):
    """Sizes of an any-view model; the defaults are those of DA3-LARGE.

    Field names are those of the JSON beside a converted checkpoint.

    Raises:
        vggt_jax.CheckpointError: a size is not positive, or sizes do not fit each other; a
            ValueError.
    """

    img_size: int = 518
    """Side of the square image, in pixels, whose patch grid the position table covers."""
    patch_size: int = 14
    """Side of a patch in pixels; image sides must be multiples of it."""
    dim: int = 1024
    depth: int = 24
    """Number of blocks: the first `alt_start` see one frame each, and so do those at even places
    after them; those at odd places see all frames."""
    num_heads: int = 16
    mlp_ratio: float = 4.0
    ffn: str = "mlp"
    """"mlp" (two layers with GELU) or "swiglufused" (SwiGLU, two thirds as wide)."""
    alt_start: int = 8
    """The first block after the camera token has joined, from which on blocks alternate."""
    qknorm_start: int = 8
    """The first block with norms of queries and keys; must be `alt_start`."""
    rope_start: int = 8
    """The first block with rotary positions; must be `alt_start`."""
    out_layers: tuple[int, ...] = (11, 15, 19, 23)
    """The four blocks that the dense head reads; they see all frames, and the last block is the
    last of them."""
    head_features: int = 256
    head_out_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    """Channels of the four layers in the dense head."""
    cam_enc_depth: int = 4
    """Blocks of the encoder of known cameras."""
    cam_enc_num_heads: int = 16
    """Its heads, in all released sizes."""

    @classmethod
    def small(cls) -> Self:
        """DA3-SMALL: 34,299,463 values in the official file (configs/da3-small.yaml)."""
        return cls._early(dim=384, num_heads=6, features=64)

    @classmethod
    def base(cls) -> Self:
        """DA3-BASE: 135,366,599 values (configs/da3-base.yaml)."""
        return cls._early(dim=768, num_heads=12, features=128)

    @classmethod
    def large(cls) -> Self:
        """DA3-LARGE and DA3-LARGE-1.1: 410,941,767 values (configs/da3-large.yaml)."""
        return cls()

    @classmethod
    def giant(cls) -> Self:
        """DA3-GIANT and DA3-GIANT-1.1: 1,320,045,639 values, the head for Gaussians aside
        (configs/da3-giant.yaml)."""
        return cls(
            dim=1536,
            depth=40,
            num_heads=24,
            ffn="swiglufused",
            **dict.fromkeys(_START, 13),
            out_layers=(19, 27, 33, 39),
        )

    @classmethod
    def of_width(cls, dim: int, num_heads: int) -> Self:
        """The released model of so many channels and heads; DA3-LARGE with others if there is
        none."""
        for config in (cls.small(), cls.base(), cls.large(), cls.giant()):
            if (config.dim, config.num_heads) == (dim, num_heads):
                return config
        return cls(dim=dim, num_heads=num_heads)

    @classmethod
    def _early(cls, *, dim: int, num_heads: int, features: int) -> Self:
        return cls(
            dim=dim,
            depth=12,
            num_heads=num_heads,
            **dict.fromkeys(_START, 4),
            out_layers=(5, 7, 9, 11),
            head_features=features,
            head_out_channels=(dim // 8, dim // 4, dim // 2, dim),
        )

    @property
    def encoder(self) -> EncoderSpec:
        """The blocks before the camera token joins."""
        # Official file: depth_anything_3/model/dinov2/vision_transformer.py
        return EncoderSpec(
            img_size=self.img_size,
            patch_size=self.patch_size,
            dim=self.dim,
            depth=self.alt_start,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            num_register_tokens=None,
            ffn=_FFN[self.ffn],
            position_offset=0.1,
            has_norm=False,
            keeps_class_token=True,
        )

    @property
    def trunk(self) -> TrunkSpec:
        """The other blocks, in pairs, but for a leading one."""
        # Official files: depth_anything_3/model/dinov2/layers/block.py, attention.py
        return TrunkSpec(
            dim=self.dim,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            depth=self.num_layers - self.begins_with_scene,
            norm_eps=1e-6,
            layer_scale=1.0,
            ffn=_FFN[self.ffn],
        )

    @property
    def num_special_tokens(self) -> int:
        """Tokens of a frame that come before those of its patches: the camera token."""
        return 1

    @property
    def begins_with_scene(self) -> bool:
        """Whether the first block after the camera token has joined sees all frames."""
        return self.alt_start % 2 == 1

    @property
    def num_layers(self) -> int:
        """Layers of the trunk: blocks that see all frames, each with the one before it that sees
        one, if there is such a block in the trunk."""
        return (self.depth - self.alt_start + 1) // 2

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers of the trunk that the dense head reads."""
        return tuple((block - self.alt_start) // 2 for block in self.out_layers)

    def check(self, origin: str) -> None:
        """Checks what the sizes must satisfy together."""
        self.require_multiple("img_size", "patch_size", origin)
        self.require_multiple("dim", "num_heads", origin)
        self.require_multiple("dim", "cam_enc_num_heads", origin)
        if self.dim // self.num_heads % 4:
            raise CheckpointError(
                f"{origin}: dim={self.dim} must be a multiple of 4 * num_heads="
                f"{4 * self.num_heads}: heads turn with rows and with columns, in pairs"
            )
        if self.ffn not in _FFN:
            raise CheckpointError(f"{origin}: ffn={self.ffn!r} must be one of {', '.join(_FFN)}")
        for name in _START[1:]:
            if (value := getattr(self, name)) != self.alt_start:
                raise CheckpointError(
                    f"{origin}: {name}={value} must be alt_start={self.alt_start}, as in all "
                    "released models"
                )
        if self.depth % 2 or self.alt_start > self.depth - 2:
            raise CheckpointError(
                f"{origin}: depth={self.depth} must be even and at least alt_start + 2 = "
                f"{self.alt_start + 2}, so that the last block sees all frames"
            )
        layers = list(self.out_layers)
        if any(
            block % 2 == 0 or not self.alt_start <= block < self.depth for block in layers
        ) or layers != sorted(set(layers)):
            raise CheckpointError(
                f"{origin}: out_layers={layers} must ascend and be blocks that see all frames: "
                f"the odd ones from {self.alt_start} to {self.depth - 1}"
            )
        if layers[-1] != self.depth - 1:
            raise CheckpointError(
                f"{origin}: out_layers={layers} must end with the last block, {self.depth - 1}, "
                "whose camera token tells the camera"
            )
