"""What a forward pass of MapAnything takes on the device."""

from vggt_jax.models.mapanything.config import MapAnythingConfig
from vggt_jax.models.mapanything.model import ALTERNATION
from vggt_jax.trunk.memory import ForwardPass


def memory_of_mapanything(config: MapAnythingConfig, forward: ForwardPass) -> dict[str, int]:
    """Bytes by the names of `pipeline.memory.MemoryEstimate`; see `ModelFamily.memory`."""
    num_frames, pixels = forward.num_frames, forward.pixels
    wide = forward.precision.compute_dtype.itemsize
    decoded = forward.decoded_frames * pixels
    memory = config.trunk.memory(forward, taps=config.taps, keeps_both=ALTERNATION.keeps_both)
    # The heads also read what the encoder made of the patches.
    tokens = num_frames * forward.layout.tokens_per_frame
    memory["kept_tokens"] += wide * tokens * config.encoder_dim
    return {
        "known": _of_known(config, forward),
        # Points in two coordinate systems, depth, confidence and edges.
        "outputs": num_frames * pixels * (4 * (3 + 1 + 1) + 1),
        "heads": int(3.5 * 4 * decoded * config.dpt_features / 2),
        "tracks": 0,
        **memory,
    }


def _of_known(config: MapAnythingConfig, forward: ForwardPass) -> int:
    """Temporaries while what is known is added to the tokens of the encoder."""
    if not forward.known:
        return 0
    layout, known = forward.layout, set(forward.known)
    stream = 4 * forward.num_frames * layout.tokens_per_frame * config.encoder_dim
    # Unit rays of all pixels; depth along them, and its logarithm.
    values = 3 * bool(known & {"intrinsics", "rays"}) + 2 * ("depth" in known)
    maps = 4 * values * forward.num_frames * forward.pixels
    # The widest unit of the encoders of maps: what it takes, what it makes, and both branches.
    *_, before, width = config.dense_input_dims
    chunk_tokens = forward.frames_per_chunk * layout.tokens_per_frame
    unit = 4 * chunk_tokens * (before + 3 * width + config.encoder_dim) if values else 0
    return stream + maps + unit
