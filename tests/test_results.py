"""vggt_jax.scene.results: what was written comes back, also by earlier versions; the rest is refused."""

import dataclasses
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import InputError, Reconstruction
from vggt_jax.export import write_predictions
from vggt_jax.images.loading import load_images
from vggt_jax.scene import npz
from vggt_jax.scene.results import SCHEMA_VERSION, made_from, write_reconstruction
from vggt_jax.scene.table import TABLE
from vggt_jax.trunk.attention.block_sparse import AttentionStats

SIZES = [(61, 83), (97, 53), (47, 47)]  # (height, width): landscape, portrait and square


def scene(folder, *, mode, **fields):
    """A reconstruction as `infer` returns it, with random numbers."""
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate(SIZES):
        paths.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
    frames = load_images(paths, mode=mode, size=56)
    shape = frames.images.shape[:3]
    return Reconstruction(
        images=frames.images,
        camera_from_world=rng.normal(size=(3, 3, 4)).astype(np.float32),
        intrinsics=rng.normal(size=(3, 3, 3)).astype(np.float32),
        depth=rng.random(shape, np.float32),
        depth_confidence=rng.random(shape, np.float32),
        names=frames.names,
        transforms=frames.transforms,
        **fields,
    )


def assert_same(found, expected):
    for field in dataclasses.fields(Reconstruction):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        if field.metadata.get("static") or wanted is None:
            assert value == wanted, field.name
        else:
            jax.tree.map(np.testing.assert_array_equal, value, wanted)
            jax.tree.map(lambda x, y: np.testing.assert_equal(x.dtype, y.dtype), value, wanted)


def contents(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def everything(folder, mode):
    """A scene with a value in every field."""
    rng = np.random.default_rng(1)
    names = ("density", "covered", "saved", "entropy", "error")
    stats = AttentionStats(**{name: rng.random((4, 2), np.float32) for name in names})
    tracks = rng.normal(size=(3, 5, 2)).astype(np.float32)
    recon = scene(
        folder,
        mode=mode,
        confidence_kind="sigmoid",
        pixel_centre=0.5,
        tracks=tracks,
        track_visibility=rng.random((3, 5), np.float32),
        track_confidence=rng.random((3, 5), np.float32),
        attention_stats=stats,
        best_points="depth",
    )
    shape = recon.depth.shape
    recon = dataclasses.replace(
        recon,
        depth_edges=rng.random(shape) > 0.5,
        mask=rng.random(shape) > 0.5,
        world_points=rng.normal(size=(*shape, 3)).astype(np.float32),
        world_points_confidence=rng.random(shape, np.float32),
    )
    assert all(getattr(recon, field.name) is not None for field in dataclasses.fields(recon))
    return recon


@pytest.mark.parametrize("mode", ["crop", "pad", "budget"])
def test_everything_comes_back(tmp_path, mode):
    recon = everything(tmp_path, mode)
    write_reconstruction(tmp_path / "out", recon)
    for path in (tmp_path / "out", str(tmp_path / "out" / "predictions.npz")):
        assert_same(vggt_jax.load_reconstruction(path), recon)
    arrays = contents(path)
    assert arrays["schema_version"] == SCHEMA_VERSION == 2
    # What users read without this package.
    np.testing.assert_array_equal(arrays["tracks_in_photographs"], recon.tracks_in_photographs())
    frames = vggt_jax.Frames(images=recon.images, names=recon.names, transforms=recon.transforms)
    np.testing.assert_array_equal(arrays["valid"], frames.valid_mask())


@pytest.mark.parametrize("left_out", ["names", "transforms", "both"])
def test_what_there_is_not_comes_back_as_nothing(tmp_path, left_out):
    recon = scene(tmp_path, mode="pad")
    nothing = ("names", "transforms") if left_out == "both" else (left_out,)
    recon = dataclasses.replace(recon, **dict.fromkeys(nothing, ()))
    file = tmp_path / "new" / "hall.npz"
    write_reconstruction(file, jax.tree.map(jax.numpy.asarray, recon))
    found = vggt_jax.load_reconstruction(file)
    assert_same(found, recon)
    assert isinstance(found.depth, np.ndarray)


def test_several_scenes_do_not_go_into_one_file(tmp_path):
    recon = jax.tree.map(lambda x: x[None], scene(tmp_path, mode="pad"))
    with pytest.raises(InputError, match="give one, without scene axis"):
        write_reconstruction(tmp_path / "out", recon)
    assert not (tmp_path / "out").exists()


def test_files_without_a_version_are_read(tmp_path):
    """Those of version 1: the same arrays by the same names, and no version."""
    recon = everything(tmp_path, "pad")
    write_reconstruction(tmp_path, recon)
    path = tmp_path / "predictions.npz"
    arrays = contents(path)
    del (
        arrays["schema_version"],
        arrays["attention_error"],
        arrays["length_unit"],
        arrays["best_points"],
    )  # which came later
    # Every name that version 1 wrote; another one would be a change of the schema.
    assert set(arrays) == set(
        "images camera_from_world intrinsics depth depth_confidence depth_edges mask world_points "
        "world_points_confidence tracks track_visibility track_confidence attention_density "
        "attention_covered attention_saved attention_entropy tracks_in_photographs names valid "
        "confidence_kind pixel_centre original_sizes model_from_original content".split()
    )
    np.savez(path, **arrays)
    unknown = dataclasses.replace(recon.attention_stats, error=np.full((4, 2), np.nan, np.float32))
    recon = dataclasses.replace(recon, attention_stats=unknown, best_points=None)
    assert_same(vggt_jax.load_reconstruction(path), recon)


def test_files_of_a_later_version_are_refused(tmp_path):
    write_reconstruction(tmp_path, scene(tmp_path, mode="pad"))
    path = tmp_path / "predictions.npz"
    # Of what a later version holds besides, nothing can be expected.
    np.savez(path, schema_version=np.array(3), scene=np.zeros(2))
    with pytest.raises(InputError, match="has version 3 of the schema.* up to 2; upgrade it") as e:
        vggt_jax.load_reconstruction(tmp_path)
    assert str(path) in str(e.value) and "damaged" not in str(e.value)
    np.savez(path, schema_version=np.array("two"))
    with pytest.raises(InputError, match="schema_version two is no version"):
        vggt_jax.load_reconstruction(tmp_path)


def test_what_infer_writes_comes_back(tmp_path, tiny_pi3):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 42, 3), np.uint8)
    model = tiny_pi3()
    vggt_jax.reconstruct_scenes({"hall": images}, tmp_path, model=model, progress=False)
    found = vggt_jax.load_reconstruction(tmp_path / "hall")
    expected = vggt_jax.infer(images, model=model)
    assert found.names == expected.names and found.transforms == expected.transforms
    assert (found.pixel_centre, found.confidence_kind) == (0.5, "sigmoid")
    np.testing.assert_allclose(found.depth, expected.depth, rtol=1e-3, atol=1e-4)


