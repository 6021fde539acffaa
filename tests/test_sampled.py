"""Sampled attention through every door: models, `infer`, many scenes, streaming, command line."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vggt_jax
from pallas_kernels import tuned
from vggt_jax import AttentionStats, Dense, InputError, Sampled
from vggt_jax.cli import bench
from vggt_jax.cli.attending import chosen_attention
from vggt_jax.pipeline import memory
from vggt_jax.pipeline.inputs import read
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import plan_scene
from vggt_jax.pipeline.run import with_more_keys
from vggt_jax.pipeline.streaming import Stream

# 24 patches of 28 x 42 pixels in four frames.
SAMPLED = Sampled(num_keys=16, min_tokens=0)
CAMERAS_ONLY = {"enable_depth": False, "enable_point": False, "enable_track": False}


def frames(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 28, 42, 3), np.uint8)


reconstruct = jax.jit(vggt_jax.reconstruct, static_argnames=("attention", "compute_dtype"))


@pytest.fixture(params=["vggt", pytest.param("pi3", marks=pytest.mark.slow)])
def model(request, tiny, tiny_pi3):
    return tiny(**CAMERAS_ONLY) if request.param == "vggt" else tiny_pi3()


def test_both_models(model, relative_error):
    """A sample changes a result a little, padded frames not at all, and a batch is its scenes."""
    images = np.stack([frames(5), frames(5, seed=1)])
    run = lambda images, **options: reconstruct(
        model, images, compute_dtype=jnp.float32, num_frames=np.array([4, 4]), **options
    )
    dense = run(images, attention=Dense()).camera_from_world
    batch = run(images, attention=SAMPLED)
    difference = relative_error(batch.camera_from_world[:, :4], dense[:, :4])
    assert 1e-6 < difference < 0.6  # The weights are random, and 8 of 24 patches are left out.
    special = model.config.num_special_tokens
    kept = (4 * special + 16) / (4 * (special + 6))
    np.testing.assert_allclose(batch.attention_stats.density, kept, rtol=1e-6)
    alone = reconstruct(model, images[1, :4], compute_dtype=jnp.float32, attention=SAMPLED)
    found = batch.camera_from_world[1, :4]
    assert relative_error(found, alone.camera_from_world) <= 1e-4 * difference + 2e-5


def test_infer_and_a_stream_of_pieces(tiny, relative_error):
    """Streaming gives what one program gives; `infer` pads no sample."""
    model = tiny(enable_point=False, enable_track=False)
    images = frames(4)
    recon = vggt_jax.infer(images, model=model, attention=SAMPLED, compute_dtype=jnp.float32)
    assert recon.attention_stats.saved.shape == (2, 2)
    stream = Stream.of(model, {"images": images}, attention=SAMPLED, compute_dtype=jnp.float32)
    streamed = stream(model, images=images)
    for name in ("camera_from_world", "depth", "depth_confidence"):
        assert relative_error(getattr(streamed, name), getattr(recon, name)) <= 1e-5


def test_few_patches_run_dense_and_say_so(tiny):
    model = tiny(**CAMERAS_ONLY)
    said = []

    def decide(attention):
        options = Options(attention=attention)
        return plan_scene(
            read(frames(4), model, options), model, options, say=said.append
        ).attention

    assert decide(Sampled(num_keys=24, min_tokens=0)) == Dense()
    assert decide(Sampled(num_keys=23)) == Dense()
    assert decide(Sampled(num_keys=23, min_tokens=36)) == Sampled(num_keys=23, min_tokens=0)
    assert len(said) == 2
    assert "4 frames have 24 patches, no more than num_keys=24: attention is dense" in said[0]
    assert "4 frames have 36 tokens, fewer than min_tokens=4096: attention is dense" in said[1]


@pytest.mark.slow
def test_many_scenes(tiny, tmp_path, relative_error):
    model = tiny(**CAMERAS_ONLY)
    scenes = {"a": frames(4), "b": frames(4, seed=1)}
    options = {"model": model, "attention": SAMPLED, "compute_dtype": jnp.float32}
    report = vggt_jax.reconstruct_scenes(scenes, tmp_path, batch_size=2, progress=False, **options)
    assert report.written == ("a", "b")
    for name, images in scenes.items():
        with np.load(tmp_path / name / "predictions.npz") as found:
            expected = vggt_jax.infer(images, **options)
            poses = found["camera_from_world"]
            assert relative_error(poses, expected.camera_from_world) <= 2e-5
            assert np.isnan(found["attention_covered"]).all()
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert "Sampled(num_keys=16" in settings["attention"]


@pytest.mark.slow
def test_gradients_pass_through(tiny):
    model = tiny(**CAMERAS_ONLY)
    images = jnp.asarray(frames(4), jnp.float32) / 255

    def loss(images):
        recon = vggt_jax.reconstruct(model, images, attention=SAMPLED, compute_dtype=jnp.float32)
        return jnp.sum(recon.camera_from_world[1:, :, 3] ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(images)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    # Along the gradient the loss grows as it says.
    step = 1e-3 / jnp.linalg.norm(gradient) * gradient
    rise = (jax.jit(loss)(images + step) - jax.jit(loss)(images - step)) / 2
    np.testing.assert_allclose(rise, 1e-3 * jnp.linalg.norm(gradient), rtol=0.05)


@pytest.mark.slow
def test_export(tiny):
    """As StableHLO it runs without the project, with the same result."""
    model = tiny(**CAMERAS_ONLY)
    attention = Sampled(num_keys=16, min_tokens=0, implementation="xla")
    run = lambda images: (
        vggt_jax.reconstruct(
            model, images, attention=attention, compute_dtype=jnp.float32
        ).camera_from_world
    )
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda"))(frames(4))
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(frames(4)), jax.jit(run)(frames(4)), atol=1e-6)


def test_memory_of_a_sample():
    """It is that of the sampled keys and values; none where a scene is too small for a sample."""
    estimate = lambda attention, dtype: (
        memory.estimate_memory(
            vggt_jax.VGGTConfig(mlp_ratio=0.5),
            weights=0,
            num_frames=40,
            height=518,
            width=518,
            attention=attention,
            compute_dtype=dtype,
        ).trunk
    )
    sampled = Sampled(num_keys=1000)
    array = 2 * 40 * 1374 * 1024
    gathered = 2 * 2 * (1000 + 5 * 40) * 1024 + 3 * 4 * 16 * 128 * (1000 + 5 * 40)
    assert estimate(sampled, jnp.bfloat16) == 2 * array + max(5 * array, 4 * array + gathered)
    assert estimate(Sampled(num_keys=40 * 1369), jnp.bfloat16) == estimate(Dense(), jnp.bfloat16)


def test_more_keys_until_the_error_is_small(tiny):
    """`infer` runs again with more keys, here all there are, which is dense attention."""
    model = tiny(enable_track=False)
    options = {"model": model, "attention": SAMPLED, "compute_dtype": jnp.float32}
    with pytest.warns(UserWarning, match="above max_error=0.2: again, Sampled.num_keys=512"):
        recon = vggt_jax.infer(frames(4), max_error=0.2, **options)
    assert recon.attention_stats is None
    recon = vggt_jax.infer(frames(4), max_error=100, **options)
    assert recon.attention_stats.error.shape == (2, 2) and np.all(recon.attention_stats.error > 0)
    with pytest.raises(InputError, match="max_error=0 must be positive"):
        vggt_jax.infer(frames(4), max_error=0, **options)


@pytest.mark.parametrize(
    ("num_keys", "error", "expected"),
    [(2048, 0.2, 9216), (2048, 0.05, None), (65_536, 0.2, None)],
)
def test_how_many_more_keys(num_keys, error, expected):
    said = []
    attention = Sampled(num_keys=num_keys, min_tokens=0)
    stats = dataclasses.replace(AttentionStats.of_dense(3, 2), error=np.full((3, 2), 0.01))
    stats.error[1] = error - 0.01, error + 0.01
    more = with_more_keys(
        SimpleNamespace(attention_stats=stats),
        SimpleNamespace(attention=attention),
        Options(attention=attention, max_error=0.1),
        say=said.append,
    )
    assert (more and more.attention) == (expected and Sampled(num_keys=expected, min_tokens=0))
    assert bool(said) == (error > 0.1)


def test_auto_says_what_it_took(tiny):
    model, said = tiny(), []
    options = Options(model=model, attention="auto")
    with tuned.override({"sampled.num_keys": 16, "sampled.min_tokens": 0}):
        inputs = read(frames(4), model, options)
        assert plan_scene(inputs, model, options, say=said.append).attention == SAMPLED
    assert plan_scene(inputs, model, options, say=said.append).attention == Dense()
    assert said[0].startswith("attention: Sampled(num_keys=16")
    assert "because 4 frames have 24 patches, no more than num_keys=8192" in said[1]


def test_options_of_the_command_line(monkeypatch):
    chosen = chosen_attention(None, 100, None, None, min_tokens=7, pool_mode="avg")
    assert chosen == Sampled(num_keys=100, min_tokens=7)
    assert chosen_attention(None, None, None, None, min_tokens=7) == Dense()
    with pytest.raises(InputError, match="--num-keys samples keys.*give one of them"):
        chosen_attention(None, 100, 0.5, None, min_tokens=7)
    assert chosen_attention("auto", None, None, None, min_tokens=7) == "auto"
    with pytest.raises(InputError, match="--attention auto says how to attend; leave out"):
        chosen_attention("auto", 100, None, None, min_tokens=7)
    with pytest.raises(InputError, match=r"--num-keys=0 must be in \[1, 65536\]"):
        chosen_attention(None, 0, None, None, min_tokens=7)
    timed = []
    monkeypatch.setattr(bench.Bench, "_run", lambda self, attentions: timed.append(attentions))
    bench.Bench(num_keys=9, sparse_ratio=0.5).run()
    assert list(timed[0]) == ["dense", "9 keys", "sparse 0.5"]
    assert timed[0]["9 keys"] == Sampled(num_keys=9, min_tokens=0)
