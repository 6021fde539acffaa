"""The track head: follows points of the first frame through all frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.linear import gelu
from vggt_jax.heads.dpt import DPT
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.mlp import Mlp
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.models.vggt.heads.correlation import (
    build_pyramid,
    lerp,
    rounded,
    sample_border,
    sample_correlation,
    sample_features,
)
from vggt_jax.models.vggt.heads.update_former import UpdateFormer
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.token_layout import TokenLayout

# Official files: vggt/heads/track_head.py (stride), track_modules/base_track_predictor.py
# (max_scale), track_modules/utils.py (the other two).
_STRIDE = 2
_MAX_SCALE = 518.0
_FLOW_MAX_FREQUENCY = 1000.0
_POSITION_PERIOD = 10000.0

# Points whose windows of features are gathered at a time, in one frame: 100 positions x 128
# channels x 4 bytes each for the released sizes, 100 MiB.
_POINTS_PER_CHUNK = 2048


class TrackHead(nnx.Module):
    """Features of every frame, and the tracker that reads them (official: heads/track_head.py)."""

    def __init__(self, feature_extractor: DPT, tracker: "Tracker"):
        self.feature_extractor = feature_extractor
        self.tracker = tracker

    def __call__(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        query_points: Float[Array, "b m 2"],
        precision: Precision,
        num_frames: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b s m 2"], Float[Array, "b s m"], Float[Array, "b s m"]]:
        """Tracks in pixels `(x, y)`, visibility and confidence in [0, 1], for every frame."""
        features = self.feature_extractor(trunk, layout, precision)
        return self.tracker(features, query_points, precision, num_frames)


class Tracker(nnx.Module):
    """Iterative point tracker (official file: heads/track_modules/base_track_predictor.py)."""

    def __init__(
        self,
        features: int,
        hidden_dim: int,
        *,
        num_heads: int,
        num_virtual_tracks: int,
        corr_levels: int,
        corr_radius: int,
        depth: int,
        num_iterations: int,
        rngs: nnx.Rngs,
    ):
        self.corr_levels = corr_levels
        self.corr_radius = corr_radius
        self.num_iterations = num_iterations
        token_dim = 3 * features + 4
        self.corr_mlp = Mlp(
            corr_levels * (2 * corr_radius + 1) ** 2, hidden_dim, features, rngs=rngs
        )
        self.query_ref_token = nnx.Param(
            jax.random.normal(rngs.params(), (2, token_dim), jnp.float32)
        )
        self.updateformer = UpdateFormer(
            token_dim,
            hidden_dim,
            features + 2,
            depth=depth,
            num_heads=num_heads,
            num_virtual_tracks=num_virtual_tracks,
            rngs=rngs,
        )
        self.fmap_norm = LayerNorm(features)
        self.ffeat_norm = LayerNorm(features)  # official: a group norm with one group
        self.ffeat_updater = Linear(features, features, rngs=rngs)
        self.vis_predictor = Linear(features, 1, rngs=rngs)
        self.conf_predictor = Linear(features, 1, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "b s h w c"],
        query_points: Float[Array, "b m 2"],
        precision: Precision,
        num_frames: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b s m 2"], Float[Array, "b s m"], Float[Array, "b s m"]]:
        """Follows points given in pixels of the first frame. `h`, `w`: half the image's sides.

        Raises:
            ValueError: the images are too small for the levels of the correlation pyramid.
        """
        b, s, height, width, _ = features.shape
        if _STRIDE * min(height, width) < self.smallest_image_side:
            raise ValueError(
                f"tracking needs image sides of at least {self.smallest_image_side} pixels for its "
                f"{self.corr_levels} correlation levels, not {_STRIDE * height}x{_STRIDE * width}"
            )
        pyramid = build_pyramid(self.fmap_norm(features), self.corr_levels)
        start = query_points.astype(jnp.float32) / _STRIDE
        query_features = jax.vmap(sample_features)(pyramid[0][:, 0], start)
        m = start.shape[1]
        dim = self.query_ref_token.shape[-1]
        position = jax.vmap(lambda points: _position_embedding(points, height, width, dim))(start)
        reference = jnp.take(
            self.query_ref_token[...],
            np.minimum(np.arange(s, dtype=np.int32), 1),
            axis=0,
            mode="clip",
        )
        constant = position[:, :, None] + reference[None, None]  # [b, m, s, t]

        def iterate(carry, _):
            coords, track_features = carry  # [b, s, m, 2], [b, s, m, c]
            coords = jax.lax.stop_gradient(coords)
            correlation = self._correlate(pyramid, coords, track_features)
            correlation = self.corr_mlp(correlation, precision)
            flow = coords - coords[:, :1]
            tokens = [
                _flow_embedding(flow, track_features.shape[-1] // 2),
                flow / _MAX_SCALE,
                flow / _MAX_SCALE,
                correlation,
                track_features,
            ]
            tokens = jnp.concatenate(tokens, axis=-1).swapaxes(1, 2) + constant  # [b, m, s, t]
            delta = self.updateformer(tokens, precision, num_frames).swapaxes(1, 2)
            coords = (coords + delta[..., :2]).at[:, 0].set(start)
            update = self.ffeat_updater(self.ffeat_norm(delta[..., 2:]), precision)
            track_features += gelu(update)
            return (coords, track_features), None

        repeat = lambda x: jnp.broadcast_to(x[:, None], (b, s, *x.shape[1:]))
        (coords, track_features), _ = jax.lax.scan(
            iterate, (repeat(start), repeat(query_features)), length=self.num_iterations
        )
        visibility = jax.nn.sigmoid(self.vis_predictor(track_features, precision))
        confidence = jax.nn.sigmoid(self.conf_predictor(track_features, precision))
        return coords * _STRIDE, visibility.reshape(b, s, m), confidence.reshape(b, s, m)

    @property
    def smallest_image_side(self) -> int:
        """Pixels that leave one on the coarsest level of the correlation pyramid."""
        return _STRIDE * 2 ** (self.corr_levels - 1)

    def _correlate(self, pyramid, coords, track_features):
        """Correlations around every track in every frame, `[b s m levels*window**2]`.

        Frame by frame, since a frame's windows of features are far larger than its result.
        """
        radius = self.corr_radius

        def frame(xs):
            levels, coords, targets = xs
            return map_chunks(
                lambda xs: sample_correlation(levels, *xs, radius=radius),
                (coords, targets),
                axis=0,
                max_chunk=_POINTS_PER_CHUNK,
            )

        flat = lambda x: x.reshape(-1, *x.shape[2:])
        xs = (tuple(map(flat, pyramid)), flat(coords), flat(track_features))
        return jax.lax.map(frame, xs).reshape(*coords.shape[:3], -1)


def _flow_embedding(flow: Float[Array, "*b 2"], dim: int) -> Float[Array, "*b c"]:
    """Sines and cosines, interleaved, of the x and then of the y movement."""
    frequencies = np.arange(0, dim, 2, dtype=np.float32) * np.float32(_FLOW_MAX_FREQUENCY / dim)
    frequencies = jax.lax.broadcast_to_rank(frequencies, flow.ndim + 1)
    angles = rounded(flow[..., None] * frequencies)  # [..., x or y, dim / 2]
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*flow.shape[:-1], 2 * dim)


def _position_embedding(
    points: Float[Array, "m 2"], height: int, width: int, dim: int
) -> Float[Array, "m t"]:
    """Where the queries lie: embedding at whole positions, interpolated; first x, then y.

    It separates into a part for x and one for y, so that a table per axis does.
    """
    parts = []
    for axis, size in ((0, width), (1, height)):
        omega = _POSITION_PERIOD ** -(np.arange(dim // 4, dtype=np.float64) / (dim / 4))
        angles = np.arange(size)[:, None] * omega
        table = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
        low, high, weight = sample_border(points[..., axis], size)
        at = functools.partial(jnp.take, table, axis=0, mode="clip")
        parts.append(lerp(at(low), at(high), weight))
    return jnp.concatenate(parts, axis=-1)
