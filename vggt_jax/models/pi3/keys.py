"""π³: its table of key rules, and how an official checkpoint of it is recognised.

Names and shapes are those of the official modules (pi3/models/pi3.py, pi3/models/layers/) in the
released checkpoint yyfz233/Pi3.
"""

from collections.abc import Mapping

from vggt_jax.checkpoints.modules import Rules, block, linear, parameter, under
from vggt_jax.checkpoints.official import OfficialKeys, require_released_size
from vggt_jax.checkpoints.rules import Shape
from vggt_jax.models.pi3.config import Pi3Config, Pi3Fields

RELEASED_NAME = "Pi3"
"""Name of the released checkpoint, for people."""

_HEADS = {"point": 3, "conf": 1}  # values of every pixel


def rules(config: Pi3Config) -> Rules:
    """Returns the table of key rules of a configuration."""
    c = config
    table = trunk(c)
    for name, out_dim in _HEADS.items():
        table += frame_decoder(f"{name}_decoder", c, c.head_dim)
        pixels = out_dim * c.patch_size**2
        table += under(f"{name}_head", f"{name}_head", linear("proj", c.head_dim, pixels))
    table += frame_decoder("camera_decoder", c, c.camera_dim)
    return table + under("camera_head", "camera_head", camera_head(c.camera_dim))


def unused(config: Pi3Config) -> dict[str, str]:
    """Returns the prefixes of official keys that a model has no parameter for, with the reason."""
    return {}


def recognise(shapes: Mapping[str, Shape], source: str) -> tuple[Pi3Config, str]:
    """Finds the released model that official keys and shapes belong to.

    Single keys may be wrong: applying the rules tells them.

    Args:
        shapes: shape by official key.
        source: name of the checkpoint, for messages.

    Returns:
        Its configuration, and its name.

    Raises:
        CheckpointError: this is not a π³ of the released size.
    """
    config = Pi3Config.from_dict({}, source)
    require_released_size(
        shapes, trunk(config), source, model="Pi3", released=f"the released {RELEASED_NAME}"
    )
    return config, RELEASED_NAME


def trunk(c: Pi3Fields) -> Rules:
    """Encoder and trunk."""
    stack = lambda native, first: c.trunk.rules("decoder.{layer}", native, first=first, step=2)
    registers = (1, 1, c.num_register_tokens, c.decoder_dim)
    return [
        *parameter("register_token", registers, transform=lambda x: x[0, 0]),
        *parameter("image_mean", (1, 3, 1, 1), transform=lambda x: x[0, :, 0, 0]),
        *parameter("image_std", (1, 3, 1, 1), transform=lambda x: x[0, :, 0, 0]),
        *c.encoder.rules("encoder"),
        *stack("frame_blocks", 0),
        *stack("global_blocks", 1),
    ]


def frame_decoder(name: str, c: Pi3Fields, out_dim: int) -> Rules:
    """The decoder of a head."""
    dim = c.head_dim
    blocks = block(dim, int(dim * c.mlp_ratio), layer_scale=False)
    decoder = [
        *linear("projects", 2 * c.decoder_dim, dim),
        *under("blocks.{layer}", "blocks", blocks, layers=c.head_depth),
        *linear("linear_out", dim, out_dim),
    ]
    return under(name, name, decoder, bfloat16=True)


def camera_head(dim: int) -> Rules:
    """The head that finds poses."""
    table = []
    for i in range(2):
        for j in (1, 2, 3):
            table += linear(f"res_conv.{i}.res_conv{j}", dim, dim)
    return [
        *table,
        *linear("more_mlps.0", dim, dim, "mlp_1"),
        *linear("more_mlps.2", dim, dim, "mlp_2"),
        *linear("fc_t", dim, 3),
        *linear("fc_rot", dim, 9),
    ]


KEYS = OfficialKeys(
    title="Pi3",
    hub_name="yyfz233/Pi3",
    marks=("point_decoder.", "camera_decoder."),
    lookalikes={},
    config=Pi3Config,
    rules=rules,
    unused=unused,
    recognise=recognise,
)
