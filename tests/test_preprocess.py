"""vggt_jax.images.loading against the official loader, and on everything that people feed it.

golden/preprocess.npz holds every fifth pixel, [s 3 h w] uint8, of what the official
`load_and_preprocess_images` makes of golden/images, and the full shapes.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.images.files import find_images
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.loading import load_images

GOLDEN = Path(__file__).parent / "golden"
KITCHEN = [GOLDEN / "images/kitchen/00.jpg", GOLDEN / "images/kitchen/01.jpg"]
TALL = [GOLDEN / "images/tall/0.png"]
ALPHA = [GOLDEN / "images/tall/1_alpha.png"]
EXIF_ORIENTATION = 0x0112


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    """A ramp in x and in y, which resizing keeps: red follows x and green follows y."""
    y, x = np.mgrid[:height, :width].astype(float)
    ramps = [x / (width - 1), y / (height - 1), np.full_like(x, 0.5)]
    return np.round(np.stack(ramps, -1) * 255).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


# The official loader


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("name", ["kitchen", "tall", "alpha"])
def test_frames_are_the_official_ones(mode, name):
    with np.load(GOLDEN / "preprocess.npz") as file:
        every_fifth, shape = file[f"vggt_{mode}_{name}"], file[f"vggt_{mode}_{name}.shape"]
    paths = {"kitchen": KITCHEN, "tall": TALL, "alpha": ALPHA}[name]
    frames = load_images(paths, mode=mode)
    assert frames.images.dtype == np.uint8
    assert frames.images.transpose(0, 3, 1, 2).shape == tuple(shape)
    found = frames.images[:, ::5, ::5].transpose(0, 3, 1, 2).astype(int)
    # Pillow's bicubic has been the same for years; another build may round once differently.
    assert np.abs(found - every_fifth).max() <= 1
    assert (found != every_fifth).mean() < 1e-3


def test_no_mode_means_crop():
    cropped, default = load_images(KITCHEN, mode="crop"), load_images(KITCHEN)
    np.testing.assert_array_equal(cropped.images, default.images)
    assert default.names == ("00.jpg", "01.jpg")
    assert default.valid_mask().all()


def test_crop_cuts_the_middle_of_the_height():
    """600x400 at 224x210: resized to 308x210 (22 patches), 42 rows too many above and below."""
    image = picture(600, 400)
    frames = load_images([image], size=(224, 210), mode="crop")
    resized = Image.fromarray(image).resize((210, 308), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(frames.images[0], np.asarray(resized)[42 : 42 + 224])
    assert frames.transforms[0] == FrameTransform(
        original_size=(600, 400), model_size=(224, 210), scale_x=210 / 400, scale_y=308 / 600,
        offset_x=0.0, offset_y=-42.0, content_rows=(0, 224), content_columns=(0, 210),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("original", "size", "content", "rows", "columns"),
    [
        ((300, 500), 140, (84, 140), (28, 112), (0, 140)),
        ((500, 300), 140, (140, 84), (0, 140), (28, 112)),
        ((300, 500), (70, 280), (70, 112), (0, 70), (84, 196)),  # The height is what limits.
        ((300, 500), (196, 210), (126, 210), (35, 161), (0, 210)),
        ((300, 500), (98, 56), (28, 56), (35, 63), (0, 56)),
    ],
)
def test_pad_fits_the_whole_image_inside(original, size, content, rows, columns):
    image = picture(*original)
    frames = load_images([image], size=size, mode="pad")
    assert frames.images.shape[1:3] == ((size, size) if isinstance(size, int) else size)
    inside = (0, slice(*rows), slice(*columns))
    resized = Image.fromarray(image).resize(content[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(frames.images[inside], np.asarray(resized))
    expected_mask = np.zeros(frames.images.shape[:3], bool)
    expected_mask[inside] = True
    np.testing.assert_array_equal(frames.valid_mask(), expected_mask)
    assert (frames.images[~expected_mask] == 255).all()


def test_odd_padding_puts_the_spare_pixel_at_the_end():
    """Patches of 7: 5 patches of height in 6 leave 7 rows of padding, 3 above and 4 below."""
    frames = load_images([picture(50, 60)], size=42, patch_size=7, mode="pad")
    assert frames.transforms[0].content_rows == (3, 38)
    assert frames.transforms[0].offset_y == 3


# Different sizes


def test_different_shapes_need_a_mode(tmp_path):
    wide = [save(tmp_path / f"wide{i}.png", picture(60, 90)) for i in range(3)]
    tall = save(tmp_path / "tall.png", picture(90, 60))
    with pytest.raises(InputError) as caught:
        load_images([*wide, tall], size=84)
    message = str(caught.value)
    assert "2 different shapes" in message
    assert "56x84 (wide0.png and 2 more)" in message and "84x84 (tall.png)" in message
    assert "mode='crop'" in message and "mode='pad'" in message


def test_different_originals_of_one_shape_need_none():
    frames = load_images([picture(60, 90), picture(200, 300)], size=84)
    assert frames.images.shape == (2, 56, 84, 3)
    assert [t.original_size for t in frames.transforms] == [(60, 90), (200, 300)]


def test_an_explicit_crop_pads_all_to_the_largest():
    wide, tall = picture(60, 90), picture(90, 60)
    frames = load_images([wide, tall], size=84, mode="crop")
    assert frames.images.shape == (2, 84, 84, 3)
    first, second = frames.transforms
    assert first.content_rows == (14, 70) and first.offset_y == 14
    assert second.content_rows == (0, 84) and second.offset_y == -21
    resized = np.asarray(Image.fromarray(wide).resize((84, 56), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(frames.images[0, 14:70], resized)
    assert (frames.images[0, :14] == 255).all() and (frames.images[0, 70:] == 255).all()
    resized = np.asarray(Image.fromarray(tall).resize((84, 126), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(frames.images[1], resized[21:105])
    assert frames.valid_mask().mean(axis=(1, 2)).tolist() == [pytest.approx(56 / 84), 1.0]


# Folders and names


def test_folders_are_sorted_as_people_count(tmp_path):
    for name in ("img10.png", "img2.PNG", "img1.JpG", "Img3.jpeg", ".hidden.png", "notes.txt"):
        save_as = {"format": "PNG"} if "." in name else {}
        save(tmp_path / name, picture(5, 7), **save_as)
    save(tmp_path / "sub.png" / "x.png", picture(5, 7))
    expected = ["img1.JpG", "img2.PNG", "Img3.jpeg", "img10.png"]
    assert [path.name for path in find_images(tmp_path)] == expected
    assert load_images(tmp_path, size=14).names == tuple(expected)
    assert load_images(str(tmp_path), size=14).names == tuple(expected)


def test_the_overview_of_results_is_no_photograph(tmp_path):
    for name in ("0.png", "overview.png"):
        save(tmp_path / name, picture(5, 7))
    assert [path.name for path in find_images(tmp_path)] == ["0.png", "overview.png"]
    (tmp_path / "predictions.npz").write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["0.png"]
    (tmp_path / "0.png").unlink()
    with pytest.raises(InputError, match="no images in this folder"):
        find_images(tmp_path)


def test_order_does_not_depend_on_the_leading_zeros_alone(tmp_path):
    for name in ("7.png", "07.png", "007.png", "8.png", "a7.png", "1a.png"):
        save(tmp_path / name, picture(5, 7))
    names = [path.name for path in find_images(tmp_path)]
    assert names == ["1a.png", "007.png", "07.png", "7.png", "8.png", "a7.png"]


def test_lists_keep_their_order_and_repeat():
    frames = load_images([KITCHEN[1], KITCHEN[0], KITCHEN[1]], size=56)
    once = load_images(KITCHEN, size=56).images
    np.testing.assert_array_equal(frames.images, once[[1, 0, 1]])
    assert frames.names == ("01.jpg", "00.jpg", "01.jpg")


def test_names_tell_folders_apart(tmp_path):
    paths = [save(tmp_path / folder / "0.png", picture(5, 7)) for folder in ("a/x", "b/x", "c/y")]
    assert load_images(paths, size=14).names == ("a/x/0.png", "b/x/0.png", "c/y/0.png")
    assert load_images([paths[0]], size=14).names == ("0.png",)
    assert load_images(paths[0], size=14).names == ("0.png",)


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"no images .*1 other file \(notes.txt\)") as caught:
        load_images(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match="gone: the folder cannot be read"):
        find_images(tmp_path / "gone")


def test_many_images_keep_their_order_and_show_progress(tmp_path, capsys):
    """Images of very different sizes, so that workers finish in another order."""
    for i in range(24):
        side = 600 if i % 5 == 0 else 20
        save(tmp_path / f"{i}.png", np.full((side, side, 3), 10 * i, np.uint8))
    frames = load_images(tmp_path, size=14, progress=True)
    assert frames.images[:, 0, 0, 0].tolist() == [10 * i for i in range(24)]
    assert "24/24" in capsys.readouterr().err
    load_images(tmp_path, size=14)
    assert capsys.readouterr().err == ""


# Pixel formats


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_honoured(tmp_path, orientation, suffix):
    upright = smooth(84, 56)
    # What a camera held in that orientation stores, by the definition of the tag.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    path = save(tmp_path / f"x.{suffix}", np.ascontiguousarray(stored), exif=exif, **options)
    frames = load_images(path, size=(84, 56))
    assert frames.transforms[0].original_size == (84, 56)
    # JPEG of a smooth ramp at quality 95 is off by a few levels; a wrong turn by up to 255.
    assert np.abs(frames.images[0].astype(int) - upright).max() <= (0 if suffix != "jpg" else 8)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(load_images([opened], size=(84, 56)).images, frames.images)


def transparent_images():
    """By name: an image whose left half is red and whose right half is red but transparent."""
    alpha = np.full((14, 28), 255, np.uint8)
    alpha[:, 14:] = 0
    red = np.zeros((14, 28, 3), np.uint8)
    red[..., 0] = 200
    rgba = Image.fromarray(np.concatenate([red, alpha[..., None]], -1))
    palette = Image.new("P", (28, 14))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putdata((alpha == 0).astype(np.uint8).ravel().tolist())
    grey = Image.fromarray(np.where(alpha == 0, 7, 60).astype(np.uint8))
    grey_alpha = Image.merge("LA", (Image.new("L", (28, 14), 60), Image.fromarray(alpha)))
    sixteen = Image.fromarray(np.where(alpha == 0, 1799, 60 * 257).astype(np.uint16))
    colour_key = red.copy()
    colour_key[:, 14:] = (0, 200, 0)
    return {
        "rgba": (rgba, {}, (200, 0, 0)),
        "la": (grey_alpha, {}, (60, 60, 60)),
        "palette": (palette, {"transparency": 1}, (200, 0, 0)),
        "palette_bytes": (palette, {"transparency": bytes([255, 0])}, (200, 0, 0)),
        "grey_key": (grey, {"transparency": 7}, (60, 60, 60)),
        "rgb_key": (Image.fromarray(colour_key), {"transparency": (0, 200, 0)}, (200, 0, 0)),
        "sixteen_bit_key": (sixteen, {"transparency": 1799}, (60, 60, 60)),
    }


@pytest.mark.parametrize("name", transparent_images())
def test_transparency_is_white(tmp_path, name):
    image, options, colour = transparent_images()[name]
    image.save(tmp_path / "x.png", **options)
    frame = load_images(tmp_path / "x.png", size=(14, 28)).images[0]
    np.testing.assert_array_equal(frame[:, :14], np.broadcast_to(colour, (14, 14, 3)))
    assert (frame[:, 14:] == 255).all()


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
def test_rare_transparent_modes_are_white_too(mode):
    """Black, transparent on the left; drawn by hand where Pillow's conversion forgets the alpha."""
    pixels = [(0, 0)] * 14 + [(0, 255)] * 14
    image = Image.new("PA" if mode == "PA" else "LA", (28, 14))
    if mode == "PA":
        image.putpalette([0, 0, 0])
    image.putdata(pixels * 14)
    if mode == "La":
        image = image.convert("La")
    elif mode == "RGBa":
        image = image.convert("RGBA").convert("RGBa")
    assert image.mode == mode
    frame = load_images([image], size=(14, 28)).images[0]
    assert (frame[:, 14:] == 0).all() and (frame[:, :14] == 255).all()


