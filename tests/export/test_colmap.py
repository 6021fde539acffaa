"""COLMAP export, read again with pycolmap: cameras, observations and points against the truth."""

import dataclasses
import itertools
import types

import numpy as np
import pytest

from vggt_jax import InputError, export_reconstruction
from vggt_jax.export.cameras import scene_cameras
from vggt_jax.export.matching import matched_tracks
from vggt_jax.export.tracks import tracks_from_depth
from vggt_jax.scene.masking import with_mask

pycolmap = pytest.importorskip("pycolmap")
MODES = ["crop", "pad", "identity"]


def export(room, path, **options):
    options = {"images": room.folder, "max_points": 5000} | options
    report = export_reconstruction(room.recon, path, format="colmap", **options)
    return report, pycolmap.Reconstruction(str(path / "sparse" / "0"))


def images_in_order(model):
    return [model.images[i] for i in sorted(model.images)]


def observations(room, model):
    """Of every observation: its frame, xy, the point, and where the true camera projects that."""
    frames, xy, points = [], [], []
    for i, image in enumerate(images_in_order(model)):
        for point in image.points2D:
            assert point.has_point3D()  # There are no others.
            frames.append(i)
            xy.append(point.xy)
            points.append(model.points3D[point.point3D_id].xyz)
    frames, xy, points = np.array(frames), np.array(xy), np.array(points)
    poses, matrices = room.camera_from_world[frames], room.intrinsics[frames]
    rays = np.einsum("oij,oj->oi", poses[:, :, :3], points) + poses[:, :, 3]
    projected = np.einsum("oij,oj->oi", matrices, rays)
    return frames, xy, points, projected[:, :2] / projected[:, 2:]


@pytest.mark.parametrize("pixel_centre", [0.0, 0.5])
@pytest.mark.parametrize("mode", MODES)
def test_cameras_and_tracks_come_back(tmp_path, make_room, mode, pixel_centre):
    room = make_room(mode, pixel_centre=pixel_centre)
    report, model = export(room, tmp_path / "out", confidence_percentile=0)
    assert model.num_reg_images() == len(room.sizes) and model.num_cameras() == len(room.sizes)
    for i, image in enumerate(images_in_order(model)):
        camera, (height, width) = model.cameras[image.camera_id], room.sizes[i]
        assert image.name == f"view {i}.png" and camera.model_name == "PINHOLE"
        assert (camera.height, camera.width) == (height, width)
        np.testing.assert_allclose(camera.calibration_matrix(), room.intrinsics[i], rtol=1e-5)
        pose = image.cam_from_world().matrix()
        np.testing.assert_allclose(pose, room.camera_from_world[i], rtol=0, atol=1e-5)

    frames, xy, points, projected = observations(room, model)
    errors = np.linalg.norm(projected - xy, axis=1)
    # Rays of planes meet exactly; where walls meet, depth between pixels is off.
    assert np.median(errors) < 1e-3 and np.percentile(errors, 90) < 0.1
    assert len(points) > 1000
    sizes = np.array(room.sizes)[frames]
    assert (xy > 0).all() and (xy < sizes[:, ::-1]).all()
    # A track starts at the centre of a pixel of the model, and its point is the model's point
    # there.
    predicted = np.asarray(room.recon.points_from_depth(), np.float64)
    distance = np.full(model.num_points3D(), np.inf)
    ids = {id_: k for k, id_ in enumerate(sorted(model.points3D))}
    for i, image in enumerate(images_in_order(model)):
        transform = room.recon.transforms[i]
        for point in image.points2D:
            pixel = transform.pixels_to_model(point.xy - 0.5)
            nearest = np.round(pixel).astype(int)
            assert room.valid[i, nearest[1], nearest[0]]
            if np.abs(pixel - nearest).max() < 1e-9:
                k = ids[point.point3D_id]
                xyz = model.points3D[point.point3D_id].xyz
                d = np.linalg.norm(xyz - predicted[i, nearest[1], nearest[0]])
                distance[k] = min(distance[k], d)
    assert np.isfinite(distance).all() and np.median(distance) < 1e-5

    lengths = [point.track.length() for point in model.points3D.values()]
    assert min(lengths) >= 2 and max(lengths) == len(room.sizes)
    assert report.errors.num_points == model.num_points3D() == report.num_points
    assert report.errors.mean_track_length == pytest.approx(model.compute_mean_track_length())
    model.update_point_3d_errors()
    assert report.errors.mean < 0.1 and report.errors.median < 1e-3
    assert model.compute_mean_reprojection_error() == pytest.approx(report.errors.mean, rel=0.5)
    for word in (f"{report.num_points:,} points", "mean track length", "(median)"):
        assert word in str(report)


