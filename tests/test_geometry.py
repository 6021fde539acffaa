"""vggt_jax.geometry against the official functions and against itself.

golden/geometry.npz holds seeded random and special inputs with what the official PyTorch code makes
of them in float32: `quat_to_mat` and `mat_to_quat` (utils/rotation.py),
`pose_encoding_to_extri_intri` and `extri_intri_to_pose_encoding` (utils/pose_enc.py, images of
22x34), `depth_to_cam_coords_points`, `unproject_depth_map_to_point_map`, `closed_form_inverse_se3`
and `project_world_points_to_cam` (utils/geometry.py; the last three with the cameras of scene 0).
The entries toy_* are last pose encodings and cameras that the official model computed with a toy
checkpoint, of images of the size in the name.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax import geometry

GOLDEN = Path(__file__).parent / "golden"
IMAGE_SIZE = (22, 34)
TOYS = {"n2_140x182": (140, 182), "b2n2_70x70": (70, 70), "n1_56x84": (56, 84)}
# float32 resolves 6e-8; a few operations on numbers of size 1 lose a few units of that.
TIGHT = 1e-6

# Compiled, as everywhere in the project: op by op, these tests would take ten times as long.
camera_from_pose_encoding = jax.jit(
    geometry.camera_from_pose_encoding, static_argnames="image_size"
)
camera_points_from_depth = jax.jit(geometry.camera_points_from_depth)
camera_points_from_world = jax.jit(geometry.camera_points_from_world)
camera_positions = jax.jit(geometry.camera_positions)
depth_edges = jax.jit(geometry.depth_edges, static_argnames="relative_tolerance")
intrinsics_from_point_maps = jax.jit(geometry.intrinsics_from_point_maps)
invert_rigid = jax.jit(geometry.invert_rigid)
matrix_from_quaternion = jax.jit(geometry.matrix_from_quaternion)
nearest_rotation = jax.jit(geometry.nearest_rotation)
pose_encoding_from_camera = jax.jit(
    geometry.pose_encoding_from_camera, static_argnames="image_size"
)
project_points = jax.jit(geometry.project_points)
quaternion_from_matrix = jax.jit(geometry.quaternion_from_matrix)
transform_point_maps = jax.jit(geometry.transform_point_maps)
unproject_depth = jax.jit(geometry.unproject_depth)
world_points_from_camera = jax.jit(geometry.world_points_from_camera)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "geometry.npz") as file:
        return {name: file[name] for name in file}


def relative_error(value, expected):
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def random_cameras(rng, *batch):
    """Rigid [*batch 3 4] from random orthogonal matrices, independent of the module."""
    matrices = np.linalg.qr(rng.normal(size=(*batch, 3, 3)))[0]
    matrices[..., 0] *= np.sign(np.linalg.det(matrices))[..., None]
    translation = rng.normal(size=(*batch, 3, 1))
    return np.concatenate([matrices, translation], axis=-1).astype(np.float32)


def random_intrinsics(rng, *batch, skew=True):
    matrix = np.zeros((*batch, 3, 3), np.float32)
    matrix[..., 0, 0] = rng.uniform(20, 60, batch)
    matrix[..., 1, 1] = rng.uniform(20, 60, batch)
    matrix[..., 0, 2] = rng.uniform(10, 20, batch)
    matrix[..., 1, 2] = rng.uniform(5, 15, batch)
    matrix[..., 0, 1] = rng.uniform(-3, 3, batch) * skew
    matrix[..., 2, 2] = 1
    return matrix


# Values of the official code


def test_rotations_are_the_official_ones(golden):
    matrix = matrix_from_quaternion(jnp.asarray(golden["quaternion"]))
    np.testing.assert_allclose(matrix, golden["matrix_from_quaternion"], atol=TIGHT)
    quaternion = quaternion_from_matrix(jnp.asarray(golden["matrix_from_quaternion"]))
    np.testing.assert_allclose(quaternion, golden["quaternion_from_matrix"], atol=TIGHT)


def test_pose_encoding_is_the_official_one(golden):
    camera_from_world, intrinsics = camera_from_pose_encoding(
        jnp.asarray(golden["pose_enc"]), IMAGE_SIZE
    )
    np.testing.assert_allclose(camera_from_world, golden["extrinsics"], atol=TIGHT)
    np.testing.assert_allclose(intrinsics, golden["intrinsics"], rtol=TIGHT)
    pose_enc = pose_encoding_from_camera(
        jnp.asarray(golden["extrinsics"]), jnp.asarray(golden["intrinsics"]), IMAGE_SIZE
    )
    np.testing.assert_allclose(pose_enc, golden["pose_enc_again"], atol=2 * TIGHT)


@pytest.mark.parametrize("name", TOYS)
def test_cameras_of_the_toy_models(golden, name):
    camera_from_world, intrinsics = camera_from_pose_encoding(
        jnp.asarray(golden[f"toy_{name}.pose_enc_3"]), TOYS[name]
    )
    assert relative_error(camera_from_world, golden[f"toy_{name}.extrinsic"]) < TIGHT
    assert relative_error(intrinsics, golden[f"toy_{name}.intrinsic"]) < TIGHT


def test_points_of_depth_are_the_official_ones(golden):
    depth, intrinsics = jnp.asarray(golden["depth"]), jnp.asarray(golden["intrinsics"][0])
    camera_points = camera_points_from_depth(depth, intrinsics)
    assert relative_error(camera_points, golden["camera_points"]) < TIGHT
    world_points = unproject_depth(depth, jnp.asarray(golden["extrinsics"][0]), intrinsics)
    assert relative_error(world_points, golden["world_points"]) < TIGHT


def test_inverse_and_projection_are_the_official_ones(golden):
    camera_from_world = jnp.asarray(golden["extrinsics"][0])
    inverse = invert_rigid(camera_from_world)
    np.testing.assert_allclose(inverse, golden["inverse"][:, :3], atol=TIGHT)
    points = jnp.asarray(golden["points"])
    camera_points = camera_points_from_world(points, camera_from_world)
    assert relative_error(camera_points, golden["projected_camera_points"]) < TIGHT
    pixels, depth = project_points(points, camera_from_world, jnp.asarray(golden["intrinsics"][0]))
    np.testing.assert_allclose(depth, golden["projected_camera_points"][..., 2], atol=4 * TIGHT)
    # Near the camera plane a pixel is far out and amplifies rounding as much; compare the others.
    clear = np.abs(golden["projected_camera_points"][..., 2]) > 0.1
    assert clear.sum() > 60
    np.testing.assert_allclose(
        np.asarray(pixels)[clear], golden["projected"][clear], rtol=1e-5, atol=1e-4
    )


# Meaning, on cases that can be worked out by hand


def test_a_quarter_turn_about_z():
    half = np.sqrt(0.5)
    quaternion = jnp.array([0.0, 0.0, half, half])
    expected = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(matrix_from_quaternion(quaternion), expected, atol=TIGHT)
    np.testing.assert_allclose(
        quaternion_from_matrix(jnp.array(expected, jnp.float32)), quaternion, atol=TIGHT
    )


def test_the_middle_pixel_lies_on_the_axis_and_indices_are_integers():
    """With centre (2, 1), the pixel of index (2, 1) and not (1.5, 0.5) lies on the axis."""
    intrinsics = jnp.array([[10.0, 0, 2], [0, 5, 1], [0, 0, 1]])
    points = np.asarray(camera_points_from_depth(np.full((3, 5), 4.0, np.float32), intrinsics))
    np.testing.assert_array_equal(points[1, 2], [0, 0, 4])
    np.testing.assert_allclose(points[2, 4], [2 * 4 / 10, 1 * 4 / 5, 4], rtol=TIGHT)


def test_a_camera_behind_the_origin_sees_it_in_front():
    camera_from_world = np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3]])
    np.testing.assert_allclose(camera_positions(camera_from_world), [0, 0, -3])
    intrinsics = jnp.array([[10.0, 0, 7], [0, 20, 5], [0, 0, 1]])
    pixels, depth = project_points(
        jnp.array([[0.0, 0, 0], [0.3, 0.3, 0], [0, 0, -5]]), camera_from_world, intrinsics
    )
    np.testing.assert_allclose(depth, [3, 3, -2])
    np.testing.assert_allclose(np.asarray(pixels)[:2], [[7, 5], [8, 7]], rtol=TIGHT)


def test_field_of_view_of_zero_is_an_infinite_focal_length_and_nothing_is_nan():
    pose_enc = jnp.array([1.0, 2, 3, 0.1, 0.2, 0.3, 0.4, 0, 0])
    camera_from_world, intrinsics = camera_from_pose_encoding(pose_enc, (28, 42))
    assert np.isfinite(camera_from_world).all()
    np.testing.assert_array_equal(intrinsics, [[np.inf, 0, 21], [0, np.inf, 14], [0, 0, 1]])
    points = camera_points_from_depth(np.full((3, 5), 4.0, np.float32), intrinsics)
    np.testing.assert_array_equal(points, np.broadcast_to([0.0, 0, 4], (3, 5, 3)))
    again = pose_encoding_from_camera(camera_from_world, intrinsics, (28, 42))
    np.testing.assert_array_equal(np.asarray(again)[7:], [0, 0])


def test_a_quaternion_of_length_zero_is_the_identity():
    zero = np.zeros(4, np.float32)
    matrix = matrix_from_quaternion(zero)
    gradient = jax.jit(jax.jacobian(geometry.matrix_from_quaternion))(zero)
    np.testing.assert_array_equal(matrix, np.eye(3))
    assert np.isfinite(gradient).all()


# Round trips and properties


def test_quaternions_come_back():
    rng = np.random.default_rng(0)
    quaternion = rng.normal(size=(2000, 4))
    # Half turns, turns about an axis, and nearly so.
    quaternion *= rng.choice([0, 1e-6, 1e-3, 1], size=quaternion.shape, p=[0.2, 0.1, 0.1, 0.6])
    length = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    quaternion, length = quaternion[length[:, 0] > 0], length[length[:, 0] > 0]
    unit = quaternion / length

    matrix = matrix_from_quaternion(jnp.asarray(quaternion, jnp.float32))
    product = np.einsum("nij,nkj->nik", matrix, matrix, dtype=np.float64)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=3 * TIGHT)
    np.testing.assert_allclose(np.linalg.det(np.asarray(matrix, np.float64)), 1, atol=3 * TIGHT)

    again = np.asarray(quaternion_from_matrix(matrix))
    assert (again[:, 3] >= 0).all()
    # The same rotation: equal up to the sign. Near a half turn the sign of w is lost to rounding.
    same, opposite = np.abs(again - unit).max(axis=-1), np.abs(again + unit).max(axis=-1)
    assert np.minimum(same, opposite).max() < 3 * TIGHT
    clear = np.abs(unit[:, 3]) > 1e-5
    assert np.where(unit[:, 3] > 0, same, opposite)[clear].max() < 3 * TIGHT


def test_pose_encodings_come_back():
    rng = np.random.default_rng(1)
    pose_enc = rng.normal(size=(2, 5, 9)).astype(np.float32)
    pose_enc[..., 3:7] /= np.linalg.norm(pose_enc[..., 3:7], axis=-1, keepdims=True)
    pose_enc[..., 3:7] *= np.sign(pose_enc[..., 6:7])
    pose_enc[..., 7:] = rng.uniform(0.2, 2.0, (2, 5, 2))
    cameras = camera_from_pose_encoding(jnp.asarray(pose_enc), (28, 42))
    again = pose_encoding_from_camera(*cameras, (28, 42))
    np.testing.assert_allclose(again, pose_enc, atol=3 * TIGHT)


@pytest.mark.parametrize("rows", [3, 4])
def test_inverse_of_the_inverse(rows):
    rigid = random_cameras(np.random.default_rng(2), 2, 3)
    if rows == 4:
        last = np.broadcast_to(np.array([0, 0, 0, 1], np.float32), (2, 3, 1, 4))
        rigid = np.concatenate([rigid, last], axis=-2)
    inverse = invert_rigid(jnp.asarray(rigid))
    expected = np.linalg.inv(
        np.concatenate([rigid[..., :3, :], np.tile([0, 0, 0, 1], (2, 3, 1, 1))], axis=-2)
    )
    np.testing.assert_allclose(inverse, expected[..., :rows, :], atol=3 * TIGHT)
    np.testing.assert_allclose(invert_rigid(inverse), rigid, atol=3 * TIGHT)


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (2, 4)])
def test_inverse_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"must end in \(3, 4\) or \(4, 4\)"):
        invert_rigid(jnp.zeros(shape))


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_unprojected_depth_projects_back_to_its_pixels(batch):
    rng = np.random.default_rng(3)
    height, width = 11, 17
    depth = rng.uniform(0.5, 5, (*batch, height, width)).astype(np.float32)
    camera_from_world = jnp.asarray(random_cameras(rng, *batch))
    intrinsics = jnp.asarray(random_intrinsics(rng, *batch))
    world_points = unproject_depth(jnp.asarray(depth), camera_from_world, intrinsics)
    assert world_points.shape == (*batch, height, width, 3)
    pixels, depth_again = project_points(
        world_points.reshape(*batch, height * width, 3), camera_from_world, intrinsics
    )
    y, x = np.mgrid[:height, :width]
    expected = np.broadcast_to(np.stack([x, y], -1).reshape(-1, 2), pixels.shape)
    # Pixel = focal * x / depth: errors of 1e-6 in x, times 60 over 0.5.
    np.testing.assert_allclose(pixels, expected, atol=2e-4)
    np.testing.assert_allclose(depth_again.reshape(depth.shape), depth, atol=5e-6)


def test_points_and_cameras_broadcast():
    rng = np.random.default_rng(4)
    points = rng.normal(size=(7, 3)).astype(np.float32)
    camera_from_world = random_cameras(rng, 2, 3)
    camera_points = camera_points_from_world(jnp.asarray(points), jnp.asarray(camera_from_world))
    expected = np.einsum("bsij,mj->bsmi", camera_from_world[..., :3], points)
    expected += camera_from_world[..., None, :, 3]
    np.testing.assert_allclose(camera_points, expected, atol=3 * TIGHT)
    world_points = world_points_from_camera(camera_points, jnp.asarray(camera_from_world))
    np.testing.assert_allclose(
        world_points, np.broadcast_to(points, world_points.shape), atol=5 * TIGHT
    )


# Gradients and precision


def test_the_gradient_of_the_quaternion_is_finite_and_right():
    """The two functions are inverse, so for a unit quaternion q with w > 0 (or w = 0, one-sided)
    the Jacobian of their composition projects onto the tangent of the sphere: 1 - q q^T."""
    quaternion = np.array(
        [(0, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (1, 1, 1, 1), (1, 7, -2, 4)]
    )
    unit = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)

    def there_and_back(q):
        return quaternion_from_matrix(matrix_from_quaternion(q))

    jacobian = jax.jit(jax.vmap(jax.jacobian(there_and_back)))(jnp.asarray(unit, jnp.float32))
    expected = np.eye(4) - unit[:, :, None] * unit[:, None, :]
    np.testing.assert_allclose(jacobian, expected, atol=5 * TIGHT)


def test_the_reprojection_error_has_the_gradient_of_its_differences():
    rng = np.random.default_rng(5)
    pose_enc = rng.normal(size=(9,)).astype(np.float32) * 0.3
    pose_enc[6:] = [1.0, 1.1, 0.9]
    points = rng.normal(size=(13, 3)).astype(np.float32) + np.array([0, 0, 6], np.float32)

    def error(pose_enc):
        pixels, _ = project_points(
            jnp.asarray(points), *camera_from_pose_encoding(pose_enc, (28, 42))
        )
        return jnp.mean(pixels**2) / 100

    error = jax.jit(error)
    gradient = np.asarray(jax.jit(jax.grad(error))(pose_enc))
    step = 1e-2  # Central differences: error step^2 for a smooth function, rounding 1e-7 / step.
    differences = [
        (error(pose_enc + step * e) - error(pose_enc - step * e)) / (2 * step)
        for e in np.eye(9, dtype=np.float32)
    ]
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(gradient, differences, atol=5e-3 * np.abs(gradient).max())


def test_matrix_products_ask_for_full_precision():
    """On a GPU the default would be TF32; the CPU computes in float32 whatever is asked for."""
    depth, camera, intrinsics = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((3, 3))
    programs = [
        jax.make_jaxpr(geometry.unproject_depth)(depth, camera, intrinsics),
        jax.make_jaxpr(geometry.project_points)(jnp.ones((5, 3)), camera, intrinsics),
        jax.make_jaxpr(geometry.invert_rigid)(camera),
    ]
    for program in programs:
        text = str(program)
        products = text.count("dot_general")
        assert products >= 1
        assert text.count("HIGHEST") >= products, text


# π³


@pytest.fixture(scope="module")
def of_pi3(golden_folder):
    with np.load(golden_folder / "pi3_geometry.npz") as file:
        return dict(file)


def test_nearest_rotations_are_the_official_ones(of_pi3):
    rows = of_pi3["matrices"].reshape(-1, 3, 3)
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    found = np.asarray(nearest_rotation(rows))
    unique = np.arange(len(rows)) != 8  # a reflection, from which all half turns are equally far
    # 1e-2 from rank one, a rounding of the matrix turns the rotation by a hundred times as much.
    atol = np.where(np.arange(len(rows)) == 10, 1e-4, 3e-6)[unique]
    errors = np.abs(found - of_pi3["rotations"]).max(axis=(-2, -1))[unique]
    assert np.all(errors <= atol), errors
    np.testing.assert_allclose(
        found @ np.swapaxes(found, -1, -2), np.broadcast_to(np.eye(3), found.shape), atol=2e-6
    )
    np.testing.assert_allclose(np.linalg.det(found), 1, rtol=2e-6)


def test_nearest_rotation_has_the_gradient_of_its_differences():
    rng = np.random.default_rng(2)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    weights = rng.normal(size=(3, 3))
    gradient_of = jax.jit(jax.grad(lambda m: jnp.sum(weights * geometry.nearest_rotation(m))))
    # A general one, a reflection, and a rotation, whose singular values are all equal.
    for matrix in (
        rng.normal(size=(3, 3)),
        np.diag([0.3, 2.0, -1.1]),
        rotation * np.linalg.det(rotation),
    ):
        gradient = gradient_of(np.float32(matrix))

        def exact(m):
            u, _, vt = np.linalg.svd(m)
            return np.sum(weights * (u * [1, 1, np.linalg.det(u @ vt)] @ vt))

        step = 1e-5
        differences = [
            (exact(matrix + step * e.reshape(3, 3)) - exact(matrix - step * e.reshape(3, 3)))
            / (2 * step)
            for e in np.eye(9)
        ]
        np.testing.assert_allclose(np.ravel(gradient), differences, atol=2e-5, rtol=1e-4)


def test_intrinsics_of_point_maps_are_the_official_ones(of_pi3):
    points = of_pi3["points"]
    found = np.asarray(intrinsics_from_point_maps(points))
    expected = of_pi3["intrinsics"].astype(np.float64)
    # The official principal point is the middle counted from the centre of the first pixel.
    np.testing.assert_array_equal(expected[:, :2, 2], [[(31 - 1) / 2, (23 - 1) / 2]] * 2)
    expected[:, :2, 2] += 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Their distance does not matter, only their direction.
    scaled = points * np.random.default_rng(0).uniform(0.5, 2, (*points.shape[:-1], 1))
    again = intrinsics_from_point_maps(np.float32(scaled))
    np.testing.assert_allclose(again, expected, rtol=1e-5)


def test_depth_edges_are_the_official_ones(of_pi3):
    depth = of_pi3["points"][..., 2]
    np.testing.assert_array_equal(depth_edges(depth), of_pi3["depth_edges"])
    assert 0.05 < of_pi3["depth_edges"].mean() < 0.2
    assert not np.any(depth_edges(depth, relative_tolerance=1.0))


def test_point_maps_move_with_their_cameras():
    rng = np.random.default_rng(4)
    points, poses = rng.normal(size=(2, 3, 5, 7, 3)), rng.normal(size=(2, 3, 4, 4))
    found = transform_point_maps(np.float32(points), np.float32(poses))
    expected = np.einsum("bsij,bshwj->bshwi", poses[..., :3, :3], points)
    expected += poses[..., None, None, :3, 3]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
