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

NAMES = ("vggt_toy", "vggt_odd", "vggt_late", "pi3_toy", "pi3_odd")

# Which of the goldens are maps over pixels, [b s height width ...]. Of those, files keep every third
# row and column, which are all places within a patch of 14 pixels by turns, and the last ones.
_MAPS = {"depth", "depth_conf", "world_points", "world_points_conf", "points", "local_points"}
_MAPS_OF_PI3 = {"conf"}  # VGGT's is of tracks
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
    elif re.search(r"norm\w*\.weight$", key):
        value = 1.0 + (0.3 if toy == "pi3_odd" else 0.2) * draw
    elif re.search(r"token|pos_embed|virual_tracks", key):
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
    if key == "point_head.proj.weight":  # of π³: points are as far as an exponential says
        value *= 0.5 if toy == "pi3_odd" else 0.3
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

    Blocks of random colours, with smaller ones upon them.
    """
    sizes = re.fullmatch(r"(?:b(\d+))?n(\d+)_(\d+)x(\d+)", case).groups(default="1")
    b, s, height, width = map(int, sizes)

    def blocks(size):
        shape = (b, s, -(-height // size), -(-width // size), 3)
        stream = np.random.RandomState(zlib.crc32(f"{toy}.{case} {size}".encode()))
        large = stream.random_sample(shape).repeat(size, 2).repeat(size, 3)
        return large[:, :, :height, :width]

    return (0.75 * blocks(_COARSE) + 0.25 * blocks(_FINE)).astype(np.float32)


def kept(name: str, value: np.ndarray) -> np.ndarray:
    """What the goldens keep of an output: a map at some pixels, anything else as it is."""
    value = np.asarray(value)
    if name not in _MAPS and not (name in _MAPS_OF_PI3 and value.ndim == 5):
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
