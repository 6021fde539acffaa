"""MapAnything: its table of key rules, and how an official checkpoint of it is recognised.

Names and shapes are those of the official modules (mapanything/models/mapanything/model.py,
uniception/models/) in the released checkpoints facebook/map-anything and facebook/map-anything-v1.
"""

import itertools
import re
from collections.abc import Mapping

from vggt_jax.checkpoints.modules import (
    Rules,
    conv,
    linear,
    norm,
    parameter,
    pointwise,
    under,
    upsample,
)
from vggt_jax.checkpoints.official import OfficialKeys, require_released_size
from vggt_jax.checkpoints.rules import Shape
from vggt_jax.models.mapanything.config import MapAnythingConfig

RELEASED = {
    "MapAnything V1.1": MapAnythingConfig.v1_1(),
    "MapAnything V1": MapAnythingConfig.v1(),
}
"""The released models by their names for people; weights under either licence are alike."""

# The official model holds its dense head, and the layers in it that bring all maps to one width,
# under several names. `save_pretrained` writes one of them, a state dict holds all.
_ALIASES = (
    (re.compile(r"^dpt_feature_head\."), "dense_head.0."),
    (re.compile(r"^dpt_regressor_head\."), "dense_head.1."),
    (
        re.compile(r"^dense_head\.0\.scratch\.layer_rn\.([0-3])\."),
        r"dense_head.0.input_process.\1.1.",
    ),
    *(
        (
            re.compile(rf"^dense_head\.0\.scratch\.layer{i + 1}_rn\."),
            f"dense_head.0.input_process.{i}.1.",
        )
        for i in range(4)
    ),
)


def rules(config: MapAnythingConfig) -> Rules:
    """Returns the table of key rules of a configuration."""
    c, encoded, dim = config, config.encoder_dim, config.info_sharing_dim
    table = _trunk(c)
    for name, channels in (("ray_dirs_encoder", 3), ("depth_encoder", 1)):
        encoder = _dense_encoder(channels * c.patch_size**2, c.dense_input_dims, encoded)
        table += under(name, name, encoder)
    for name, size in (
        ("cam_rot_encoder", 4),
        ("cam_trans_encoder", 3),
        ("cam_trans_scale_encoder", 1),
        ("depth_scale_encoder", 1),
    ):
        table += under(name, name, _global_encoder(size, c.global_input_dims, encoded))
    table += under("dense_head", "dense_head", _dense_head(c))
    table += under("pose_head", "pose_head", _pose_head(dim, c))
    return table + under("scale_head", "scale_head", _scale_head(dim, c))


def unused(config: MapAnythingConfig) -> dict[str, str]:
    """Returns the prefixes of official keys that a model has no parameter for, with the reason."""
    return {}


def canonical(key: str) -> str:
    """The name in the released checkpoints of a parameter that the official model holds under
    several."""
    for pattern, name in _ALIASES:
        key = pattern.sub(name, key)
    return key


def recognise(shapes: Mapping[str, Shape], source: str) -> tuple[MapAnythingConfig, str]:
    """Finds the released model that official keys and shapes belong to.

    Single keys may be wrong: applying the rules tells them.

    Args:
        shapes: shape by official key.
        source: name of the checkpoint, for messages.

    Returns:
        Its configuration, and its name.

    Raises:
        CheckpointError: this is not a MapAnything of a released size.
    """
    is_older = any(key.startswith("info_sharing.proj_embed.") for key in shapes)
    name = "MapAnything V1" if is_older else "MapAnything V1.1"
    config = RELEASED[name]
    require_released_size(shapes, _trunk(config), source, model="MapAnything", released=name)
    return config, name


def _trunk(c: MapAnythingConfig) -> Rules:
    encoded, dim = c.encoder_dim, c.info_sharing_dim
    stack = lambda native, first: c.trunk.rules(
        "info_sharing.self_attention_blocks.{layer}", native, first=first, step=2
    )
    return [
        *parameter("scale_token", (encoded,)),
        *c.encoder.rules("encoder.model"),
        *norm("fusion_norm_layer", encoded, "fusion_norm"),
        *parameter("info_sharing.view_pos_table", (1, dim), "view_pos_table"),
        *(linear("info_sharing.proj_embed", encoded, dim, "proj_embed") if encoded != dim else []),
        *stack("global_blocks", 0),
        *stack("frame_blocks", 1),
        *norm("info_sharing.norm", dim, "norm"),
    ]


