"""What a forward pass of MapAnything takes on the device."""

from pallas_kernels import tuned
from vggt_jax.models.mapanything.config import MapAnythingConfig
from vggt_jax.models.mapanything.model import ALTERNATION
from vggt_jax.trunk.memory import ForwardPass


def memory_of_mapanything(config: MapAnythingConfig, forward: ForwardPass) -> dict[str, int]:
    """Bytes by the names of `pipeline.memory.MemoryEstimate`; see `ModelFamily.memory`."""
    num_frames, pixels = forward.num_frames, forward.pixels
    wide = forward.precision.compute_dtype.itemsize
    decoded = min(num_frames, max(1, tuned.value("dpt.pixels_per_chunk") // pixels)) * pixels
    memory = config.trunk.memory(forward, taps=config.taps, keeps_both=ALTERNATION.keeps_both)
    # The heads also read what the encoder made of the patches.
    tokens = num_frames * forward.layout.tokens_per_frame
    memory["kept_tokens"] += wide * tokens * config.encoder_dim
    return {
        # Points in two coordinate systems, depth, confidence and edges.
        "outputs": num_frames * pixels * (4 * (3 + 1 + 1) + 1),
        "heads": int(3.5 * 4 * decoded * config.dpt_features / 2),
        "tracks": 0,
        **memory,
    }
