"""Cameras, surfaces and photographs of MapAnything, against its official helpers."""

import jax
import numpy as np
import pytest

from vggt_jax import geometry, load_images
from vggt_jax.images.covering import size_to_cover
from vggt_jax.models.mapanything import geometric_inputs
from vggt_jax.models.mapanything.outputs import kept_pixels
from vggt_jax.scene import surfaces


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("mapanything_geometry")


def test_intrinsics_are_the_best_fit_to_rays(arrays, monkeypatch):
    # The official code counts from the centre of the first pixel.
    half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    find = lambda: np.asarray(
        jax.jit(lambda rays: surfaces.intrinsics_from_rays(rays))(arrays["noisy_rays"])
    )
    np.testing.assert_allclose(find() - half, arrays["recovered_intrinsics"], rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(surfaces, "_MANY_PIXELS", 0)
    expected = arrays["recovered_intrinsics_geometric"]
    np.testing.assert_allclose(find() - half, expected, rtol=1e-5, atol=1e-4)


def test_rays_of_intrinsics_have_these_intrinsics():
    intrinsics = np.array([[40, 0, 21.25], [0, 44, 13.0], [0, 0, 1]], np.float32)
    depth = np.full((28, 42), 3.0, np.float32)
    depth[2, 3] = 0

    @jax.jit
    def run(intrinsics, depth):
        rays = geometric_inputs.rays_of_pixels(intrinsics, (28, 42))
        along = geometric_inputs.depth_along_rays(depth, rays)
        return rays, surfaces.intrinsics_from_rays(rays), along

    rays, found, along = map(np.asarray, run(intrinsics, depth))
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(found, intrinsics, rtol=1e-5, atol=1e-4)
    # Depth along the axis and along the ray; none stays none.
    np.testing.assert_allclose((along[..., None] * rays)[..., 2], depth, rtol=1e-6)


def test_cameras_become_relative_to_the_first(arrays):
    @jax.jit
    def relative(poses):
        rotations = geometry.quaternion_from_matrix(poses[..., :3, :3])
        return geometric_inputs.relative_to_the_first(rotations, poses[..., :3, 3])

    rotation, translation = map(np.asarray, relative(arrays["camera_poses"]))
    np.testing.assert_allclose(rotation, arrays["relative_quats"], atol=2e-6)
    np.testing.assert_allclose(translation, arrays["relative_trans"], atol=1e-5)
    assert not np.any(translation[:, 0])  # so that it counts for no scale
    assert (rotation[..., 3] < 0).any()  # nor are signs made positive


def test_surfaces_bend_where_the_official_code_says_so_in_float64(arrays):
    points, mask = arrays["points"], arrays["mask"]
    normals, has_normal = jax.jit(surfaces.normals_of_points)(points, mask)
    np.testing.assert_array_equal(has_normal, arrays["normals_mask"])
    np.testing.assert_allclose(normals, arrays["normals"], atol=1e-3)  # stored in float16
    find_edges = jax.jit(surfaces.normal_edges, static_argnames="transposed_mask")
    edges = find_edges(normals, has_normal, transposed_mask=True)
    np.testing.assert_array_equal(edges, arrays["normal_edges"])
    kept = np.asarray(jax.jit(kept_pixels)(points, mask))
    np.testing.assert_array_equal(kept, arrays["keep"])
    assert 0.2 < kept.mean() < 1


def test_the_nearest_of_ten_sizes(arrays):
    for ratio, size in zip(arrays["aspect_ratios"], arrays["sizes"], strict=True):
        assert size_to_cover(float(ratio), None, 14) == tuple(size)


@pytest.mark.parametrize(
    ("name", "size", "step"),
    [("fixed_mapping", None, 13), ("longest_side", 70, 1), ("square", (56, 56), 1)],
)
def test_photographs_become_frames_as_by_the_official_loader(golden, name, size, step):
    arrays = golden("mapanything_preprocess")
    photographs = [arrays[f"photo_{i}"] for i in range(3)]
    frames = load_images(photographs, mode="cover", size=size)
    np.testing.assert_array_equal(frames.images[:, ::step, ::step], arrays[name])
    for transform, photograph in zip(frames.transforms, photographs, strict=True):
        # What is cut is cut on both sides alike, to a pixel.
        height, width = photograph.shape[:2]
        left, top = transform.offset_x, transform.offset_y
        right = width * transform.scale_x + left - frames.images.shape[2]
        bottom = height * transform.scale_y + top - frames.images.shape[1]
        assert right + left in (0, 1) and bottom + top in (0, 1)
