"""VGGT: its table of key rules, and how an official checkpoint of it is recognised.

Names and shapes are those of the official modules (vggt/models/vggt.py, vggt/models/aggregator.py,
vggt/heads/) in the released checkpoint facebook/VGGT-1B.
"""

from collections.abc import Mapping

from vggt_jax.checkpoints.modules import (
    Rules,
    block,
    conv,
    first,
    linear,
    mlp,
    multihead_attention,
    norm,
    parameter,
    pointwise,
    under,
    upsample,
)
from vggt_jax.checkpoints.official import OfficialKeys, require_released_size
from vggt_jax.checkpoints.rules import Shape
from vggt_jax.models.vggt.config import VGGTConfig

RELEASED_NAME = "VGGT-1B"
"""Name of the released checkpoint, for people."""

HEADS = {
    "enable_camera": "camera_head",
    "enable_depth": "depth_head",
    "enable_point": "point_head",
    "enable_track": "track_head",
}
"""The official name of each head, by the field that says whether the model has it."""

_POSE_DIM = 9  # translation 3, quaternion 4, field of view 2 (vggt/heads/camera_head.py)
_DPT_MIDDLE_DIM = 32  # head_features_2 (vggt/heads/dpt_head.py)
_TRACK_MLP_RATIO = 4  # vggt/heads/track_modules/base_track_predictor.py
_COORDINATES = 2  # x and y, beside the features that the tracker updates


def rules(config: VGGTConfig) -> Rules:
    """Returns the table of key rules of a configuration."""
    c = config
    table = _aggregator(c)
    if c.enable_camera:
        table += under("camera_head", "camera_head", _camera_head(c))
    if c.enable_depth:
        table += under("depth_head", "depth_head", _dense_head(c, out_dim=2))
    if c.enable_point:
        table += under("point_head", "point_head", _dense_head(c, out_dim=4))
    if c.enable_track:
        features = _dpt(c, c.track_features, c.track_features)
        table += under("track_head.feature_extractor", "track_head.feature_extractor", features)
        table += under("track_head.tracker", "track_head.tracker", _tracker(c))
    return table


def unused(config: VGGTConfig) -> dict[str, str]:
    """Returns the prefixes of official keys that a model has no parameter for, with the reason."""
    reasons = {
        "aggregator.patch_embed.mask_token": "masked-image training only, unused at inference"
    }
    for field, head in HEADS.items():
        if not getattr(config, field):
            reasons[f"{head}."] = f"the configuration says {field}=false"
    return reasons


def recognise(shapes: Mapping[str, Shape], source: str) -> tuple[VGGTConfig, str]:
    """Finds the released model that official keys and shapes belong to.

    Heads that are absent altogether are left out of the model. Single keys may be wrong: applying
    the rules tells them.

    Args:
        shapes: shape by official key.
        source: name of the checkpoint, for messages.

    Returns:
        Its configuration, and its name.

    Raises:
        CheckpointError: this is not a VGGT of the released size.
    """
    absent = {
        field: head
        for field, head in HEADS.items()
        if not any(key.startswith(f"{head}.") for key in shapes)
    }
    config = VGGTConfig.from_dict(dict.fromkeys(absent, False), source)
    require_released_size(shapes, _aggregator(config), source, model="VGGT", released=RELEASED_NAME)
    return config, RELEASED_NAME + (f" without {', '.join(absent.values())}" if absent else "")


def _aggregator(c: VGGTConfig) -> Rules:
    dim, registers = c.embed_dim, c.num_register_tokens
    stack = lambda name: c.trunk.rules(f"aggregator.{name}.{{layer}}", name)
    return [
        *parameter("aggregator.camera_token", (1, 2, 1, dim), "camera_token", first),
        *parameter("aggregator.register_token", (1, 2, registers, dim), "register_token", first),
        *c.encoder.rules("aggregator.patch_embed"),
        *stack("frame_blocks"),
        *stack("global_blocks"),
    ]


