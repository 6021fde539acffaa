"""What a forward pass of Depth Anything 3 takes on the device."""

import dataclasses

from vggt_jax.models.da3.config import DA3Config
from vggt_jax.trunk.memory import ForwardPass


def memory_of_da3(config: DA3Config, forward: ForwardPass) -> dict[str, int]:
    """Bytes by the names of `pipeline.memory.MemoryEstimate`; see `ModelFamily.memory`."""
    num_frames, pixels = forward.num_frames, forward.pixels
    decoded = forward.decoded_frames * pixels
    trunk = dataclasses.replace(config.trunk, depth=config.num_layers)
    return {
        # Depth and confidence.
        "outputs": 2 * 4 * num_frames * pixels,
        "heads": int(3.5 * 4 * decoded * config.head_features / 2),
        "tracks": 0,
        **trunk.memory(forward, taps=config.taps),
    }
