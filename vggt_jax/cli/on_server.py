"""`vggt-jax infer --server`: the work is another process's, the files are written here."""

import os
from pathlib import Path

import numpy as np

from vggt_jax.cli.scene import Scene
from vggt_jax.cli.steps import Steps
from vggt_jax.errors import InputError
from vggt_jax.images.files import as_patterns, photographs
from vggt_jax.images.frames import Frames
from vggt_jax.pipeline import inputs as scene_inputs
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.run import with_known
from vggt_jax.scene.confidence import PointSource, point_sources
from vggt_jax.scene.reconstruction import Reconstruction

# Of the options that only a reconstruction could honour, those that a server takes.
_SENT = (
    "model", "attention", "num_keys", "sparse_ratio", "size", "mode", "fps", "frames", "pattern",
    "recursive", "allow_single_image",
)  # fmt: skip


def on_server(
    server: str, scene: Scene, options: Options, paths: tuple[Path, ...], steps: Steps
) -> tuple[Reconstruction, PointSource | None]:
    """Has a server reconstruct photographs, and puts what is known into the scene here.

    Returns:
        The scene, and where its points come from.

    Raises:
        InputError: an option is not for a server, or it refuses or fails.
    """
    from vggt_jax.serving.client import infer_on_server

    others = [name for name in scene.changed_for_photographs() if name not in _SENT]
    if others:
        raise InputError(
            f"--{others[0].replace('_', '-')} is not for a server; leave it out, or run without "
            "--server"
        )
    files = list(paths)
    if len(files) == 1 and files[0].is_dir():
        found = photographs(files[0], as_patterns(scene.pattern), recursive=scene.recursive)
        files = list(found.images)
    attention = scene.attention
    if scene.num_keys is not None:
        attention = f"keys={scene.num_keys}"
    elif scene.sparse_ratio is not None:
        attention = f"keep={100 * (1 - scene.sparse_ratio):g}"
    with steps("reconstructing on the server") as say:
        recon = infer_on_server(
            server,
            files,
            say=say,
            password=os.environ.get("VGGT_JAX_PASSWORD"),
            model=scene.model,
            attention=attention,
            size=options.size,
            mode=options.mode,
            fps=options.fps,
            frames=options.frames,
        )
    frames = Frames(images=np.asarray(recon.images), names=recon.names, transforms=recon.transforms)
    scene.check_of_frames(frames)
    recon = with_known(recon, scene_inputs.of_frames(frames, options), options)
    possible = point_sources(recon)
    chosen = scene.point_source()
    if chosen is not None and chosen not in possible:
        raise InputError(f"--points {chosen}: this scene has only {', '.join(possible)}")
    return recon, chosen or next(iter(possible), None)