def test_places_without_results(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "predictions.npz").write_text("no zip file")
    for name, what in [
        ("missing", "no such file or folder"),
        ("empty", "no predictions.npz in this folder"),
        ("text", "is no .npz file, or damaged"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            vggt_jax.load_reconstruction(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_results_that_cannot_be_used(tmp_path):
    path = tmp_path / "predictions.npz"
    write_reconstruction(path, scene(tmp_path, mode="pad"))
    arrays = contents(path)

    def refused(arrays, what):
        write_predictions(path, arrays)
        with pytest.raises(InputError, match=what):
            vggt_jax.load_reconstruction(path)

    earlier = {name: x for name, x in arrays.items() if name != "pixel_centre"}
    refused(earlier, "lacks pixel_centre, .*earlier version")
    refused(arrays | {"content": arrays["content"][:2]}, "content is not that of 3 frames")
    refused(arrays | {"content": arrays["content"][:0]}, "content is not that of 3 frames")
    refused(arrays | {"names": arrays["names"][:2]}, "names is not that of 3 frames")
    refused(arrays | {"confidence_kind": np.array("odds")}, "one_plus_exp, sigmoid")
    write_predictions(path, arrays)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF  # A flipped bit, which the checksums of the format find.
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        vggt_jax.load_reconstruction(path)


# Edited and made up


def written(tmp_path):
    path = tmp_path / "predictions.npz"
    write_reconstruction(path, everything(tmp_path, "pad"), made_from={"images/0.png": [3, 5]})
    return path, contents(path)


CHANGES = {
    "a scalar": lambda x: np.array(1.0),
    "one row less": lambda x: x[:-1],
    "transposed": lambda x: x.T,
    "text": lambda x: x.astype("U4"),
    "complex": lambda x: x.astype(complex),
    "structured": lambda x: np.zeros(x.shape, [("a", "f4")]),
    "integers of time": lambda x: x.astype("M8[s]"),
    "an axis more": lambda x: x[..., None],
    "double integers": lambda x: x.astype(np.int64),
}


@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name].axes[:1] == ("s",)])
def test_every_array_is_checked(tmp_path, name):
    path, arrays = written(tmp_path)
    for what, change in CHANGES.items():
        changed = change(arrays[name])
        if changed.dtype == arrays[name].dtype and changed.shape == arrays[name].shape:
            continue
        np.savez(path, **arrays | {name: changed})
        with pytest.raises(InputError) as caught:
            vggt_jax.load_reconstruction(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), what


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("original_sizes", [[0, 5]] * 3, "original_sizes holds values that no frame can have"),
        ("original_sizes", [[10**12, 5]] * 3, "original_sizes holds values"),
        ("model_from_original", [[0.0, 1, 0, 0]] * 3, "model_from_original holds values"),
        ("model_from_original", [[1.0, np.inf, 0, 0]] * 3, "model_from_original holds values"),
        ("content", [[0, 999, 0, 5]] * 3, "content holds values"),
        ("content", [[5, 5, 0, 5]] * 3, "content holds values"),
        ("pixel_centre", np.nan, r"pixel_centre=nan must lie in \[0, 1\)"),
        ("pixel_centre", "x", "pixel_centre is str"),
        ("confidence_kind", 3, "confidence_kind is int64"),
        ("names", "abc", "names is str"),
        ("intrinsics", None, "has depth and cameras and lacks intrinsics"),
        ("depth_confidence", None, "has depth and lacks depth_confidence"),
        ("track_confidence", None, "has tracks and lacks track_confidence"),
        ("attention_saved", None, "lacks attention_saved"),
        ("images", None, "lacks images"),
    ],
)
def test_values_that_cannot_be(tmp_path, name, value, what):
    path, arrays = written(tmp_path)
    changed = arrays | {name: value if value is None else np.array(value)}
    np.savez(path, **{name: x for name, x in changed.items() if x is not None})
    with pytest.raises(InputError, match=what):
        vggt_jax.load_reconstruction(path)


