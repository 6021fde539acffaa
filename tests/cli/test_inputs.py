"""Video, masks, reference, intrinsics and scale on the command line."""

import json
import os

import av
import numpy as np
import pytest
import trimesh
from PIL import Image

import vggt_jax


def scene(out):
    return vggt_jax.load_reconstruction(out)


def write_video(path, num_frames=12):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for _ in range(num_frames):
            pixels = rng.integers(0, 256, (96, 160, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video(tmp_path, checkpoint, run, refused):
    clip, out = write_video(tmp_path / "clip.mp4"), tmp_path / "out"
    args = ["infer", clip, "--model", checkpoint, "--out", out]
    assert "one frame is no scene" in refused(*args, "--frames", 1)
    assert "has 12 frames, fewer than --frames 40" in refused(*args, "--frames", 40)
    assert not out.exists()
    assert run(*args, "--frames", 3) == 0
    names = [frame["name"] for frame in json.loads((out / "cameras.json").read_text())["frames"]]
    assert len(names) == 3 and names[0] in {"clip_000001", "clip_000002"}
    assert run(*args, "--fps", 1.5, "--overwrite") == 0
    assert len(scene(out).names) == 3  # of two seconds


@pytest.mark.parametrize("format", ["nerfstudio", "colmap"])
def test_a_video_is_exported_with_its_pictures(tmp_path, checkpoint, run, refused, format):
    clip, results = write_video(tmp_path / "a.clip.mp4"), tmp_path / "results"
    named = lambda out: sorted(path.name for path in (out / "images").iterdir())

    def in_scene(out):
        if format == "nerfstudio":
            frames = json.loads((out / "transforms.json").read_text())["frames"]
            return [frame["file_path"].removeprefix("images/") for frame in frames]
        pycolmap = pytest.importorskip("pycolmap", reason="needs pycolmap")
        images = pycolmap.Reconstruction(str(out / "sparse" / "0")).images
        return [images[i].name for i in sorted(images)]

    args = ["--model", checkpoint, "--frames", 3]
    export = ["--format", format, "--focal", 123]
    direct, later = tmp_path / "direct", tmp_path / "later"
    assert run("export", clip, *args, *export, "--out", direct) == 0
    assert len(named(direct)) == 3 and in_scene(direct) == named(direct)
    assert all(name.startswith("a.clip_0000") and name.endswith(".png") for name in named(direct))

    # Results know names, and find their frames in the video again.
    assert run("infer", clip, *args, "--out", results) == 0
    assert run("export", results, *export, "--images", clip, "--out", later) == 0
    assert in_scene(later) == named(later) == named(direct)
    chosen = vggt_jax.choose_frames(clip, frames=3)
    for name, image in zip(named(direct), chosen.images(), strict=True):
        for out in (direct, later):
            with Image.open(out / "images" / name) as written:
                np.testing.assert_array_equal(written, image)
    # Pictures that are in place stay, and have the names that they have.
    assert (
        run("export", results, *export, "--images", later / "images", "--out", later, "--overwrite")
        == 0
    )
    assert in_scene(later) == named(later) == named(direct)
    # Without the video the names are those that pictures could have, and a note says so.
    assert run("export", results, *export, "--out", tmp_path / "bare") == 0
    assert in_scene(tmp_path / "bare") == named(direct)

    other = write_video(tmp_path / "other.mp4")
    message = refused("export", results, *export, "--images", other, "--out", tmp_path / "no")
    assert "is not the video" in message and "other_000000" in message
    short = tmp_path / "short" / clip.name
    short.parent.mkdir()
    write_video(short, num_frames=4)
    message = refused("export", results, *export, "--images", short, "--out", tmp_path / "no")
    assert "ends before frame" in message and not (tmp_path / "no").exists()


def test_a_scene_folder_that_holds_its_results(tmp_path, photographs, checkpoint, run, refused):
    scene_folder = tmp_path / "scene"
    scene_folder.mkdir()
    photographs.rename(scene_folder / "images")
    args = ["infer", scene_folder, "--model", checkpoint, "--out", scene_folder, "--overwrite"]
    for _ in range(2):  # The overview of the first run is no photograph of the second.
        assert run(*args) == 0
        assert scene(scene_folder).names == ("0.png", "1.png", "2.png")
    assert (scene_folder / "overview.png").exists()
    # For other commands the folder is the results in it.
    out = tmp_path / "scene.ply"
    assert run("export", scene_folder, "--format", "ply", "--out", out) == 0
    # Pictures could be replaced by those of the results.
    paths = sorted((scene_folder / "images").iterdir())
    message = refused("infer", *paths, *args[2:4], "--out", scene_folder / "images", "--overwrite")
    assert "holds the photographs" in message


def test_masks_take_points_away(tmp_path, photographs, checkpoint, run, capsys):
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    for i in range(3):
        mask = np.zeros((96, 160), np.uint8)
        mask[:, : 40 * i] = 255
        Image.fromarray(mask).save(masks / f"{i}.png.png")
    args = ["infer", photographs, "--model", checkpoint, "--out", out, "--size", 140]
    options = ["--masks", masks, "--confidence-percentile", 0]
    assert run(*args, *options) == 0
    recon = scene(out)
    np.testing.assert_array_equal(recon.mask.sum((1, 2)), [0, 84 * 35, 84 * 70])
    assert len(trimesh.load(out / "points.ply").vertices) == recon.mask.sum()
    assert (recon.depth_confidence[~recon.mask] == 0).all()

    # With thresholds on top: absolute, then the edges of depth.
    threshold = float(np.quantile(recon.depth_confidence[recon.mask], 0.7))
    assert run(*args, "--masks", masks, "--conf_thres_value", threshold, "--overwrite") == 0
    expected = (recon.depth_confidence > threshold).sum()
    assert len(trimesh.load(out / "points.ply").vertices) == expected
    assert run(*args, *options, "--mask-edges", "--overwrite") == 0
    edges = scene(out).depth_edges
    expected = (recon.mask & ~edges).sum() or recon.mask.sum()
    assert len(trimesh.load(out / "points.ply").vertices) == expected


def test_background_by_colour(tmp_path, checkpoint, run, refused):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        pixels = np.full((14, 28, 3), 90, np.uint8)
        pixels[:, :13] = 255
        pixels[10:, 13:] = 0
        Image.fromarray(pixels).save(folder / f"{i}.png")
    # The folder above it, as VGGT's demo_colmap.py takes it.
    args = ["infer", "--scene_dir", tmp_path, "--model", checkpoint, "--out", out, "--size", 28]
    assert run(*args, "--mask_white_bg", "--mask_black_bg") == 0
    kept = np.zeros((14, 28), bool)
    kept[:10, 13:] = True
    np.testing.assert_array_equal(scene(out).mask, [kept] * 3)
    for path in folder.iterdir():
        Image.new("RGB", (28, 14), "white").save(path)
    args[-3] = tmp_path / "white"
    assert "leave no pixel" in refused(*args, "--mask-white")


def test_reference_and_points_in_it(tmp_path, photographs, checkpoint, run):
    out = tmp_path / "out"
    args = ["infer", photographs, "--model", checkpoint, "--out", out, "--size", 140]
    points = ["--query-points", "20,30", "--query-points", "150,90"]
    assert run(*args, "--reference", "2.png", *points) == 0
    recon = scene(out)
    assert recon.names == ("0.png", "1.png", "2.png")
    np.testing.assert_allclose(recon.tracks_in_photographs()[2], [[20, 30], [150, 90]], atol=1e-3)
    paths = [photographs / f"{i}.png" for i in (2, 0, 1)]
    by_hand = vggt_jax.infer(paths, model=checkpoint, size=140)
    np.testing.assert_allclose(
        recon.camera_from_world[[2, 0, 1]], by_hand.camera_from_world, rtol=1e-3, atol=1e-4
    )


def test_known_intrinsics_and_scale(tmp_path, photographs, checkpoint, run):
    out = tmp_path / "out"
    args = ["infer", photographs, "--model", checkpoint, "--out", out, "--size", 140]

    def intrinsics(*options):
        assert run(*args, *options, "--overwrite") == 0
        frames = json.loads((out / "cameras.json").read_text())["frames"]
        return np.array([frame["intrinsics_original"] for frame in frames])

    expected = np.array([[200, 0, 80], [0, 200, 48], [0, 0, 1]])
    np.testing.assert_allclose(intrinsics("--focal", 200), [expected] * 3, rtol=1e-5)
    assert scene(out).pixel_centre == 0.5
    (out / "cameras.json").rename(tmp_path / "known.json")
    found = intrinsics("--intrinsics", tmp_path / "known.json", "--known-depth", "1.png,90,20,4.5")
    np.testing.assert_allclose(found, [expected] * 3, rtol=1e-5)
    recon = scene(out)
    x, y = np.round(recon.transforms[1].pixels_to_model([90, 20])).astype(int)
    assert recon.depth[1, y, x] == pytest.approx(4.5, rel=1e-5)
    found = intrinsics("--intrinsics", "150,160,70,50", "--known-distance", "0,2.png,3")
    np.testing.assert_allclose(found[2], [[150, 0, 70], [0, 160, 50], [0, 0, 1]], rtol=1e-5)
    rotation, translation = np.split(scene(out).camera_from_world, [3], axis=-1)
    where = -(np.swapaxes(rotation, 1, 2) @ translation)[..., 0]
    assert np.linalg.norm(where[0] - where[2]) == pytest.approx(3, rel=1e-4)


def test_what_is_left_out_is_one_line(tmp_path, photographs, checkpoint, run, refused, capsys):
    """For one scene and for many; with the pattern that would do where companions are refused."""
    (photographs / "clip.MOV").write_bytes(b"x")
    (photographs / "known_depth").write_text("")
    args = ["infer", photographs, "--model", checkpoint, "--size", 28, "--plan"]
    assert run(*args) == 0
    warned = [x for x in capsys.readouterr().err.splitlines() if "warning" in x]
    (line,) = warned
    assert line.startswith(f"vggt-jax: warning: {photographs}: 3 images read, and left out: ")
    assert "1 video (clip.MOV)" in line and "1 other file (known_depth)" in line
    Image.new("L", (160, 96), 255).save(photographs / "1_mask.png")
    message = refused(*args)
    assert "1 of 4 images go with others, as 1_mask.png with 1.png" in message
    assert "--pattern '!*_mask.png'" in message
    assert run(*args, "--pattern", "!*_mask.png") == 0
    assert "3 of 28x14" in capsys.readouterr().out
    assert run(*args, "--pattern", "0*", "--pattern", "2*") == 0
    assert "2 of 28x14" in capsys.readouterr().out
    only = refused(*args, "--pattern", "0*")
    assert "one image is no scene" in only
    batch = ["batch", tmp_path, "--model", checkpoint, "--out", tmp_path / "out", "--size", 28]
    assert run(*batch) == 1
    assert "failed: photographs: " in capsys.readouterr().err


def test_folders_of_videos_and_of_scenes(tmp_path, checkpoint, refused):
    folder = tmp_path / "capture"
    folder.mkdir()
    args = ["infer", folder, "--model", checkpoint, "--out", tmp_path / "out"]
    (folder / "clip.MOV").write_bytes(b"x")
    assert f"give the video itself: {folder}/clip.MOV" in refused(*args)
    (folder / "more.mp4").write_bytes(b"x")
    assert "`vggt-jax batch`" in refused(*args)
    # One photograph beside pictures that are not read: those are named, too.
    Image.new("RGB", (28, 14)).save(folder / "a.png")
    (folder / "DSC_1.NEF").write_bytes(b"x")
    message = refused(*args)
    assert "one image is no scene" in message and "1 RAW file (DSC_1.NEF)" in message


def test_stretching(tmp_path, checkpoint, run, refused, capsys):
    folder = tmp_path / "thermal"
    folder.mkdir()
    for i in range(3):
        values = np.linspace(21000, 24000, 14 * 28).reshape(14, 28)
        Image.fromarray(values.astype(np.uint16)).save(folder / f"{i}.png")
    args = ["infer", folder, "--model", checkpoint, "--size", 28]
    out = tmp_path / "out"
    assert run(*args, "--plan") == 0
    warning = capsys.readouterr().err
    assert "vggt-jax: warning: 3 images" in warning and "--stretch" in warning
    assert run(*args, "--stretch", "--out", out) == 0
    assert "warning: 3 images" not in capsys.readouterr().err
    assert scene(out).images.max() == 255 and scene(out).images.min() == 0


@pytest.mark.parametrize(
    ("option", "make"),
    [("--model", "pipe"), ("--config", "/dev/zero"), ("--masks", "pipe"), ("--intrinsics", "pipe"),
     ("--out", "/dev/null"), ("--out", "a" * 300), ("--model", "a" * 5000), ("--masks", "a/" * 3000)],
)  # fmt: skip
def test_paths_that_are_no_files(tmp_path, photographs, refused, monkeypatch, option, make):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    message = refused("infer", photographs, option, make)
    assert option in message and len(message) < 400
    assert "is a pipe or a device" in message or "File name too long" in message


def test_what_is_read_is_not_written(tmp_path, photographs, refused):
    for option in ("--priors", "--masks"):
        out = tmp_path / option.strip("-")
        out.mkdir()
        assert "is what this command reads" in refused(
            "infer", photographs, option, out, "--out", out, "--overwrite"
        )


def no_mask(folder):
    (folder / "masks").mkdir()
    return folder / "masks"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--fps", "1"], ["--fps", "video", "one file"]),
        (["--reference", "7"], ["frame 7", "0 to 2"]),
        (["--reference", "x.png"], ["'x.png'", "0.png to 2.png"]),
        (["--masks", no_mask], ["masks: no mask for 0.png", "0.png.png"]),
        (["--focal", "-3"], ["--focal -3", "positive"]),
        (["--focal", "3", "--intrinsics", "1,2,3,4"], ["one of them"]),
        (["--intrinsics", "1,2,3"], ["'1,2,3'", "fx,fy,cx,cy"]),
        (["--intrinsics", "0,2,3,4"], ["0,2,3,4", "positive"]),
        (["--intrinsics", "missing.json"], ["'missing.json'", "file that exists"]),
        (["--known-distance", "0,1"], ["'0,1'", "A,B,LENGTH"]),
        (["--known-distance", "0,1,-2"], ["-2", "positive"]),
        (["--known-distance", "0,9,2"], ["frame 9", "0 to 2"]),
        (["--known-depth", "0,x,1,2"], ["'x,1'", "X,Y"]),
        (["--known-depth", "0,500,1,2"], ["500", "outside"]),
        (["--known-depth", "0,1,1,2", "--known-distance", "0,1,2"], ["give one"]),
        (["--min-confidence", "-1"], ["-1", "at least 0"]),
        (["--points", "depth", "--use_point_map"], ["contradicts"]),
        (["--image_folder", "elsewhere"], ["named twice", "elsewhere"]),
        (["--config", "sizes.json"], ["--config", "name its model"]),
    ],
)
def test_bad_input(tmp_path, photographs, checkpoint, refused, options, parts):
    out = tmp_path / "out"
    model = [] if "--config" in options else ["--model", checkpoint]
    options = [option(tmp_path) if callable(option) else option for option in options]
    args = ["infer", photographs, *model, "--out", out, "--size", 28]
    message = refused(*args, *options)
    for part in parts:
        assert part in message
    assert not out.exists() and not list(tmp_path.glob("**/.vggt-jax*"))
