"""A scene from above: where cameras stood, over the points that they saw."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vggt_jax.scene.orientation import level_forward, up_direction

_WHITE = 255
_FIRST_COLOR, _COLOR = (225, 110, 20), (40, 90, 180)  # The first camera, and the others.
_MARGIN = 0.06  # Of the shorter side, around what is shown.
_FINER = 3  # Drawn so many times as large, and shrunk: lines without steps.
_MOST_NUMBERS = 40  # Of more cameras than this no numbers are written, which would hide them.


def draw_top_view(
    size: tuple[int, int],
    camera_from_world: Float[np.ndarray, "s 3 4"],
    intrinsics: Float[np.ndarray, "s 3 3"] | None = None,
    *,
    image_width: int | None = None,
    points: Float[np.ndarray, "m 3"] | None = None,
    colors: UInt8[np.ndarray, "m 3"] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws cameras from above, numbered wedges that open to what they see, over coloured points.

    Up is judged from the cameras (`orientation.up_direction`). Where they look on average is the
    top of the picture, or its right side where the scene fits better so. Points above the highest
    camera are left out, for a ceiling would hide the room, unless nearly all are above. Parallel
    lines stay parallel; both axes have one scale.

    Args:
      size: (height, width) of the picture.
      camera_from_world: [s 3 4]; cameras whose pose is not finite are left out.
      intrinsics: [s 3 3], for how wide wedges open; None or a focal length that is not finite and
        positive opens them by 60 degrees.
      image_width: of the frames that the intrinsics are for.
      points, colors: [m 3] and [m 3], all finite.

    Raises:
      ValueError: points without colors, or intrinsics without image_width.
    """
    if (points is None) != (colors is None):
        raise ValueError("points and colors belong together")
    if intrinsics is not None and image_width is None:
        raise ValueError("intrinsics need the image_width that they are for")
    height, width = size
    finite = np.isfinite(camera_from_world).all(axis=(1, 2))
    poses = np.asarray(camera_from_world, np.float64)[finite]
    rotations = np.swapaxes(poses[:, :, :3], 1, 2)
    positions = -np.einsum("sij,sj->si", rotations, poses[:, :, 3])
    up = up_direction(rotations)
    forward = level_forward(rotations, up)
    to_plane = np.stack([np.cross(forward, up), -forward], axis=1)  # x to the right, y downwards

    on_plane = positions @ to_plane
    if points is not None and colors is not None and len(points):
        heights = points @ up
        below = heights <= (positions @ up).max(initial=-np.inf)
        if below.mean() > 0.2:
            points, colors, heights = points[below], colors[below], heights[below]
        order = np.argsort(heights, kind="stable")
        plane_points, colors = points[order] @ to_plane, colors[order]
        corners = np.percentile(plane_points, (2, 98), axis=0)
    else:
        plane_points, corners = np.zeros((0, 2)), np.zeros((0, 2))
    corners = np.concatenate([on_plane, corners])
    if not len(corners):
        return np.full((height, width, 3), _WHITE, np.uint8)
    across, ahead = np.maximum(np.ptp(corners, axis=0), 1e-12)
    if min(width / ahead, height / across) > min(width / across, height / ahead):
        # A quarter turn clockwise: the longer side of the scene along that of the picture.
        turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
        to_plane, on_plane = to_plane @ turn, on_plane @ turn
        plane_points, corners = plane_points @ turn, corners @ turn
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = _MARGIN * min(size)
    room = np.array([width, height]) - 2 * margin
    # A single camera has no extent.
    extent = np.maximum(high - low, 1e-3 * max(np.abs(corners).max(), 1e-6))
    scale = (room / extent).min()
    place = lambda x: (x - (low + high) / 2) * scale + np.array([width, height]) / 2

    picture = _splat(size, place(plane_points), colors)
    wedge = 0.06 * min(size)
    pen = Image.fromarray(picture).resize(
        (width * _FINER, height * _FINER), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(pen)
    numbers = np.flatnonzero(finite)
    font = ImageFont.load_default(0.45 * wedge * _FINER)
    # The first camera last, on top of the others.
    for i in reversed(range(len(poses))):
        number = int(numbers[i])
        tangent = np.tan(np.radians(30))
        if intrinsics is not None and image_width is not None:
            focal = intrinsics[number, 0, 0]
            if np.isfinite(focal) and focal > 0:
                tangent = min(image_width / 2 / focal, 2.0)
        middle, side = rotations[i, :, 2], rotations[i, :, 0] * tangent
        apex = place(on_plane[i])
        ends = [apex + wedge * ((middle + sign * side) @ to_plane) for sign in (-1, 1)]
        corners = [tuple(_FINER * corner) for corner in (apex, *ends)]
        color = _FIRST_COLOR if number == 0 else _COLOR
        draw.polygon(corners, fill="white", outline=color, width=_FINER * 2)
        if len(poses) <= _MOST_NUMBERS:
            text = (apex + 0.62 * wedge * (middle @ to_plane)) * _FINER
            draw.text(tuple(text), str(number), fill=color, font=font, anchor="mm")
    return np.asarray(pen.resize((width, height), Image.Resampling.LANCZOS))


def _splat(
    size: tuple[int, int], places: np.ndarray, colors: np.ndarray | None
) -> UInt8[np.ndarray, "height width 3"]:
    """Points as pixels of their colour; where several meet, the last is seen."""
    height, width = size
    picture = np.full((height, width, 3), _WHITE, np.uint8)
    if colors is None or not len(places):
        return picture
    column, row = np.floor(places).astype(np.int64).T
    inside = (0 <= column) & (column < width) & (0 <= row) & (row < height)
    # Of an index that repeats NumPy keeps the last value. Pale, so that cameras stand out.
    pale = 255 - (255 - colors[inside].astype(np.float32)) * 0.75
    picture[row[inside], column[inside]] = pale.round().astype(np.uint8)
    return picture
