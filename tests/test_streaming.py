"""Scenes whose maps leave the device in pieces, against scenes in one piece."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vggt_jax
from pallas_kernels import tuned
from vggt_jax.pipeline import memory, streaming
from vggt_jax.pipeline.placing import on_host, sent_to_host
from vggt_jax.pipeline.plan import bucket

SPARSE = vggt_jax.BlockSparse(sparse_ratio=0.5, block_q=16, block_k=8, min_tokens=0)


AT_ONCE = {"streaming.from_pixels": 10**6}


@pytest.fixture
def streamed():
    """Makes `infer` stream scenes of three frames and more, in pairs of frames."""
    in_pairs = {"streaming.from_pixels": 3 * 28 * 42, "streaming.frames_in_piece": 2}
    with tuned.override(in_pairs):
        yield


def photographs(num):
    return np.random.default_rng(num).integers(0, 256, (num, 28, 42, 3), np.uint8)


def compare(found, expected):
    assert type(found.depth) is np.ndarray and found.depth.flags.writeable
    leaves, treedef = jax.tree.flatten(found)
    assert treedef == jax.tree.structure(expected)
    for x, y in zip(leaves, jax.tree.leaves(expected), strict=True):
        # Random models may have an infinite focal length, and may blow up the rounding of a pixel.
        is_finite = np.isfinite(y)
        np.testing.assert_array_equal(np.isfinite(x), is_finite)
        x, y = (np.where(is_finite, z, 0).astype(np.float64) for z in (x, y))
        assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(y)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vggt", {"enable_point": False, "enable_track": False}),
        pytest.param("pi3", {}, marks=pytest.mark.slow),
    ],
)
def test_pieces_are_the_whole(tiny, tiny_pi3, name, changes):
    model = {"vggt": tiny, "pi3": tiny_pi3}[name](**changes)
    inputs = {"images": photographs(5), "num_frames": np.int32(4)}
    stream = streaming.Stream.of(model, inputs, compiled=True, frames_in_piece=2)
    at_once = jax.jit(vggt_jax.reconstruct)
    # The last piece of five begins early enough to be whole.
    for num_frames, pieces in ((4, [2, 4]), (5, [2, 4, 5])):
        inputs["num_frames"], news = np.int32(num_frames), []
        found = stream(model, **inputs, done=news.append)
        assert news == pieces
        compare(found, cut(at_once(model, **inputs), num_frames))


def cut(recon, num_frames):
    """The frames that count."""
    return dataclasses.replace(jax.tree.map(lambda x: x[:num_frames], recon))


@pytest.mark.slow
# 5 frames end in a piece that begins early; of 33, padded to 34, the last is alone with padding.
@pytest.mark.parametrize(
    ("name", "num_frames", "attention"),
    [("vggt", 5, SPARSE), ("pi3", 33, vggt_jax.Dense())],
    ids=["sparse", "dense"],
)
def test_infer_streams_what_it_would_give_at_once(
    tiny, tiny_pi3, streamed, name, num_frames, attention
):
    model, images = {"vggt": tiny, "pi3": tiny_pi3}[name](), photographs(num_frames)
    found = vggt_jax.infer(images, model=model, attention=attention)
    assert len(found.depth) == num_frames
    assert bucket(33) == 34
    with tuned.override(AT_ONCE):
        compare(found, vggt_jax.infer(images, model=model, attention=attention))


@pytest.mark.slow
def test_tracks_and_another_reference(tiny, streamed):
    arguments = dict(model=tiny(), query_points=[[3, 4], [20, 25.5]], reference=2)
    found = vggt_jax.infer(photographs(3), **arguments)
    assert found.tracks.shape == (3, 2, 2)
    with tuned.override(AT_ONCE):
        compare(found, vggt_jax.infer(photographs(3), **arguments))


def test_a_model_of_cameras_alone(tiny, streamed):
    model = tiny(enable_depth=False, enable_point=False, enable_track=False)
    found = vggt_jax.infer(photographs(5), model=model)
    assert found.camera_from_world.shape == (5, 3, 4) and found.depth is None


@pytest.mark.slow
def test_news_come_in_order_and_frames_of_a_bucket_share_the_programs(tiny, streamed):
    model, news = tiny(enable_point=False, enable_track=False), []
    for num_frames in (33, 34):
        inputs = {"images": np.zeros((34, 28, 42, 3), np.uint8), "num_frames": np.int32(num_frames)}
        stream = streaming.Stream.of(model, inputs)
        before = streaming._run_scene._cache_size(), streaming._run_frames._cache_size()
        result = stream(model, **inputs, done=news.append)
        assert len(result.depth) == num_frames
    assert news == [*range(2, 33, 2), 33, *range(2, 35, 2)]
    after = streaming._run_scene._cache_size(), streaming._run_frames._cache_size()
    assert after == before


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_counts_the_frames_if_asked_for(tiny, streamed, capfd, progress):
    model = tiny(enable_depth=False, enable_point=False, enable_track=False)
    vggt_jax.infer(photographs(5), model=model, progress=progress)
    assert ("5/5" in capfd.readouterr().err) == progress
    vggt_jax.infer(photographs(2), model=model, progress=progress)
    assert "2/2" not in capfd.readouterr().err


def test_many_frames_are_streamed_and_few_are_not():
    assert streaming.is_streamed(64, 518, 518) and not streaming.is_streamed(24, 518, 518)


def test_estimate_of_memory():
    estimate = lambda streamed: memory.estimate_memory(
        vggt_jax.VGGTConfig(), weights=0, num_frames=1000, height=518, width=518, streamed=streamed
    )
    maps = 4 * 6 * 518 * 518
    assert estimate(False).outputs == 1000 * maps
    assert estimate(True).outputs == streaming.frames_on_device() * maps < 100 * maps


@pytest.mark.parametrize("dtype", ["float32", "bool", "uint8", "int32", "bfloat16"])
def test_arrays_in_pinned_memory_are_read(dtype):
    """As those of GPUs are, whose maps go there."""
    for shape in ((3, 2), (0, 2), ()):
        x = jnp.arange(np.prod(shape)).reshape(shape).astype(dtype)
        pinned = jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))
        found = on_host(pinned)
        assert isinstance(found, np.ndarray) and found.dtype == x.dtype
        np.testing.assert_array_equal(found, np.asarray(x))


def test_arrays_of_a_cpu_stay_where_they_are():
    x = jnp.ones(3)
    assert sent_to_host(x) is x
    assert on_host(x).ctypes.data == np.asarray(x).ctypes.data
