"""`reconstruct` is a pure function: one `jax.jit` for a scene, `jax.vmap` for several.

    python examples/jit_and_vmap.py

Takes the eight sample pictures as four scenes of two, and finds how far apart the two cameras of
each are, in the unit of the median depth.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import vggt_jax

SAMPLE = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"


def baseline(model, images):
    """The distance of two cameras over the median depth, for images [2 height width 3]."""
    recon = vggt_jax.reconstruct(model, images)
    # The world is the first camera, so the second's distance is the length of its translation.
    return jnp.linalg.norm(recon.camera_from_world[1, :, 3]) / jnp.median(recon.depth)


def main():
    model = vggt_jax.load_model()
    frames = vggt_jax.load_images(SAMPLE, size=model.config.img_size)
    scenes = frames.images.reshape(4, 2, *frames.images.shape[1:])

    of_one = jax.jit(baseline)  # The model is an argument like any other: a pytree.
    of_all = jax.jit(jax.vmap(baseline, in_axes=(None, 0)))
    together = np.asarray(of_all(model, scenes))
    one_by_one = np.array([of_one(model, scene) for scene in scenes])
    for i, value in enumerate(together):
        names = " and ".join(frames.names[2 * i : 2 * i + 2])
        print(f"{names}: cameras {value:.3f} of the median depth apart")
    print(f"largest difference of vmap from scene by scene: {abs(together - one_by_one).max():.1e}")


if __name__ == "__main__":
    main()
