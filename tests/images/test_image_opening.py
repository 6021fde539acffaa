"""Formats, pages, large and hostile files, and what is known of pixels: transparency and range."""

import contextlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from vggt_jax import InputError, InputWarning
from vggt_jax.images.decoding import read_file
from vggt_jax.images.loading import load_images
from vggt_jax.images.opening import opened
from vggt_jax.pipeline.inputs import of_frames
from vggt_jax.pipeline.options import Options

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def picture(i=0, size=(56, 42)):
    """Smooth colours between 30 and 225, so that JPEG keeps them and none is white."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    colors = np.stack([x, y, (x + y + i / 3) / 3], axis=-1)
    return Image.fromarray((30 + 195 * colors).astype(np.uint8))


def frame(path, **options):
    """The only frame of a file, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        frames = load_images([path], size=(42, 56), mode="pad", **options)
    said = [str(one.message) for one in caught if one.category is InputWarning]
    return frames, "\n".join(said)


LOSSLESS = "bmp dds gif jp2 pcx png ppm psd.png qoi sgi tga tif webp".split()


@pytest.mark.parametrize("ending", [*LOSSLESS, "jfif", "jpe", "avif"])
def test_formats(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    image = picture()
    options = {"lossless": True} if ending == "webp" else {}
    if ending in ("jfif", "jpe"):
        options = {"format": "JPEG", "quality": 95}
    if ending == "gif":
        image = image.quantize(64)
    image.save(path, **options)
    frames, said = frame(path)
    # JPEG and AVIF at these qualities are off by a few levels, a palette of 64 colours by some.
    tolerance = {"jfif": 4, "jpe": 4, "avif": 8, "gif": 12}.get(ending, 0)
    difference = np.abs(frames.images[0].astype(int) - np.asarray(picture()))
    assert difference.mean() <= tolerance and said == ""


def test_lab_and_its_colours(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(picture(), srgb, lab, outputMode="LAB").save(tmp_path / "a.tif")
    found = frame(tmp_path / "a.tif")[0].images[0].astype(int)
    # 8 bits in another space, and dark red and blue beyond what it holds.
    assert np.abs(found - np.asarray(picture())).mean() < 3


# Files that are something else


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.jpg", b"\0\0\0\x18ftypisom\0\0\0\0" + bytes(99), "is a video, whatever its name"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is PostScript"),
        ("a.jpg", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(99), "RAW file"),
        ("a.NEF", b"II*\0\x08\0\0\0" + bytes(20), "RAW file"),
        ("a.exr.png", b"\x76\x2f\x31\x01" + bytes(99), "is OpenEXR"),
        ("a.jpg", b"", "not an image in a format"),
    ],
)
def test_what_a_file_really_is(tmp_path, name, data, what):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=what):
        load_images([tmp_path / name])


def test_heic_without_the_extra_names_it(tmp_path, monkeypatch):
    from vggt_jax.images import kinds, opening

    for module in (kinds, opening):
        monkeypatch.setattr(module, "has_heif", lambda: False)
    for name in ("a.heic", "a.jpg"):
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(InputError, match=r"HEIC picture; pip install 'vggt-jax\[heif\]'"):
            load_images([tmp_path / name])


