"""One door to all formats: photographs beside them, whole results, and what is refused."""

import dataclasses
import json
import os
import sys
import types

import numpy as np
import pytest
import trimesh
from PIL import Image

from vggt_jax import InputError, export_reconstruction
from vggt_jax.export.cameras import scene_cameras
from vggt_jax.export.colmap import write_colmap
from vggt_jax.export.images import check_photographs, find_photographs, write_photographs
from vggt_jax.export.nerfstudio import write_nerfstudio
from vggt_jax.export.photograph import stored
from vggt_jax.export.points import scene_points
from vggt_jax.files import output_folder, system
from vggt_jax.images.loading import load_images
from vggt_jax.scene.reconstruction import Reconstruction

FOLDERS = ["colmap", "nerfstudio"]


@pytest.fixture
def colmap():
    pytest.importorskip("pycolmap")


# Points


@pytest.mark.parametrize("mode", ["crop", "pad", "identity"])
def test_ply_comes_back(tmp_path, make_room, mode):
    room = make_room(mode)
    path = tmp_path / "new" / "points.ply"
    report = export_reconstruction(room.recon, path, format="ply", confidence_percentile=0)
    cloud = trimesh.load(path)
    expected = room.recon.points_from_depth()[room.valid]
    np.testing.assert_allclose(cloud.vertices, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(cloud.colors[:, :3], room.recon.images[room.valid])
    assert str(report) == f"ply: {len(expected):,} points -> {path}"
    first = path.read_bytes()
    export_reconstruction(room.recon, path, format="ply", confidence_percentile=0, overwrite=True)
    assert path.read_bytes() == first


def scene(kind, **fields):
    """One frame of 2 x 4 pixels with confidences 0.05, 0.15 ... 0.75 (and above 1 for VGGT)."""
    confidence = np.linspace(0.05, 0.75, 8, dtype=np.float32).reshape(1, 2, 4)
    confidence += kind == "one_plus_exp"
    points = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3)
    return Reconstruction(
        images=np.zeros((1, 2, 4, 3), np.uint8),
        world_points=points,
        world_points_confidence=confidence,
        confidence_kind=kind,
        **fields,
    )


@pytest.mark.parametrize(
    ("kind", "rule", "expected"),
    [
        ("one_plus_exp", {}, range(1, 8)),  # 25 % of 0 .. 7, by the lower value: from 1 on.
        ("one_plus_exp", {"confidence_percentile": 50}, range(3, 8)),
        ("one_plus_exp", {"min_confidence": 1.4}, range(4, 8)),
        ("one_plus_exp", {"min_confidence": 1.4, "confidence_percentile": 50}, range(5, 8)),
        ("sigmoid", {}, range(1, 8)),
        ("sigmoid", {"confidence_percentile": 50}, range(4, 8)),
        ("sigmoid", {"min_confidence": 0.0}, range(8)),
        ("sigmoid", {"min_confidence": 0.6}, range(6, 8)),
    ],
)
def test_one_rule_of_confidence(kind, rule, expected):
    points, _ = scene_points(scene(kind), **rule)
    np.testing.assert_array_equal(points[:, 0] / 3, expected)


def test_edges_and_masked_pixels_have_no_points():
    edges = np.zeros((1, 2, 4), bool)
    edges[0, 1, 3] = True
    recon = scene("sigmoid", depth_edges=edges)
    recon.world_points_confidence[0, 1, 2] = 0.0
    points, _ = scene_points(recon, min_confidence=0.0)
    np.testing.assert_array_equal(points[:, 0] / 3, range(6))
    with pytest.raises(InputError, match="no pixel has a confidence above 0.9 away from the edges"):
        scene_points(recon, min_confidence=0.9)


