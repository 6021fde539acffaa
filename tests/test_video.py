"""Videos: which frames are chosen, that they are right and upright, and what is refused."""

import os
import struct

import av
import numpy as np
import pytest
from PIL import Image

from vggt_jax import InputError, InputWarning
from vggt_jax.images import video
from vggt_jax.images.loading import load_images
from vggt_jax.pipeline.inputs import read_frames
from vggt_jax.pipeline.options import Options

HEIGHT, WIDTH, RATE = 70, 112, 12


def picture(i, *, sharp=True):
    """A flat picture whose grey tells its index, with stripes unless it is blurred."""
    pixels = np.full((HEIGHT, WIDTH, 3), 40 + 4 * i, np.uint8)
    if sharp:
        pixels[20:50, ::4] = 255
    return pixels


def index_of(image):
    """Which `picture` an image shows, by the grey of its corner."""
    return round((float(np.asarray(image)[:8, :8].mean()) - 40) / 4)


def write_video(path, pictures, *, rate=RATE, codec="mpeg4", pix_fmt="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = pix_fmt, 4_000_000
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four seconds; only frames 7, 16, 31 and 42 are sharp."""
    pictures = [picture(i, sharp=i in (7, 16, 31, 42)) for i in range(48)]
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", pictures)


def test_the_sharpest_frame_of_each_part_is_taken(clip):
    # A second has 12 frames; candidates are those within a quarter of a second of its middle.
    chosen = video.choose_frames(clip)
    assert chosen.indices == (7, 16, 31, 42)
    assert chosen.names[0] == "clip_000007"
    np.testing.assert_allclose(chosen.times, np.array(chosen.indices) / RATE, atol=1e-3)
    assert video.choose_frames(clip, frames=4).indices == (7, 16, 31, 42)
    assert [index_of(image) for image in chosen.images()] == [7, 16, 31, 42]


def test_frames_are_spread_evenly(clip):
    assert video.choose_frames(clip, fps=3, sharpest=False).indices == tuple(range(2, 48, 4))
    assert video.choose_frames(clip, frames=48).indices == tuple(range(48))
    for fps in (12, 30):
        assert video.choose_frames(clip, fps=fps).indices == tuple(range(48))
    chosen = np.array(video.choose_frames(clip, frames=7).indices)
    assert len(chosen) == 7 and (np.abs(chosen - (np.arange(7) + 0.5) * 48 / 7) < 48 / 28 + 1).all()


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "clip.mov"])
def test_other_containers(tmp_path, name):
    path = write_video(tmp_path / name, [picture(i) for i in range(31)], rate=30)
    assert video.choose_frames(path, fps=30).indices == tuple(range(31))
    assert len(video.choose_frames(path, fps=10, sharpest=False).indices) == 11


def test_sharpness_falls_with_blur():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (41, 53), np.uint8))
    blurred = np.asarray(noise.resize((13, 11)).resize((53, 41)))
    assert video.laplacian_variance(np.asarray(noise)) > 50 * video.laplacian_variance(blurred)
    ramp = np.tile(np.arange(53, dtype=np.uint8), (41, 1))
    assert video.laplacian_variance(ramp) == 0 == video.laplacian_variance(ramp[:2])


def test_a_video_is_images(clip, tiny):
    frames = load_images(clip, fps=1, size=112)
    assert frames.names == ("clip_000007", "clip_000016", "clip_000031", "clip_000042")
    assert [index_of(image) for image in frames.images] == [7, 16, 31, 42]
    assert frames.transforms[0].original_size == (HEIGHT, WIDTH)
    as_images = load_images(list(video.choose_frames(clip).images()), size=112)
    np.testing.assert_array_equal(frames.images, as_images.images)
    assert load_images([str(clip)], frames=3, mode="budget").images.shape[0] == 3
    frames = read_frames(clip, tiny(), Options(frames=2, size=56))
    assert frames.names == video.choose_frames(clip, frames=2).names
    assert frames.images.shape == (2, 28, 56, 3)


def turned(path, degrees):
    """A copy of an MP4 whose header asks players to turn it clockwise by so much."""
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    # The matrix of the track header: version and flags, times, duration and more take 40 bytes.
    at = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, at) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    matrix = (a * 65536, b * 65536, 0, -b * 65536, a * 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, *matrix)
    path = path.with_name(f"turned_{degrees}.mp4")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_honoured(tmp_path, degrees):
    pixels = picture(3, sharp=False)
    pixels[:20, :30] = (0, 200, 0)  # A green corner, top left.
    path = turned(write_video(tmp_path / "clip.mp4", [pixels] * 4), degrees)
    (image,) = video.choose_frames(path, frames=1).images()
    array = np.asarray(image)
    # np.rot90 turns counterclockwise.
    assert array.shape == np.rot90(pixels, -degrees // 90).shape
    difference = np.abs(array.astype(int) - np.rot90(pixels, -degrees // 90))
    assert difference.mean() < 8


def test_bad_videos(tmp_path, clip):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    audio = tmp_path / "audio.mov"
    with av.open(str(audio), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    truncated = tmp_path / "truncated.mp4"
    truncated.write_bytes(clip.read_bytes()[:-3000])
    for path, options, what in [
        (text, {}, "cannot be read as a video"),
        (audio, {}, "holds no video"),
        (truncated, {}, "cannot be read as a video"),
        (tmp_path / "missing.mp4", {}, "no such file"),
        (clip, {"frames": 49}, "has 48 frames, fewer than frames=49"),
        (clip, {"frames": 0}, "at least 1"),
        (clip, {"fps": 0}, "above 0"),
        (clip, {"fps": float("nan")}, "above 0"),
        (clip, {"fps": 1, "frames": 2}, "one of them"),
        ([clip, clip], {}, "give the video alone"),
        ([clip, clip], {"fps": 1}, "give one file"),
        (tmp_path, {"frames": 2}, "give one file"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            load_images(path, **options)
        assert "\n" not in str(caught.value)


def test_a_stream_without_times_has_frames(tmp_path):
    path = write_video(tmp_path / "raw.h264", [picture(i) for i in range(6)], codec="h264")
    assert len(video.choose_frames(path, frames=3).indices) == 3
    with pytest.raises(InputError, match="no times; take a number of them with --frames"):
        video.choose_frames(path, fps=2)


def test_a_damaged_middle_ends_with_an_error(tmp_path, clip, monkeypatch):
    def decode(path):
        yield from ()
        raise InputError("damaged")

    chosen = video.choose_frames(clip)
    monkeypatch.setattr(video, "_decode", decode)
    with pytest.raises(InputError, match="damaged"):
        load_images(chosen)


def test_without_pyav_the_way_out_is_named(clip, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'vggt-jax\[video\]'"):
        load_images(clip)


def damaged(path, begin, end):
    """A copy of a file of which the part between these shares is zero."""
    data = bytearray(path.read_bytes())
    begin, end = int(begin * len(data)), int(end * len(data))
    data[begin:end] = bytes(end - begin)
    path = path.with_name(f"damaged_{begin}{path.suffix}")
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A second of 12 frames, each by itself; its index stands at the end."""
    path = tmp_path_factory.mktemp("video") / "streamed.mp4"
    return write_video(path, [picture(i) for i in range(12)], codec="mjpeg", pix_fmt="yuvj420p")


@pytest.mark.parametrize(("begin", "end"), [(0.6, 0.9), (0.4, 0.6)])
def test_what_is_left_of_a_damaged_video_is_used_and_said(streamed, begin, end):
    path = damaged(streamed, begin, end)
    with pytest.warns(
        InputWarning, match=r"is damaged or cut .* of its frames, to .* s, can be decoded"
    ):
        chosen = video.choose_frames(path, fps=12)
    assert 4 <= len(chosen.indices) < 12
    # Read again, the frames are those that were chosen.
    shown = [index_of(image) for image in chosen.images()]
    assert shown[:4] == [0, 1, 2, 3] and shown == sorted(shown) and len(shown) == len(set(shown))


def test_a_cut_video_of_many_kinds(clip):
    """Cut where its index still stands: at the end, as an interrupted copy leaves it."""
    path = clip.with_name("whole.mkv")
    write_video(path, [picture(i) for i in range(48)])
    cut = clip.with_name("cut.mkv")
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(InputWarning, match=r"cut .*it says that it has 4.0 s.*; \d+ of its frames"):
        chosen = video.choose_frames(cut, fps=12)  # Matroska needs no index to be read.
    assert 10 < len(chosen.indices) < 40
    assert [index_of(image) for image in chosen.images()][:5] == [0, 1, 2, 3, 4]


def test_cover_art_is_not_the_video(tmp_path):
    from av.stream import Disposition

    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 320, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        white = av.VideoFrame.from_ndarray(np.full((320, 320, 3), 255, np.uint8), format="rgb24")
        container.mux(cover.encode(white))
        container.mux(cover.encode())
        for i in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        has_cover = any(one.disposition & Disposition.attached_pic for one in container.streams)
    chosen = video.choose_frames(path, frames=6 if has_cover else 1)
    assert [index_of(image) for image in chosen.images()] == list(range(6))
    assert has_cover


def test_titles_in_another_encoding(tmp_path):
    path = tmp_path / "titled.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "titletitle"
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"titletitle" in data
    path.write_bytes(data.replace(b"titletitle", b"caf\xe9\xe2\xff ok!"))
    assert len(video.choose_frames(path, frames=4).indices) == 4


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(InputError, match="is a pipe or a device"):
        load_images(tmp_path / "clip.mp4")
