"""Many scenes, one after another or in batches, resumably.

    python examples/batch.py [OUT]

Writes OUT/NAME/predictions.npz for each scene (out/batch without an argument), reads one again, and
runs a second time, which finds all of them there.
"""

import pathlib
import sys

import vggt_jax

SAMPLE = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"


def main(out: pathlib.Path):
    model = vggt_jax.load_model()
    pictures = sorted(SAMPLE.glob("*.jpg"))
    # A folder with a folder of photographs for each scene would do, too.
    scenes = {"first": pictures[:3], "second": pictures[3:6], "missing": [out / "no_such.jpg"]}
    for _ in range(2):
        report = vggt_jax.reconstruct_scenes(scenes, out, model=model, progress=False)
        print(f"written {report.written}, there already {report.skipped}")
        for name, reason in report.failed.items():
            print(f"failed: {name}: {reason}")

    recon = vggt_jax.load_reconstruction(out / "second")
    print(f"second: {', '.join(recon.names)}, depth {recon.depth.shape}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "out/batch"))
