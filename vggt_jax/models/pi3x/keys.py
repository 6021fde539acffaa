"""Pi3X: its table of key rules, and how an official checkpoint of it is recognised.

Names and shapes are those of the official modules (pi3/models/pi3x.py, pi3/models/layers/) in the
released checkpoint yyfz233/Pi3X.
"""

from collections.abc import Mapping

from vggt_jax.checkpoints.modules import (
    Rules,
    conv,
    first,
    linear,
    mlp,
    norm,
    parameter,
    pointwise,
    under,
    upsample,
)
from vggt_jax.checkpoints.official import OfficialKeys, require_released_size
from vggt_jax.checkpoints.rules import Shape
from vggt_jax.models.pi3.keys import camera_head, frame_decoder, trunk
from vggt_jax.models.pi3x.config import Pi3XConfig

RELEASED_NAME = "Pi3X"
"""Name of the released checkpoint, for people."""

_HEADS = {"point": (2, 1), "conf": (1,)}  # values of every pixel, by output


def rules(config: Pi3XConfig) -> Rules:
    """Returns the table of key rules of a configuration."""
    c = config
    table = _trunk_and_prompts(c)
    for name, out_dims in _HEADS.items():
        table += frame_decoder(f"{name}_decoder", c, c.head_dim)
        table += under(f"{name}_head", f"{name}_head", _conv_head(c, out_dims))
    table += frame_decoder("camera_decoder", c, c.camera_dim)
    table += under("camera_head", "camera_head", camera_head(c.camera_dim))
    return table + _metric(c)


def unused(config: Pi3XConfig) -> dict[str, str]:
    """Returns the prefixes of official keys that a model has no parameter for, with the reason."""
    return {}


def recognise(shapes: Mapping[str, Shape], source: str) -> tuple[Pi3XConfig, str]:
    """Finds the released model that official keys and shapes belong to.

    Single keys may be wrong: applying the rules tells them.

    Args:
        shapes: shape by official key.
        source: name of the checkpoint, for messages.

    Returns:
        Its configuration, and its name.

    Raises:
        CheckpointError: this is not a Pi3X of the released size.
    """
    config = Pi3XConfig.from_dict({}, source)
    require_released_size(
        shapes,
        _trunk_and_prompts(config),
        source,
        model="Pi3X",
        released=f"the released {RELEASED_NAME}",
    )
    return config, RELEASED_NAME


def _trunk_and_prompts(c: Pi3XConfig) -> Rules:
    dim = c.decoder_dim
    return [
        *trunk(c),
        *c.depth_encoder.rules("depth_encoder", "depth_encoder"),
        *parameter("depth_emb", (1, 1, dim), transform=lambda x: x[0, 0]),
        *conv("ray_embed.proj", 2, dim, c.patch_size, "ray_embed"),
        *c.pose_injection.rules("pose_inject_blk.{layer}", "pose_injection.blocks"),
    ]


def _conv_head(c: Pi3XConfig, out_dims: tuple[int, ...]) -> Rules:
    table, dim = [], c.head_dim
    for i, out_dim in enumerate(c.conv_upsample_dims):
        hidden_dim = c.conv_hidden_ratio * out_dim
        stage = [
            *upsample("0.0", dim + 2, out_dim, 2, "enlarge"),
            *conv("0.1", out_dim, out_dim, 3, "conv"),
        ]
        unit = [
            *norm("layers.0", out_dim, "norm1"),
            *conv("layers.2", out_dim, hidden_dim, 3, "conv1"),
            *norm("layers.3", hidden_dim, "norm2"),
            *conv("layers.5", hidden_dim, out_dim, 3, "conv2"),
        ]
        for j in range(c.conv_res_blocks):
            stage += under(f"{j + 1}", f"units.{j}", unit)
        table += under(f"upsample_blocks.{i}", f"stages.{i}", stage)
        dim = out_dim
    for i, out_dim in enumerate(out_dims):
        output = [
            *conv("0", dim + 2, c.conv_last_channels, 3, "conv"),
            *pointwise("2", c.conv_last_channels, out_dim, "linear"),
        ]
        table += under(f"output_block.{i}", f"outputs.{i}", output)
    return table


def _metric(c: Pi3XConfig) -> Rules:
    dim = c.metric_dim
    attention = [
        rule for name in ("q_proj", "k_proj", "v_proj", "proj") for rule in linear(name, dim, dim)
    ]
    blocks = [
        *norm("norm2", dim),
        *norm("norm_y", dim),
        *under("cross_attn", "cross_attn", attention),
        *norm("norm3", dim),
        *under("mlp", "mlp", mlp(dim, int(dim * c.mlp_ratio), dim)),
    ]
    decoder = [
        *linear("projects_x", 2 * c.decoder_dim, dim),
        *linear("projects_y", 2 * c.decoder_dim, dim),
        *under("blocks.{layer}", "blocks", blocks, layers=c.metric_depth),
        *linear("linear_out", dim, dim),
    ]
    return [
        *parameter("metric_token", (1, 1, 2 * c.decoder_dim), transform=first),
        *under("metric_decoder", "metric_decoder", decoder, bfloat16=True),
        *linear("metric_head", dim, 1),
    ]


KEYS = OfficialKeys(
    title="Pi3X",
    hub_name="yyfz233/Pi3X",
    marks=("pose_inject_blk.", "metric_decoder."),
    lookalikes={},
    config=Pi3XConfig,
    rules=rules,
    unused=unused,
    recognise=recognise,
)
