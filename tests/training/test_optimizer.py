import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.errors import InputError
from vggt_jax.training.optimizer import OptimizerSettings, average, decays, learning_rate
from vggt_jax.training.variants import Variant, variant_of


def test_schedule():
    settings = OptimizerSettings(learning_rate=2.0, warmup_steps=4)
    at = lambda step, total=104: float(learning_rate(settings, step, total))
    assert at(0) == pytest.approx(2 / 5)
    assert at(4) == pytest.approx(2.0)
    assert at(54) == pytest.approx(1.0)
    assert at(104) == pytest.approx(0.0, abs=1e-6)
    assert at(54, total=54) == pytest.approx(0.0, abs=1e-6)
    linear = OptimizerSettings(learning_rate=2.0, warmup_steps=4, schedule="linear")
    assert float(learning_rate(linear, 29, 104)) == pytest.approx(1.5)
    constant = OptimizerSettings(learning_rate=2.0, warmup_steps=4, schedule="constant")
    assert float(learning_rate(constant, 99, 104)) == 2.0


def test_only_kernels_decay():
    names = ["a.kernel", "a.bias", "norm.scale", "ls1", "camera_token", "track_head.x.kernel"]
    assert [name for name, yes in decays(dict.fromkeys(names)).items() if yes] == ["a.kernel"]


def test_average_follows_fast_at_first():
    step = lambda n: jnp.asarray(n, jnp.int32)
    assert average(jnp.ones(()), jnp.zeros(()), step(0), 0.99) == pytest.approx(0.1)
    assert average(jnp.ones(()), jnp.zeros(()), step(10**6), 0.99) == pytest.approx(0.99)


def test_variants():
    assert str(Variant.parse("32x8@224x168:2.5")) == "32x8@224x168:2.5"
    variant = Variant.parse("4x3@28x42")
    assert (variant.num_scenes, variant.num_frames, variant.height, variant.width) == (4, 3, 28, 42)
    for text in ("4x3", "0x3@28x28", "4x3@28x28:0", "4x3@28x28:x"):
        with pytest.raises(InputError, match="variant"):
            Variant.parse(text)
    with pytest.raises(InputError, match="multiples of 14"):
        Variant.parse("4x3@28x30").check(patch_size=14, num_special=4, num_devices=1)
    with pytest.raises(InputError, match="3 devices"):
        variant.check(patch_size=14, num_special=4, num_devices=3)


def test_variants_are_taken_by_weight_and_by_seed():
    variants = (Variant.parse("1x1@14x14:3"), Variant.parse("2x1@14x14:1"))
    taken = [variant_of(i, variants, 5).num_scenes for i in range(400)]
    assert taken == [variant_of(i, variants, 5).num_scenes for i in range(400)]
    assert taken != [variant_of(i, variants, 6).num_scenes for i in range(400)]
    # 4 standard deviations of a share of 400 draws
    assert np.mean(np.array(taken) == 1) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 400) ** 0.5)


def test_settings_say_what_is_wrong():
    with pytest.raises(InputError, match="ema_decay"):
        OptimizerSettings(ema_decay=1.0)
    with pytest.raises(InputError, match="positive"):
        OptimizerSettings(learning_rate=0.0)
