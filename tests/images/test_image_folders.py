"""What a folder's files are taken for, what is said of the rest, patterns, companions and doors."""

import os
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import InputError, InputWarning
from vggt_jax.images import kinds
from vggt_jax.images.companions import found_among
from vggt_jax.images.files import find_images, list_folder, matches
from vggt_jax.images.loading import load_images
from vggt_jax.images.masks import find_masks
from vggt_jax.pipeline.scenes import scenes_by_name

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def save(path, shade=90, size=(14, 14)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 60, 120)).save(path)
    return path


@pytest.fixture
def two(tmp_path):
    """A folder of two photographs."""
    for i in range(2):
        save(tmp_path / "photos" / f"p{i}.png", 50 + i)
    return tmp_path / "photos"


def read(folder, **options):
    """Names of the frames of a folder, and all that was said, in one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = load_images(folder, size=14, **options).names
    assert all(one.category is InputWarning for one in caught)
    return names, "\n".join(str(one.message) for one in caught)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["IMG_2.HEIC", "b.heif"], "2 HEIC pictures (b.heif, IMG_2.HEIC): pip install 'vggt-jax[heif]'"),
        (["DSC_1.NEF", "x.dng"], "2 RAW files (DSC_1.NEF, x.dng): develop"),
        (["clip.MOV"], "1 video (clip.MOV): a video is a scene of its own"),
        (["a.jxl", "b.exr", "c.svg"], "3 pictures in a format that is not read (a.jxl, b.exr, c.svg)"),
        (["favicon.ico"], "1 icon (favicon.ico)"),
        (["1.xmp", "2.xmp", "3.xmp", "4.xmp"], "4 other files (1.xmp, 2.xmp, 3.xmp and 1 more)"),
        ([".hidden.png"], "1 hidden file (.hidden.png)"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_said_by_kind(two, names, what, monkeypatch):
    monkeypatch.setattr(kinds, "has_heif", lambda: False)
    for name in names:
        (two / name).write_bytes(b"x")
    frames, said = read(two)
    assert frames == ("p0.png", "p1.png")
    assert said.count("\n") == 0 and f"{two}: 2 images read, and left out: {what}" in said


def test_files_about_photographs_are_no_news(two):
    """Cameras, a program's project and notes to single photographs; others are."""
    about = (
        "cameras.json transforms.json transforms_train.json poses_bounds.npy images.bin rigs.txt"
    )
    about += " points3D.txt database.db database.db-wal project.ini p0.xmp P1.AAE p1.png.json"
    for name in [*about.split(), "p0.pose.txt"]:
        (two / name).write_bytes(b"x")
    assert read(two) == (("p0.png", "p1.png"), "")
    (two / "p2.xmp").write_bytes(b"x")
    (two / "mycameras.json").write_bytes(b"x")
    (two / "p0.mov").write_bytes(b"x")
    said = read(two)[1]
    assert said.endswith(
        "left out: 2 other files (mycameras.json, p2.xmp); 1 video (p0.mov): a video is a scene of "
        "its own: give the file"
    )
    for photograph in two.glob("*.png"):
        photograph.unlink()
    with pytest.raises(InputError, match=r"it holds 16 other files \(cameras.json, database.db, "):
        load_images(two)


def test_links_pipes_folders_and_names_that_lie(two):
    (two / "masks").mkdir()
    save(two / "masks" / "p0.png")
    (two / "notes").mkdir()
    os.mkfifo(two / "pipe.png")
    (two / "IMG_1").write_bytes((two / "p0.png").read_bytes())
    (two / "Thumbs.db").write_bytes(b"x")
    (two / "._p0.png").write_bytes(b"x")
    frames, said = read(two)
    assert frames == ("p0.png", "p1.png")
    assert "1 folder (masks): folders in it are not searched; recursive=True does" in said
    assert "1 pipe or device (pipe.png)" in said
    assert "1 picture under another name (IMG_1): IMG_1 holds PNG: rename it" in said
    assert not any(name in said for name in ("notes", "Thumbs", "._p0"))