def test_half_transparency_blends_with_white():
    image = Image.new("RGBA", (14, 14), (100, 0, 200, 51))  # 51 / 255 = 0.2
    frame = load_images([image], size=14).images[0]
    assert np.abs(frame[0, 0].astype(int) - [224, 204, 244]).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path, suffix):
    values = np.linspace(0, 65535, 28).round().astype(np.uint16)
    image = np.broadcast_to(values, (14, 28)).copy()
    path = save(tmp_path / f"x.{suffix}", image)
    frame = load_images(path, size=(14, 28)).images[0]
    expected = np.round(values / 257).astype(int)
    assert np.abs(frame[3, :, 0].astype(int) - expected).max() == 0
    assert (frame == frame[..., :1]).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((14, 14), 70000, np.int32), "not 16-bit"),
        (np.full((14, 14), -1, np.int32), "not 16-bit"),
        (np.zeros((14, 14), np.float32), "floating-point pixels"),
    ],
)
def test_pixels_without_a_known_range_are_an_error(tmp_path, array, message):
    path = save(tmp_path / "depth.tif", array)
    with pytest.raises(InputError, match=message) as caught:
        load_images(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    image = Image.new("RGB", (28, 14), (255, 255, 255)).convert(mode)
    assert (load_images([image], size=(14, 28)).images >= 254).all()


# Files that cannot be used


def test_unusable_files_are_named_with_the_way_out(tmp_path):
    good = save(tmp_path / "good.jpg", picture(60, 90))
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    empty = tmp_path / "empty.png"
    empty.touch()
    cases = {
        text: "not an image in a format",
        empty: "not an image in a format",
        tmp_path / "gone.jpg": "no such file",
        tmp_path: "a folder inside a list",
    }
    for suffix in ("jpg", "png", "webp", "avif", "tif", "bmp", "ppm"):
        whole = save(tmp_path / f"whole.{suffix}", picture(60, 90)).read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole[: len(whole) * 6 // 10])
        # AVIF keeps an index of the whole file at its start, so that a cut one is none at all.
        cases[cut] = "beginning is damaged" if suffix == "avif" else "truncated or damaged"
    for path, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_images([good, path, good], size=84)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        load_images(tmp_path / "gone.jpg")


def test_the_first_unusable_file_is_reported(tmp_path):
    paths = [save(tmp_path / f"{i}.png", picture(400, 400)) for i in range(12)]
    for i in (5, 6, 11):
        paths[i].write_bytes(b"bad")
    for _ in range(3):
        with pytest.raises(InputError, match=r"5\.png"):
            load_images(paths, size=14)


def test_a_closed_pil_image_is_an_error(tmp_path):
    image = Image.open(save(tmp_path / "x.png", picture(30, 40)))
    image.close()
    with pytest.raises(InputError, match=r"image 0 .*x\.png"):
        load_images([image])


def test_too_many_pixels_is_an_error(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", np.zeros((300, 300, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"big\.png: too many pixels"):
        load_images(path)


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_extremely_narrow_images_are_an_error(mode):
    with pytest.raises(InputError, match="1000x10 pixels"):
        load_images([picture(10, 1000)], size=84, mode=mode)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 100}, "size=100 must be a positive multiple of 14; use 98 or 112"),
        ({"size": (98, 100)}, r"size=\(98, 100\) must be .*use 98 or 112"),
        ({"size": 0}, "use 14"),
        ({"size": -28}, "use 14"),
        ({"size": 98.0}, "an int or a pair"),
        ({"size": (14, 28, 42)}, "an int or a pair"),
        ({"size": "518"}, "an int or a pair"),
        ({"mode": "stretch"}, "mode='stretch' is unknown"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"size": 98, "patch_size": 16}, "multiple of 16; use 96 or 112"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(InputError, match=message):
        load_images(KITCHEN, **arguments)


@pytest.mark.parametrize("images", [[], (), [3], 3, None, b"x.jpg", {"a": 1}, [None]])
def test_things_that_are_no_images(images):
    with pytest.raises(InputError, match=r"no images were given|not understood"):
        load_images(images)


# Arrays


def test_a_batch_of_whole_patches_passes_untouched():
    batch = np.stack([picture(28, 42, seed) for seed in range(3)])
    frames = load_images(batch)
    assert frames.images is batch
    assert frames.names == ("0000", "0001", "0002")
    assert frames.transforms == (FrameTransform.identity((28, 42)),) * 3
    assert frames.valid_mask().shape == (3, 28, 42) and frames.valid_mask().all()
    np.testing.assert_array_equal(load_images(batch, size=(28, 42)).images, batch)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_batch_of_floats_becomes_float32(dtype):
    batch = np.random.default_rng(0).uniform(0, 1, (2, 28, 42, 3)).astype(dtype)
    frames = load_images(batch)
    assert frames.images.dtype == np.float32
    np.testing.assert_array_equal(frames.images, batch.astype(np.float32))


def with_value(value):
    batch = np.full((2, 28, 42, 3), 0.5, np.float32)
    batch[1, 5, 7, 2] = value
    return batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (with_value(1.5), r"values from 0\.5 to 1\.5"),
        (with_value(-0.1), r"values from -0\.1"),
        (with_value(np.nan), "without NaN"),
        (with_value(np.inf), "to inf"),
        (np.zeros((2, 28, 42, 3), np.int64), "dtype int64"),
        (np.zeros((2, 28, 42, 3), bool), "dtype bool"),
        (np.zeros((28, 42, 3), np.uint8), "a layout is never guessed"),
        (np.zeros((1, 2, 28, 42, 3), np.uint8), "a layout is never guessed"),
        (np.zeros((2, 3, 28, 42), np.uint8), r"shape \(2, 3, 28, 42\).*channels last"),
        (np.zeros((2, 28, 42, 4), np.uint8), "channels last"),
        (np.zeros((0, 28, 42, 3), np.uint8), r"shape \(0, 28, 42, 3\)"),
        (np.zeros((2, 30, 45, 3), np.uint8), "nearest: 28 or 42 high or 42 or 56 wide"),
        (np.zeros((2, 28, 45, 3), np.uint8), "28x45.*nearest: 42 or 56 wide; or pass list"),
    ],
)
def test_unusable_batches(batch, message):
    with pytest.raises(InputError, match=message):
        load_images(batch)


