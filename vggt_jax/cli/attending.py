"""How the tokens of all photographs attend to each other: options that commands share."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vggt_jax.errors import InputError
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.trunk.attention.block_sparse import BlockSparse
from vggt_jax.trunk.attention.sampled import Sampled

# Options that may be left out, without a word on that in the help.
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
ComputeType = Annotated[
    Literal["float32", "bfloat16"] | None,
    tyro.conf.arg(metavar="{float32,bfloat16}", help_behavior_hint=""),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attending:
    """The options of attention."""

    attention: OptionalText = None
    """How the tokens of all photographs attend to each other: dense, auto (a sample where that is
    faster, as --num-keys), or a plan of `vggt-jax calibrate`. By default dense."""
    num_keys: OptionalInt = None
    """Attention over all photographs sees a sample of so many patches, which stands for all of
    them. 8192 suits fifty photographs and more. By default it sees everything."""
    sparse_ratio: OptionalFloat = None
    """Leave out this share of the blocks in attention over all photographs, in [0, 1]: 0.75 keeps a
    quarter and suits a hundred photographs and more. By default nothing is left out."""
    cdf_threshold: OptionalFloat = None
    """Keep as many of the most probable blocks as have this share of the probability, in [0, 1].
    With both, the larger number is kept."""
    pool_mode: Literal["avg", "max"] = "avg"
    """How a block of tokens becomes one vector to predict its attention from."""
    token_order: Literal["raster", "hilbert", "tiles"] = "raster"
    """How patches are put into blocks: row by row, along a Hilbert curve, or 8 by 8."""
    min_tokens: int = BlockSparse.min_tokens
    """Scenes of fewer tokens (1,374 for a frame of 518x518) run dense, which is faster for them."""
    sparse_layers: tuple[int, ...] = ()
    """Leave out blocks in these layers of the trunk only, from 0; in all by default."""

    def scene_attention(self) -> SceneAttention | str:
        """What was chosen, as `Options.attention` takes it.

        Raises:
            InputError: a value cannot be, or two contradict each other.
        """
        if self.sparse_layers and self.sparse_ratio is None and self.cdf_threshold is None:
            raise InputError("--sparse-layers needs --sparse-ratio or --cdf-threshold")
        return chosen_attention(
            self.attention,
            self.num_keys,
            self.sparse_ratio,
            self.cdf_threshold,
            pool_mode=self.pool_mode,
            token_order=self.token_order,
            min_tokens=self.min_tokens,
            layers=self.sparse_layers or None,
        )


def chosen_attention(
    name: str | None,
    num_keys: int | None,
    sparse_ratio: float | None,
    cdf_threshold: float | None,
    *,
    min_tokens: int,
    **settings: Any,
) -> SceneAttention | str:
    """What is named; or by a sample if a number of keys is given, block-sparse if a share is, else
    dense.

    Args:
        name: as `Options.attention` takes it.
        min_tokens: scenes of fewer tokens run dense.
        settings: others of `BlockSparse`.

    Raises:
        InputError: a number cannot be, or two ways are asked for.
    """
    is_sparse = sparse_ratio is not None or cdf_threshold is not None
    if num_keys is not None and is_sparse:
        raise InputError(
            "--num-keys samples keys, --sparse-ratio and --cdf-threshold choose blocks; give one "
            "of them"
        )
    if name is not None and (num_keys is not None or is_sparse):
        raise InputError(
            f"--attention {name} says how to attend; leave out --num-keys, --sparse-ratio and "
            "--cdf-threshold"
        )
    try:
        if name is not None:
            return name
        if num_keys is not None:
            return Sampled(num_keys=num_keys, min_tokens=min_tokens)
        if not is_sparse:
            return Dense()
        return BlockSparse(
            sparse_ratio=sparse_ratio,
            cdf_threshold=cdf_threshold,
            min_tokens=min_tokens,
            **settings,
        )
    except ValueError as error:
        raise InputError(f"--{error}".replace("_", "-")) from error
