"""Videos: which of their frames to take. The public names of `images.video`."""

from vggt_jax.images.video import VideoFrames, choose_frames

__all__ = ["VideoFrames", "choose_frames"]
