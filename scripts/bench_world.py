"""How many scenes a second the worlds are rendered at, without a model.

    python scripts/bench_world.py --textures textures

Prints a line of JSON for each world: scenes a second on one device, compilation left out.
"""

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax

from vggt_jax.synthetic import picture_bank, read_pictures, render_scenes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--textures", type=pathlib.Path, help="as scripts/train.py takes them")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[224, 224], help="height width")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    cases = {"plain": ("train", None), "wide, no pictures": ("wide-train", None)}
    if args.textures is not None:
        bank = jax.device_put(picture_bank(read_pictures(args.textures)))
        cases["wide, pictures"] = ("wide-train", bank)
    for name, (split, pictures) in cases.items():

        @jax.jit
        def images(key, bank, split=split):
            scenes = render_scenes(
                key, args.scenes, args.frames, size=tuple(args.size), split=split, bank=bank
            )
            return scenes.images, scenes.depth

        begin = time.monotonic()
        jax.block_until_ready(images(jax.random.key(0), pictures))
        compiling = time.monotonic() - begin
        begin = time.monotonic()
        for i in range(args.repeats):
            found = images(jax.random.key(1 + i), pictures)
        jax.block_until_ready(found)
        speed = args.repeats * args.scenes / (time.monotonic() - begin)
        line = {"world": name, "frames": args.frames, "size": args.size, "scenes": args.scenes}
        line |= {"scenes_per_second": speed, "compiling": compiling, "jax": jax.__version__}
        line |= {"device": jax.devices()[0].device_kind}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