def test_points_have_the_colours_of_their_pixels(tmp_path, make_room):
    room = make_room("identity")
    _, model = export(room, tmp_path / "out")
    differences = []
    for i, image in enumerate(images_in_order(model)):
        for point in image.points2D:
            x, y = np.floor(point.xy).astype(int)
            color = model.points3D[point.point3D_id].color.astype(int)
            differences.append(np.abs(color - room.recon.images[i, y, x]).max())
    # Neighbouring pixels differ by up to 30.
    assert np.median(differences) <= 10


@pytest.mark.parametrize("wrong", [-0.5, 0.5])
def test_half_a_pixel_shows_in_the_reprojection(tmp_path, make_room, wrong):
    right = make_room("pad", pixel_centre=0.5)
    recon = dataclasses.replace(right.recon, pixel_centre=0.5 + wrong)
    # Depth was cast through other rays than these, so that frames do not agree.
    report = export_reconstruction(recon, tmp_path / "wrong", format="colmap", images=right.folder)
    report_right, _ = export(right, tmp_path / "right")
    assert report.errors.median > 10 * report_right.errors.median


def test_no_pixel_is_observed_twice(tmp_path, make_room):
    room = make_room("pad")
    _, model = export(room, tmp_path / "out")
    for image, transform in zip(images_in_order(model), room.recon.transforms, strict=True):
        xy = np.array([point.xy for point in image.points2D])
        pixels = np.floor(transform.pixels_to_model(xy - 0.5) + 0.5)
        assert len(np.unique(pixels, axis=0)) == len(pixels)


def test_hidden_points_are_not_observed(tmp_path, make_room):
    room = make_room("pad")
    _, model = export(room, tmp_path / "out", confidence_percentile=0)
    # True depths at the observations, from the frame that the truth was cast into.
    for i, image in enumerate(images_in_order(model)):
        xy = np.array([point.xy for point in image.points2D])
        xyz = np.array([model.points3D[point.point3D_id].xyz for point in image.points2D])
        pose = room.camera_from_world[i]
        z = xyz @ pose[2, :3] + pose[2, 3]
        pixels = np.round(room.recon.transforms[i].pixels_to_model(xy - 0.5)).astype(int)
        there = room.recon.depth[i, pixels[:, 1], pixels[:, 0]]
        # The nearest pixel lies up to 0.7 pixels away, on walls seen at a flat angle.
        assert np.abs(there / z - 1).max() < 0.1


def test_confidence_decides(tmp_path, make_room):
    room = make_room("pad")
    confidence = np.where(np.arange(112) < 56, 1.0, 2.0)[None, None] + 0 * room.recon.depth
    recon = dataclasses.replace(room.recon, depth_confidence=confidence.astype(np.float32))
    for i, rule in enumerate(({"min_confidence": 1.5}, {"confidence_percentile": 70})):
        path = tmp_path / str(i)
        export_reconstruction(recon, path, format="colmap", images=room.folder, **rule)
        model = pycolmap.Reconstruction(str(path / "sparse" / "0"))
        assert model.num_points3D() > 100
        for image, transform in zip(images_in_order(model), recon.transforms, strict=True):
            x = transform.pixels_to_model([point.xy - 0.5 for point in image.points2D])[:, 0]
            assert x.min() >= 56 - 1e-9


def test_a_shared_camera_is_the_mean(tmp_path, make_room):
    room = make_room("crop", sizes=((90, 141),) * 3)
    report, model = export(room, tmp_path / "out", shared_camera=True, max_reprojection_error=9)
    (camera,) = model.cameras.values()
    mean = room.intrinsics.mean(axis=0)
    np.testing.assert_allclose(camera.calibration_matrix(), mean, rtol=1e-5)
    assert {image.camera_id for image in model.images.values()} == {1}
    assert report.num_points > 100


