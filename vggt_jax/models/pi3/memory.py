"""What a forward pass of π³ takes on the device."""

from vggt_jax.models.pi3.config import Pi3Config
from vggt_jax.trunk.memory import ForwardPass


def memory_of_pi3(config: Pi3Config, forward: ForwardPass) -> dict[str, int]:
    """Bytes by the names of `pipeline.memory.MemoryEstimate`; see `ModelFamily.memory`."""
    wide = forward.precision.compute_dtype.itemsize
    frames = forward.frames_per_chunk
    tokens = frames * forward.layout.tokens_per_frame
    dim = config.head_dim
    # The stream twice and the tokens kept; beside them queries, keys and values with the result, or
    # the hidden layer twice, or the raw pixels before and after they are put in order.
    decoder = 2 * 4 * tokens * dim + 2 * wide * tokens * config.decoder_dim
    inner = wide * tokens * dim * max(3 + 3 + 1, 2 * config.mlp_ratio)
    raw = 2 * 4 * 3 * frames * forward.pixels
    return {
        # Points in two coordinate systems, and the confidence.
        "outputs": 4 * (3 + 3 + 1) * forward.num_frames * forward.pixels,
        "heads": int(decoder + max(inner, raw)),
        "tracks": 0,
        **config.trunk.memory(forward),
    }
