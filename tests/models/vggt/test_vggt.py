"""VGGT: its parameters by name and shape, what it takes, and what it refuses."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from vggt_jax import VGGTConfig
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.models.conversion import native_shapes
from vggt_jax.models.loading import abstract_model, named_parameters

GOLDEN = Path(__file__).parents[2] / "golden"


def abstract(config):
    """The model without its arrays: nothing is allocated or computed."""
    return abstract_model(config)


def shapes_of(model):
    leaves = named_parameters(model).items()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for _, leaf in leaves)
    return {name: leaf.shape for name, leaf in leaves}


def test_the_parameters_of_the_released_model_are_those_of_its_checkpoint():
    shapes = shapes_of(abstract(VGGTConfig.vggt_1b()))
    assert shapes == native_shapes(VGGTConfig.vggt_1b().to_dict())
    official = json.loads((GOLDEN / "vggt_1b_shapes.json").read_text())
    assert len(official) == 1797
    mask_token = official.pop("aggregator.patch_embed.mask_token")  # the only unused one
    assert sum(map(math.prod, shapes.values())) == sum(map(math.prod, official.values()))
    assert sum(map(math.prod, shapes.values())) + math.prod(mask_token) == 1_256_537_516
    # Stacked blocks hold one array for all layers: as many official keys as layers.
    stacks = {
        "encoder.blocks.": 24, "frame_blocks.": 24, "global_blocks.": 24, "camera_head.trunk.": 4,
        "track_head.tracker.updateformer.": 6,
    }  # fmt: skip
    keys = 0
    for name in shapes:
        stack = next((prefix for prefix in stacks if name.startswith(prefix)), None)
        in_stack = stack is not None and ("updateformer" not in name or "_blocks." in name)
        keys += stacks[stack] if in_stack else 1
    assert keys == 1796


@pytest.mark.parametrize(
    ("toy", "changes"),
    [
        ("vggt_toy", {}),
        ("vggt_odd", {}),
        ("vggt_late", {"enable_camera": False, "enable_track": False}),
        ("vggt_odd", {"num_register_tokens": 0, "depth": 1, "dpt_layers": [0, 0, 0, 0]}),
    ],
)
def test_parameters_of_other_sizes_are_those_of_the_conversion(toy, changes):
    fields = json.loads((GOLDEN / f"{toy}.json").read_text()) | changes
    assert shapes_of(abstract(VGGTConfig.from_dict(fields))) == native_shapes(fields)


def test_the_eps_of_every_norm_is_the_official_one(tiny):
    eps = {
        ".".join(map(str, path)): module.eps
        for path, module in nnx.iter_modules(tiny())
        if isinstance(module, LayerNorm)
    }
    assert {"encoder.norm", "global_blocks.attn.k_norm", "depth_head.norm"} < eps.keys()
    encoder = {name for name in eps if name.startswith("encoder.")}
    assert eps == dict.fromkeys(eps, 1e-5) | dict.fromkeys(encoder, 1e-6)


def outputs(model, shape, *, dtype=jnp.float32, points=None, **options):
    """What a call returns, without computing it."""
    query_points = None if points is None else jax.ShapeDtypeStruct(points, jnp.float32)
    images = jax.ShapeDtypeStruct(shape, dtype)

    def call(model, images, query_points):
        output = model(images, query_points=query_points, **options)
        return {name: value for name, value in vars(output).items() if value is not None}

    return jax.eval_shape(call, model, images, query_points)


def test_every_output_and_its_shape(tiny):
    found = outputs(tiny(), (2, 3, 28, 42, 3), points=(2, 5, 2))
    assert {name: value.shape for name, value in found.items()} == {
        "pose_enc": (2, 3, 9),
        "pose_enc_list": (2, 2, 3, 9),
        "depth": (2, 3, 28, 42, 1),
        "depth_conf": (2, 3, 28, 42),
        "world_points": (2, 3, 28, 42, 3),
        "world_points_conf": (2, 3, 28, 42),
        "track": (2, 3, 5, 2),
        "vis": (2, 3, 5),
        "conf": (2, 3, 5),
    }
    assert {value.dtype for value in found.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("camera", {"pose_enc", "pose_enc_list"}),
        ("depth", {"depth", "depth_conf"}),
        ("point", {"world_points", "world_points_conf"}),
    ],
)
def test_only_heads_that_are_on_return_something(tiny, head, names):
    heads = dict.fromkeys(["enable_camera", "enable_depth", "enable_point"], False)
    model = tiny(**heads | {f"enable_{head}": True})  # and tracks, which nobody asks for
    assert outputs(model, (1, 1, 28, 28, 3)).keys() == names


def test_no_output_leaves_float32_in_bfloat16(tiny):
    found = outputs(
        tiny(), (1, 2, 28, 28, 3), points=(1, 3, 2), dtype=jnp.uint8, compute_dtype="bfloat16"
    )
    assert {value.dtype for value in found.values()} == {jnp.dtype(jnp.float32)}


CHANNELS_LAST = r"images must be \[scene, frame, height, width, 3\], channels last, not "


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 28, 28, 3), CHANNELS_LAST + r"\(3, 28, 28, 3\)"),
        ((1, 2, 3, 28, 28), CHANNELS_LAST + r"\(1, 2, 3, 28, 28\)"),
        ((1, 2, 28, 28, 4), CHANNELS_LAST + r"\(1, 2, 28, 28, 4\)"),
        ((1, 0, 28, 28, 3), CHANNELS_LAST + r"\(1, 0, 28, 28, 3\)"),
        ((1, 2, 28, 41, 3), r"image sides must be multiples of 14, not 28x41 \(height x width\)"),
        ((1, 2, 30, 28, 3), r"image sides must be multiples of 14, not 30x28"),
    ],
)
def test_images_of_another_shape_are_refused(tiny, unchecked, shape, message):
    with pytest.raises(ValueError, match=message):
        outputs(tiny(), shape)


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_images_of_another_type_are_refused(tiny, unchecked, dtype):
    with pytest.raises(ValueError, match=rf"uint8 or float in \[0, 1\], not {dtype}"):
        outputs(tiny(), (1, 2, 28, 28, 3), dtype=jnp.dtype(dtype))


@pytest.mark.skipif(jaxtyping.config.jaxtyping_disable, reason="JAXTYPING_DISABLE is set")
def test_annotations_are_checked_in_tests(tiny):
    with pytest.raises(Exception, match="Type-check error whilst checking the parameters"):
        outputs(tiny(), (1, 2, 28, 28, 4))


def test_query_points_need_a_track_head(tiny):
    with pytest.raises(ValueError, match="query_points were given, but this VGGT has no track h"):
        outputs(tiny(enable_track=False), (1, 2, 28, 28, 3), points=(1, 3, 2))


def test_tracking_needs_large_enough_images(tiny):
    model = tiny()  # four levels of correlation, of maps of half the size
    assert "track" in outputs(model, (1, 2, 28, 28, 3), points=(1, 3, 2))
    with pytest.raises(
        ValueError,
        match="sides of at least 16 pixels for its 4 correlation levels, not 14x42",
    ):
        outputs(model, (1, 2, 14, 42, 3), points=(1, 3, 2))
    assert "depth" in outputs(model, (1, 2, 14, 42, 3))


@pytest.mark.parametrize("points", [(3, 2), (1, 3, 3), (2, 3, 2), (1, 0, 2)])
def test_query_points_of_another_shape_are_refused(tiny, unchecked, points):
    message = rf"query_points must be \[1 m 2\], not {re.escape(str(points))}"
    with pytest.raises(ValueError, match=message):
        outputs(tiny(), (1, 2, 28, 28, 3), points=points)


@pytest.mark.parametrize("num_frames", [(1,), (2, 2), ()])
def test_numbers_of_frames_are_one_for_each_scene(tiny, unchecked, num_frames):
    model = tiny(enable_track=False)
    fits = outputs(model, (3, 2, 28, 28, 3), num_frames=jnp.ones(3, jnp.int32))
    assert fits["depth"].shape == (3, 2, 28, 28, 1)
    with pytest.raises(ValueError, match="must hold one number for each of 3 scenes"):
        outputs(model, (3, 2, 28, 28, 3), num_frames=jnp.ones(num_frames, jnp.int32))


def test_unknown_compute_types_are_refused(tiny):
    with pytest.raises(ValueError, match="compute_dtype=float16 is not supported"):
        outputs(tiny(), (1, 2, 28, 28, 3), compute_dtype="float16")


def test_bytes_and_floats_are_the_same_picture(tiny):
    model = tiny()
    rng = np.random.default_rng(0)
    as_bytes = rng.integers(0, 256, (2, 3, 28, 42, 3), dtype=np.uint8)
    as_floats = as_bytes.astype(np.float32) / 255
    encode = jax.jit(lambda model, images: model.encode(images, compute_dtype=jnp.float32))
    np.testing.assert_allclose(
        encode(model, as_bytes), encode(model, as_floats), rtol=1e-5, atol=1e-5
    )