def test_a_scene_without_frames_is_none(tmp_path):
    path, arrays = written(tmp_path)
    np.savez(path, **{name: x[:0] if x.ndim else x for name, x in arrays.items()})
    with pytest.raises(InputError, match="holds no frames"):
        vggt_jax.load_reconstruction(path)


def member(shape, dtype="|u1"):
    """A header that claims an array of this shape."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "head",
    [member("(10**6, 10**6, 3)"), member("(1000000, 100000, 3333, 3)"), member("(-1, 3)"),
     member("(2, 3)", "|O"), member("(2,)", "<U999999999"), member("()", "no type"), b"no header",
     member("[[[[" * 100), b"\x93NUMPY\x03\0"],
)  # fmt: skip
def test_headers_that_claim_too_much(tmp_path, head):
    path, arrays = written(tmp_path)
    del arrays["images"]
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images.npy", head)
    with pytest.raises(InputError, match="predictions.npz: ") as caught:
        vggt_jax.load_reconstruction(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "is_read"), [("images", False), ("bomb", True)])
def test_what_unpacks_to_much_is_not_unpacked(tmp_path, monkeypatch, name, is_read):
    monkeypatch.setattr(npz, "_SMALL", 2**20)
    path, arrays = written(tmp_path)
    arrays.pop(name, None)
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{name}.npy", "w") as file:
            file.write(member("(10, 1000000, 1, 3)"))
            for _ in range(30):
                file.write(bytes(10**6))
    if is_read:  # Nobody asks for it.
        assert vggt_jax.load_reconstruction(path).images.shape[0] == 3
        return
    with pytest.raises(InputError, match="claims to hold 0.0 GiB in 0.[0-9] MiB"):
        vggt_jax.load_reconstruction(path)


def test_compressed_and_swapped_results_are_read(tmp_path):
    path, arrays = written(tmp_path)
    expected = vggt_jax.load_reconstruction(path)
    swapped = {name: x.astype(x.dtype.newbyteorder(">")) for name, x in arrays.items()}
    np.savez_compressed(path, **swapped)
    assert_same(vggt_jax.load_reconstruction(path), expected)


def test_what_a_scene_was_made_from_is_read_alone(tmp_path):
    path, arrays = written(tmp_path)
    assert made_from(path) == {"images/0.png": [3, 5]}
    del arrays["made_from"]
    np.savez(path, **arrays)
    assert made_from(path) is None
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        made_from(path)
