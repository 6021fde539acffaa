"""From the light of the wide world to what cameras store."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vggt_jax.synthetic.draws import Draws

_EXPOSURE = 0.5  # stops, standard deviation of a scene's
_DRIFT = 0.25  # the same of each frame's, at the most
_WHITE = 0.12  # of the logarithm of red and blue to green, standard deviation of a scene's
_WHITE_DRIFT = 0.04
_SHADE = 0.35  # how much darker corners are, at the most
_NOISE = 0.03  # standard deviation of a pixel's noise in the middle of the range, at the most
_BLOCK = 8  # pixels of a side of what JPEG quantises together
_STEP = 0.06  # of the highest frequencies of such a block, at the most; of brightness


def photograph(key: Array, linear: Float[Array, "s height width 3"]) -> Array:
    """Linear light to stored values: exposure, white balance, lens, noise, tone, sharpening and
    compression.

    Strengths belong to the scene, and drift from frame to frame as those of automatic cameras do; a
    third of the scenes has no drift.
    """
    frames, height, width, _ = linear.shape
    key_draws, key_noise = jax.random.split(key)
    draw = Draws(key_draws, 16 * frames + 32)
    sometimes = lambda share: draw.chance(share).astype(jnp.float32)
    drift = draw.uniform() * sometimes(2 / 3)
    stops = _EXPOSURE * draw.normal() + drift * _DRIFT * draw.normal(frames)
    balance = _WHITE * draw.normal(1, 3) + drift * _WHITE_DRIFT * draw.normal(frames, 3)
    gain = jnp.exp2(stops)[:, None] * jnp.exp(balance)
    gain = gain[:, None, None, :] * _shade(draw, height, width)[None, :, :, None]
    light = jnp.clip(linear * gain, 1e-4, 4.0)
    # Highlights are rolled off by a half of the cameras.
    soft = light / (1 + 0.25 * light * sometimes(0.5))
    stored = jnp.clip(soft, 1e-4, 1.0) ** (1 / 2.2)
    contrast = draw.uniform(low=-0.25, high=0.35)
    stored = stored + contrast * stored * (1 - stored) * (2 * stored - 1)

    # Out of focus or moving, or sharpened.
    blur = draw.uniform() * draw.uniform() * 1.5 + drift * 0.5 * draw.uniform(frames)
    blur = jnp.where(draw.chance(0.5), blur, -0.5 * draw.uniform()) * jnp.ones(frames, jnp.float32)
    stored = stored + jnp.clip(blur, -0.5, 1.0)[:, None, None, None] * (_soft(stored) - stored)
    more = jnp.clip(blur - 1.0, 0.0, 1.0)[:, None, None, None]
    stored = stored + more * (_soft(_soft(stored)) - stored)

    level = _NOISE * draw.uniform() ** 2
    grain = jax.random.normal(key_noise, linear.shape, jnp.float32)
    stored = stored + level * (0.4 + 0.6 * (1 - stored)) * grain
    quantised = _compressed(stored, _STEP * draw.uniform() ** 2)
    stored = jnp.where(draw.chance(0.6), quantised, stored)
    return jnp.clip(stored, 0.0, 1.0)


def _shade(draw: Draws, height: int, width: int) -> Float[Array, "height width"]:
    """The share of the light that a lens lets through, 1 in the middle."""
    strength = _SHADE * draw.uniform() ** 2
    y, x = (np.linspace(-1, 1, length, dtype=np.float32) for length in (height, width))
    return 1 - strength * np.float32(0.5) * (y[:, None] ** 2 + x[None] ** 2)


def _soft(x: Float[Array, "s height width 3"]) -> Array:
    """A blur by 1 4 6 4 1 along both axes; edges are repeated."""
    for axis in (1, 2):
        length = x.shape[axis]
        at = lambda by, x=x, axis=axis, length=length: jnp.take(
            x, np.clip(np.arange(length) + by, 0, length - 1).astype(np.int32), axis=axis
        )
        x = (6 * x + 4 * (at(-1) + at(1)) + at(-2) + at(2)) / 16
    return x


def _compressed(x: Float[Array, "s height width 3"], step: Array) -> Array:
    """What is left of pictures after their frequencies are rounded in blocks of 8x8 pixels.

    Colours are rounded three times as coarsely as brightness. Pixels beyond whole blocks stay.
    """
    height, width = (length // _BLOCK * _BLOCK for length in x.shape[1:3])
    if not height or not width:
        return x
    grey = np.array(
        [[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32
    )
    n = np.arange(_BLOCK)
    waves = np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * _BLOCK)) * (2 / _BLOCK) ** 0.5
    waves[0] /= 2**0.5
    waves = waves.astype(np.float32)
    coarse = 0.25 + (n[:, None] + n[None]) / (2 * (_BLOCK - 1)) * 0.75
    steps = coarse[:, None, :, None].astype(np.float32) * np.array([1, 3, 3], np.float32)
    # [s rows 8 columns 8 3]
    blocks = x[:, :height, :width] @ grey.T
    blocks = blocks.reshape(-1, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, 3)
    there = jnp.einsum("ui,vj,sricjk->srucvk", waves, waves, blocks)
    size = jnp.maximum(step, 1e-4) * _BLOCK * steps[None, None]
    there = jnp.round(there / size) * size
    back = jnp.einsum("ui,vj,srucvk->sricjk", waves, waves, there)
    inner = back.reshape(-1, height, width, 3) @ np.linalg.inv(grey).T.astype(np.float32)
    return x.at[:, :height, :width].set(inner)