@pytest.mark.parametrize("arguments", [{"mode": "crop"}, {"size": 98}, {"size": (42, 28)}])
def test_a_batch_is_not_resized_in_silence(arguments):
    with pytest.raises(InputError, match=r"pass list\(images\)"):
        load_images(np.zeros((2, 28, 42, 3), np.uint8), **arguments)


def test_lists_of_arrays_pil_images_and_files_are_treated_alike(tmp_path):
    array = picture(60, 90)
    path = save(tmp_path / "x.png", array)
    frames = load_images([path, array, Image.fromarray(array), array / 255.0], size=84)
    assert frames.names == ("x.png", "0001", "0002", "0003")
    for i in range(1, 4):
        np.testing.assert_array_equal(frames.images[i], frames.images[0])
    np.testing.assert_array_equal(
        load_images(Image.fromarray(array), size=84).images[0], frames.images[0]
    )
    np.testing.assert_array_equal(load_images(iter([path]), size=84).images[0], frames.images[0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((28, 42), np.uint8), "image 1 .* has shape"),
        (np.zeros((3, 28, 42), np.uint8), "never guessed"),
        (np.zeros((28, 42, 3), np.uint16), "dtype uint16"),
        (np.full((28, 42, 3), 255.0), "divide by 255"),
    ],
)
def test_unusable_arrays_in_a_list(array, message):
    with pytest.raises(InputError, match=message):
        load_images([np.zeros((28, 42, 3), np.uint8), array], size=42)


