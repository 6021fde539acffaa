"""A scene cut into stretches of frames, for what need not see all of them at once."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vggt_jax.scene.reconstruction import Reconstruction

_PIXELS = 2**23  # Of a stretch of frames that are maps of a file.


def frames_of(recon: Reconstruction, frames: slice) -> Reconstruction:
    """A part of a scene's frames, with everything that is per frame; arrays are views."""
    cut = {
        field.name: value[frames]
        for field in dataclasses.fields(recon)
        if not field.metadata.get("static")
        and field.name != "attention_stats"
        and (value := getattr(recon, field.name)) is not None
    }
    return dataclasses.replace(
        recon,
        **cut,
        attention_stats=None,
        names=recon.names[frames],
        transforms=recon.transforms[frames],
    )


def is_mapped(recon: Reconstruction) -> bool:
    """Whether a scene's arrays are maps of a file, since it may not fit into memory."""
    return isinstance(recon.images, np.memmap)


def stretches(recon: Reconstruction) -> Iterator[Reconstruction]:
    """The scene at once, or, where it is a map of a file, a few frames at a time, in memory."""
    if not is_mapped(recon):
        yield recon
        return
    num_frames, height, width, _ = recon.images.shape
    count = max(1, _PIXELS // (height * width))
    for start in range(0, num_frames, count):
        yield in_memory(frames_of(recon, slice(start, start + count)))


def thinned(recon: Reconstruction) -> Reconstruction:
    """The scene, or, where it is a map of a file, every so many of its frames, in memory."""
    if not is_mapped(recon):
        return recon
    num_frames, height, width, _ = recon.images.shape
    every = -(-num_frames * height * width // _PIXELS)
    return in_memory(frames_of(recon, slice(None, None, every)))


def in_memory(recon: Reconstruction) -> Reconstruction:
    """The scene with copies of arrays that are maps of a file."""
    arrays = {
        field.name: np.array(value)
        for field in dataclasses.fields(recon)
        if isinstance(value := getattr(recon, field.name), np.memmap)
    }
    return dataclasses.replace(recon, **arrays)
