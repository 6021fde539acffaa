from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.errors import InputError
from vggt_jax.training.optimizer import (
    OptimizerSettings,
    average,
    decays,
    learning_rate,
    make_optimizer,
)
from vggt_jax.training.predict import Execution
from vggt_jax.training.settings import TrainSettings
from vggt_jax.training.variants import Variant, variant_of


def test_schedule():
    settings = OptimizerSettings(learning_rate=2.0, warmup_steps=4)
    rate = jax.jit(learning_rate, static_argnums=0)
    at = lambda step, total=104: float(rate(settings, step, total))
    assert at(0) == pytest.approx(2 / 5)
    assert at(4) == pytest.approx(2.0)
    assert at(54) == pytest.approx(1.0)
    assert at(104) == pytest.approx(0.0, abs=1e-6)
    assert at(54, total=54) == pytest.approx(0.0, abs=1e-6)
    linear = OptimizerSettings(learning_rate=2.0, warmup_steps=4, schedule="linear")
    assert float(rate(linear, 29, 104)) == pytest.approx(1.5)
    constant = OptimizerSettings(learning_rate=2.0, warmup_steps=4, schedule="constant")
    assert float(rate(constant, 99, 104)) == 2.0


def test_only_kernels_decay():
    names = ["a.kernel", "a.bias", "norm.scale", "ls1", "camera_token", "track_head.x.kernel"]
    assert [name for name, yes in decays(dict.fromkeys(names)).items() if yes] == ["a.kernel"]


def test_muon_turns_matrices_of_blocks_and_leaves_the_rest_to_adamw():
    rng = np.random.default_rng(0)
    shapes = {
        "frame_blocks.attn.qkv.kernel": (2, 24, 60),
        "camera_head.trunk.mlp.fc2.kernel": (1, 60, 24),
        "frame_blocks.attn.qkv.bias": (2, 60),
        "depth_head.projects.0.kernel": (24, 60),
        "frame_blocks.norm1.scale": (2, 24),
    }
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    gradients = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = {}
    for method in ("adamw", "muon"):
        optimizer = make_optimizer(OptimizerSettings(method=method))
        first = jax.jit(
            lambda gradients: optimizer.update(gradients, optimizer.init(params), params)
        )
        found[method], _ = first(gradients)
    for name, shape in shapes.items():
        direction = found["muon"][name]
        if len(shape) < 3:
            # optax gives this AdamW Nesterov's momentum: longer first steps in the same direction.
            ratio = np.asarray(direction / found["adamw"][name])
            np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-3)
            assert 1 < ratio.flat[0] < 2
            continue
        for layer, gradient in zip(direction, gradients[name], strict=True):
            _u, singular, _v = np.linalg.svd(layer, full_matrices=False)
            # Orthogonal but for what five iterations leave, 0.7 to 1.2; about as large as AdamW's.
            assert singular.min() > 0.65 * 0.2 * 60**0.5 and singular.max() < 1.25 * 0.2 * 60**0.5
            u2, _, v2 = np.linalg.svd(gradient, full_matrices=False)
            np.testing.assert_allclose(np.sum(layer * (u2 @ v2)), singular.sum(), rtol=1e-3)


def test_average_follows_fast_at_first():
    after = jax.jit(lambda step: average(jnp.ones(()), jnp.zeros(()), step, 0.99))
    assert after(0) == pytest.approx(0.1)
    assert after(10**6) == pytest.approx(0.99)


def test_variants():
    assert str(Variant.parse("32x8@224x168:2.5")) == "32x8@224x168:2.5"
    variant = Variant.parse("4x3@28x42")
    assert (variant.num_scenes, variant.num_frames, variant.height, variant.width) == (4, 3, 28, 42)
    for text in ("4x3", "0x3@28x28", "4x3@28x28:0", "4x3@28x28:x"):
        with pytest.raises(InputError, match="variant"):
            Variant.parse(text)
    # As many scenes as fit into the pixels, in fours or as asked.
    assert str(Variant.parse("?x8@224x224:3", 12_900_000)) == "32x8@224x224:3"
    assert Variant.parse("?x24@112x224", 12_900_000).num_scenes == 20
    assert Variant.parse("?x24@112x224", 12_900_000, 8).num_scenes == 16
    with pytest.raises(InputError, match="needs pixels-per-step"):
        Variant.parse("?x8@224x224")
    with pytest.raises(InputError, match="4 scenes are more than"):
        Variant.parse("?x8@224x224", 3 * 8 * 224 * 224)
    with pytest.raises(InputError, match="multiples of 14"):
        Variant.parse("4x3@28x30").check(patch_size=14, num_special=4, num_devices=1)
    with pytest.raises(InputError, match="3 devices"):
        variant.check(patch_size=14, num_special=4, num_devices=3)
    with pytest.raises(InputError, match="2 devices in groups of 4"):
        variant.check(patch_size=14, num_special=4, num_devices=2, group=4)


def test_variants_are_taken_by_weight_and_by_seed():
    variants = (Variant.parse("1x1@14x14:3"), Variant.parse("2x1@14x14:1"))
    taken = [variant_of(i, variants, 5).num_scenes for i in range(400)]
    assert taken == [variant_of(i, variants, 5).num_scenes for i in range(400)]
    assert taken != [variant_of(i, variants, 6).num_scenes for i in range(400)]
    # 4 standard deviations of a share of 400 draws
    assert np.mean(np.array(taken) == 1) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 400) ** 0.5)


def test_dense_frames_are_a_random_share():
    execution = Execution(dense_share=0.4)
    draw = jax.jit(jax.vmap(lambda key: execution.dense_frames(key, 8)))
    draws = draw(jax.random.split(jax.random.key(0), 40)).tolist()
    assert all(len(set(draw)) == 4 and draw == sorted(draw) for draw in draws)
    assert {frame for draw in draws for frame in draw} == set(range(8))
    assert Execution().dense_frames(jax.random.key(0), 8) is None


def test_settings_say_what_is_wrong():
    with pytest.raises(InputError, match="ema_decay"):
        OptimizerSettings(ema_decay=1.0)
    with pytest.raises(InputError, match="dense_share"):
        Execution(dense_share=0.0)
    with pytest.raises(InputError, match="max-minutes"):
        TrainSettings(out=Path("x"), fit_to_minutes=True)
    with pytest.raises(InputError, match="positive"):
        OptimizerSettings(learning_rate=0.0)