# Between original and model pixels


@pytest.mark.parametrize(
    ("original", "size", "mode"),
    [
        ((257, 391), 140, "crop"),
        ((523, 311), 140, "crop"),
        ((523, 311), 140, "pad"),
        ((257, 391), (98, 196), "pad"),
    ],
)
def test_pixels_and_intrinsics_come_back(original, size, mode):
    transform = load_images([picture(*original)], size=size, mode=mode).transforms[0]
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-50, 600, (2, 5, 2))
    model_pixels = transform.pixels_to_model(pixels)
    np.testing.assert_allclose(transform.pixels_to_original(model_pixels), pixels, atol=1e-9)
    intrinsics = np.triu(rng.uniform(50, 500, (3, 3, 3)))
    intrinsics[:, 2] = [0, 0, 1]
    model_intrinsics = transform.intrinsics_to_model(intrinsics)
    np.testing.assert_allclose(
        transform.intrinsics_to_original(model_intrinsics), intrinsics, atol=1e-9
    )
    # Both ways agree: a camera point projects to corresponding places, half pixels accounted for.
    points = rng.uniform(0.5, 2, (3, 7, 3))

    def project(matrix):
        homogeneous = np.einsum("nij,nmj->nmi", matrix, points)
        return homogeneous[..., :2] / homogeneous[..., 2:]

    indices = project(intrinsics) - 0.5  # Continuous coordinates to indices.
    np.testing.assert_allclose(
        transform.pixels_to_model(indices), project(model_intrinsics) - 0.5, atol=1e-9
    )


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_transform_follows_the_pixels(mode):
    """Red and green of a ramp tell where in the original a model pixel comes from."""
    height, width = 600, 400
    frames = load_images([smooth(height, width)], size=224, mode=mode)
    transform, valid = frames.transforms[0], frames.valid_mask()[0]
    rows, columns = np.nonzero(valid)
    inner = (
        (rows > rows.min() + 3) & (rows < rows.max() - 3)
        & (columns > columns.min() + 3) & (columns < columns.max() - 3)
    )  # Bicubic bends the ramp at the borders.  # fmt: skip
    rows, columns = rows[inner], columns[inner]
    x, y = transform.pixels_to_original(np.stack([columns, rows], -1)).T
    red, green, _ = frames.images[0, rows, columns].T.astype(float)
    # One level of the ramp is 1.6 pixels of 400 and 2.4 of 600; the ramp is rounded twice.
    assert np.abs(red / 255 * (width - 1) - x).max() < 1.6
    assert np.abs(green / 255 * (height - 1) - y).max() < 2.4
    # Without the half pixels, or with the offset off by one, the mean would be off by 0.5 and more.
    assert abs(np.mean(red / 255 * (width - 1) - x)) < 0.1
    assert abs(np.mean(green / 255 * (height - 1) - y)) < 0.1


