"""Reference views, cameras and photographs of Depth Anything 3, against its official helpers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vggt_jax import DA3Config, InputError, Priors, Reconstruction, load_images
from vggt_jax.images.longest import sizes_to_longest
from vggt_jax.models.da3 import cameras, reference
from vggt_jax.models.da3.ray_cameras import cameras_from_rays, num_candidates
from vggt_jax.models.loading import abstract_model
from vggt_jax.pipeline.given_cameras import with_given_cameras

SIZE = (42, 56)  # of the images of all cameras


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("da3_geometry")


def close(found, expected, limit):
    """Whether the largest difference is at most so much of the root mean square."""
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= limit * np.sqrt(np.mean(expected**2))


# The reference view


@pytest.mark.parametrize("strategy", ["saddle_balanced", "saddle_sim_range"])
def test_reference_views_are_the_official_ones(arrays, strategy):
    """And those of padding are never chosen, nor do they change the choice."""

    @jax.jit
    def choose(tokens, num_frames):
        counts = jnp.arange(tokens.shape[1])[None] < num_frames[:, None]
        index = reference.reference_view(tokens, num_frames, strategy=strategy)
        return index, reference.balance_scores(tokens, counts)

    for num in (3, 5, 8) if strategy == "saddle_balanced" else (5, 8):
        name = f"reference_view_{strategy}_{num}"
        tokens = arrays[f"{name}_tokens"]
        padding = np.full((len(tokens), 9 - num, tokens.shape[2]), np.nan, np.float32)
        padded = np.concatenate([tokens, padding], axis=1)
        found, scores = choose(padded, np.full(len(tokens), num, np.int32))
        np.testing.assert_array_equal(found, arrays[f"{name}_index"])
        if strategy == "saddle_balanced":
            close(scores[:, :num], arrays[f"{name}_scores"], 6e-5)


def test_reference_views_by_place():
    tokens = np.random.default_rng(0).standard_normal((3, 5, 4), np.float32)
    num_frames = np.array([1, 2, 5], np.int32)

    @jax.jit
    def choose(tokens, num_frames):
        find = functools.partial(reference.reference_view, tokens, num_frames)
        return [find(strategy=name) for name in ("first", "middle", "saddle_balanced")]

    first, middle, balanced = choose(tokens, num_frames)
    assert list(first) == [0, 0, 0] and list(middle) == [0, 0, 2]
    assert list(balanced[:2]) == [0, 0]  # of fewer than three nothing is chosen
    with pytest.raises(ValueError, match="reference view 'last' is unknown; use 'saddle_bal"):
        reference.reference_view(jnp.asarray(tokens), strategy="last")


# Cameras


def test_encodings_of_cameras_are_the_official_ones(arrays):
    given = lambda name: arrays[f"cameras_{name}"]

    @jax.jit
    def run(w2c, given_intrinsics, raw, *poses):
        encoding = cameras.encoding_from_cameras(w2c, given_intrinsics, SIZE)
        decoded = cameras.cameras_from_encoding(raw, SIZE)
        return encoding, *decoded, *map(cameras.normalised_cameras, poses)

    names = ("w2c", "intrinsics", "raw_encoding", "normalize_in_0", "normalize_in_1")
    found, extrinsics, intrinsics, *normalised = run(*map(given, names))
    close(found, arrays["cameras_pose_encoding"], 2e-6)
    close(extrinsics, arrays["cameras_decoded_w2c"], 2e-6)
    np.testing.assert_allclose(intrinsics, arrays["cameras_decoded_intrinsics"], rtol=1e-6)
    assert arrays["cameras_decoded_intrinsics"].max() > 1e7  # a field of view of 0
    for i, found in enumerate(normalised):
        close(found, arrays[f"cameras_normalize_out_{i}"], 2e-6)


def test_padding_takes_no_part_in_the_unit_of_cameras(arrays):
    poses = arrays["cameras_normalize_in_0"]
    padded = np.concatenate([poses, poses[:, 3:] * np.float32(7)], axis=1)
    found = jax.jit(cameras.normalised_cameras)(padded, np.arange(9)[None] < 6)
    close(found[:, :6], arrays["cameras_normalize_out_0"], 2e-6)


def test_cameras_of_rays_are_the_official_ones(arrays):
    given = lambda name: arrays[f"rays_{name}"]
    assert num_candidates(12 * 16) == given("num_candidates")
    rays = given("ray"), given("ray_conf")
    find = jax.jit(lambda *rays, draws: cameras_from_rays(*rays, SIZE, draws=draws))
    extrinsics, intrinsics = find(*rays, draws=given("choices").astype(np.int32))
    close(extrinsics, given("out_extrinsics"), 7e-5)
    close(intrinsics, given("out_intrinsics"), 3e-5)
    # Of other draws almost the same.
    others = 56 - given("choices").astype(np.int32)
    np.testing.assert_allclose(find(*rays, draws=others)[0], extrinsics, atol=0.02)


@pytest.mark.parametrize("num", [*(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5)), 12])
def test_depth_comes_in_the_unit_of_given_cameras(arrays, num):
    """Of twelve some are left out, as the official code draws them."""
    of = lambda name: arrays[f"align_n{num}_{name}"]
    height, width = of("depth").shape[1:]
    recon = Reconstruction(
        images=np.zeros((num, height, width, 3), np.uint8),
        camera_from_world=of("pred"),
        intrinsics=2 * of("given_intrinsics"),
        depth=of("depth"),
    )
    priors = Priors(camera_from_world=of("given"), intrinsics=of("given_intrinsics"))
    priors = priors.checked(num, (height, width))
    found = with_given_cameras(recon, priors)
    close(found.depth, of("out_depth"), 5e-6)
    np.testing.assert_array_equal(found.camera_from_world, of("out_extrinsics"))
    np.testing.assert_array_equal(found.intrinsics, of("out_intrinsics"))
    assert found.length_unit == "given" and found.pixel_centre == 0.5
    metric = dataclasses.replace(priors, metric=np.True_)
    assert with_given_cameras(recon, metric).length_unit == "metres"


@pytest.mark.slow
def test_depth_of_one_and_of_two_given_cameras():
    """Two have a distance, one has none (the official code fails for both)."""
    pose = lambda x: np.eye(3, 4, dtype=np.float32) + np.float32(x) * np.eye(3, 4, 3, np.float32)
    given = np.stack([pose(0), pose(3)])
    predicted = np.stack([pose(1), pose(2.5)])
    predicted[:, :, :3] = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    intrinsics = np.tile(np.eye(3, dtype=np.float32), (2, 1, 1))

    def found(num):
        recon = Reconstruction(
            images=np.zeros((num, 14, 14, 3), np.uint8),
            camera_from_world=predicted[:num],
            intrinsics=intrinsics[:num],
            depth=np.ones((num, 14, 14), np.float32),
        )
        priors = Priors(camera_from_world=given[:num], intrinsics=intrinsics[:num])
        return with_given_cameras(recon, priors.checked(num, (14, 14))).depth

    np.testing.assert_allclose(found(2), 2.0, rtol=1e-5)
    np.testing.assert_array_equal(found(1), 1.0)


# Photographs


@pytest.mark.parametrize("size", [70, 49])
def test_photographs_are_resized_as_by_the_official_loader(golden, size):
    arrays = golden("da3_preprocess")
    photographs = [arrays[f"photo_{i}"] for i in range(3)]
    frames = load_images(photographs, mode="longest", size=size)
    np.testing.assert_array_equal(frames.images, arrays[f"upper_bound_resize_{size}"])
    pairs = zip(frames.transforms, arrays["photo_intrinsics"], strict=True)
    found = np.stack([transform.intrinsics_to_model(matrix) for transform, matrix in pairs])
    expected = arrays[f"upper_bound_resize_{size}_intrinsics"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Without a mode somebody is told of the shapes.
    with pytest.raises(InputError, match="2 different shapes after resizing.*'longest'"):
        load_images([*photographs[:2], photographs[0][:20]], default_mode="longest", size=size)


def test_sizes_of_photographs_are_the_official_ones(golden):
    table = golden("da3_preprocess")["sizes_504"].astype(int)
    for width, height, *expected in table:
        _, found = sizes_to_longest((height, width), 504, 14, "x.png")
        assert [found[1], found[0]] == expected[:2]
    with pytest.raises(InputError, match="x.png: 1000x3 pixels.*less than half a patch"):
        sizes_to_longest((3, 1000), 504, 14, "x.png")


def test_transparency_is_cut_with_its_photograph():
    wide, tall = np.full((20, 40, 3), 9, np.uint8), np.full((40, 20, 3), 9, np.uint8)
    alpha = np.full((40, 20, 1), 255, np.uint8)
    alpha[18:] = 0
    clear = Image.fromarray(np.concatenate([tall, alpha], axis=2))
    with pytest.warns(match="transparent pixels"):
        frames = load_images([wide, clear], mode="longest", size=56)
    assert frames.images.shape == (2, 28, 28, 3) and frames.opaque.shape == (2, 28, 28)
    assert frames.opaque[0].all()
    # 56 rows of which the first 14 and the last are cut; 25 are opaque.
    assert frames.opaque[1, :11].all() and not frames.opaque[1, 12:].any()
    np.testing.assert_array_equal(frames.valid_mask(), True)


@pytest.mark.parametrize("size", [(28, 56), 13, 100_000])
def test_a_longest_side_is_a_number_in_its_range(size):
    with pytest.raises(InputError, match="must be an int with mode 'longest'|at least a patch"):
        load_images([np.zeros((20, 40, 3), np.uint8)], mode="longest", size=size)


# What can be known


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"camera_from_world", "intrinsics"}, None),
        ({"intrinsics"}, "takes poses and intrinsics of all frames together, not intrinsics alone"),
        ({"camera_from_world"}, "together, not poses alone"),
        ({"camera_from_world", "intrinsics", "poses_known"}, "but poses of frame 1 are not known"),
    ],
)
def test_cameras_are_known_whole_or_not_at_all(fields, message):
    known = {
        "camera_from_world": np.tile(np.eye(4), (3, 1, 1)),
        "intrinsics": np.tile(np.diag([9, 9, 1.0]), (3, 1, 1)),
        "poses_known": np.array([True, False, True]),
    }
    priors = Priors(**{name: known[name] for name in fields}).checked(3, (28, 42))
    model = abstract_model(DA3Config.small())
    if message is None:
        model.check_known(priors, first=0)
        return
    with pytest.raises(InputError, match=message):
        model.check_known(priors, first=0)
    if len(fields) == 1:
        images = jnp.zeros((1, 3, 28, 42, 3))
        by_scene = jax.tree.map(lambda x: np.asarray(x)[None], priors)
        with pytest.raises(ValueError, match="takes poses and intrinsics together, not "):
            jax.eval_shape(lambda model: model(images, priors=by_scene), model)
