"""A reconstruction for other programs: Blender, nerfstudio, anything that reads points.

    python examples/export.py [OUT]

Writes OUT/scene.ply, OUT/scene.glb and OUT/nerfstudio (out/export without an argument).
docs/export.md has the axes and pixels of each; format="colmap" works alike and needs pycolmap.
"""

import json
import pathlib
import sys

import vggt_jax

SAMPLE = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"


def main(out: pathlib.Path):
    model = vggt_jax.load_model()
    pictures = sorted(SAMPLE.glob("*.jpg"))[:3]
    recon = vggt_jax.infer(pictures, model=model)

    options = {"max_points": 20_000, "overwrite": True}
    for name in ("ply", "glb"):
        print(vggt_jax.export_reconstruction(recon, out / f"scene.{name}", format=name, **options))
    print(
        vggt_jax.export_reconstruction(
            recon, out / "nerfstudio", format="nerfstudio", images=pictures, **options
        )
    )
    transforms = json.loads((out / "nerfstudio" / "transforms.json").read_text())
    for frame in transforms["frames"]:
        size = f"{frame['w']}x{frame['h']}"
        print(f"{frame['file_path']}: {size}, focal length {frame['fl_x']:.1f} px")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "out/export"))