def test_nothing_is_said_where_nothing_is_left_out(two):
    (two / "predictions.npz").write_bytes(b"x")
    for name in ("overview.png", "points.ply", "cameras.json", "depth_pictures/a.png"):
        (two / name).parent.mkdir(exist_ok=True)
        (two / name).write_bytes(b"x")
    assert read(two) == (("p0.png", "p1.png"), "")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"clip.MOV": b""}, "give the video itself: {folder}/clip.MOV"),
        ({"1.mp4": b"", "2.mp4": b""}, "2 videos (1.mp4, 2.mp4)"),
        ({"1.mp4": b"", "2.mp4": b""}, "`vggt-jax batch`"),
        ({"a.heic": HEIC}, "pip install 'vggt-jax[heif]'"),
        ({"a.NEF": b"", "b.NEF": b""}, "2 RAW files"),
        ({"one/1.png": b"", "two/1.png": b""}, "give one of the folders"),
        ({}, "nothing else"),
    ],
)
def test_a_folder_without_photographs_says_what_it_holds(tmp_path, files, what, monkeypatch):
    monkeypatch.setattr(kinds, "has_heif", lambda: False)
    folder = tmp_path / "capture"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_images(folder)
    message = str(caught.value)
    assert what.format(folder=folder) in message and message.startswith(f"{folder}: no images")


def test_every_ending_that_pillow_reads_has_its_kind():
    """Pillow's own table of endings; those that it writes, or hands to other programs, aside."""
    Image.init()
    endings = {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}
    elsewhere = {".eps", ".ps", ".wmf", ".emf"} | {".grib", ".bufr", ".h5", ".hdf", ".iim"}
    unknown = endings - {*kinds.PICTURES, *kinds.VIDEOS, ".ico", ".cur", ".icns"} - elsewhere
    assert unknown <= {*kinds.HEIF}
    assert not {*kinds.PICTURES} & {*kinds.RAW, *kinds.VIDEOS, *kinds.HEIF}