def test_half_pixels_by_hand():
    """Twice the size, 28 rows cut above: original pixel 3 covers model pixels 6 and 7."""
    transform = FrameTransform(
        original_size=(70, 14), model_size=(84, 28), scale_x=2.0, scale_y=2.0, offset_x=0.0,
        offset_y=-28.0, content_rows=(0, 84), content_columns=(0, 28),
    )  # fmt: skip
    np.testing.assert_array_equal(transform.pixels_to_model([3, 20]), [6.5, 12.5])
    np.testing.assert_array_equal(transform.pixels_to_original([6.5, 12.5]), [3, 20])
    model = np.array([[50.0, 0, 14], [0, 60, 42], [0, 0, 1]])
    original = transform.intrinsics_to_original(model)
    # The middle stays the middle: (14 / 2, 70 / 2).
    np.testing.assert_array_equal(original, [[25, 0, 7], [0, 30, 35], [0, 0, 1]])
    model[0, 0] = np.inf
    np.testing.assert_array_equal(transform.intrinsics_to_original(model)[0], [np.inf, 0, 7])
    np.testing.assert_array_equal(transform.intrinsics_to_model(model)[0], [np.inf, 0, 28])


# The pixel budget of π³


def test_frames_within_the_budget_are_the_official_ones():
    with np.load(GOLDEN / "preprocess.npz") as file:
        every_fifth = file["pi3_kitchen_interval12"]
        shape = file["pi3_kitchen_interval12.shape"]
    paths = [GOLDEN / f"images/kitchen/{i}.jpg" for i in ("00", "12", "24")]
    frames = load_images(paths, mode="budget")
    assert frames.images.dtype == np.uint8
    assert frames.images.transpose(0, 3, 1, 2).shape == tuple(shape)
    found = frames.images[:, ::5, ::5].transpose(0, 3, 1, 2).astype(int)
    assert np.abs(found - every_fifth).max() <= 1
    assert (found != every_fifth).mean() < 1e-3
    assert frames.valid_mask().all()


