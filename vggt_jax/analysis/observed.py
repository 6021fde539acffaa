"""Attention over all frames that says where it looks: means, maxima and maps, streamed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels import tuned
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.scene_attention import AttentionStats, SceneAttention
from vggt_jax.layers.token_order import patch_order

SPECIAL, PATCH = 0, 1
"""Places of the two kinds of tokens in `Observation.mean` and `Observation.maximum`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation(AttentionStats):
    """What the softmax of dense attention is, for the queries and keys that a layer really has.

    Attributes:
        mean, maximum: of the entries of the attention matrix, by the kind of the query and the kind
            of the key, special tokens (0) before patches (1). A row of the matrix sums to 1.
        between_frames: what the tokens of a frame (rows) give to all tokens of another (columns),
            the mean over their queries and over heads. Rows sum to 1, or to less where there are
            tokens of the scene as a whole.
        pair_map: the entries between the tokens of two frames, the mean over heads; rows are
            queries, columns keys, the tokens of the first frame before those of the second, in each
            the special ones before the patches row by row. Empty where no pair was asked for.
    """

    mean: Float[Array | np.ndarray, "*layers n 2 2"]
    maximum: Float[Array | np.ndarray, "*layers n 2 2"]
    between_frames: Float[Array | np.ndarray, "*layers s s"]
    pair_map: Float[Array | np.ndarray, "*layers t t"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed(SceneAttention):
    """Another way to attend, whose results stay as they are, with an `Observation` of each layer.

    Scores exist for some queries at a time, so that memory grows with the number of tokens and not
    with its square; `pair_map` takes `(2 p)^2` numbers a layer.

    Attributes:
        inner: how the layers attend.
        pair: the two frames of `pair_map`; None for none.
        max_score_bytes: how many bytes of scores exist at a time; None for the tuned number.
    """

    inner: SceneAttention = Dense()
    pair: tuple[int, int] | None = None
    max_score_bytes: int | None = None

    @property
    def token_order(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the other."""
        return self.inner.token_order

    @property
    def within_frames(self) -> Dense:
        return self.inner.within_frames

    def decided(self) -> "Observed":
        return dataclasses.replace(self, inner=self.inner.decided())

    def of_layers(self, depth: int) -> list[SceneAttention]:
        return [dataclasses.replace(self, inner=x) for x in self.inner.of_layers(depth)]

    def for_scene(self, depth: int, *, num_tokens: int, num_patches: int) -> list[SceneAttention]:
        size = {"num_tokens": num_tokens, "num_patches": num_patches}
        return [dataclasses.replace(self, inner=x) for x in self.inner.for_scene(depth, **size)]

    def attend(self, q, k, v, *, num_special, grid, token_order, num_frames, scene=None, **rest):
        attended, of_scene, stats = self.inner.attend(
            q,
            k,
            v,
            num_special=num_special,
            grid=grid,
            token_order=token_order,
            num_frames=num_frames,
            scene=scene,
            **rest,
        )
        (b, s, _, n, h), p = q.shape, num_special + grid[0] * grid[1]
        queries, keys = (x[:, :, :p].reshape(b, s * p, n, h) for x in (q, k))
        counts = jnp.full(b, s, jnp.int32) if num_frames is None else num_frames
        counts = jnp.arange(s * p, dtype=jnp.int32) < p * counts[:, None]
        tokens = _Tokens(queries=queries, keys=keys, counts=counts, num_special=num_special, p=p)
        if scene is not None:
            tokens = dataclasses.replace(tokens, of_scene=scene.k)
        most = self.max_score_bytes or tuned.value("dense.max_score_bytes")
        chunk = max(1, most // (4 * b * n * s * p))
        places = np.concatenate(
            [np.arange(num_special), num_special + patch_order(token_order, *grid)]
        )
        rows = np.zeros(0, np.int32)
        if self.pair is not None:
            if not all(0 <= frame < s for frame in self.pair):
                raise ValueError(f"pair={self.pair} must be frames in [0, {s})")
            rows = np.concatenate([frame * p + np.argsort(places) for frame in self.pair])
        observed = tokens.observed(chunk) | {"pair_map": tokens.pair_map(rows, chunk)}
        return attended, of_scene, Observation(**vars(stats), **observed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Queries [b t n h] and keys [b t n h] of all frames, and keys of the scene [b e n h]."""

    queries: Array
    keys: Array
    counts: Array  # [b t], those of frames that count.
    num_special: int
    p: int
    of_scene: Array | None = None

    @property
    def num_of_scene(self) -> int:
        return 0 if self.of_scene is None else self.of_scene.shape[1]

    def probabilities(self, queries):
        """Of some queries [b c n h]: [b n c kv], keys of the scene first."""
        keys, counts = self.keys, self.counts
        if self.of_scene is not None:
            keys = jnp.concatenate([self.of_scene, keys], axis=1)
            counts = jnp.pad(counts, ((0, 0), (self.num_of_scene, 0)), constant_values=True)
        scores = jnp.einsum(
            "bcnh,bknh->bnck",
            queries,
            keys,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(counts[:, None, None], scores * queries.shape[-1] ** -0.5, -jnp.inf)
        return jax.nn.softmax(scores, axis=-1)

    def observed(self, chunk: int):
        """`mean`, `maximum` and `between_frames` of an `Observation`."""
        b, t = self.queries.shape[:2]
        s, first = t // self.p, self.num_of_scene
        is_special = np.arange(t) % self.p < self.num_special
        special_key = np.concatenate([np.ones(first, bool), is_special])

        def of_queries(queries):
            found = self.probabilities(queries)
            kinds = [jnp.where(kind, found, 0.0) for kind in (special_key, ~special_key)]
            sums = jnp.stack([jnp.sum(x, axis=-1) for x in kinds], axis=-1)
            maxima = jnp.stack([jnp.max(x, axis=-1) for x in kinds], axis=-1)
            to_frames = jnp.mean(found[..., first:], axis=1).reshape(b, -1, s, self.p).sum(-1)
            return jnp.moveaxis(sums, 2, 1), jnp.moveaxis(maxima, 2, 1), to_frames

        sums, maxima, to_frames = map_chunks(of_queries, self.queries, axis=1, max_chunk=chunk)
        kinds = jnp.stack([self.counts & is_special, self.counts & ~is_special], axis=-1)
        number = jnp.sum(kinds, axis=1, dtype=jnp.int32).astype(jnp.float32)  # [b 2]
        keys = number + np.array([first, 0], np.float32)
        highest = jax.lax.Precision.HIGHEST
        total = jnp.einsum("btnk,btq->bnqk", sums, kinds.astype(jnp.float32), precision=highest)
        by_kind = [
            jnp.max(jnp.where(kinds[:, :, None, q, None], maxima, 0.0), axis=1) for q in range(2)
        ]
        of_frame = jnp.where(self.counts[..., None], to_frames, 0.0).reshape(b, s, self.p, s)
        return {
            "mean": total / (number[:, None, :, None] * keys[:, None, None]),
            "maximum": jnp.stack(by_kind, axis=2),
            "between_frames": jnp.mean(of_frame, axis=2),
        }

    def pair_map(self, rows: np.ndarray, chunk: int):
        """The entries between these tokens, the mean over heads."""
        if not len(rows):
            return jnp.zeros((len(self.queries), 0, 0), jnp.float32)
        columns = (self.num_of_scene + rows).astype(np.int32)
        mean = lambda queries: jnp.mean(self.probabilities(queries)[..., columns], axis=1)
        queries = self.queries[:, rows.astype(np.int32)]
        return map_chunks(mean, queries, axis=1, max_chunk=chunk)
