"""What attention over all frames does in each layer, on photographs: one run of the trunk."""

import dataclasses
import functools

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from vggt_jax.analysis.observed import PATCH, Observation, Observed
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import AttentionStats, SceneAttention
from vggt_jax.models.base import SceneModel
from vggt_jax.trunk.token_layout import TokenLayout


def observe(
    model: SceneModel,
    images: np.ndarray,
    *,
    pair: tuple[int, int] | None = None,
    attention: SceneAttention = Dense(),
    compute_dtype: DTypeLike | None = None,
) -> Observation:
    """Runs encoder and trunk on the frames of a scene, and says where each layer looks.

    Args:
        images: [s height width 3], as the model sees them.
        pair: two frames whose whole map is returned, of every layer.
        attention: how layers attend; what is observed is the softmax over all keys in any case.

    Returns:
        NumPy arrays, layers first.
    """
    observed = Observed(inner=attention, pair=pair)
    stats = _stats(model, images, attention=observed, compute_dtype=compute_dtype)
    assert isinstance(stats, Observation)
    return stats


def attention_stats(
    model: SceneModel,
    images: np.ndarray,
    *,
    attention: SceneAttention,
    compute_dtype: DTypeLike | None = None,
) -> AttentionStats | None:
    """`Reconstruction.attention_stats` of a scene, without its heads; None where it is dense."""
    return _stats(model, images, attention=attention, compute_dtype=compute_dtype)


def _stats(model, images, *, attention, compute_dtype):
    found = _run(model, images, attention=attention, compute_dtype=compute_dtype)
    return jax.tree.map(lambda x: np.array(x[0]), jax.device_get(found))


@functools.partial(jax.jit, static_argnames=("attention", "compute_dtype"))
def _run(model, images, *, attention, compute_dtype):
    scenes = images[None]
    tokens = model.encode(scenes, attention=attention.within_frames, compute_dtype=compute_dtype)
    trunk = model.aggregate(
        tokens, model.layout(scenes), attention=attention, compute_dtype=compute_dtype
    )
    return trunk.attention_stats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matches:
    """The largest entries of a map between patches of two frames, the largest first.

    Attributes:
        query_frame, key_frame: 0 or 1, which frame of the pair.
        query_pixel, key_pixel: (x, y) of the middle of a patch, in continuous coordinates of the
            model's frame: the image spans [0, width] x [0, height].
        value: of the attention matrix.
    """

    query_frame: Int[np.ndarray, " k"]
    key_frame: Int[np.ndarray, " k"]
    query_pixel: Float[np.ndarray, "k 2"]
    key_pixel: Float[np.ndarray, "k 2"]
    value: Float[np.ndarray, " k"]


def strongest_matches(
    pair_map: Float[np.ndarray, "t t"], layout: TokenLayout, patch_size: int, number: int
) -> Matches:
    """The largest entries between patches of different frames.

    Args:
        pair_map: of an `Observation`, of one layer.
        number: how many; fewer where there are not so many.
    """
    p = layout.tokens_per_frame
    patches = np.arange(layout.num_special, p)
    queries, keys, frames = [], [], []
    for query_frame in (0, 1):
        block = pair_map[query_frame * p + patches][:, (1 - query_frame) * p + patches]
        best = np.argsort(-block, axis=None, kind="stable")[:number]
        query, key = np.unravel_index(best, block.shape)
        queries.append(query)
        keys.append(key)
        frames.append(np.full(len(best), query_frame))
    query, key, frame = (np.concatenate(x) for x in (queries, keys, frames))
    offset = layout.num_special
    value = pair_map[frame * p + offset + query, (1 - frame) * p + offset + key]
    best = np.argsort(-value, kind="stable")[:number]
    query, key, frame, value = (x[best] for x in (query, key, frame, value))

    def middle(patch):
        row, column = np.divmod(patch, layout.columns)
        return patch_size * (np.stack([column, row], axis=-1) + 0.5)

    return Matches(
        query_frame=frame,
        key_frame=1 - frame,
        query_pixel=middle(query),
        key_pixel=middle(key),
        value=value,
    )


def sharpest_layer(observation: Observation) -> int:
    """The layer whose largest entry between patches is the largest, the mean over heads."""
    return int(np.argmax(observation.maximum[..., PATCH, PATCH].mean(axis=-1)))
