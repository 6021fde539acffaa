"""Photographs beside an export: upright 8-bit RGB in usual formats, and their masks."""

import dataclasses
import functools
import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from vggt_jax import InputError, export_reconstruction, with_mask
from vggt_jax.export.cameras import checked_names
from vggt_jax.export.images import find_photographs
from vggt_jax.export.masks import mask_names, of_photograph
from vggt_jax.export.photograph import stored
from vggt_jax.images.loading import load_images
from vggt_jax.masks import load_masks

SIZE = (90, 141)  # (height, width)
PARTS = (0x8769, 0x8825)  # Of EXIF: the camera's and the place's.
FOLDERS = ["colmap", "nerfstudio"]


def colors(i=0):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([40 + x, 30 + 2 * y, 90 + 20 * i + x // 2], axis=-1).astype(np.uint8)


def scene(make_room, folder, mode="pad"):
    """The first frames of a room with the photographs of a folder, as `infer` would name them."""
    recon = make_room(sizes=(SIZE,) * 2, name="room").recon
    frames = load_images(folder, mode=mode, size=112)
    return dataclasses.replace(
        recon, images=frames.images, names=frames.names, transforms=frames.transforms
    )


@functools.cache
def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def kinds_of_photographs():
    """By name: an image, options of saving it, what it must look like, and the name it gets."""
    image = Image.fromarray(colors())
    grey = image.convert("L")
    as_rgb = lambda x: np.asarray(x.convert("RGB"))
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear = image.copy()
    clear.putalpha(
        Image.fromarray(np.where(np.arange(141) < 50, 0, 255)[None].repeat(90, 0).astype(np.uint8))
    )
    on_white = colors().copy()
    on_white[:, :50] = 255
    palette = image.quantize(64)
    return {
        "grey.png": (grey, {}, as_rgb(grey), "grey.png"),
        "sixteen.png": (sixteen, {}, as_rgb(grey), "sixteen.png"),
        "palette.png": (palette, {}, as_rgb(palette), "palette.png"),
        "clear.png": (clear, {}, on_white, "clear.png"),
        "one.png": (grey.convert("1"), {}, as_rgb(grey.convert("1")), "one.png"),
        "grey.jpg": (grey, {"quality": 98}, as_rgb(grey), "grey.jpg"),
        "inks.jpg": (image.convert("CMYK"), {"quality": 98}, colors(), "inks.jpg"),
        "a.gif": (palette, {}, as_rgb(palette), "a.png"),
        "a.qoi": (image, {}, colors(), "a.png"),
        "a.avif": (image, {"quality": 98}, colors(), "a.jpg"),
        "a.jfif": (image, {"format": "JPEG", "quality": 98}, colors(), "a.jpg"),
        "a.pgm": (grey, {}, as_rgb(grey), "a.ppm"),
        "page.tif": (image, {"save_all": True, "append_images": [grey]}, colors(), "page.tif"),
    }


@pytest.mark.parametrize("name", kinds_of_photographs())
def test_what_is_written_is_rgb_of_8_bits(tmp_path, make_room, name):
    image, options, expected, called = kinds_of_photographs()[name]
    folder = tmp_path / "photos"
    folder.mkdir()
    image.save(folder / name, **options)
    Image.fromarray(colors(1)).save(folder / "z.png")
    recon = scene(make_room, folder)
    report = export_reconstruction(recon, tmp_path / "ns", format="nerfstudio", images=folder)
    frames = json.loads((tmp_path / "ns" / "transforms.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == [f"images/{called}", "images/z.png"]
    with Image.open(tmp_path / "ns" / "images" / called) as written:
        assert written.mode == "RGB" and getattr(written, "n_frames", 1) == 1
        # JPEG and AVIF, once or twice, are off by a few levels.
        lossy = name.endswith(("jpg", "avif", "jfif"))
        difference = np.abs(np.asarray(written).astype(int) - expected)
    assert difference.mean() < 4 if lossy else difference.max() == 0
    is_copied = name == "a.jfif"
    assert ("written anew as RGB" in str(report)) is not is_copied
    copied = (tmp_path / "ns" / "images" / "z.png").read_bytes()
    assert copied == (folder / "z.png").read_bytes()


def test_names_that_would_meet_stay_apart(tmp_path, make_room):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(colors()).save(folder / "a.jpg", quality=95)
    Image.fromarray(colors(1)).save(folder / "a.avif")
    recon = scene(make_room, folder)
    export_reconstruction(recon, tmp_path / "out", format="nerfstudio", images=folder)
    assert sorted(os.listdir(tmp_path / "out" / "images")) == ["a.avif.jpg", "a.jpg"]


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_turned_photographs_keep_profile_and_camera(tmp_path, make_room, ending):
    folder, exif = tmp_path / "photos", Image.Exif()
    folder.mkdir()
    exif[0x0112], exif[0x010F], exif[0x0110] = 6, "Phone", "12 mini"
    exif.get_ifd(PARTS[0]).update({0xA405: 26, 0x920A: 4.25, 0x927C: b"note", 0xA002: 90})
    exif.get_ifd(PARTS[1]).update({1: "N", 2: (52.0, 30.0, 7.5)})
    for i in range(2):
        stored_pixels = Image.fromarray(np.rot90(colors(i), 1))
        options = {"exif": exif}
        if ending == "tif":  # Where Pillow writes no parts of what it is given as EXIF.
            options = {"tiffinfo": TiffImagePlugin.ImageFileDirectory_v2()}
            for tag, value in (*exif.items(), *((part, exif.get_ifd(part)) for part in PARTS)):
                options["tiffinfo"][tag] = value
        stored_pixels.save(folder / f"{i}.{ending}", icc_profile=srgb(), **options)
    recon = scene(make_room, folder)
    assert recon.transforms[0].original_size == SIZE
    export_reconstruction(recon, tmp_path / "out", format="colmap", images=folder)
    with Image.open(tmp_path / "out" / "images" / f"0.{ending}") as written:
        assert written.size == (SIZE[1], SIZE[0]) and written.getexif().get(0x0112, 1) == 1
        assert written.info["icc_profile"] == srgb()
        found = written.getexif()
        camera, place = map(found.get_ifd, PARTS)
        assert (found[0x010F], found[0x0110]) == ("Phone", "12 mini")
        assert camera[0xA405] == 26 and float(camera[0x920A]) == 4.25 and 0x927C not in camera
        assert camera[0xA002] == SIZE[1] and place[1] == "N"
        assert np.abs(np.asarray(written).astype(int) - colors()).mean() < 3


def test_profiles_of_other_colours_do_not_stay(tmp_path):
    from vggt_jax.export.photograph import write

    grey = Image.fromarray(colors()).convert("L")
    profile = bytearray(srgb())
    profile[16:20] = b"GRAY"
    grey.save(tmp_path / "a.png", icc_profile=bytes(profile))
    with open(tmp_path / "b.png", "wb") as file:
        write(stored(tmp_path / "a.png"), file, None)
    with Image.open(tmp_path / "b.png") as written:
        assert written.mode == "RGB" and "icc_profile" not in written.info


def test_a_sliver_of_16_bits_is_not_written_black(tmp_path, make_room):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        values = np.linspace(0, 1500, 90 * 141).reshape(90, 141) + 1500 * i
        Image.fromarray(values.astype(np.uint16)).save(folder / f"{i}.png")
    recon = scene(make_room, folder)
    report = export_reconstruction(recon, tmp_path / "out", format="nerfstudio", images=folder)
    assert "stretched" in str(report)
    written = [np.asarray(Image.open(tmp_path / "out" / "images" / f"{i}.png")) for i in (0, 1)]
    assert written[0].min() == 0 and written[1].max() == 255
    assert abs(int(written[0].max()) - 128) <= 1 and abs(int(written[1].min()) - 128) <= 1


def test_photographs_in_place_that_others_misread_are_noted(tmp_path, make_room):
    folder = tmp_path / "scene" / "images"
    folder.mkdir(parents=True)
    for i in range(2):
        Image.fromarray(colors(i)).convert("L").save(folder / f"{i}.png")
    recon = scene(make_room, folder)
    before = (folder / "0.png").read_bytes()
    report = export_reconstruction(recon, folder.parent, format="nerfstudio", images=folder)
    assert "2 photographs (0.png, 1.png) are grey, which other programs misread" in str(report)
    assert (folder / "0.png").read_bytes() == before
    # Named one by one they would be read from where they are written.
    paths = sorted(folder.iterdir())
    with pytest.raises(InputError, match="which would be replaced|is not replaced"):
        export_reconstruction(
            recon, folder.parent, format="nerfstudio", images=paths, overwrite=True
        )
    assert (folder / "0.png").read_bytes() == before


def test_names_that_are_no_utf8(tmp_path, make_room):
    pycolmap = pytest.importorskip("pycolmap", reason="needs pycolmap")
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(colors(i)).save(os.fsencode(folder) + b"/caf\xe9%d.png" % i)
    recon = scene(make_room, folder)
    report = export_reconstruction(recon, tmp_path / "out", format="colmap", images=folder)
    assert "2 names that are no UTF-8 were changed" in str(report) and str(report).isascii()
    images = pycolmap.Reconstruction(str(tmp_path / "out" / "sparse" / "0")).images
    assert sorted(image.name for image in images.values()) == ["caf_xe90.png", "caf_xe91.png"]
    assert sorted(os.listdir(tmp_path / "out" / "images")) == ["caf_xe90.png", "caf_xe91.png"]


def test_accents_in_another_form_are_found(tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))
    Image.fromarray(colors()).save(tmp_path / composed)
    assert find_photographs((apart,), tmp_path) == (tmp_path / composed,)


@pytest.mark.skipif(os.name == "nt", reason="a backslash divides folders")
def test_a_backslash_may_be_in_a_name_or_divide_folders(tmp_path):
    for name in ("a\\b.png", "cam/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_photographs(("a\\b.png", "cam\\c.png"), tmp_path)
    assert found == (tmp_path / "a\\b.png", tmp_path / "cam" / "c.png")
    assert checked_names(("a\\b.png",), 1) == ("a\\b.png",)
    with pytest.raises(InputError, match="no name of a file inside"):
        checked_names(("..\\b.png",), 1)


# Masks


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize("mode", ["crop", "pad", "budget"])
def test_masks_come_back_in_the_size_of_photographs(tmp_path, make_room, format, mode):
    folder = tmp_path / "photos"
    for i, camera in enumerate(("cam0", "cam1")):
        (folder / camera).mkdir(parents=True)
        Image.fromarray(colors(i)).save(folder / camera / "000.png")
    paths = sorted(folder.rglob("*.png"))
    frames = load_images(paths, mode=mode, size=112)
    assert frames.names == ("cam0/000.png", "cam1/000.png")
    given = np.zeros((2, *SIZE), bool)
    given[0, 20:70, 31:101] = True
    given[1] = True
    recon = make_room(sizes=(SIZE,) * 2, name="room").recon
    height, width = frames.images.shape[1:3]
    recon = dataclasses.replace(
        recon,
        images=frames.images,
        names=frames.names,
        transforms=frames.transforms,
        depth=np.ones((2, height, width), np.float32),
        depth_confidence=np.full((2, height, width), 2, np.float32),
    )
    recon = with_mask(recon, load_masks(list(given), frames))
    export_reconstruction(recon, tmp_path / "out", format=format, images=folder)
    for name, expected in zip(frames.names, given, strict=True):
        with Image.open(tmp_path / "out" / "masks" / f"{name}.png") as mask:
            assert mask.mode == "L" and mask.size == (SIZE[1], SIZE[0])
            found = np.asarray(mask)
        assert {*np.unique(found)} <= {0, 255}
        # A pixel of the model's frame is 1.26 of the photograph's.
        rows, columns = np.nonzero((found > 0) != expected)
        assert set(rows) <= {19, 20, 69, 70} or (set(columns) <= {30, 31, 100, 101})
        off = ((found > 0) != expected).sum()
        assert off <= 2 * (2 * 50 + 2 * 70)
    # And are found again, by COLMAP's names.
    again = load_masks(tmp_path / "out" / "masks", frames)
    assert (again != recon.mask).mean() < 0.03
    if format == "nerfstudio":
        found = json.loads((tmp_path / "out" / "transforms.json").read_text())["frames"]
        assert [frame["mask_path"] for frame in found] == [
            "masks/cam0/000.png.png",
            "masks/cam1/000.png.png",
        ]


def test_what_was_cropped_away_is_as_at_the_edge():
    from vggt_jax.images.resizing import fit_by_cropping

    transform = fit_by_cropping((200, 100), (56, 56), 14, "a")
    assert transform.offset_y < 0
    mask = np.zeros((56, 56), bool)
    mask[:, 28:] = True
    found = of_photograph(mask, transform)
    assert found.shape == (200, 100) and (found == (np.arange(100) >= 50)).all()


@pytest.mark.parametrize("format", FOLDERS)
def test_without_masks_there_is_no_folder(tmp_path, make_room, format):
    room = make_room()
    everything = with_mask(room.recon, room.valid)  # Padding is no mask.
    for i, recon in enumerate((room.recon, everything)):
        out = tmp_path / f"out{i}"
        export_reconstruction(recon, out, format=format, images=room.folder)
        assert not (out / "masks").exists()
        if format == "nerfstudio":
            assert "mask_path" not in (out / "transforms.json").read_text()


def test_masks_of_an_earlier_export_go_with_it(tmp_path, make_room):
    room = make_room()
    masked = with_mask(room.recon, room.valid & (np.arange(112) < 50))
    out, options = tmp_path / "out", {"format": "nerfstudio", "images": room.folder}
    export_reconstruction(masked, out, **options)
    assert len(list((out / "masks").iterdir())) == 4
    export_reconstruction(room.recon, out, overwrite=True, **options)
    assert not (out / "masks").exists()


def test_masks_beside_photographs_in_place_stay(tmp_path, make_room, contents):
    room = make_room()
    folder = tmp_path / "scene"
    (folder / "masks").mkdir(parents=True)
    room.folder.rename(folder / "images")
    for i, (height, width) in enumerate(room.sizes):
        Image.new("L", (width, height), 255).save(folder / "masks" / f"view {i}.png")
    before = contents(folder / "masks")
    masked = with_mask(room.recon, room.valid & (np.arange(112) < 50))
    report = export_reconstruction(
        masked, folder, format="nerfstudio", images=folder / "images", overwrite=True
    )
    assert contents(folder / "masks") == before and "stay as they are" in str(report)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    assert frames[0]["mask_path"] == "masks/view 0.png"
    (folder / "masks" / "view 0.png").unlink()
    report = export_reconstruction(
        masked, folder, format="nerfstudio", images=folder / "images", overwrite=True
    )
    assert "masks are not written" in str(report) and "no mask for view 0.png" in str(report)
    assert "mask_path" not in (folder / "transforms.json").read_text()


def test_a_name_that_leaves_no_room_for_an_ending():
    names = ("a/" + "\u4e2d" * 83 + ".png", "b.png")
    (found, other), (note,) = mask_names(names)
    assert other == "b.png.png" and found.startswith("a/") and len(found) == 2 + 32 + 4
    assert "1 masks have other names" in note
