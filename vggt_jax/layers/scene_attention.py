"""What all ways share in which the tokens of all frames of a scene attend to each other."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vggt_jax.layers.precision import Precision
from vggt_jax.layers.shards import FrameShards
from vggt_jax.layers.token_order import TokenOrder

if TYPE_CHECKING:
    from vggt_jax.layers.attention import Dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionStats:
    """What attention that is not dense did: data like any output, by scene, layer and head.

    Attributes:
        density: the share of the keys that queries of patches saw, special keys included. Of
            block-sparse attention, the share of the pairs of blocks that was kept; the sparsity
            that the paper reports is 1 minus its mean.
        covered: of block-sparse attention, the pooled probability of the kept blocks among the
            patches, the mean over the blocks of queries. Not measured, NaN, where keys are sampled.
        saved: the share of the arithmetic of dense attention that was not done. Less than
            1 - density, for special queries and for blocks that are not full.
        entropy: of the pooled probability, of which `covered` is a part: the mean over the blocks
            of queries, as a share of the highest possible, in [0, 1]. 0 where each looks at one
            block alone, 1 where all blocks matter alike. Not measured, NaN, in dense layers and
            where keys are sampled.
        error: of attention to a sample, the sampling error of what patches get, as a share of its
            root mean square, estimated from how the two halves of the sample differ (see
            `Sampled`). 0 where nothing is sampled; not measured, NaN, for blocks with a sample.
    """

    density: Float[Array | np.ndarray, "*layers n"]
    covered: Float[Array | np.ndarray, "*layers n"]
    saved: Float[Array | np.ndarray, "*layers n"]
    entropy: Float[Array | np.ndarray, "*layers n"]
    error: Float[Array | np.ndarray, "*layers n"]

    @classmethod
    def of_dense(cls, *shape: int) -> Self:
        """What dense attention would report."""
        full = lambda value: jnp.full(shape, value, jnp.float32)
        return cls(
            density=full(1.0),
            covered=full(1.0),
            saved=full(0.0),
            entropy=full(np.nan),
            error=full(0.0),
        )


class HeadGroup(NamedTuple):
    """Some heads of a layer, which attend by themselves.

    Attributes:
        first: of them, among all.
        num_all: heads of the layer.
    """

    first: Int[Array, ""]
    num_all: int

    def of(self, x: Array, num: int) -> Array:
        """Of what all heads have, along the last axis, the part of so many from the first on."""
        return jax.lax.dynamic_slice_in_dim(x, self.first, num, axis=-1)


class SceneTokens(NamedTuple):
    """Queries, keys and values of tokens that are of no frame but of a scene as a whole.

    They are special like those of the frames: everything sees them, whatever else is left out.
    """

    q: Float[Array, "*b e n h"]
    k: Float[Array, "*b e n h"]
    v: Float[Array, "*b e n h"]


class SceneAttention(abc.ABC):
    """How the tokens of all frames of a scene attend to each other.

    `Dense`, `Sampled` or `BlockSparse`, or an `AttentionPlan` of some of them: a frozen value,
    static under `jax.jit`. The trunk asks it for the values of its layers (`branches`) and has each
    attend; it never asks for its type.
    """

    gathers_keys: ClassVar[bool] = False
    """Whether `attend`, on several devices, needs the keys and values of all of them."""

    token_order: TokenOrder = "raster"
    """How the patches of a frame follow one another in the trunk."""

    @property
    @abc.abstractmethod
    def within_frames(self) -> "Dense":
        """How few tokens attend to each other, those of a frame."""

    def why_dense(self, *, num_tokens: int, num_patches: int) -> str | None:
        """Why a scene of so many tokens and patches among them runs dense; None if it does not."""
        del num_tokens, num_patches

    def decided(self) -> "SceneAttention":
        """The value for a scene of which `why_dense` is known to be None, however it is padded."""
        return self

    def with_keys_times(self, factors: Sequence[float]) -> "SceneAttention":
        """The value with so many times the sampled keys, as far as there can be; itself if it
        samples none.

        Args:
            factors: of each layer; a value that is the same in all layers takes the largest.
        """
        del factors
        return self

    def of_layers(self, depth: int) -> "list[SceneAttention]":
        """The value of each layer of a trunk.

        Raises:
            ValueError: the trunk has other layers than this value speaks of.
        """
        return [self] * depth

    def for_scene(self, depth: int, *, num_tokens: int, num_patches: int) -> "list[SceneAttention]":
        """What each layer of a trunk does with a scene: dense where a value asks for it.

        Raises:
            ValueError: the trunk has other layers than this value speaks of.
        """
        size = {"num_tokens": num_tokens, "num_patches": num_patches}
        if self.why_dense(**size):
            return [self.within_frames] * depth
        return [
            value.within_frames if value.why_dense(**size) else value
            for value in self.of_layers(depth)
        ]

    def branches(
        self, depth: int, *, num_tokens: int, num_patches: int
    ) -> "tuple[list[SceneAttention], Int[Array | np.ndarray, ' depth']]":
        """The values that the layers of a trunk have in a scene, and which of them each has.

        Raises:
            ValueError: the trunk has other layers than this value speaks of.
        """
        values = self.for_scene(depth, num_tokens=num_tokens, num_patches=num_patches)
        distinct = list(dict.fromkeys(values))
        return distinct, np.array([distinct.index(value) for value in values], np.int32)

    @abc.abstractmethod
    def attend(
        self,
        q: Float[Array, "b s p n h"],
        k: Float[Array, "b s p n h"],
        v: Float[Array, "b s p n h"],
        *,
        num_special: int,
        grid: tuple[int, int],
        token_order: TokenOrder,
        layer: Int[Array, ""],
        num_frames: Int[Array, " b"] | None,
        precision: Precision,
        scene: SceneTokens | None = None,
        shards: FrameShards | None = None,
        heads: HeadGroup | None = None,
    ) -> tuple[Float[Array, "b s p n h"], Float[Array, "b e n h"] | None, AttentionStats]:
        """Attention over all frames in one layer, for a value that is the same in all layers.

        Args:
            num_special: how many leading tokens of a frame are special.
            grid: rows and columns of patches that follow them. Tokens beyond do not count, and
                their results mean nothing.
            token_order: how these patches follow one another.
            layer: which layer of the trunk this is.
            num_frames: how many leading frames of each scene count, None for all.
            scene: tokens of each scene as a whole, if there are any.
            shards: how the frames are divided over devices: `q`, `k` and `v` are those of this one,
                but for values that `gathers_keys`, whose `k` and `v` are of all frames, without
                tokens beyond the patches; `num_frames` and `scene` are the same on all, and so are
                statistics. None where this one has all.
            heads: which ones these are, of a value that `gathers_keys`; None for all.

        Returns:
            What the tokens of the frames attended to, what those of the scene did, if any, and
            statistics.
        """

    def num_pairs(self, *, num_frames: int, num_special: int, num_patches: int) -> float:
        """Pairs of a query and a key that each head computes, in a layer of a value that is the
        same in all layers; at most so many where that depends on the scene.

        Args:
            num_special, num_patches: of a frame.
        """
        return float(num_frames * (num_special + num_patches)) ** 2

    def extra_bytes(
        self,
        *,
        num_frames: int,
        num_special: int,
        num_patches: int,
        num_heads: int,
        head_dim: int,
        itemsize: int,
        num_devices: int = 1,
    ) -> int:
        """What attention needs in memory beside queries, keys, values and results, in one layer.

        Args:
            num_frames: those of one device.
            num_special, num_patches: of a frame.
            itemsize: of queries, keys and values.
            num_devices: that divide the frames. For a value that `gathers_keys` the keys and
                values of all of them are counted elsewhere.
        """
        del num_frames, num_special, num_patches, num_heads, head_dim, itemsize, num_devices
        return 0