def test_the_form_of_accents_is_all_one(tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    save(tmp_path / "photos" / f"{composed}.jpg")
    save(tmp_path / "masks" / f"{apart}.png")
    assert find_masks(tmp_path / "masks", [f"{composed}.jpg"]) == [tmp_path / f"masks/{apart}.png"]
    assert matches(f"{apart}.jpg", (f"{composed}*",)) and not matches("x", (f"!{composed}", "!x"))
    recon = vggt_jax.Reconstruction(images=np.zeros((1, 14, 14, 3), np.uint8), names=(apart,))
    from vggt_jax.scene.calibration import frame_index

    assert frame_index(recon.names, 1, composed) == 0


# Companions and patterns

COMPANIONS = [
    (["f0.color.png", "f1.color.png", "f0.depth.png", "f1.depth.png"], "'*.color.png'"),
    (["a.jpg", "b.jpg", "a_mask.png", "b_mask.png"], "'*.jpg'"),
    (["a.png", "b.png", "a_mask.png"], "'!*_mask.png'"),
    (["frame01.jpg", "depth01.png"], "'*.jpg'"),
    (["rgb_1.png", "rgb_2.png", "depth_1.png", "depth_2.png"], "'rgb*'"),
    (["r_0.png", "r_1.png", "r_0_depth_0001.png", "r_0_normal_0001.png"],
     "'!*depth*' and pattern='!*normal*'"),
    (["0.jpg", "1.jpg", "0.jpg.png", "1.jpg.png"], "'*.jpg'"),
    (["0.jpg", "1.jpg", "0.JPG.png", "1.Jpg.png"], "'*.jpg'"),
    (["img_0.png", "img_1.png", "img_0_trimap.png"], "'!*_trimap.png'"),
    (["img1.png", "imgMask1.png"], "'!*Mask*'"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "pattern"), COMPANIONS)
def test_companions_are_refused_with_the_pattern_that_would_do(tmp_path, names, pattern):
    for name in names:
        save(tmp_path / name)
    with pytest.raises(InputError) as caught:
        find_images(tmp_path)
    message = str(caught.value)
    assert f"pattern={pattern}" in message
    patterns = [part.split("'")[1] for part in message.split("pattern=")[1:]]
    kept, said = read(tmp_path, pattern=patterns, mode="pad")
    others = ("depth", "mask", "normal", "trimap", ".jpg.png")
    assert set(kept) == {x for x in names if not any(word in x.lower() for word in others)}
    assert said == ""  # What was left out on purpose is not spoken of.


@pytest.mark.parametrize(
    "names",
    [
        ["depth_1.png", "depth_2.png"],
        ["mask.jpg", "wall.jpg"],
        ["left1.png", "right1.png"],
        ["IMG_1.jpg", "IMG_2.jpg", "IMG_10.jpg"],
        ["masks of venice.jpg", "bridge.jpg"],
    ],
)
def test_a_word_alone_makes_no_companion(names):
    assert found_among(names, matches) is None


def test_patterns(two):
    assert read(two, pattern="*0.png")[0] == ("p0.png",)
    assert read(two, pattern="!p0*")[0] == ("p1.png",)
    with pytest.raises(InputError, match=r"pattern='\*.jpg'; its images are called p0.png, p1.png"):
        load_images(two, pattern="*.jpg")
    with pytest.raises(InputError, match="is for a folder"):
        load_images(two / "p0.png", pattern="*")
    for pattern in ("", "!", ["*", ""]):
        with pytest.raises(InputError, match="must be like"):
            vggt_jax.Options(pattern=pattern)


# Names that a terminal or the system does not take


@pytest.mark.parametrize(
    "given", ["a\0b.png", "x" * 300 + ".png", "y/" * 3000, "", "\x1b[31m\n.png"]
)
def test_names_that_are_none(given):
    for images in (given, [given]):
        with pytest.raises(InputError) as caught:
            load_images(images)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_names_of_any_bytes_are_read_and_shown(tmp_path):
    folder = tmp_path / "photos"
    for name in (b"caf\xe9.png", b"new\nline.png", b"-dash.png", b"[a] 'b' \"c\".png"):
        save(folder / os.fsdecode(name))
    assert len(read(folder)[0]) == 4
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(InputError, match=r"caf\\xe9.png: not an image"):
        load_images(folder)


# Many scenes: the same rules


def test_scenes_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "has_heif", lambda: False)
    root = tmp_path / "scenes"
    save(root / "a" / "1.png")
    save(root / "b" / "images" / "1.png")
    save(root / "c's [1] \u00e9" / "1.png")
    (root / "heic").mkdir()
    (root / "heic" / "1.heic").write_bytes(HEIC)
    (root / "filmed").mkdir()
    (root / "filmed" / "1.mp4").write_bytes(b"")
    (root / "empty").mkdir()
    (root / "a.mp4").write_bytes(b"")
    (root / "d.mp4").write_bytes(b"")
    save(root / "stray.png")
    (root / "notes.txt").write_text("")
    with pytest.warns(InputWarning) as caught:
        found = scenes_by_name(root)
    assert set(found) == {"a", "a.mp4", "b", "c's [1] \u00e9", "d", "filmed", "heic"}
    message = str(caught[0].message)
    assert "1 folder without photographs (empty)" in message
    assert "1 image in no folder of a scene (stray.png)" in message
    assert "1 other file (notes.txt)" in message


def test_one_scene_is_not_many(two):
    with pytest.raises(InputError, match="holds photographs itself .*use `vggt-jax infer`"):
        scenes_by_name(two)


def test_a_scene_with_a_folder_images(two):
    scene = two.parent / "scene"
    scene.mkdir()
    two.rename(scene / "images")
    assert read(scene) == (("p0.png", "p1.png"), "")
    assert list_folder(scene).images == ()
