"""The toy models of the tests: their weights, their images, and where their goldens have values.

Weights and images are drawn from frozen random streams instead of being stored, one stream for each
official key and each case, so that a new key moves no other. numpy promises the bits of
`RandomState`, and only sums, products, quotients and roots of single numbers follow, which IEEE
arithmetic defines: every machine draws the same.

This module knows the official models by key and shape alone (`golden/toy_shapes.json`), and nothing
of the project. `scripts/make_goldens.py` gives its weights to the official code.
"""

import json
import math
import re
import shutil
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"

NAMES = (
    "vggt_toy", "vggt_odd", "vggt_late", "pi3_toy", "pi3_odd", "mapanything_toy", "mapanything_odd",
    "pi3x_odd", "da3_toy", "da3_odd",
)  # fmt: skip

# Which of the goldens are maps over pixels, [b s height width ...]. Of those, files keep every third
# row and column, which are all places within a patch of 14 pixels by turns, and the last ones.
_MAPS = {"depth", "depth_conf", "world_points", "world_points_conf", "points", "local_points"}
_MAPS |= {"rays"}  # of Pi3X
_MAPS |= {"ray", "ray_conf"}  # of Depth Anything 3, 8 pixels for each patch
# Of MapAnything, whose names of this kind are of maps alone.
_MAPS |= {
    "ray_directions", "depth_along_ray", "pts3d", "pts3d_cam", "non_ambiguous_mask_logits",
    "dense_raw", "mask",
}  # fmt: skip
_MAY_BE_MAPS = {"conf"}  # of π³ and MapAnything; VGGT's is of tracks
_KEPT = 3

# Sizes of the blocks of one colour in images, in pixels; they fit no patch.
_COARSE, _FINE = 9, 2


