"""`vggt-jax convert`."""

import dataclasses
from pathlib import Path

import tyro

from vggt_jax.cli.attending import ComputeType, OptionalPath
from vggt_jax.cli.generated import Flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert an official PyTorch checkpoint into ours.

    vggt-jax convert facebook/VGGT-1B vggt-1b
    """

    source: tyro.conf.Positional[str]
    """.safetensors, .pt, .ckpt or .bin file, a folder of one or of its shards, or a hub name."""
    destination: tyro.conf.Positional[Path]
    """Folder to make, or FILE.safetensors."""
    config: OptionalPath = None
    """JSON configuration; without it the file beside SOURCE, or the released size."""
    dtype: ComputeType = None
    """bfloat16 stores the kernels of encoder, trunk and (Pi3) decoders in bfloat16; without it, as
    stored."""
    ignore: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out the keys that begin like this; may be repeated."""
    overwrite: Flag = False
    """Replace DESTINATION if it is a checkpoint of ours."""

    def run(self) -> None:
        from vggt_jax.models.conversion import convert

        print(convert(**vars(self)))
