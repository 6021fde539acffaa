"""Renders the sample scene of the package: of a test split, so of no family trained on.

    python scripts/draw_sample.py --out vggt_jax/samples/cellar --family cellar --seed 3
    python scripts/draw_sample.py --out samples/workshop --split wide-test --family workshop \
        --textures textures --size 336 448

Writes OUT/0001.jpg ... and OUT/cameras.json, the true cameras, in the format of `vggt-jax infer`.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
from PIL import Image

from vggt_jax.synthetic import picture_bank, read_pictures, render_scenes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--split", default="test", choices=["test", "wide-test"])
    parser.add_argument("--family", default="cellar", help="one of the split's families")
    parser.add_argument(
        "--textures", type=pathlib.Path, help="pictures of surfaces for the wide world's split"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[448, 448], help="height width")
    args = parser.parse_args()
    key = jax.random.key(args.seed)
    bank = None
    if args.textures is not None:
        bank = jax.device_put(picture_bank(read_pictures(args.textures)))
    options = {"size": tuple(args.size), "split": args.split, "families": (args.family,)}
    render = jax.jit(lambda key, bank: render_scenes(key, 1, args.frames, bank=bank, **options))
    scene = jax.device_get(jax.tree.map(lambda x: x[0], render(key, bank)))
    args.out.mkdir(parents=True, exist_ok=True)
    frames = []
    for i, image in enumerate(scene.images):
        name = f"{i + 1:04}.jpg"
        Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(args.out / name, quality=90)
        frames.append(
            {
                "name": name,
                "camera_from_world": scene.camera_from_world[i].tolist(),
                "intrinsics_original": scene.intrinsics[i].tolist(),
            }
        )
    text = json.dumps({"frames": frames}, indent=1)
    (args.out / "cameras.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