def test_where_points_come_from(make_room):
    room = make_room()
    elsewhere = room.recon.points_from_depth() + 5
    both = dataclasses.replace(
        room.recon,
        world_points=elsewhere,
        world_points_confidence=room.recon.depth_confidence,
    )
    from_depth, _ = scene_points(both)
    np.testing.assert_array_equal(scene_points(both, points="depth")[0], from_depth)
    np.testing.assert_allclose(scene_points(both, points="head")[0], from_depth + 5, atol=1e-5)
    with pytest.raises(InputError, match="points='head'.* from depth"):
        scene_points(room.recon, points="head")


# Photographs


def test_a_photograph_serves_one_frame(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a.jpg would serve several of the frames"):
        find_photographs(("x/a.jpg", "y/a.jpg"), tmp_path)


def test_photographs_that_stay_are_checked(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    cameras = types.SimpleNamespace(original_sizes=((6, 4),))
    with pytest.raises(InputError, match="a.jpg: is stored turned"):
        check_photographs(cameras, [stored(tmp_path / "a.jpg")])
    Image.new("RGB", (4, 6)).save(tmp_path / "a.jpg")
    assert check_photographs(cameras, [stored(tmp_path / "a.jpg")]) == ()
    with pytest.raises(InputError, match="4x6 pixels, and what was reconstructed had 7x6"):
        another = types.SimpleNamespace(original_sizes=((6, 7),))
        check_photographs(another, [stored(tmp_path / "a.jpg")])


def test_turned_pictures_without_quality_are_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path, exif=exif, compression="tiff_lzw")
    cameras = types.SimpleNamespace(names=("a.tif",), original_sizes=((6, 4),))
    (note,) = write_photographs(tmp_path / "out", cameras, [stored(path)])
    assert note.startswith("1 photographs were turned")
    found = np.asarray(Image.open(tmp_path / "out" / "a.tif"))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


def turned_scene(folder, recon):
    """Photographs that EXIF turns: stored upright ones, tagged to be turned right."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees.
    for i in range(2):
        # Smooth, so that JPEG keeps it, and different in all corners.
        y, x = np.mgrid[:60, :90]
        color = np.stack([2 * x, 4 * y, x + y + 50 * i], axis=-1).astype(np.uint8)
        image = Image.fromarray(color)
        image.save(folder / f"{i}.jpg", exif=exif, quality=95)
    frames = load_images(folder, mode="pad", size=112)
    assert frames.transforms[0].original_size == (90, 60)
    return dataclasses.replace(
        recon,
        **{
            name: getattr(recon, name)[:2]
            for name in ("camera_from_world", "intrinsics", "depth", "depth_confidence")
        },
        images=frames.images,
        names=frames.names,
        transforms=frames.transforms,
    )


def test_photographs_that_exif_turns_are_written_upright(tmp_path, make_room):
    recon = turned_scene(tmp_path / "turned", make_room().recon)
    out = tmp_path / "out"
    report = export_reconstruction(recon, out, format="nerfstudio", images=tmp_path / "turned")
    with (
        Image.open(out / "images" / "0.jpg") as image,
        Image.open(tmp_path / "turned" / "0.jpg") as original,
    ):
        assert image.size == (60, 90) and image.getexif().get(0x0112, 1) == 1
        expected = np.asarray(original.transpose(Image.Transpose.ROTATE_270), float)
        assert np.abs(np.asarray(image, float) - expected).mean() < 2  # JPEG twice.
    assert "2 photographs were turned" in str(report)


def test_other_photographs_are_copied(tmp_path, make_room, contents):
    room = make_room()
    listed = sorted(room.folder.iterdir())
    for name, images in (("a", room.folder), ("b", listed), ("c", map(str, listed))):
        images = list(images) if name == "c" else images
        export_reconstruction(room.recon, tmp_path / name, format="nerfstudio", images=images)
        assert contents(tmp_path / name / "images") == contents(room.folder)


def test_names_keep_their_folders(tmp_path, make_room, contents):
    room = make_room(sizes=((90, 141),) * 2)
    for i, folder in enumerate("ab"):
        (tmp_path / "deep" / folder).mkdir(parents=True)
        data = (room.folder / f"view {i}.png").read_bytes()
        (tmp_path / "deep" / folder / "0.png").write_bytes(data)
    recon = dataclasses.replace(room.recon, names=("a/0.png", "b/0.png"))
    out = tmp_path / "out"
    export_reconstruction(recon, out, format="nerfstudio", images=tmp_path / "deep")
    assert contents(out / "images") == contents(tmp_path / "deep")


def test_photographs_in_place_stay(tmp_path, make_room, contents):
    room = make_room()
    scene_folder = tmp_path / "scene"
    scene_folder.mkdir()
    room.folder.rename(scene_folder / "images")
    before = contents(scene_folder / "images")
    for overwrite in (False, True):
        export_reconstruction(
            room.recon,
            scene_folder,
            format="nerfstudio",
            images=scene_folder / "images",
            overwrite=overwrite,
        )
        assert contents(scene_folder / "images") == before
    assert (scene_folder / "transforms.json").exists()


def test_arrays_become_images(tmp_path, make_room):
    room = make_room("identity")
    recon = dataclasses.replace(room.recon, names=("0000", "0001", "0002"))
    export_reconstruction(recon, tmp_path / "out", format="nerfstudio")
    for i in range(3):
        with Image.open(tmp_path / "out" / "images" / f"000{i}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), recon.images[i])


def test_pictures_of_arrays_have_an_extension(tmp_path, make_room):
    room = make_room()
    recon = dataclasses.replace(room.recon, names=("0000", "0001", "0002", "v1.0_0003"))

    def names(out):
        frames = json.loads((out / "transforms.json").read_text())["frames"]
        return [frame["file_path"].removeprefix("images/") for frame in frames]

    expected = ["0000.png", "0001.png", "0002.png", "v1.0_0003.png"]
    out = tmp_path / "listed"
    listed = sorted(room.folder.iterdir())
    export_reconstruction(recon, out, format="nerfstudio", images=listed)
    assert names(out) == sorted(path.name for path in (out / "images").iterdir()) == expected
    report = export_reconstruction(recon, tmp_path / "bare", format="nerfstudio")
    assert names(tmp_path / "bare") == expected
    assert "folder of images or the video, or put 0000.png" in str(report)


def test_photographs_in_place_have_the_names_of_files(tmp_path, make_room):
    room = make_room()
    out = tmp_path / "out"
    out.mkdir()
    room.folder.rename(out / "images")
    recon = dataclasses.replace(room.recon, names=tuple(f"a/{name}" for name in room.recon.names))
    export_reconstruction(recon, out, format="nerfstudio", images=out / "images")
    for frame in json.loads((out / "transforms.json").read_text())["frames"]:
        assert (out / frame["file_path"]).is_file()


def test_without_photographs_a_note_says_so(tmp_path, make_room):
    report = export_reconstruction(make_room().recon, tmp_path / "out", format="nerfstudio")
    assert "the photographs are not at hand" in str(report)
    assert not (tmp_path / "out" / "images").exists()


def test_photographs_that_do_not_fit(tmp_path, make_room, contents):
    room = make_room()

    def refused(what, images):
        with pytest.raises(InputError, match=what):
            export_reconstruction(room.recon, tmp_path / "out", format="nerfstudio", images=images)
        assert not (tmp_path / "out").exists()

    refused("no such folder", tmp_path / "nowhere")
    refused("3 images for a reconstruction of 4 frames", sorted(room.folder.iterdir())[:3])
    (room.folder / "view 2.png").write_text("no picture")
    refused("view 2.png: not an image", room.folder)
    refused("1 images for a reconstruction of 4 frames", room.folder / "view 0.png")
    (room.folder / "clip.mp4").write_text("no video")
    refused("clip.mp4: is not the video that was .* called clip_000000", room.folder / "clip.mp4")
    (room.folder / "clip.mp4").unlink()
    Image.new("RGB", (30, 20)).save(room.folder / "view 2.png")
    refused("view 2.png: 30x20 pixels, and what was reconstructed had 113x113", room.folder)
    (room.folder / "view 2.png").unlink()
    refused("view 2.png: no such image; 1 of 4", room.folder)


# Whole or not at all


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_folder_leaves_the_old_one(
    tmp_path, make_room, contents, monkeypatch, colmap, format, error
):
    room = make_room()
    options = {"format": format, "images": room.folder, "max_points": 500}
    export_reconstruction(room.recon, tmp_path / "out", **options)
    before = contents(tmp_path)
    writing = f"vggt_jax.export.{format}.write_{format}"
    write = {"colmap": write_colmap, "nerfstudio": write_nerfstudio}[format]

    def interrupted(*args, **kwargs):
        write(*args, **kwargs)
        raise error

    monkeypatch.setattr(writing, interrupted)
    with pytest.raises(error):
        export_reconstruction(room.recon, tmp_path / "out", **options, overwrite=True)
    assert contents(tmp_path) == before
    with pytest.raises(error):
        export_reconstruction(room.recon, tmp_path / "other", **options)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("format", ["ply", "glb"])
def test_an_interrupted_file_leaves_the_old_one(tmp_path, make_room, contents, monkeypatch, format):
    path, recon = tmp_path / f"scene.{format}", make_room().recon
    path.write_text("a photograph")
    with pytest.raises(InputError, match="was not written by an export of this format"):
        export_reconstruction(recon, path, format=format, overwrite=True)
    path.unlink()
    export_reconstruction(recon, path, format=format, max_points=3)
    before = contents(tmp_path)

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_reconstruction(recon, path, format=format, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing", range(8))
def test_moves_that_stop_halfway_are_undone(tmp_path, contents, monkeypatch, failing):
    out = tmp_path / "out"
    with output_folder(out, overwrite=False) as folder:
        (folder / "a").mkdir()
        for name in ("a/x", "b"):
            (folder / name).write_text("old")
    (out / "mine").write_text("mine")
    before, replace, count = contents(tmp_path), os.replace, 0
    monkeypatch.setattr(system, "exchange", lambda first, second: False)

    def interrupted(source, target):
        nonlocal count
        count += 1
        if count == failing + 1:
            raise KeyboardInterrupt
        replace(source, target)

    writing = output_folder(out, overwrite=True, stale=("a", "b"))
    with pytest.raises(KeyboardInterrupt), writing as folder:
        (folder / "a").mkdir()
        for name in ("a/x", "a/y", "b", "c"):
            (folder / name).write_text("new")
        monkeypatch.setattr(os, "replace", interrupted)
    assert contents(tmp_path) == before


def test_what_is_there_stays_unless_told(tmp_path, make_room, contents):
    recon = make_room().recon
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    export_reconstruction(recon, out, format="nerfstudio", max_points=7)
    before = contents(out)
    with pytest.raises(InputError, match="holds points.ply, transforms.json already.*overwrite"):
        export_reconstruction(recon, out, format="nerfstudio", max_points=8)
    assert contents(out) == before
    export_reconstruction(recon, out, format="nerfstudio", max_points=8, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert len(trimesh.load(out / "points.ply").vertices) == 8
    path = out / "points.ply"
    with pytest.raises(InputError, match="exists; choose another"):
        export_reconstruction(recon, path, format="ply")
    with pytest.raises(InputError, match="is a folder"):
        export_reconstruction(recon, out, format="glb", overwrite=True)
    with pytest.raises(InputError, match="is no folder"):
        export_reconstruction(recon, path, format="nerfstudio", overwrite=True)


# Refused


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"format": "obj"}, "ply, glb, colmap, nerfstudio, mesh"),
        ({"format": "ply", "confidence_percentile": 101}, "confidence_percentile=101"),
        ({"format": "ply", "min_confidence": -1}, "min_confidence=-1"),
        ({"format": "ply", "min_confidence": float("nan")}, "min_confidence=nan"),
        ({"format": "ply", "min_confidence": 99}, "no pixel has a confidence above 99"),
        ({"format": "ply", "max_points": 0}, "max_points=0"),
        ({"format": "ply", "shared_camera": True}, "shared_camera is for colmap, not for ply"),
        ({"format": "ply", "images": "x"}, "images is for colmap and nerfstudio, not for ply"),
        ({"format": "ply", "points": "sift"}, "points='sift' must be depth or head"),
        ({"format": "glb", "camera_size": 0}, "camera_size=0 must be positive"),
        ({"format": "colmap", "points": "head"}, "points is for ply and glb and nerfstudio"),
        ({"format": "colmap", "camera_model": "OPENCV"}, "PINHOLE or SIMPLE_PINHOLE"),
        ({"format": "colmap", "shared_camera": True}, "different sizes cannot share a camera"),
        ({"format": "colmap", "tracks": "head"}, "has no tracks"),
        ({"format": "colmap", "tracks": "sift"}, "tracks='sift' must be depth or head"),
        ({"format": "colmap", "tracks": "head", "depth_tolerance": 0.5}, "not for tracks='head'"),
        ({"format": "colmap", "tracks": "head", "min_confidence": 2.0}, "not for tracks='head'"),
        ({"format": "colmap", "min_visibility": 0.5}, "not for tracks='depth'"),
        ({"format": "colmap", "min_track_length": 1}, "min_track_length=1"),
        ({"format": "colmap", "depth_tolerance": 0.0}, "depth_tolerance=0.0"),
        ({"format": "colmap", "max_reprojection_error": -1.0}, "max_reprojection_error=-1.0"),
    ],
)
def test_options_that_cannot_be(tmp_path, make_room, colmap, options, what):
    recon = make_room().recon
    with pytest.raises(InputError, match=what) as caught:
        export_reconstruction(recon, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda r: {"camera_from_world": None}, "has no cameras"),
        (lambda r: {"images": r.images[None]}, "several scenes"),
        (lambda r: {"names": ("a", "../b", "c", "d")}, "'../b' is no name of a file inside"),
        (lambda r: {"names": ("a", "b", "b", "d")}, "b: is there twice"),
        (lambda r: {"intrinsics": r.intrinsics * np.inf}, "view 0.png: the camera is not finite"),
        (
            lambda r: {"intrinsics": r.intrinsics + 1.0 * np.eye(3, k=1, dtype=np.float32)},
            "view 0.png: intrinsics with a skew",
        ),
        (
            lambda r: {"camera_from_world": r.camera_from_world * 2},
            "does not begin with a rotation",
        ),
        (
            lambda r: {"camera_from_world": r.camera_from_world * [[-1], [1], [1]]},
            "does not begin with a rotation",
        ),
    ],
)
def test_reconstructions_that_cannot_be_exported(tmp_path, make_room, change, what):
    recon = make_room().recon
    with np.errstate(invalid="ignore"):
        recon = dataclasses.replace(recon, **change(recon))
    with pytest.raises(InputError, match=what):
        export_reconstruction(recon, tmp_path / "out", format="nerfstudio")
    assert not (tmp_path / "out").exists()


def test_without_pycolmap(tmp_path, make_room, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(InputError, match=r"pip install 'vggt-jax\[colmap\]'"):
        export_reconstruction(make_room().recon, tmp_path / "out", format="colmap")


def test_the_principal_point_follows_the_rays(make_room):
    for pixel_centre in (0.0, 0.5):
        room = make_room("pad", pixel_centre=pixel_centre, name=f"at {pixel_centre}")
        cameras = scene_cameras(room.recon)
        np.testing.assert_allclose(cameras.original_intrinsics, room.intrinsics, rtol=1e-5)
        expected = room.recon.intrinsics[:, :2, 2] + (0.5 - pixel_centre)
        np.testing.assert_allclose(cameras.intrinsics[:, :2, 2], expected, rtol=1e-6)