def normal(seed: str, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly normal random numbers of mean 0 and deviation 1, in float64; none beyond 3.5.

    Four uniform numbers are added up. The normal numbers of numpy would go through logarithms, whose
    last bits depend on the machine.
    """
    four = np.random.RandomState(zlib.crc32(seed.encode())).random_sample((4, *shape))
    return (four[0] + four[1] + four[2] + four[3] - 2.0) * math.sqrt(3.0)


def config(toy: str) -> dict:
    """The sizes of a toy, as its JSON file has them."""
    return json.loads((GOLDEN / f"{toy}.json").read_text())


def shapes(toy: str) -> dict[str, tuple[int, ...]]:
    """The shape of every official key of a toy."""
    text = (GOLDEN / "toy_shapes.json").read_text()
    return {key: tuple(shape) for key, shape in json.loads(text)[toy].items()}


def weights(toy: str) -> dict[str, np.ndarray]:
    """The checkpoint of a toy, float32 by official key."""
    return {key: _parameter(toy, key, shape) for key, shape in shapes(toy).items()}


def _parameter(toy: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers as large as those of trained models, so that every parameter matters.

    Fresh official modules would hide mistakes: their biases are zero, their norms one, and a
    LayerScale of 0.01 leaves nearly nothing of a block.
    """
    draw = normal(f"{toy} {key}", shape)
    if key == "image_mean":
        value = 0.45 + 0.1 * draw
    elif key == "image_std":
        value = 0.23 + 0.02 * draw
    elif key.endswith(".gamma"):  # LayerScale
        value = 0.7 + 0.2 * draw
    elif key.endswith("bias"):
        value = 0.1 * draw
    elif re.search(r"norm\w*\.weight$|\.layers\.[03]\.weight$|_aux\.0\.2\.weight$", key):
        value = 1.0 + (0.3 if toy == "pi3_odd" else 0.2) * draw
    elif re.search(r"token|pos_embed|depth_emb|virual_tracks", key):
        value = 0.3 * draw
    else:  # products and convolutions keep the size of what they get
        value = draw / math.sqrt(math.prod(shape[1:]))
    _temper(toy, key, value)
    return value.astype(np.float32)


def _temper(toy: str, key: str, value: np.ndarray):
    """Keeps in bounds what feeds exponentials, and the tracker from being chaotic.

    The tracker feeds positions through sines of up to 1000 radians a pixel. Steps of its full random
    weights would let each iteration multiply a rounding error by a hundred.
    """
    if key == "point_head.output_block.1.2.weight":  # of Pi3X, the same
        value *= 0.3
    elif key == "point_head.proj.weight":  # of π³: points are as far as an exponential says
        value *= 0.5 if toy == "pi3_odd" else 0.3
    elif key == "model.cam_dec.fc_fov.0.weight":  # a field of view is cut at zero
        value *= 0.3
    elif key == "model.cam_dec.fc_fov.0.bias":
        value += 1.0
    elif key == "camera_head.pose_branch.fc2.weight":
        value[7:] *= 0.2  # fields of view, which are cut at zero and end at a half turn
    elif key == "camera_head.pose_branch.fc2.bias":
        value[7:] = 0.2 + 0.2 * value[7:]
    elif key.endswith("updateformer.flow_head.weight"):
        value[:2] *= 0.2  # the steps, in pixels
    elif key.endswith("updateformer.flow_head.bias"):
        value[:2] *= 0.2
    elif key.endswith("updateformer.input_transform.weight"):
        # The first third of what the tracker reads are sines and cosines of the way that a point has
        # gone, half of them in x; the first two have the frequency 0. Then comes the way itself, over
        # 518 pixels, twice.
        dim = (value.shape[1] - 4) // 3
        value[:, 2 : dim // 2] *= 0.02
        value[:, dim // 2 + 2 : dim] *= 0.02
        value[:, dim : dim + 4] *= 15.0


def images(toy: str, case: str) -> np.ndarray:
    """The images of a case such as `b2n3_112x70` or `n5_84x112`, [b s height width 3] in [0, 1].

    Blocks of random colours, with smaller ones upon them. Cases of Pi3X that differ only in what is
    known have the same.
    """
    case = "_".join(case.split("_")[:2]) if toy == "pi3x_odd" else case
    b, s, height, width = sizes(case)

    def blocks(size):
        shape = (b, s, -(-height // size), -(-width // size), 3)
        stream = np.random.RandomState(zlib.crc32(f"{toy}.{case} {size}".encode()))
        large = stream.random_sample(shape).repeat(size, 2).repeat(size, 3)
        return large[:, :, :height, :width]

    return (0.75 * blocks(_COARSE) + 0.25 * blocks(_FINE)).astype(np.float32)


def sizes(case: str) -> tuple[int, int, int, int]:
    """Scenes, frames, height and width of a case; a word at its end says what is known."""
    found = re.fullmatch(r"(?:b(\d+))?n(\d+)_(\d+)x(\d+)(?:_\w+)?", case)
    b, s, height, width = map(int, found.groups(default="1"))
    return b, s, height, width


def known(toy: str, case: str) -> dict[str, np.ndarray]:
    """What is known of the scenes of a case, as MapAnything counts: intrinsics from the centre of the
    first pixel, and poses that lead from the camera to the world.

    Of the five frames the first has intrinsics, pose and depth, the second rays and a pose, the third
    nothing, the fourth intrinsics and depth, the last a pose. Lengths of the first scene alone are
    metres. Some pixels have no depth. Rotations are more than half turns, too.
    """
    b, s, height, width = sizes(case)
    draw = lambda name, *shape: normal(f"{toy}.{case} {name}", (b, s, *shape))
    intrinsics = np.zeros((b, s, 3, 3))
    intrinsics[..., 0, 0] = width * (0.9 + 0.1 * draw("fx"))
    intrinsics[..., 1, 1] = width * (0.9 + 0.1 * draw("fy"))
    intrinsics[..., 0, 2] = width / 2 + draw("cx")
    intrinsics[..., 1, 2] = height / 2 + draw("cy")
    intrinsics[..., 2, 2] = 1
    depth = 3.0 + 0.8 * draw("depth", height, width)
    depth[draw("holes", height, width) > 1] = 0
    y, x = np.mgrid[:height, :width]
    rays = np.stack([x / width - 0.5, y / width - 0.4, np.ones((height, width))], axis=-1)
    rays = rays + 0.02 * draw("rays", height, width, 3)
    rays /= np.sqrt((rays * rays).sum(-1, keepdims=True))
    poses = np.zeros((b, s, 4, 4))
    poses[..., :3, :3] = _rotations(draw("rotations", 4))
    poses[..., :3, 3] = 2.0 * draw("positions", 3)
    poses[..., 3, 3] = 1
    arrays = {"intrinsics": intrinsics, "rays": rays, "depth": depth, "camera_poses": poses}
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    frames = {"intrinsics": (0, 3), "rays": (1,), "depth": (0, 3), "camera_poses": (0, 1, 4)}
    arrays |= {f"{name}_known": np.isin(np.arange(s), of) for name, of in frames.items()}
    return arrays | {"metric": np.arange(b) == 0}


def _rotations(q: np.ndarray) -> np.ndarray:
    """Of quaternions of any length; by the scalar first."""
    w, x, y, z = np.moveaxis(q / np.sqrt((q * q).sum(-1, keepdims=True)), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


# Which frames' values are shown, by what a case is called: depth, rays, poses, scene by scene.
_SHOWN = {
    "all": ([[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]),
    "poses": ([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]),
    # Of the second scene one pose alone, which says nothing.
    "some": ([[1, 0, 1], [0, 0, 0]], [[0, 1, 1], [1, 0, 0]], [[1, 0, 1], [0, 1, 0]]),
}


def priors(toy: str, case: str) -> dict[str, np.ndarray]:
    """What is known in a case, under the names of the official Pi3X; nothing for most.

    Returns:
        `intrinsics` [b s 3 3] in pixels, `depths` [b s height width], 0 where unknown, and `poses`
        [b s 4 4] (world_from_camera), float32; `mask_add_depth`, `mask_add_ray` and `mask_add_pose`
        [b s], bool.
    """
    b, s, height, width = sizes(case)
    what = "_".join(case.split("_")[2:])
    if not what:
        return {}
    draw = lambda name, *shape: normal(f"{toy}.{case} {name}", (b, s, *shape))
    intrinsics = np.zeros((b, s, 3, 3))
    intrinsics[..., 2, 2] = 1
    for i, size in enumerate((width, height)):
        intrinsics[..., i, i] = size * (0.9 + 0.1 * draw(f"focal {i}"))
        intrinsics[..., i, 2] = size * (0.5 + 0.03 * draw(f"centre {i}"))
    # Scenes of other units, and holes.
    unit = np.array([0.7, 4.0])[:b].reshape(b, 1, 1, 1)
    depths = np.where(draw("hole", height, width) > 1.4, 0, 2 + 0.4 * draw("depth", height, width))
    quaternion = np.concatenate([np.ones((b, s, 1)), 0.3 * draw("quaternion", 3)], axis=-1)
    poses = np.zeros((b, s, 4, 4))
    poses[..., 3, 3] = 1
    poses[..., :3, :3] = _rotations(quaternion)
    poses[..., :3, 3] = unit[..., 0] * draw("position", 3)
    values = {"intrinsics": intrinsics, "depths": unit * depths, "poses": poses}
    masks = zip(("mask_add_depth", "mask_add_ray", "mask_add_pose"), _SHOWN[what], strict=True)
    return {name: x.astype(np.float32) for name, x in values.items()} | {
        name: np.array(mask, bool)[:b, :s] for name, mask in masks
    }


def kept(name: str, value: np.ndarray) -> np.ndarray:
    """What the goldens keep of an output: a map at some pixels, anything else as it is."""
    value = np.asarray(value)
    if name not in _MAPS and not (name in _MAY_BE_MAPS and value.ndim >= 4):
        return value
    height, width = value.shape[2:4]
    rows, columns = (np.r_[: n - 1 : _KEPT, n - 1] for n in (height, width))
    return value[:, :, rows][:, :, :, columns]


def write_checkpoint(toy: str, folder: Path) -> Path:
    """Writes the checkpoint of a toy with its configuration beside it, and returns its path."""
    from safetensors.numpy import save_file

    path = folder / f"{toy}.safetensors"
    save_file(weights(toy), path)
    shutil.copy(GOLDEN / f"{toy}.json", folder)
    return path