def test_one_focal_length(tmp_path, make_room):
    room = make_room("pad")
    _, model = export(room, tmp_path / "out", camera_model="SIMPLE_PINHOLE")
    for i, camera_id in enumerate(sorted(model.cameras)):
        camera = model.cameras[camera_id]
        assert camera.model_name == "SIMPLE_PINHOLE"
        (fx, _, cx), (_, fy, cy), _ = room.intrinsics[i]
        np.testing.assert_allclose(camera.params, [(fx + fy) / 2, cx, cy], rtol=1e-5)


def with_tracks(room, seed=0):
    """Tracks of points on the wall behind, with one that is not visible and one that is nowhere."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.uniform((-2, -1.5), (2, 0), (31, 2)), np.full((31, 1), 6.0)], 1)
    tracks = []
    for pose, matrix, transform in zip(
        room.camera_from_world, room.intrinsics, room.recon.transforms, strict=True
    ):
        camera_points = points @ pose[:, :3].T + pose[:, 3]
        xy = camera_points @ matrix.T
        tracks.append(transform.pixels_to_model(xy[:, :2] / xy[:, 2:] - 0.5))
    tracks = np.stack(tracks)
    tracks[:, 7] += rng.normal(0, 30, tracks[:, 7].shape)
    visibility = np.ones(tracks.shape[:2], np.float32)
    visibility[:, 3] = 0.1
    recon = dataclasses.replace(
        room.recon,
        tracks=tracks.astype(np.float32),
        track_visibility=visibility,
        track_confidence=np.ones_like(visibility),
    )
    return dataclasses.replace(room, recon=recon), points


@pytest.mark.parametrize("mode", MODES)
def test_tracks_of_the_head_are_intersected(tmp_path, make_room, mode):
    room, points = with_tracks(make_room(mode))
    report, model = export(room, tmp_path / "out", tracks="head")
    found = np.array([model.points3D[i].xyz for i in sorted(model.points3D)])
    nearest = np.linalg.norm(found[:, None] - points, axis=-1).argmin(axis=1)
    # Float32 pixels of up to 112 are off by up to 4e-6, rays of these parallaxes by some ten times.
    np.testing.assert_allclose(found, points[nearest], atol=1e-3)
    assert len(found) > 10 and not {3, 7} & set(nearest)
    assert (np.diff(nearest) > 0).all()
    assert report.errors.median < 1e-3


def test_masked_tracks_of_the_head_are_left_out(tmp_path, make_room):
    room, *_ = with_tracks(make_room())
    _, whole = export(room, tmp_path / "whole", tracks="head")
    mask = np.ones(room.recon.images.shape[:3], bool)
    mask[:, mask.shape[1] // 2 :] = False
    masked = dataclasses.replace(room, recon=with_mask(room.recon, mask))
    _, part = export(masked, tmp_path / "part", tracks="head")
    assert 0 < len(part.points3D) < len(whole.points3D)


def test_tracks_that_nobody_sees(tmp_path, make_room):
    room, _ = with_tracks(make_room("pad"))
    recon = dataclasses.replace(room.recon, track_visibility=0 * room.recon.track_visibility)
    room = dataclasses.replace(room, recon=recon)
    report, model = export(room, tmp_path / "out", tracks="head")
    assert report.num_points == 0 and model.num_reg_images() == 4
    assert "there are cameras alone" in str(report)
    with pytest.raises(InputError, match="there are 0 tracks"):
        export(room, tmp_path / "adjusted", tracks="head", bundle_adjustment=True)


def test_tracks_of_the_head_are_adjusted_as_they_are(tmp_path, make_room):
    room, _ = with_tracks(make_room("pad"))
    poses = moved(room, 0.004).recon.camera_from_world
    recon = dataclasses.replace(room.recon, camera_from_world=poses)
    recon = dataclasses.replace(recon, track_visibility=np.ones_like(recon.track_visibility))
    names = ("tracks", "track_visibility", "track_confidence")
    first = {name: getattr(recon, name)[:, :20] for name in names}
    few = dataclasses.replace(room, recon=dataclasses.replace(recon, **first))
    with pytest.raises(InputError, match="two frames that share 30 points"):
        export(few, tmp_path / "few", tracks="head", bundle_adjustment=True)
    rng = np.random.default_rng(3)
    copies = [with_tracks(room, seed)[0].recon for seed in rng.integers(0, 99, 5)]
    many = {
        name: np.concatenate([getattr(copy, name) for copy in copies], axis=1) for name in names
    }
    spoiled = dataclasses.replace(room, recon=dataclasses.replace(recon, **many))
    report, _ = export(spoiled, tmp_path / "out", tracks="head", bundle_adjustment=True)
    assert report.errors.mean < 0.1 * report.errors_before_adjustment.mean
    assert "matched in the images" not in str(report)


def misplaced(poses, truth):
    """How far directions between cameras are from the truth, in degrees, mean over all pairs."""
    angles = []
    for i, j in itertools.combinations(range(len(poses)), 2):
        directions = []
        for pose in (poses, truth):
            turn = pose[j, :, :3] @ pose[i, :, :3].T
            move = pose[j, :, 3] - turn @ pose[i, :, 3]
            directions.append(move / np.linalg.norm(move))
        angles.append(np.degrees(np.arccos(np.clip(directions[0] @ directions[1], -1, 1))))
    return np.mean(angles)


def moved(room, size=0.02):
    rng = np.random.default_rng(0)
    poses = room.recon.camera_from_world.copy()
    poses[1:, :, 3] += rng.normal(0, size, poses[1:, :, 3].shape)
    recon = dataclasses.replace(room.recon, camera_from_world=poses)
    return dataclasses.replace(room, recon=recon)


def test_bundle_adjustment_repairs_poses(tmp_path, make_room):
    # By what the images say: tracks from depth fit the wrong poses as well as the right ones.
    room = make_room("identity", pixel_centre=0.5)
    spoiled = moved(room)
    report, model = export(spoiled, tmp_path / "out", bundle_adjustment=True, max_points=1500)
    before, after = report.errors_before_adjustment, report.errors
    assert before.num_observations == after.num_observations > 300
    assert after.median < 0.3 * before.median
    found = np.stack([image.cam_from_world().matrix() for image in images_in_order(model)])
    wrong = misplaced(spoiled.recon.camera_from_world, room.camera_from_world)
    assert misplaced(found, room.camera_from_world) < 0.8 * wrong
    for part in ("before bundle adjustment", "after bundle adjustment", "matched in the images"):
        assert part in str(report)


def test_matches_are_where_the_true_cameras_see_the_points(tmp_path, make_room):
    room = moved(make_room("identity", pixel_centre=0.5))
    cameras = scene_cameras(room.recon)
    everywhere = np.ones(room.valid.shape, bool)
    tracks = tracks_from_depth(
        cameras,
        room.recon.depth,
        room.recon.depth_confidence,
        everywhere,
        room.recon.images,
        max_points=1500,
        depth_tolerance=0.03,
        max_reprojection_error=2.0,
        min_track_length=2,
    )
    depth, images = room.recon.depth, room.recon.images
    matched = matched_tracks(cameras, tracks, depth, images, min_track_length=2)
    errors = []
    for k in range(len(matched.points)):
        here = np.flatnonzero(matched.observed_point == k)
        (start,) = here[(matched.pixels[here] == np.round(matched.pixels[here])).all(axis=1)]
        i, (x, y) = matched.observed_frame[start], matched.pixels[start].astype(int)
        ray = np.linalg.inv(room.intrinsics[i]) @ (x + 0.5, y + 0.5, 1) * depth[i, y, x]
        pose = room.camera_from_world
        point = pose[i, :, :3].T @ (ray - pose[i, :, 3])
        for o in here[here != start]:
            j = matched.observed_frame[o]
            pixel = room.intrinsics[j] @ (pose[j, :, :3] @ point + pose[j, :, 3])
            errors.append(np.linalg.norm(pixel[:2] / pixel[2] - 0.5 - matched.pixels[o]))
    assert len(errors) > 300 and np.median(errors) < 0.05


def test_frames_without_common_points_are_not_adjusted(tmp_path, make_room):
    room = moved(make_room("identity", pixel_centre=0.5))
    depth = room.recon.depth.copy()
    depth[2] *= 3  # The last frame agrees with no other.
    recon = dataclasses.replace(room.recon, depth=depth)
    room = dataclasses.replace(room, recon=recon)
    report, model = export(room, tmp_path / "out", bundle_adjustment=True, max_points=1500)
    assert "1 frames share too few points with the others and were not adjusted: view 2" in str(
        report
    )
    pose = images_in_order(model)[2].cam_from_world().matrix()
    np.testing.assert_allclose(pose, room.recon.camera_from_world[2], atol=1e-6)


def test_frames_that_share_the_camera_get_its_focal_length(tmp_path, make_room):
    room = make_room("pad", sizes=((90, 141),) * 4)
    # One camera took all photographs, and its focal length was predicted 2 % too long.
    one = lambda matrices: np.broadcast_to(matrices[0], matrices.shape).copy()
    predicted = one(room.recon.intrinsics)
    predicted[:, [0, 1], [0, 1]] *= 1.02
    recon = dataclasses.replace(room.recon, intrinsics=predicted)
    room = dataclasses.replace(room, recon=recon, intrinsics=one(room.intrinsics))
    copies = [with_tracks(room, seed)[0].recon for seed in range(5)]
    tracks, visibility = (
        np.concatenate([getattr(copy, name) for copy in copies], axis=1)
        for name in ("tracks", "track_visibility")
    )
    visibility[3, 9:] = 0  # The last frame sees next to nothing.
    recon = dataclasses.replace(
        room.recon, tracks=tracks, track_visibility=visibility, track_confidence=0 * visibility + 1
    )
    room = dataclasses.replace(room, recon=recon)
    options = dict(tracks="head", bundle_adjustment=True, shared_camera=True)
    report, model = export(room, tmp_path / "out", max_reprojection_error=9, **options)
    (camera,) = model.cameras.values()
    # What the note says, is so: the pose stayed, and the focal length did not.
    assert abs(camera.params[0] / (1.02 * room.intrinsics[0, 0, 0]) - 1) > 1e-4
    pose = images_in_order(model)[3].cam_from_world().matrix()
    np.testing.assert_allclose(pose, room.recon.camera_from_world[3], atol=1e-6)
    assert (
        "1 frames share too few points with the others and have poses that were not adjusted: "
        "view 3.png; the focal length is the shared camera's, adjusted on the others" in str(report)
    )


@pytest.mark.parametrize(
    ("kind", "is_usable"), [("FAILURE", False), ("NO_CONVERGENCE", True), ("CONVERGENCE", True)]
)
def test_how_an_adjustment_ended_is_told(tmp_path, make_room, monkeypatch, kind, is_usable):
    class Adjuster:
        """Moves nothing, and ends in a given way."""

        def __init__(self, *_):
            pass

        def solve(self):
            return types.SimpleNamespace(
                is_solution_usable=lambda: is_usable,
                brief_report=lambda: "the report",
                termination_type=getattr(pycolmap.BundleAdjustmentTerminationType, kind),
            )

    monkeypatch.setattr(pycolmap, "create_default_bundle_adjuster", Adjuster)
    room = make_room("identity", pixel_centre=0.5)
    options = dict(bundle_adjustment=True, max_points=1500)
    if not is_usable:
        with pytest.raises(InputError, match=r"bundle_adjustment failed \(the report\)"):
            export(room, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return
    report, _ = export(room, tmp_path / "out", **options)
    assert ("stopped before it converged" in str(report)) == (kind == "NO_CONVERGENCE")


def test_the_same_bytes_twice(tmp_path, make_room, contents):
    room = make_room("pad")
    for name in ("a", "b"):
        export(room, tmp_path / name)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    assert {"sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin"} <= set(first)


def test_at_most_so_many_points(tmp_path, make_room):
    report, _ = export(make_room("pad"), tmp_path / "out", max_points=300)
    assert 50 < report.num_points <= 300


def test_frames_that_agree_nowhere_give_cameras_and_a_note(tmp_path, make_room):
    room = make_room("pad")
    scale = np.array([1, 3, 9, 27], np.float32)[:, None, None]
    recon = dataclasses.replace(room.recon, depth=room.recon.depth * scale)
    room = dataclasses.replace(room, recon=recon)
    report, model = export(room, tmp_path / "out")
    assert model.num_reg_images() == 4 and report.num_points == 0
    assert "raise max_reprojection_error" in str(report)
    with pytest.raises(InputError, match="bundle_adjustment needs tracks"):
        export(room, tmp_path / "adjusted", bundle_adjustment=True)
    assert not (tmp_path / "adjusted").exists()
