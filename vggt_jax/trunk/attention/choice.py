"""Attention whose value in each layer is data, so that one program serves all choices."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerChoice(SceneAttention):
    """One of several values for each layer of the trunk, by its index in an array.

    It is made inside of a program that takes the array as an argument; an `AttentionPlan` is part
    of the program. Every value is compiled, whether some layer has it or not.

    Attributes:
        values: of which one is for each layer; all of one order of tokens.
        of_layer: which, of each layer.
    """

    values: tuple[SceneAttention, ...]
    of_layer: Int[Array, " depth"]

    @property
    def within_frames(self) -> Dense:
        """As the first value has it."""
        return self.values[0].within_frames

    def branches(self, depth: int, *, num_tokens: int, num_patches: int):
        """The values, dense where one asks for it in this scene, and the array.

        Raises:
            ValueError: the trunk has another number of layers.
        """
        if self.of_layer.shape != (depth,):
            raise ValueError(
                f"the choice is for {len(self.of_layer)} layers, but there are {depth}"
            )
        size = {"num_tokens": num_tokens, "num_patches": num_patches}
        values = [x.within_frames if x.why_dense(**size) else x for x in self.values]
        return values, jnp.asarray(self.of_layer, jnp.int32)

    def attend(self, q, k, v, **settings):
        raise ValueError("a choice differs by layer: branches(depth) has the values")
