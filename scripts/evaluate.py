"""How well a model finds cameras and depth of scenes of the synthetic world.

    python scripts/evaluate.py --split test --num-scenes 256
    python scripts/evaluate.py --model MODEL --size 84 112 --frames 24 --num-scenes 16
    python scripts/evaluate.py --split wide-test --textures textures --size 224 224

Prints the mean of every metric over the scenes with its standard error; docs/evaluation.md defines
them.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
from evaluation_scenes import truth_of

import vggt_jax
from vggt_jax.evaluation import scene_metrics
from vggt_jax.synthetic import SPLITS, picture_bank, read_pictures, render_scenes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as load_model takes it; the small model without it")
    parser.add_argument("--split", default="test", choices=list(SPLITS))
    parser.add_argument(
        "--textures", type=pathlib.Path, help="pictures of surfaces for the wide world's splits"
    )
    parser.add_argument("--num-scenes", type=int, default=256)
    parser.add_argument(
        "--batch-size", type=int, default=16, help="scenes at a time, which decides what is drawn"
    )
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument(
        "--size", type=int, nargs=2, help="height width; by default squares of the model's own side"
    )
    parser.add_argument("--seed", type=int, default=10_000, help="of the first batch")
    args = parser.parse_args()
    model = vggt_jax.load_model(args.model)
    size = tuple(args.size or [model.config.img_size] * 2)

    bank = None
    if args.textures is not None:
        bank = jax.device_put(picture_bank(read_pictures(args.textures)))

    @jax.jit
    def measure(model, key, bank):
        scenes = render_scenes(
            key, args.batch_size, args.frames, size=size, split=args.split, bank=bank
        )
        recon = vggt_jax.reconstruct(model, scenes.images)
        of_scene = lambda pose, depth, truth: scene_metrics(pose, depth, None, truth)
        return jax.vmap(of_scene)(recon.camera_from_world, recon.depth, truth_of(scenes))

    found = []
    for i in range(-(-args.num_scenes // args.batch_size)):
        found.append(jax.device_get(measure(model, jax.random.key(args.seed + i), bank)))
        print(f"{(i + 1) * args.batch_size} scenes", end="\r", file=sys.stderr)
    for name in found[0]:
        values = np.concatenate([batch[name] for batch in found])
        values = values[~np.isnan(values)]
        print(f"{name:16} {values.mean():.4f} ± {values.std(ddof=1) / len(values) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