@pytest.mark.parametrize(
    ("original", "size", "expected"),
    [
        # By hand from the official rule: sides scaled to the budget and rounded to patches, then
        # patches taken away until they fit.
        ((480, 640), None, (434, 574)),  # 437.3 x 583.1: 31 x 42 patches are 255192, one too many
        ((640, 480), None, (574, 434)),
        ((700, 700), None, (504, 504)),
        ((300, 500), 70, (56, 84)),  # 54.2 x 90.4: 4 x 6 patches are 4704
        ((10, 10), 14, (14, 14)),
    ],
)
def test_sizes_within_the_budget(original, size, expected):
    frames = load_images([picture(*original)], mode="budget", size=size)
    assert frames.images.shape[1:3] == expected


def test_a_budget_stretches_everything_to_the_shape_of_the_first(tmp_path):
    images = [smooth(120, 200), smooth(150, 100)]
    with pytest.raises(InputError, match="2 different shapes.*mode='budget' to stretch"):
        load_images(images, default_mode="budget", size=140)
    frames = load_images(images, mode="budget", size=140)
    height, width = frames.images.shape[1:3]
    assert height * width <= 140**2 and height % 14 == width % 14 == 0
    for image, transform in zip(images, frames.transforms, strict=True):
        corners = [[-0.5, -0.5], [image.shape[1] - 0.5, image.shape[0] - 0.5], [10.0, 20.0]]
        there = transform.pixels_to_model(corners)
        np.testing.assert_allclose(there[:2], [[-0.5, -0.5], [width - 0.5, height - 0.5]])
        np.testing.assert_allclose(transform.pixels_to_original(there), corners)
    # What a pixel shows is where the transform says it comes from.
    for frame, image, transform in zip(frames.images, images, frames.transforms, strict=True):
        x, y = np.round(transform.pixels_to_original([40.0, 30.0])).astype(int)
        np.testing.assert_allclose(frame[30, 40].astype(int), image[y, x].astype(int), atol=4)


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        # 16 x 16 patches of 14 at most: 18.5 x 13.9 are 18 x 14, 19.6 x 13.1 would be 20 x 13.
        ((480, 640), (196, 252)),
        ((640, 480), (252, 196)),
        ((427, 640), (182, 266)),
        ((500, 500), (224, 224)),
    ],
)
def test_an_area_cuts_what_is_beyond_whole_patches(original, expected):
    image = smooth(*original)
    frames = load_images([image], default_mode="area", size=224)
    assert frames.images.shape[1:3] == expected
    (transform,) = frames.transforms
    # Nothing is stretched, but for the rounding of the size before it is cut, and both sides alike.
    assert transform.scale_x == pytest.approx(transform.scale_y, rel=1 / min(expected))
    middle = transform.pixels_to_model([(original[1] - 1) / 2, (original[0] - 1) / 2])
    np.testing.assert_allclose(middle, [(expected[1] - 1) / 2, (expected[0] - 1) / 2], atol=0.5)
    for x, y in ((40.0, 30.0), (100.0, 120.0)):
        column, row = np.round(transform.pixels_to_original([x, y])).astype(int)
        shown = frames.images[0, int(y), int(x)].astype(int)
        np.testing.assert_allclose(shown, image[row, column].astype(int), atol=4)