def test_heic_with_the_extra(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(picture())
    heif.save(tmp_path / "a.heic", quality=100)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.heic").read_bytes())
    for name in ("a.heic", "b.jpg"):
        found = frame(tmp_path / name)[0].images[0].astype(int)
        assert np.abs(found - np.asarray(picture())).mean() < 5


# Several pictures in a file


@pytest.mark.parametrize("ending", ["tif", "gif", "png", "webp", "mpo", "avif"])
def test_the_first_of_several_pictures_is_taken_and_said(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    pictures = [picture(i) for i in (0, 2)]
    if ending == "gif":
        pictures = [image.quantize(64) for image in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    frames, said = frame(path)
    assert (
        said
        == "1 image (a." + ending + ") of several pictures or pages: the first of each is taken"
    )
    near = [np.abs(frames.images[0].astype(int) - np.asarray(picture(i))).mean() for i in (0, 2)]
    assert near[0] < 12 < near[1]


def tiff(path, *pages):
    """A TIFF of (image, NewSubfileType) pages."""
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as file:
        for image, kind in pages:
            image.encoderinfo = {}
            image.save(file, format="TIFF", tiffinfo={254: kind})
            file.newFrame()
    return path


def test_previews_and_masks_are_no_photographs(tmp_path):
    small, mask = picture(2, size=(28, 21)), Image.new("L", (56, 42))
    first = tiff(tmp_path / "first.tif", (small, 1), (picture(), 0))
    last = tiff(tmp_path / "last.tif", (picture(), 0), (small, 1), (mask, 4))
    for path in (first, last):
        frames, said = frame(path)
        assert frames.transforms[0].original_size == (42, 56) and said == ""
        np.testing.assert_array_equal(frames.images[0], picture())
    alone = tiff(tmp_path / "alone.tif", (small, 1))
    with pytest.raises(InputError, match="holds only a reduced picture of another"):
        load_images([alone])
    small.save(tmp_path / "dng.tif", tiffinfo={50706: b"\1\4\0\0"})
    with pytest.raises(InputError, match="RAW file"):
        load_images([tmp_path / "dng.tif"])


def test_a_map_behind_a_photograph_is_none(tmp_path):
    path = tmp_path / "hdr.jpg"
    picture().save(path, format="MPO", save_all=True, append_images=[picture(2, size=(28, 21))])
    assert frame(path)[1] == ""


# Large and hostile files


@pytest.fixture
def small_limit(monkeypatch):
    """Huge is what has more than a thousand pixels; what is left has some hundred."""
    from vggt_jax.images import opening

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(opening, "_ENOUGH_PIXELS", 2000.0)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_huge_photograph_is_decoded_small(tmp_path, small_limit, ending, orientation):
    # Sides that no factor divides.
    image, path = picture(size=(179, 133)), tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Nobody talks of bombs.
        read = read_file(path)
        frames = load_images([path], size=(42, 56), mode="pad")
    size = (133, 179) if orientation == 1 else (179, 133)
    assert read.size == size == frames.transforms[0].original_size
    assert read.image.width * read.image.height < 133 * 179 / 3
    Image.MAX_IMAGE_PIXELS = 10**8
    whole = load_images([path], size=(42, 56), mode="pad")
    assert whole.transforms == frames.transforms
    valid = whole.valid_mask()
    difference = np.abs(frames.images.astype(int) - whole.images)[valid]
    # A pixel of 1/42 is a step of 5 levels: a shift by half of one would show.
    assert difference.mean() < 1.5


def png(width, height):
    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (170_000_000, 1), (20_000, 9_000)]
)
def test_a_small_file_claims_many_pixels(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(*size))
    with pytest.raises(InputError, match=f"a.png: too many pixels .{size[0]}x{size[1]}"):
        load_images([tmp_path / "a.png"])


def test_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "/dev/zero"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            load_images([path])
    with pytest.raises(InputError, match="is a pipe or a device"):
        load_images(tmp_path / "a.png", frames=3)


def test_damage_of_any_kind_is_one_line(tmp_path):
    """Bytes of many formats, changed at random: read or refused, never another error."""
    rng = np.random.default_rng(0)
    for ending in ("jpg", "png", "tif", "webp", "gif", "bmp", "tga", "qoi", "sgi", "pcx", "dds"):
        whole = io.BytesIO()
        picture().save(whole, format={"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()))
        for _ in range(12):
            data = np.frombuffer(whole.getvalue(), np.uint8).copy()
            data[rng.integers(0, min(len(data), 400), 8)] = rng.integers(0, 256, 8)
            (tmp_path / f"a.{ending}").write_bytes(data.tobytes())
            with contextlib.suppress(InputError), opened(tmp_path / f"a.{ending}") as (image, _):
                image.load()


# Transparency


def cut_out(mode):
    """Red; its left half is transparent, and white where it lies on white."""
    alpha = np.full((42, 56), 255, np.uint8)
    alpha[:, :28] = 0
    image = Image.new("RGB", (56, 42), (200, 0, 0))
    image.putalpha(Image.fromarray(alpha))
    if mode == "LA":
        return image.convert("LA")
    if mode == "P":
        return image.quantize(16)
    return image


@pytest.mark.parametrize(
    ("ending", "mode"),
    [("png", "RGBA"), ("png", "LA"), ("webp", "RGBA"), ("tif", "RGBA"), ("avif", "RGBA"),
     ("jp2", "RGBA"), ("tga", "RGBA"), ("png", "P")],
)  # fmt: skip
def test_transparency_is_a_mask(tmp_path, ending, mode):
    path = tmp_path / f"a.{ending}"
    cut_out(mode).save(path)
    frames, said = frame(path)
    expected = np.ones((42, 56), bool)
    expected[:, :28] = False
    np.testing.assert_array_equal(frames.opaque[0], expected)
    assert (frames.images[0][:, :27] >= 250).all()
    assert said == f"1 image (a.{ending}) with transparent pixels, which are left out as by a mask"
    # What is reconstructed has the mask, together with others.
    np.testing.assert_array_equal(of_frames(frames, Options()).mask, [expected])
    upper = np.zeros((42, 56), bool)
    upper[:21] = True
    both = of_frames(frames, Options(masks=[upper])).mask
    np.testing.assert_array_equal(both, [expected & upper])


def test_transparency_follows_its_photograph(tmp_path):
    """Through padding to one shape, and at pixels that are half transparent."""
    cut_out("RGBA").save(tmp_path / "0.png")
    picture(size=(42, 56)).save(tmp_path / "1.png")
    faint = Image.new("RGBA", (56, 42), (200, 0, 0, 127))
    faint.save(tmp_path / "2.png")
    with pytest.warns(InputWarning, match=r"2 images \(0.png, 2.png\) with transparent pixels"):
        frames = load_images(tmp_path, size=56, mode="crop")
    assert frames.opaque.shape == (3, 56, 56)
    rows = slice(*frames.transforms[0].content_rows)
    assert rows == slice(7, 49)
    assert not frames.opaque[0, rows, :28].any() and frames.opaque[0, rows, 28:].all()
    assert frames.opaque[1].all() and not frames.opaque[2, rows].any()
    assert (of_frames(frames, Options()).mask == (frames.opaque & frames.valid_mask())).all()


def test_opaque_alpha_is_nothing(tmp_path):
    picture().convert("RGBA").save(tmp_path / "a.png")
    frames, said = frame(tmp_path / "a.png")
    assert frames.opaque is None and said == "" and of_frames(frames, Options()).mask is None
    Image.new("RGBA", (56, 42)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="transparency leave no pixel"):
        of_frames(frame(tmp_path / "b.png")[0], Options())


# The range of values


def thermal(path, low, high, dtype=np.uint16):
    values = np.linspace(low, high, 56 * 42).reshape(42, 56).astype(dtype)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (21000, 24000), (0, 16383), (7, 7)])
def test_a_sliver_of_the_range_is_said(tmp_path, low, high):
    for ending in ("png", "tif"):
        _, said = frame(thermal(tmp_path / f"a.{ending}", low, high))
        assert "1 image" in said and "use a quarter of their range or less" in said
        assert "stretch=True" in said


def test_the_whole_range_is_not(tmp_path):
    assert frame(thermal(tmp_path / "a.png", 0, 65535))[1] == ""


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 4095, np.uint16), (21000, 24000, np.uint16), (-5, 80000, np.int32), (280.5, 310.25, np.float32)],
)  # fmt: skip
def test_stretched(tmp_path, low, high, dtype):
    thermal(tmp_path / "0.tif", low, (low + high) / 2, dtype)
    thermal(tmp_path / "1.tif", (low + high) / 2, high, dtype)
    frames = load_images(tmp_path, size=(42, 56), mode="pad", stretch=True)
    grey = frames.images[..., 0].astype(int)
    # One range for both: the first ends where the second begins.
    expected = np.linspace(0, 127.5, 56 * 42).reshape(42, 56)
    assert np.abs(grey[0] - expected).max() <= 2 and np.abs(grey[1] - 127.5 - expected).max() <= 2
    assert (frames.images == frames.images[..., :1]).all()


