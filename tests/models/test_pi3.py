"""π³: its parameters, what it takes and refuses, and what the order of frames does to it."""

import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax import BlockSparse, Dense, Pi3, Pi3Config
from vggt_jax.checkpoints import native_shapes
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.loading import named_parameters

GOLDEN = Path(__file__).parents[1] / "golden"
MAPS = ("points", "local_points", "conf", "camera_poses")


def shapes_of(config):
    model = jax.eval_shape(lambda: Pi3(config, rngs=nnx.Rngs(0)))
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


@pytest.fixture(scope="module")
def run():
    """Outputs of a model for frames of 8 x 8 patches."""
    compute = jax.jit(
        lambda model, images, attention, num_frames: model(
            images, attention=attention, num_frames=num_frames, compute_dtype=jnp.float32
        ),
        static_argnames="attention",
    )

    def run(model, images, attention=Dense(), num_frames=None):
        output = compute(model, images, attention, num_frames)
        return {name: np.asarray(getattr(output, name)) for name in MAPS}

    return run


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((1, 4, 112, 112, 3), np.float32)


# Frames of 64 patches and 2 registers: blocks of 32 and 16 patches end where frames do.
ALIGNED = BlockSparse(min_tokens=0, sparse_ratio=0.6, block_q=32, block_k=16)


@pytest.mark.parametrize("attention", [Dense(), ALIGNED])
def test_frames_in_another_order_give_the_same_in_that_order(
    tiny_pi3, run, images, relative_error, attention
):
    model = tiny_pi3()
    before = run(model, images, attention)
    for order in itertools.islice(itertools.permutations(range(4)), 3, None, 8):
        after = run(model, images[:, list(order)], attention)
        for name, values in before.items():
            # The sums of attention in another order: float32 noise.
            assert relative_error(after[name], values[:, list(order)]) <= 2e-6, (order, name)
    if attention is ALIGNED:
        dense = run(model, images)
        assert relative_error(before["camera_poses"], dense["camera_poses"]) > 1e-4


def test_padded_frames_change_nothing(tiny_pi3, run, images, relative_error):
    model = tiny_pi3()
    exact = run(model, images[:, :3])
    noise = np.full_like(images[:, :1], np.nan)
    padded = run(model, np.concatenate([images[:, :3], noise], axis=1), num_frames=np.array([3]))
    for name, values in exact.items():
        assert relative_error(padded[name][:, :3], values) <= 2e-6, name
        assert np.isfinite(padded[name]).all()


def test_sparse_layers_are_the_global_blocks(tiny_pi3, images):
    attention = BlockSparse(min_tokens=0, sparse_ratio=0.5, layers=(1,), block_q=32, block_k=16)
    output = jax.jit(lambda model, images: model(images, attention=attention))(tiny_pi3(), images)
    density = np.asarray(output.attention_stats.density)
    assert density.shape == (1, 2, 3)  # 4 blocks of the decoder are 2 layers; 3 heads
    assert np.all(density[:, 0] == 1) and np.all(density[:, 1] < 0.6)
