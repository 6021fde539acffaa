"""From images to a reconstruction: `infer` and `reconstruct`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from PIL import Image

import vggt_jax
from vggt_jax import BlockSparse, InputError, geometry
from vggt_jax.pipeline import plan
from vggt_jax.pipeline.inputs import read, read_frames
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import bucket, plan_scene
from vggt_jax.pipeline.reconstruct import reconstruct_jit

# Most tests run three frames of this size, so that they share compiled programs.
SIZE = (28, 42)
QUERY_POINTS = [[3.0, 4.0], [40.5, 26.25]]


def random_frames(s=3, height=SIZE[0], width=SIZE[1], *, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (s, height, width, 3), np.uint8)


def test_infer_gives_the_values_of_the_official_code(load_toy, golden, relative_error):
    arrays = golden("vggt_odd.n5_84x112")
    recon = vggt_jax.infer(
        arrays["images"][0], model=load_toy("vggt_odd"), query_points=arrays["query_points"][0]
    )
    pairs = {
        "camera_from_world": "extrinsic",
        "intrinsics": "intrinsic",
        "depth_confidence": "depth_conf",
        "world_points": "world_points",
        "world_points_confidence": "world_points_conf",
    }
    for ours, official in pairs.items():
        found = toys.kept(official, getattr(recon, ours)[None])
        assert relative_error(found, arrays[official]) <= 2e-5, ours
    depth = toys.kept("depth", recon.depth[None])
    assert relative_error(depth, arrays["depth"][..., 0]) <= 2e-5
    for ours, official in (("tracks", "track"), ("track_visibility", "vis")):
        assert relative_error(getattr(recon, ours), arrays[official][0]) <= 2e-4, ours
    assert relative_error(recon.track_confidence, arrays["conf"][0]) <= 2e-4
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(recon))


def test_padding_to_a_bucket_changes_nothing(tiny, monkeypatch):
    model, images = tiny(), random_frames()
    options = dict(model=model, query_points=QUERY_POINTS)
    exact = vggt_jax.infer(images, **options, pad_frames=False)
    monkeypatch.setattr(plan, "bucket", lambda num_frames: num_frames + 2)
    padded = vggt_jax.infer(images, **options)
    for name in vars(exact):
        if isinstance(getattr(exact, name), np.ndarray):
            np.testing.assert_allclose(
                getattr(padded, name), getattr(exact, name), rtol=2e-4, atol=2e-5, err_msg=name
            )
    # It may hold anything.
    noise = np.concatenate([images, random_frames(2, seed=4)])
    arguments = {"query_points": np.float32(QUERY_POINTS), "num_frames": np.int32(3)}
    hidden = reconstruct_jit(
        model, noise, **arguments, attention=vggt_jax.Dense(), compute_dtype=None
    )
    for name in ("camera_from_world", "depth", "world_points", "tracks"):
        np.testing.assert_array_equal(
            np.asarray(getattr(hidden, name))[:3], getattr(padded, name), err_msg=name
        )


@pytest.mark.parametrize(
    ("num_frames", "expected"), [(1, 1), (17, 17), (32, 32), (33, 34), (99, 100), (1000, 1024)]
)
def test_buckets_are_few_and_close(num_frames, expected):
    assert bucket(num_frames) == expected


def test_buckets_never_add_more_than_a_sixteenth():
    sizes = np.arange(1, 3000)
    padded = np.array([bucket(int(n)) for n in sizes])
    assert (padded >= sizes).all() and (padded - sizes <= sizes / 16).all()
    assert len(np.unique(padded[(sizes > 1024) & (sizes <= 2048)])) == 16


def test_reconstruct_takes_one_scene_or_several(tiny):
    model = tiny()
    scenes = np.stack([random_frames(seed=seed) for seed in (3, 4)])
    run = reconstruct_jit
    batch = run(model, scenes)
    assert batch.depth.shape == (2, 3, 28, 42)
    for i, scene in enumerate(scenes):
        single = run(model, scene)
        for name in ("camera_from_world", "intrinsics", "depth", "world_points"):
            np.testing.assert_allclose(
                getattr(batch, name)[i], getattr(single, name), rtol=1e-4, atol=1e-5, err_msg=name
            )
    with pytest.raises(ValueError, match=r"must be \[frame, height, width, 3\]"):
        vggt_jax.reconstruct(model, scenes[0, 0])


def test_photographs_lead_back_to_their_own_pixels(tmp_path, tiny):
    for i, frame in enumerate(random_frames(3, 300, 450)):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    # 300 x 450 become 28 x 42, a scale of 7 / 75 both ways.
    points_original = np.array([[99.5, 49.5], [400.0, 250.0]])
    frames = vggt_jax.load_images(tmp_path, size=42)
    query_points = frames.transforms[0].pixels_to_model(points_original)
    np.testing.assert_allclose(query_points[0], 7 / 75 * np.array([100, 50]) - 0.5)
    recon = vggt_jax.infer(tmp_path, model=tiny(), size=42, query_points=query_points)
    assert recon.names == ("0.png", "1.png", "2.png")
    assert recon.images.shape == (3, 28, 42, 3)
    np.testing.assert_allclose(recon.tracks_in_photographs()[0], points_original, atol=1e-4)
    arrays = map(jnp.asarray, (recon.depth, recon.camera_from_world, recon.intrinsics))
    unprojected = geometry.unproject_depth(*arrays)
    np.testing.assert_array_equal(recon.points_from_depth(), unprojected)


def test_size_is_the_models_own_unless_given(tmp_path, tiny):
    paths = []
    for i, frame in enumerate(random_frames(2, 100, 200)):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    model = tiny(img_size=56)
    assert read_frames(paths, model, Options()).images.shape == (2, 28, 56, 3)
    assert read_frames(paths, model, Options(size=112)).images.shape == (2, 56, 112, 3)


def test_a_checkpoint_says_how_photographs_are_resized(tmp_path, tiny):
    model = tiny(img_size=56, resize_mode="longest")
    vggt_jax.save_model(model, tmp_path / "model")
    model = vggt_jax.load_model(tmp_path / "model")
    tall = [np.moveaxis(frame, 0, 1) for frame in random_frames(2, 100, 200)]
    shape = lambda **options: read_frames(tall, model, Options(**options)).images.shape
    assert shape() == (2, 56, 28, 3)  # VGGT-1B would cut them to squares.
    assert shape(mode="crop") == (2, 56, 56, 3)
    assert shape(size=84) == (2, 84, 42, 3)
    with pytest.raises(InputError, match="differ"):
        read_frames([tall[0], np.moveaxis(tall[1], 0, 1)], model, Options())


def test_model_may_be_a_path(tmp_path, tiny):
    vggt_jax.save_model(tiny(), tmp_path / "model")
    images = random_frames()
    by_path = vggt_jax.infer(images, model=tmp_path / "model")
    by_object = vggt_jax.infer(images, model=tiny())
    np.testing.assert_array_equal(by_path.depth, by_object.depth)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[10.0, 12.0], [126.0, 5.0]], r"\(126, 5\) lies outside .* 126 wide and 112 high; 1 of 2"),
        ([[-0.75, 5.0]], "lies outside"),
        ([[float("nan"), 5.0]], "lies outside"),
        ([5.0, 6.0], r"must be \[m 2\]"),
        (np.zeros((0, 2)), r"must be \[m 2\]"),
    ],
)
def test_query_points_outside_the_first_frame_are_refused(tiny, points, message):
    with pytest.raises(InputError, match=message):
        vggt_jax.infer(random_frames(2, 112, 126), model=tiny(), query_points=points)


def test_heads_that_are_missing_leave_none(tiny):
    model = tiny(enable_camera=False, enable_point=False, enable_track=False)
    recon = jax.eval_shape(vggt_jax.reconstruct, model, random_frames())
    assert recon.camera_from_world is None and recon.world_points is None
    assert recon.depth.shape == (3, *SIZE)
    with pytest.raises(ValueError, match="camera head"):
        recon.points_from_depth()
    with pytest.raises(ValueError, match="no tracks"):
        recon.tracks_in_photographs()


def test_numbers_of_frames_of_a_bucket_share_a_program(tiny):
    model = tiny(enable_depth=False, enable_point=False, enable_track=False)
    before = reconstruct_jit._cache_size()
    for num_frames in (33, 34):  # the second needs no padding, and still
        vggt_jax.infer(random_frames(num_frames, 14, 14), model=model)
    assert reconstruct_jit._cache_size() == before + 1


def test_attention_may_be_an_argument_of_jit(tiny):
    dense = vggt_jax.Dense(implementation="xla")
    run = lambda model, images, attention: vggt_jax.reconstruct(model, images, attention=attention)
    traced = jax.jit(run).trace(tiny(), random_frames(), dense)
    assert traced.out_info.depth.shape == (3, *SIZE)


def test_results_are_arrays_of_ones_own(tiny):
    recon = vggt_jax.infer(random_frames(), model=tiny())
    recon.depth[0] = 0
    assert isinstance(recon.points_from_depth(), np.ndarray)


def test_tracking_needs_a_head_and_large_frames(tiny):
    points = [[3.0, 4.0]]
    with pytest.raises(InputError, match="no track head"):
        vggt_jax.infer(
            random_frames(2, 28, 28), model=tiny(enable_track=False), query_points=points
        )
    with pytest.raises(InputError, match="28x14 are too small .* least 16"):
        vggt_jax.infer(random_frames(2, 14, 28), model=tiny(), query_points=points)


def test_channels_first_is_told_what_it_is(tiny):
    with pytest.raises(InputError, match="channels"):
        vggt_jax.infer(np.zeros((2, 3, 28, 28), np.uint8), model=tiny())


@pytest.mark.slow
def test_padding_does_not_make_attention_sparse(tiny):
    model, images = (
        tiny(enable_depth=False, enable_point=False, enable_track=False),
        random_frames(33),
    )
    tokens = 33 * model.layout(jnp.zeros((1, 1, *SIZE, 3))).tokens_per_frame
    options = {"sparse_ratio": 0.5, "block_q": 32, "block_k": 16}
    few = BlockSparse(**options, min_tokens=tokens + 1)

    def decided(attention):
        given = Options(attention=attention)
        return plan_scene(read(images, model, given), model, given).attention

    with pytest.warns(UserWarning, match=f"33 frames have {tokens} tokens.*dense"):
        assert decided(few) == vggt_jax.Dense()
    enough = BlockSparse(**options, min_tokens=tokens)
    assert decided(enough) == BlockSparse(**options, min_tokens=0)
    # Padded to 34 frames, or not at all: results and statistics are the same.
    padded, exact = (
        vggt_jax.infer(images, model=model, attention=enough, pad_frames=pad)
        for pad in (True, False)
    )
    assert padded.attention_stats.saved.shape == (2, 2)
    np.testing.assert_allclose(
        padded.camera_from_world, exact.camera_from_world, rtol=2e-4, atol=2e-5
    )
    for name, value in vars(exact.attention_stats).items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_allclose(getattr(padded.attention_stats, name), value, rtol=1e-5)
    with pytest.raises(vggt_jax.InputError, match="layers"):
        vggt_jax.infer(images, model=model, attention=BlockSparse(sparse_ratio=0.5, layers=(9,)))
