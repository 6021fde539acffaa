"""vggt_jax.scene.orientation: up and ahead from how cameras were held."""

import math

import numpy as np
import pytest

from vggt_jax.scene.orientation import level_forward, up_direction


def rotation(axis, degrees):
    """About one of the axes, right-handed."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(3)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def test_up_is_at_right_angles_to_level_cameras():
    # Level cameras that look in all directions and down by 30 degrees. Up is -y.
    all_around = [rotation("y", a) @ rotation("x", -30) for a in (0, 70, 140, 260)]
    # The mean of their ups, 7 degrees off, has a hundredth of a say.
    np.testing.assert_allclose(up_direction(np.stack(all_around)), [0, -1, 0], atol=2e-3)
    # The same in a world that somebody turned.
    world = rotation("z", 50) @ rotation("x", 120)
    turned = up_direction(world @ np.stack(all_around))
    np.testing.assert_allclose(turned, world @ [0, -1, 0], atol=2e-3)
    # Cameras side by side: nothing but their own ups to go by.
    pitch = rotation("x", -30)
    np.testing.assert_allclose(up_direction(np.stack([pitch] * 3)), -pitch[:, 1], atol=1e-6)
    np.testing.assert_allclose(up_direction(np.zeros((0, 3, 3))), [0, -1, 0])
    upside_down = np.stack([np.eye(3), rotation("z", 180)])
    np.testing.assert_allclose(up_direction(upside_down), [0, -1, 0])


def test_ahead_is_level():
    up = np.array([0.0, -1.0, 0.0])
    pair = np.stack(
        [rotation("y", 20) @ rotation("x", -30), rotation("y", -20) @ rotation("x", -30)]
    )
    np.testing.assert_allclose(level_forward(pair, up), [0, 0, 1], atol=1e-6)
    around = np.stack([rotation("y", a) for a in (90, 180, 270, 360)])
    # About y by 90 degrees, z becomes x.
    np.testing.assert_allclose(level_forward(around, up), [1, 0, 0], atol=1e-6)
    down = rotation("x", -90)[None]
    np.testing.assert_allclose(level_forward(down, up), -down[0, :, 1], atol=1e-6)
    np.testing.assert_allclose(level_forward(np.zeros((0, 3, 3)), up), [0, 0, 1])
    with pytest.raises(ValueError, match="must be a unit vector"):
        level_forward(np.full((1, 3, 3), np.nan), up)
