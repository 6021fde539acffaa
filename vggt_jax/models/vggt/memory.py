"""What a forward pass of VGGT takes on the device."""

from vggt_jax.models.vggt.config import VGGTConfig
from vggt_jax.trunk.memory import ForwardPass


def memory_of_vggt(config: VGGTConfig, forward: ForwardPass) -> dict[str, int]:
    """Bytes by the names of `pipeline.memory.MemoryEstimate`; see `ModelFamily.memory`."""
    num_frames, pixels = forward.num_frames, forward.pixels
    heads = tracks = 0
    if config.enable_depth or config.enable_point:
        decoded = forward.decoded_frames * pixels
        heads = int(3.5 * 4 * decoded * config.dpt_features / 2)
    if forward.num_query_points:
        features = 4 * num_frames * (pixels // 4) * config.track_features
        hidden = 4 * num_frames * config.track_hidden_size
        tracks = int(2.34 * features) + 6 * hidden * (
            forward.num_query_points + config.track_num_virtual_tracks
        )
    values = 2 * config.enable_depth + 4 * config.enable_point
    return {
        "outputs": 4 * values * num_frames * pixels,
        "heads": heads,
        "tracks": tracks,
        **config.trunk.memory(forward, taps=config.dpt_layers),
    }
