"""Which way is up and which is ahead in a world that says neither."""

import numpy as np
from jaxtyping import Float


def up_direction(rotations: Float[np.ndarray, "s 3 3"]) -> Float[np.ndarray, "3"]:
    """Which way is up in the world, judged from how photographs are held: level, top up.

    The direction that is most nearly at a right angle to all cameras' x axes. Where these do not
    tell (one camera, or all side by side), the mean of the cameras' own up directions decides.

    Args:
      rotations: world_from_camera; none are allowed.

    Returns:
      A unit vector; (0, -1, 0), up in the coordinates of a camera, where nothing tells.
    """
    if not len(rotations):
        return np.array([0.0, -1.0, 0.0])
    rotations = np.asarray(rotations, np.float64)
    right, ups = rotations[:, :, 0], -rotations[:, :, 1]
    mean_up = ups.mean(axis=0)
    # The weight lets the mean decide where x axes vary by less than about 6 degrees (0.1 radians).
    spread = right.T @ right / len(right) - 0.1**2 * np.outer(mean_up, mean_up)
    up = np.linalg.eigh(spread)[1][:, 0]
    side = up @ mean_up
    if abs(side) < 1e-3:
        return np.array([0.0, -1.0, 0.0])
    return up * np.sign(side)


def level_forward(
    rotations: Float[np.ndarray, "s 3 3"], up: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3"]:
    """Where cameras look on average, at a right angle to `up`.

    Args:
      rotations: world_from_camera; none are allowed.
      up: a unit vector.

    Returns:
      A unit vector. Where cameras look all around it is the first one's way, and where that looks
      straight up or down, the way of its top.
    """
    rotations = np.asarray(rotations, np.float64)
    if not len(rotations):
        rotations = np.eye(3)[None]
    first = rotations[0]
    # As cosines: a mean this short tells no direction.
    candidates = (
        (rotations[:, :, 2].mean(axis=0), 0.1), (first[:, 2], 1e-3), (-first[:, 1], 1e-3),
        (first[:, 0], 0.0),
    )  # fmt: skip
    for candidate, shortest in candidates:
        level = candidate - (candidate @ up) * up
        if (length := np.linalg.norm(level)) > shortest:
            return level / length
    raise ValueError(f"{up=} must be a unit vector, and rotations must be rotations")