def test_a_dead_pixel_does_not_take_the_range(tmp_path):
    values = np.full((42, 56), 1000, np.uint16)
    values[:, 28:] = 3000
    values[0, 0] = 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    frames, said = frame(tmp_path / "a.png", stretch=True)
    assert {*np.unique(frames.images)} == {0, 255} and said == ""
    assert "quarter of their range" in frame(tmp_path / "a.png")[1]


def test_floats_that_are_not_finite_are_no_pixels(tmp_path):
    values = np.linspace(280, 300, 56 * 42).reshape(42, 56).astype(np.float32)
    values[:21] = np.nan
    values[30, 30:] = np.inf
    Image.fromarray(values).save(tmp_path / "0.tif")
    frames, said = frame(tmp_path / "0.tif", stretch=True)
    assert "1 image (0.tif) with transparent pixels" in said
    np.testing.assert_array_equal(frames.opaque[0], np.isfinite(values))
    assert (frames.images[0][~np.isfinite(values)] == 255).all()
    assert np.ptp(frames.images[0][np.isfinite(values)].astype(int)) > 250
    Image.fromarray(np.full((42, 56), np.nan, np.float32)).save(tmp_path / "1.tif")
    with pytest.raises(InputError, match="1.tif: no pixel has a finite value"):
        load_images(tmp_path, size=56, mode="pad", stretch=True)


def test_what_cannot_be_stretched(tmp_path):
    with pytest.raises(InputError, match="one array is passed as it is"):
        load_images(np.zeros((1, 14, 14, 3), np.uint8), stretch=True)
    with pytest.raises(InputError, match="or stretch=True"):
        load_images([thermal(tmp_path / "a.tif", 0, 1, np.float32)])
    dark = (np.asarray(picture()) // 4).astype(np.uint8)
    bright = load_images([dark], size=(42, 56), mode="pad", stretch=True).images[0]
    assert bright.max() == 255 and bright.min() == 0
