"""Depth Anything 3: its table of key rules, and how an official checkpoint of it is recognised.

Names and shapes are those of the official modules (depth_anything_3/model/) in the released
checkpoints depth-anything/DA3-SMALL, -BASE, -LARGE, -LARGE-1.1, -GIANT and -GIANT-1.1.
"""

import re
from collections.abc import Mapping

from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.checkpoints.modules import (
    Rules,
    block,
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
from vggt_jax.models.da3.config import DA3Config

RELEASED = {
    "DA3-SMALL": DA3Config.small(),
    "DA3-BASE": DA3Config.base(),
    "DA3-LARGE": DA3Config.large(),
    "DA3-GIANT": DA3Config.giant(),
}
"""The released any-view models by their names for people; versions 1.1 have the same sizes."""

_BACKBONE = "model.backbone.pretrained"
_SCRATCH = "model.head.scratch"
_HIDDEN = 32  # depth_anything_3/model/dualdpt.py, head_features_2
_POSE_DIM = 9  # translation 3, quaternion 4, field of view 2
_USED_RAY_LEVEL = 3  # the finest, the only one that is read
# One module has four names. The file holds it under the first.
_ALIAS = re.compile(rf"^({re.escape(_SCRATCH)}\.output_conv2_aux)\.[123]\.2\.")


def rules(config: DA3Config) -> Rules:
    """Returns the table of key rules of a configuration."""
    c = config
    encoder = block(c.dim, int(c.dim * 4.0))
    stack = under("trunk.{layer}", "trunk", encoder, layers=c.cam_enc_depth)
    camera_encoder = [
        *under("pose_branch", "pose_branch", mlp(_POSE_DIM, c.dim // 2, c.dim)),
        *norm("token_norm", c.dim),
        *stack,
        *norm("trunk_norm", c.dim),
    ]
    camera_decoder = [
        *linear("backbone.0", 2 * c.dim, 2 * c.dim, "mlp_1"),
        *linear("backbone.2", 2 * c.dim, 2 * c.dim, "mlp_2"),
        *linear("fc_t", 2 * c.dim, 3),
        *linear("fc_qvec", 2 * c.dim, 4),
        *linear("fc_fov.0", 2 * c.dim, 2, "fc_fov"),
    ]
    return [
        *_backbone(c),
        *under("model.head", "head", _head(c)),
        *under("model.cam_enc", "camera_encoder", camera_encoder),
        *under("model.cam_dec", "camera_decoder", camera_decoder),
    ]


def unused(config: DA3Config) -> dict[str, str]:
    """Returns the prefixes of official keys that a model has no parameter for, with the reason."""
    del config
    reasons = {"model.gs_head.": "the head for Gaussians, which this project does not have"}
    unread = "rays of a coarser level, which the official code does not read either"
    for level in range(_USED_RAY_LEVEL):
        reasons[f"{_SCRATCH}.output_conv1_aux.{level}."] = unread
        reasons |= {f"{_SCRATCH}.output_conv2_aux.{level}.{i}.": unread for i in (0, 5)}
    return reasons


def canonical(key: str) -> str:
    """The name in the released checkpoints of a parameter that the official model holds under
    several."""
    return _ALIAS.sub(r"\1.0.2.", key)


def recognise(shapes: Mapping[str, Shape], source: str) -> tuple[DA3Config, str]:
    """Finds the released model that official keys and shapes belong to.

    Single keys may be wrong: applying the rules tells them.

    Args:
        shapes: shape by official key.
        source: name of the checkpoint, for messages.

    Returns:
        Its configuration, and its name.

    Raises:
        CheckpointError: this is not an any-view model of a released size.
    """
    any_view = ("model.cam_dec.", "model.cam_enc.", f"{_BACKBONE}.camera_token")
    if not any(key.startswith(any_view) for key in shapes):
        raise CheckpointError(
            f"{source}: looks like a monocular Depth Anything 3 (DA3MONO-LARGE or "
            f"DA3METRIC-LARGE: it has no {_BACKBONE}.camera_token), which cannot be converted; "
            f"give an any-view model: {', '.join(RELEASED)}"
        )

    def fitting(name: str) -> int:
        table = _backbone(RELEASED[name])
        return sum(shapes.get(rule.official) == rule.shape for rule in table if not rule.layers)

    name = max(RELEASED, key=fitting)
    config = RELEASED[name]
    trunk = _backbone(config)
    require_released_size(shapes, trunk, source, model="Depth Anything 3", released=name)
    return config, name


def _backbone(c: DA3Config) -> Rules:
    lead, begin, head_dim = [], c.alt_start, c.dim // c.num_heads
    if c.begins_with_scene:
        blocks = block(c.dim, int(c.dim * c.mlp_ratio), qk_norm_dim=head_dim, ffn=c.trunk.ffn)
        lead = under(f"{_BACKBONE}.blocks.{begin}", "lead_block", blocks, bfloat16=True)
        begin += 1
    stack = lambda native, first: c.trunk.rules(
        f"{_BACKBONE}.blocks.{{layer}}", native, first=first, step=2
    )
    return [
        *c.encoder.rules(_BACKBONE),
        *parameter(f"{_BACKBONE}.camera_token", (1, 2, c.dim), "camera_token", first),
        *lead,
        *stack("frame_blocks", begin),
        *stack("global_blocks", begin + 1),
        *norm(f"{_BACKBONE}.norm", c.dim, "norm"),
    ]


def _head(c: DA3Config) -> Rules:
    features, channels, half = c.head_features, c.head_out_channels, c.head_features // 2
    table = norm("norm", 2 * c.dim)
    for i, width in enumerate(channels):
        table += pointwise(f"projects.{i}", 2 * c.dim, width)
    table += upsample("resize_layers.0", channels[0], channels[0], 4, "resize_0")
    table += upsample("resize_layers.1", channels[1], channels[1], 2, "resize_1")
    table += conv("resize_layers.3", channels[3], channels[3], 3, "resize_3")
    for i, width in enumerate(channels, start=1):
        table += conv(f"scratch.layer{i}_rn", width, features, 3, f"layer{i}_rn", bias=False)
        for chain in ("", "_aux"):
            table += _fusion(f"refinenet{i}{chain}", features, has_residual=i < 4)
    for i in range(5):
        dims = (features, half) if i % 2 == 0 else (half, features)
        name = f"scratch.output_conv1_aux.{_USED_RAY_LEVEL}.{i}"
        table += conv(name, *dims, 3, f"output_conv1_aux.{i}")
    of_rays = f"scratch.output_conv2_aux.{_USED_RAY_LEVEL}"
    return [
        *table,
        *conv("scratch.output_conv1", features, half, 3, "output_conv1"),
        *conv("scratch.output_conv2.0", half, _HIDDEN, 3, "output_conv2_0"),
        *pointwise("scratch.output_conv2.2", _HIDDEN, 2, "output_conv2_2"),
        *conv(f"{of_rays}.0", half, _HIDDEN, 3, "output_conv2_aux_0"),
        *norm("scratch.output_conv2_aux.0.2", _HIDDEN, "output_conv2_aux_norm"),
        *pointwise(f"{of_rays}.5", _HIDDEN, 7, "output_conv2_aux_5"),
    ]


def _fusion(name: str, features: int, *, has_residual: bool) -> Rules:
    table = pointwise(f"scratch.{name}.out_conv", features, features, f"{name}.out_conv")
    for unit in (1, 2) if has_residual else (2,):  # the coarsest level has nothing to fuse with
        table += under(
            f"scratch.{name}.resConfUnit{unit}",
            f"{name}.res_conf_unit{unit}",
            [*conv("conv1", features, features, 3), *conv("conv2", features, features, 3)],
        )
    return table


KEYS = OfficialKeys(
    title="Depth Anything 3",
    hub_name="depth-anything/DA3-SMALL",
    marks=(f"{_BACKBONE}.", "model.cam_dec.", "model.cam_enc."),
    lookalikes={"model.da3_metric.": "DA3NESTED-GIANT-LARGE, of two models in one"},
    config=DA3Config,
    rules=rules,
    unused=unused,
    recognise=recognise,
    canonical=canonical,
)
