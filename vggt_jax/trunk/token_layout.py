"""Where the tokens of a frame lie, and at which position in its picture."""

import dataclasses

import numpy as np
from jaxtyping import Int

from vggt_jax.layers.token_order import TokenOrder, patch_order


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Tokens of a frame: first the special ones, then its patches row by row."""

    num_special: int
    rows: int
    columns: int

    @classmethod
    def for_images(cls, height: int, width: int, patch_size: int, num_special: int):
        """The layout of images of `height` x `width` pixels.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        if height % patch_size or width % patch_size or not height or not width:
            raise ValueError(
                f"image sides must be multiples of {patch_size}, not {height}x{width} "
                "(height x width); vggt_jax.load_images resizes photographs"
            )
        return cls(num_special=num_special, rows=height // patch_size, columns=width // patch_size)

    @property
    def tokens_per_frame(self) -> int:
        return self.num_special + self.rows * self.columns

    def positions(self) -> Int[np.ndarray, "p 2"]:
        """`(y, x)` for RoPE: patches count from 1, special tokens are at 0, which turns nothing."""
        grid = np.stack(
            np.meshgrid(np.arange(self.rows), np.arange(self.columns), indexing="ij"), -1
        )
        special = np.zeros((self.num_special, 2), dtype=grid.dtype)
        return np.concatenate([special, grid.reshape(-1, 2) + 1])

    def order(self, token_order: TokenOrder) -> Int[np.ndarray, " p"]:
        """Which token comes first, second, and so on, when patches are in that order."""
        patches = self.num_special + patch_order(token_order, self.rows, self.columns)
        return np.concatenate([np.arange(self.num_special), patches])
