"""A server on a stand-in for the model: what it makes of photographs tells whose they were."""

import contextlib
import socket
import threading
import time

import numpy as np
from PIL import Image

from vggt_jax import Reconstruction
from vggt_jax.images.loading import load_images
from vggt_jax.scene.provenance import Provenance

SIDE = 28


def scene_of(files, options, say):
    """Depth that is the photographs' red, seen by cameras in a row."""
    say("reconstructing")
    frames = load_images(list(files) if len(files) > 1 else files[0], size=SIDE)
    images = np.asarray(frames.images)
    num_frames, height, width, _ = images.shape
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (num_frames, 1, 1))
    poses[:, 0, 3] = -0.1 * np.arange(num_frames)
    matrix = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
    depth = images[..., 0].astype(np.float32)
    return Reconstruction(
        images=images,
        camera_from_world=poses,
        intrinsics=np.tile(matrix, (num_frames, 1, 1)),
        depth=depth,
        depth_confidence=np.full_like(depth, 2.0),
        names=frames.names,
        transforms=frames.transforms,
        provenance=Provenance(
            model=options.model,
            is_small=options.model == "small",
            agreement=0.1,
            least_agreement=0.2 if options.model == "small" else 0.05,
        ),
    )


def photograph(folder, red, name="a.png"):
    """An image of one colour."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    Image.new("RGB", (SIDE, SIDE), (red, 40, 90)).save(path)
    return path


@contextlib.contextmanager
def served(app):
    """The address at which an application is served, by uvicorn in a thread."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