def _camera_head(c: VGGTConfig) -> Rules:
    dim = 2 * c.embed_dim
    trunk = block(dim, int(dim * c.mlp_ratio))
    return [
        *parameter("empty_pose_tokens", (1, 1, _POSE_DIM), transform=lambda x: x[0, 0]),
        *under("trunk.{layer}", "trunk", trunk, layers=c.camera_trunk_depth),
        *norm("token_norm", dim),
        *norm("trunk_norm", dim),
        *linear("embed_pose", _POSE_DIM, dim),
        *linear("poseLN_modulation.1", dim, 3 * dim, "modulation"),
        *under("pose_branch", "pose_branch", mlp(dim, dim // 2, _POSE_DIM)),
    ]


def _dpt(c: VGGTConfig, features: int, out_dim: int) -> Rules:
    """The DPT feature pyramid and fusion, up to and including output_conv1."""
    dim, channels = 2 * c.embed_dim, c.dpt_out_channels
    table = norm("norm", dim)
    for i, width in enumerate(channels):
        table += pointwise(f"projects.{i}", dim, width)
    table += upsample("resize_layers.0", channels[0], channels[0], 4, "resize_0")
    table += upsample("resize_layers.1", channels[1], channels[1], 2, "resize_1")
    table += conv("resize_layers.3", channels[3], channels[3], 3, "resize_3")
    for i, width in enumerate(channels, start=1):
        table += conv(f"scratch.layer{i}_rn", width, features, 3, f"layer{i}_rn", bias=False)
        table += pointwise(
            f"scratch.refinenet{i}.out_conv", features, features, f"refinenet{i}.out_conv"
        )
        for unit in (1, 2) if i < 4 else (2,):  # the coarsest level has nothing to fuse with
            table += under(
                f"scratch.refinenet{i}.resConfUnit{unit}",
                f"refinenet{i}.res_conf_unit{unit}",
                [*conv("conv1", features, features, 3), *conv("conv2", features, features, 3)],
            )
    return table + conv("scratch.output_conv1", features, out_dim, 3, "output_conv1")


def _dense_head(c: VGGTConfig, out_dim: int) -> Rules:
    features = c.dpt_features
    middle = "scratch.output_conv2"
    return [
        *_dpt(c, features, features // 2),
        *conv(f"{middle}.0", features // 2, _DPT_MIDDLE_DIM, 3, "output_conv2_0"),
        *pointwise(f"{middle}.2", _DPT_MIDDLE_DIM, out_dim, "output_conv2_2"),
    ]


def _tracker(c: VGGTConfig) -> Rules:
    dim, hidden_dim = c.track_features, c.track_hidden_size
    token_dim = 3 * dim + 2 * _COORDINATES
    correlations = c.track_corr_levels * (2 * c.track_corr_radius + 1) ** 2
    block_mlp = under("mlp", "mlp", mlp(hidden_dim, _TRACK_MLP_RATIO * hidden_dim, hidden_dim))
    norms = [*norm("norm1", hidden_dim), *norm("norm2", hidden_dim)]
    self_block = [*norms, *multihead_attention("attn", hidden_dim), *block_mlp]
    cross_block = [
        *norms,
        *norm("norm_context", hidden_dim),
        *multihead_attention("cross_attn", hidden_dim),
        *block_mlp,
    ]
    update_former = [
        *parameter(
            "virual_tracks",  # spelt like this in the official checkpoint
            (1, c.track_num_virtual_tracks, 1, hidden_dim),
            "virtual_tracks",
            lambda x: x[0, :, 0],
        ),
        *norm("input_norm", token_dim),
        *linear("input_transform", token_dim, hidden_dim),
        *norm("output_norm", hidden_dim),
        *linear("flow_head", hidden_dim, dim + _COORDINATES),
    ]
    for name, rules_of_block in {
        "time_blocks": self_block,
        "space_virtual_blocks": self_block,
        "space_point2virtual_blocks": cross_block,
        "space_virtual2point_blocks": cross_block,
    }.items():
        update_former += under(f"{name}.{{layer}}", name, rules_of_block, layers=c.track_depth)
    return [
        *parameter("query_ref_token", (1, 2, token_dim), transform=first),
        *under("corr_mlp", "corr_mlp", mlp(correlations, hidden_dim, dim)),
        *under("updateformer", "updateformer", update_former),
        *norm("fmap_norm", dim),
        *norm("ffeat_norm", dim),
        *linear("ffeat_updater.0", dim, dim, "ffeat_updater"),
        *linear("vis_predictor.0", dim, 1, "vis_predictor"),
        *linear("conf_predictor.0", dim, 1, "conf_predictor"),
    ]


KEYS = OfficialKeys(
    title="VGGT",
    hub_name="facebook/VGGT-1B",
    marks=("aggregator.",),
    lookalikes={"inter_frame_blocks.": "VGGT-Omega"},
    config=VGGTConfig,
    rules=rules,
    unused=unused,
    recognise=recognise,
)
