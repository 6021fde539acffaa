"""What a forward pass of Pi3X takes on the device."""

from vggt_jax.models.pi3x.config import Pi3XConfig
from vggt_jax.trunk.memory import ForwardPass


def memory_of_pi3x(config: Pi3XConfig, forward: ForwardPass) -> dict[str, int]:
    """Bytes by the names of `pipeline.memory.MemoryEstimate`; see `ModelFamily.memory`."""
    wide = forward.precision.compute_dtype.itemsize
    frames, pixels = forward.frames_per_chunk, forward.pixels
    tokens = frames * forward.layout.tokens_per_frame
    dim = config.head_dim
    # The stream twice and the tokens kept; beside them queries, keys and values with the result, or
    # the hidden layer twice.
    decoder = 2 * 4 * tokens * dim + 2 * wide * tokens * config.decoder_dim
    decoder += wide * tokens * dim * max(3 + 3 + 1, 2 * config.mlp_ratio)
    # The decoded tokens of a chunk; of the frames that are convolved together, the last map before
    # and after its border is added, and what comes after it.
    channels = 2 * (config.conv_upsample_dims[-1] + 2) + 2 * config.conv_last_channels
    convolutions = 4 * tokens * dim + 4 * forward.decoded_frames * pixels * channels
    # The decoder of the metric scale reads all tokens: twice as they are, as keys and as values.
    metric = (2 + 4 + wide + wide) * (
        forward.num_frames * forward.layout.tokens_per_frame * config.metric_dim
    )
    trunk = config.trunk.memory(forward)
    if "poses" in forward.known:
        trunk["trunk"] = max(trunk["trunk"], _of_injection(config, forward))
    return {
        "known": _of_known(config, forward),
        # Points in two coordinate systems, the confidence, and the edges.
        "outputs": (4 * (3 + 3 + 1) + 1) * forward.num_frames * pixels,
        "heads": int(max(decoder, convolutions, metric)),
        "tracks": 0,
        **trunk,
    }


def _of_known(config: Pi3XConfig, forward: ForwardPass) -> int:
    """Temporaries while what is known of frames is added to the tokens of the encoder."""
    stream = 4 * forward.num_frames * forward.layout.tokens_per_frame * config.decoder_dim
    maps = 4 * 2 * forward.num_frames * forward.pixels
    has_rays = bool({"intrinsics", "rays"} & set(forward.known))
    has_depth = "depth" in forward.known
    # Tokens of rays and of depth beside those of images; maps of two channels, those of rays once
    # more, by patches.
    summands = has_rays + has_depth
    return (1 + summands) * stream + (2 * has_rays + has_depth) * maps if summands else 0


def _of_injection(config: Pi3XConfig, forward: ForwardPass) -> int:
    """What shows poses to the trunk: the stream, its patches, and queries, keys and values before
    and after they are turned, in float32 on the way."""
    wide = forward.precision.compute_dtype.itemsize
    tokens = forward.num_frames * forward.layout.tokens_per_frame
    return tokens * config.decoder_dim * (4 + 4 + 2 * 3 * wide + 2 * 4)