def _dense_encoder(channels: int, dims: tuple[int, ...], out_dim: int) -> Rules:
    table = conv("conv_in", channels, dims[0], 3)
    for i, (in_dim, width) in enumerate(itertools.pairwise(dims)):
        table += under(
            f"encoder.{i}",
            f"units.{i}",
            [
                *conv("conv1", in_dim, width, 3),
                *conv("conv2", width, width, 3),
                *pointwise("shortcut", in_dim, width),
            ],
        )
    return [
        *table,
        *pointwise(f"encoder.{len(dims) - 1}", dims[-1], out_dim, "out"),
        *norm("norm_layer", out_dim, "norm"),
    ]


def _global_encoder(in_dim: int, dims: tuple[int, ...], out_dim: int) -> Rules:
    # The official layers wrap each other: the first lies deepest.
    table = []
    for i, (size, width) in enumerate(zip((in_dim, *dims[:-1]), dims, strict=True)):
        name = "encoder." + "0." * (len(dims) - i) + ("0" if i == 0 else "1")
        table += linear(name, size, width, f"layers.{i}")
    return [
        *table,
        *linear("encoder.1", dims[-1], out_dim, "out"),
        *norm("norm_layer", out_dim, "norm"),
    ]


def _dense_head(c: MapAnythingConfig) -> Rules:
    features, channels, dim = c.dpt_features, c.dpt_layer_dims, c.info_sharing_dim
    table = []
    for i, (in_dim, width) in enumerate(zip((c.encoder_dim, dim, dim, dim), channels, strict=True)):
        table += pointwise(f"0.input_process.{i}.0.0", in_dim, width, f"projects.{i}")
        name = f"layer{i + 1}_rn"
        table += conv(f"0.input_process.{i}.1", width, features, 3, name, bias=False)
        refine = f"refinenet{i + 1}"
        table += pointwise(f"0.scratch.{refine}.out_conv", features, features, f"{refine}.out_conv")
        for unit in (1, 2) if i < 3 else (2,):  # the coarsest level has nothing to fuse with
            table += under(
                f"0.scratch.{refine}.resConfUnit{unit}",
                f"{refine}.res_conf_unit{unit}",
                [*conv("conv1", features, features, 3), *conv("conv2", features, features, 3)],
            )
    half = features // 2
    return [
        *table,
        *upsample("0.input_process.0.0.1", channels[0], channels[0], 4, "resize_0"),
        *upsample("0.input_process.1.0.1", channels[1], channels[1], 2, "resize_1"),
        *conv("0.input_process.3.0.1", channels[3], channels[3], 3, "resize_3"),
        *conv("1.conv1", features, half, 3, "output_conv1"),
        *conv("1.conv2.0", half, half, 3, "output_conv2_0"),
        *pointwise("1.conv2.2", half, 6, "output_conv2_2"),
    ]


def _pose_head(dim: int, c: MapAnythingConfig) -> Rules:
    hidden = c.pose_hidden_dim
    table = pointwise("proj", dim, hidden)
    for i in range(c.pose_num_blocks):
        for j in (1, 2, 3):
            table += pointwise(f"res_conv.{i}.res_conv{j}", hidden, hidden)
    return [
        *table,
        *linear("more_mlps.0", hidden, hidden, "mlp_1"),
        *linear("more_mlps.2", hidden, hidden, "mlp_2"),
        *linear("fc_t", hidden, 3),
        *linear("fc_rot", hidden, 4),
    ]


def _scale_head(dim: int, c: MapAnythingConfig) -> Rules:
    hidden = c.scale_hidden_dim
    table = linear("proj", dim, hidden)
    for i in range(c.scale_num_layers):
        table += linear(f"mlp.{i}.0", hidden, hidden, f"mlp.{i}")
    return [*table, *linear("output_proj", hidden, 1)]


KEYS = OfficialKeys(
    title="MapAnything",
    hub_name="facebook/map-anything",
    marks=("info_sharing.",),
    lookalikes={},
    config=MapAnythingConfig,
    rules=rules,
    unused=unused,
    recognise=recognise,
    canonical=canonical,
)
