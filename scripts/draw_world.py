"""Draws the contact sheet of the procedural world: `docs/images/world.jpg`.

    python scripts/draw_world.py

Every row is a scene: six of its frames, and the depth of the last two.
"""

import argparse
import pathlib
import sys

import jax
import matplotlib
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vggt_jax.synthetic import FAMILIES, render_scenes  # noqa: E402

_GAP = 4  # pixels between pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "images" / "world.jpg")
    args = parser.parse_args()
    render = jax.jit(
        lambda key: render_scenes(key, args.rows, 6, size=(126, 168), families=tuple(FAMILIES))
    )
    scenes = render(jax.random.key(args.seed))
    images, depth = np.asarray(scenes.images), np.asarray(scenes.depth)
    rows = [
        np.concatenate([_framed(x) for x in (*frames, *map(_colored, maps[-2:]))], axis=1)
        for frames, maps in zip(images, depth, strict=True)
    ]
    sheet = np.concatenate(rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * sheet).astype(np.uint8)).save(args.out, quality=82)
    print(args.out)


def _framed(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=1.0)


def _colored(depth: np.ndarray) -> np.ndarray:
    """Near is bright; the sky is black."""
    valid = depth > 0
    low, high = np.percentile(depth[valid], (1, 99))
    near = 1 - np.clip(
        (np.log(np.where(valid, depth, high)) - np.log(low)) / np.log(high / low), 0, 1
    )
    return matplotlib.colormaps["turbo"](near)[..., :3] * valid[..., None]


if __name__ == "__main__":
    main()
