"""Photographs in; cameras, depth and a point cloud out.

    python examples/infer.py [OUT]

Reconstructs three of the sample pictures with the small model, prints a line for each frame and
writes OUT/points.ply (out/infer without an argument).
"""

import pathlib
import sys

import numpy as np

import vggt_jax

SAMPLE = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"


def main(out: pathlib.Path):
    model = vggt_jax.load_model()  # the small model; "facebook/VGGT-1B" for photographs
    pictures = sorted(SAMPLE.glob("*.jpg"))[:3]
    recon = vggt_jax.infer(pictures, model=model)

    # The pose is camera from world, so the camera stands where this gives zero.
    rotation, translation = recon.camera_from_world[..., :3], recon.camera_from_world[..., 3]
    positions = -np.einsum("sji,sj->si", rotation, translation)
    print("frame     position (x, y, z)      focal length  median depth  confidence")
    for i, name in enumerate(recon.names):
        x, y, z = positions[i]
        focal, depth = recon.intrinsics[i, 0, 0], np.median(recon.depth[i])
        confidence = np.median(recon.depth_confidence[i])
        place = f"{x:6.3f} {y:6.3f} {z:6.3f}"
        print(f"{name}  {place}  {focal:12.1f} px {depth:12.3f}  {confidence:10.1f}")

    report = vggt_jax.export_reconstruction(recon, out / "points.ply", format="ply", overwrite=True)
    print(report)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "out/infer"))
