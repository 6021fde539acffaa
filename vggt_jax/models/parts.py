"""Encoder and trunk as a configuration describes them: to build them, to fill them from official
checkpoints, and to estimate their memory."""

import dataclasses

from flax import nnx

from vggt_jax.checkpoints.modules import Rules, block, under, vision_transformer
from vggt_jax.layers.block import Block, FfnKind
from vggt_jax.layers.vit import VisionTransformer
from vggt_jax.trunk.alternation import make_trunk_blocks
from vggt_jax.trunk.memory import ForwardPass, trunk_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A DINOv2 that sees each frame by itself; the fields are the arguments of
    `VisionTransformer`."""

    img_size: int
    patch_size: int
    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    num_register_tokens: int | None
    in_channels: int = 3
    ffn: FfnKind = "mlp"
    position_offset: float | None = None
    has_norm: bool = True
    keeps_class_token: bool = False

    def make(self, rngs: nnx.Rngs) -> VisionTransformer:
        """One with random parameters."""
        return VisionTransformer(**vars(self), rngs=rngs)

    def rules(self, official: str, native: str = "encoder") -> Rules:
        """Its key rules, under these prefixes of official keys and of our names."""
        encoder = vision_transformer(
            self.dim,
            int(self.dim * self.mlp_ratio),
            depth=self.depth,
            patch_size=self.patch_size,
            img_size=self.img_size,
            num_registers=self.num_register_tokens,
            in_channels=self.in_channels,
            ffn=self.ffn,
            has_norm=self.has_norm,
        )
        return under(official, native, encoder, bfloat16=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkSpec:
    """Blocks that alternate between frames and scene, `depth` of either kind; the fields are the
    arguments of `make_trunk_blocks`."""

    dim: int
    num_heads: int
    mlp_ratio: float
    depth: int
    norm_eps: float
    layer_scale: float | None
    qk_norm: bool = True
    ffn: FfnKind = "mlp"

    def make_blocks(self, rngs: nnx.Rngs) -> Block:
        """All blocks of one kind, with random parameters."""
        return make_trunk_blocks(**vars(self), rngs=rngs)

    def rules(self, official: str, native: str, *, first: int = 0, step: int = 1) -> Rules:
        """Key rules of all blocks of one kind.

        Args:
            official: prefix of the official keys, which holds `{layer}`.
            native: prefix of our names.
            first, step: number of the first block in the official checkpoint, and the way to the
                next.
        """
        blocks = block(
            self.dim,
            int(self.dim * self.mlp_ratio),
            qk_norm_dim=self.dim // self.num_heads if self.qk_norm else None,
            layer_scale=self.layer_scale is not None,
            ffn=self.ffn,
        )
        return under(
            official, native, blocks, layers=self.depth, first=first, step=step, bfloat16=True
        )

    def memory(
        self, forward: ForwardPass, *, taps: tuple[int, ...] = (), keeps_both: bool = True
    ) -> dict[str, int]:
        """Bytes of the tokens that are kept and of temporaries, see `trunk_memory`."""
        return trunk_memory(
            forward,
            dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            taps=taps,
            keeps_both=keeps_both,
        )