def test_an_area_has_the_mean_shape_of_images_that_differ():
    images = [picture(300, 400), picture(300, 600)]  # 4:3 and 2:1, so 5:3
    with pytest.raises(InputError, match="2 different shapes.*'area' or 'longest' to cut"):
        load_images(images, default_mode="area", size=140)
    frames = load_images(images, mode="area", size=140)
    assert frames.images.shape == (2, 98, 182, 3)  # 12.9 x 7.7 patches, 13 x 8 would be 104
    assert frames.valid_mask().all()


def test_other_modes_can_be_had_where_the_budget_is_the_default():
    images = [picture(120, 200), picture(150, 100)]
    cropped = load_images(images, mode="crop", default_mode="budget", size=140)
    np.testing.assert_array_equal(cropped.images, load_images(images, mode="crop", size=140).images)
    same = [picture(120, 200), picture(121, 200)]  # the same number of patches
    stretched = load_images(same, default_mode="budget", size=140)
    np.testing.assert_array_equal(
        stretched.images, load_images(same, mode="budget", size=140).images
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (140, 140)}, "must be an int with mode 'budget'"),
        ({"size": (140, 140), "mode": "area"}, "must be an int with mode 'area'"),
        ({"size": 13}, "size=13 must be at least a patch"),
        ({"size": 140, "mode": "stretch"}, "mode='stretch' is unknown"),
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
    ],
)
def test_budgets_that_cannot_be_are_named(options, message):
    with pytest.raises(InputError, match=message):
        load_images([picture(50, 60)], **({"mode": "budget"} | options))


def test_an_image_too_flat_for_a_budget_is_named():
    with pytest.raises(InputError, match="so narrow"):
        load_images([picture(1, 40000)], mode="budget")
