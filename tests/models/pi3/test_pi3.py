"""π³: its parameters, what it takes and refuses, and what the order of frames does to it."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax import BlockSparse, Dense, Pi3Config, Priors
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.models.conversion import native_shapes
from vggt_jax.models.loading import abstract_model, named_parameters

GOLDEN = Path(__file__).parents[2] / "golden"
MAPS = ("points", "local_points", "conf", "camera_poses")


def shapes_of(config):
    model = abstract_model(config)
    return {name: leaf.shape for name, leaf in named_parameters(model).items()}


def test_the_parameters_of_the_released_model_are_those_of_its_checkpoint():
    shapes = shapes_of(Pi3Config.pi3())
    assert shapes == native_shapes({}, "pi3")
    official = json.loads((GOLDEN / "pi3_shapes.json").read_text())
    assert len(official) == 1210
    assert sum(map(math.prod, shapes.values())) == sum(map(math.prod, official.values()))
    assert sum(map(math.prod, shapes.values())) == 958_696_738


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_register_tokens": 0, "encoder_num_register_tokens": 0, "decoder_depth": 2}],
)
def test_parameters_of_other_sizes_are_those_of_the_conversion(changes):
    fields = json.loads((GOLDEN / "pi3_odd.json").read_text()) | changes
    assert shapes_of(Pi3Config.from_dict(fields)) == native_shapes(fields, "pi3")


def test_the_eps_of_every_norm_is_the_official_one(tiny_pi3):
    eps = {
        ".".join(map(str, path)): module.eps
        for path, module in nnx.iter_modules(tiny_pi3())
        if isinstance(module, LayerNorm)
    }
    assert {"encoder.norm", "global_blocks.norm2", "conf_decoder.blocks.norm1"} < eps.keys()
    of_heads = {name for name in eps if name.endswith((".q_norm", ".k_norm"))}
    assert len(of_heads) == 4  # of frame and of global blocks
    assert eps == dict.fromkeys(eps, 1e-6) | dict.fromkeys(of_heads, 1e-5)


@pytest.mark.parametrize("images_dtype", [jnp.float32, jnp.uint8])
def test_every_output_and_its_shape(tiny_pi3, images_dtype):
    images = jax.ShapeDtypeStruct((2, 3, 28, 42, 3), images_dtype)
    output = jax.eval_shape(lambda model, images: model(images), tiny_pi3(), images)
    assert output.attention_stats is None
    assert {name: getattr(output, name).shape for name in MAPS} == {
        "points": (2, 3, 28, 42, 3),
        "local_points": (2, 3, 28, 42, 3),
        "conf": (2, 3, 28, 42, 1),
        "camera_poses": (2, 3, 4, 4),
    }
    assert {getattr(output, name).dtype for name in MAPS} == {jnp.dtype(jnp.float32)}


def test_tracks_are_refused(tiny_pi3, unchecked):
    with pytest.raises(ValueError, match="π³ has no track head"):
        tiny_pi3()(jnp.zeros((1, 2, 28, 28, 3)), query_points=jnp.zeros((1, 4, 2)))


def test_priors_are_refused(tiny_pi3, unchecked):
    known = Priors(intrinsics=jnp.ones((1, 2, 3, 3)))
    with pytest.raises(ValueError, match="priors were given, but π³ takes none"):
        tiny_pi3()(jnp.zeros((1, 2, 28, 28, 3)), priors=known)


@pytest.fixture(scope="module")
def run():
    """Outputs of a model for frames of 8 x 8 patches, all of which count unless told."""
    compute = jax.jit(
        lambda model, images, attention, num_frames: model(
            images, attention=attention, num_frames=num_frames, compute_dtype=jnp.float32
        ),
        static_argnames="attention",
    )

    def run(model, images, attention=Dense(), num_frames=4):
        return jax.device_get(compute(model, images, attention, np.array([num_frames])))

    return run


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((1, 4, 112, 112, 3), np.float32)


# Frames of 64 patches and 2 registers: blocks of 32 and 16 patches end where frames do.
ALIGNED = BlockSparse(min_tokens=0, sparse_ratio=0.6, block_q=32, block_k=16)


PARTLY_ALIGNED = dataclasses.replace(ALIGNED, layers=(1,))


@pytest.mark.parametrize(
    "attention", [PARTLY_ALIGNED, pytest.param(ALIGNED, marks=pytest.mark.slow)]
)
def test_frames_in_another_order_give_the_same_in_that_order(
    tiny_pi3, run, images, relative_error, attention
):
    model = tiny_pi3()
    dense, before = run(model, images), run(model, images, attention)
    for order in itertools.islice(itertools.permutations(range(4)), 3, None, 8):
        order = list(order)
        for expected, of in ((dense, Dense()), (before, attention)):
            after = run(model, images[:, order], of)
            for name in MAPS:
                # The sums of attention in another order: float32 noise.
                values = getattr(expected, name)[:, order]
                assert relative_error(getattr(after, name), values) <= 2e-6, (order, name)
    assert relative_error(before.camera_poses, dense.camera_poses) > 1e-4


def test_sparse_layers_are_the_global_blocks(tiny_pi3, run, images):
    density = run(tiny_pi3(), images, PARTLY_ALIGNED).attention_stats.density
    assert density.shape == (1, 2, 3)  # 4 blocks of the decoder are 2 layers; 3 heads
    # Of 16 blocks of patches 6 are kept, beside one of special tokens.
    assert np.all(density[:, 0] == 1)
    np.testing.assert_allclose(density[:, 1], 7 / 17, rtol=1e-6)


def test_padded_frames_change_nothing(tiny_pi3, run, images, relative_error):
    found = []
    for garbage in (0.0, np.nan, 1e8):
        padded = images.copy()
        padded[:, 3:] = garbage
        found.append(run(tiny_pi3(), padded, num_frames=3))
    for name in MAPS:
        exact, *others = (getattr(output, name) for output in found)
        assert relative_error(exact[:, :3], getattr(run(tiny_pi3(), images), name)[:, :3]) > 1e-4
        for other in others:
            np.testing.assert_array_equal(other[:, :3], exact[:, :3], err_msg=name)
            assert np.isfinite(other).all()


@pytest.mark.slow
def test_a_padded_scene_equals_the_scene_by_itself(tiny_pi3, run, images, relative_error):
    padded = run(tiny_pi3(), images, num_frames=3)
    exact = run(tiny_pi3(), images[:, :3], num_frames=3)
    for name in MAPS:
        assert relative_error(getattr(padded, name)[:, :3], getattr(exact, name)) <= 2e-6, name
