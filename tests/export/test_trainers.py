"""Exports as trainers take them: the rules by which gsplat and nerfstudio find and read files.

Rules are those of gsplat's examples/datasets/colmap.py and of nerfstudio's
data/dataparsers/nerfstudio_dataparser.py, in words of our own.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vggt_jax
from vggt_jax import InputError, export_reconstruction
from vggt_jax.export.depth_maps import of_photograph
from vggt_jax.images.frames import FrameTransform

NERFSTUDIO_LARGEST = 1600  # Above this it looks for smaller photographs by itself.


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def gsplat_images(folder, names, factor):
    """By name the file that gsplat reads: both folders have to be there, and it takes their sorted
    lists of files for the same photographs, so that nothing else may lie in them."""
    smaller = folder / (f"images_{factor}" if factor > 1 else "images")
    assert smaller.is_dir() and (folder / "images").is_dir()
    pairs = dict(zip(files_below(folder / "images"), files_below(smaller), strict=True))
    return [smaller / pairs[name] for name in names]


def nerfstudio_file(folder, path, kind, factor):
    """Smaller files are looked for by their last name, in a folder with the factor behind it."""
    return folder / f"{kind}_{factor}" / Path(path).name if factor > 1 else folder / path


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_gsplat_finds_photographs_of_every_size(tmp_path, make_room, factor):
    pycolmap = pytest.importorskip("pycolmap", reason="needs pycolmap")
    room = make_room("pad")
    out = tmp_path / "out"
    export_reconstruction(room.recon, out, format="colmap", images=room.folder, data_factor=(2, 4))
    model = pycolmap.Reconstruction(str(out / "sparse" / "0"))
    by_name = {image.name: image for image in model.images.values()}
    names = sorted(by_name)
    for name, path in zip(names, gsplat_images(out, names, factor), strict=True):
        assert path.stem == Path(name).stem
        camera = model.cameras[by_name[name].camera_id]
        with Image.open(path) as image:
            assert image.size == (camera.width // factor, camera.height // factor)
            small = np.asarray(image.convert("RGB"), float)
        with Image.open(room.folder / name) as image:
            whole = np.asarray(image.convert("RGB").resize(small.shape[1::-1]), float)
        assert np.abs(small - whole).mean() < 4


def test_nerfstudio_finds_photographs_masks_and_depth_of_every_size(tmp_path, make_room):
    room = make_room("crop", sizes=((112, 168), (140, 112), (113, 113)))
    mask = np.ones(room.recon.images.shape[:3], bool)
    mask[:, :40] = False
    recon = vggt_jax.with_mask(room.recon, mask)
    out = tmp_path / "out"
    options = {"format": "nerfstudio", "images": room.folder, "depth_maps": True}
    export_reconstruction(recon, out, **options, data_factor=[2, 8], confidence_percentile=0)
    document = json.loads((out / "transforms.json").read_text())
    for i, frame in enumerate(document["frames"]):
        for factor in (1, 2, 8):
            find = lambda key, kind, frame=frame, factor=factor: nerfstudio_file(
                out, frame[key], kind, factor
            )
            with Image.open(find("file_path", "images")) as image:
                assert image.size == (frame["w"] // factor, frame["h"] // factor)
                size = image.size
            with Image.open(find("mask_path", "masks")) as image:
                assert image.size == size and set(np.unique(np.asarray(image))) == {0, 255}
            depth = np.load(find("depth_file_path", "depths"))
            assert depth.dtype == np.float32
        # It is enlarged to the size of the photograph, and multiplied by its default, 0.001.
        transform = recon.transforms[i]
        y, x = np.argwhere(mask[i] & room.valid[i])[500]
        column, row = transform.pixels_to_original((x, y)) + 0.5
        rows, columns = depth.shape
        found = depth[int(row / frame["h"] * rows), int(column / frame["w"] * columns)]
        near = recon.depth[i, y - 1 : y + 2, x - 1 : x + 2]
        assert near.min() - 1e-3 <= 0.001 * found <= near.max() + 1e-3
        assert (depth == 0).any()  # Where it is masked.
    # Without, none are left of the earlier export.
    export_reconstruction(recon, out, format="nerfstudio", images=room.folder, overwrite=True)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"images", "masks"}


def test_large_photographs_are_found_smaller_by_themselves(tmp_path, make_room):
    room = make_room("pad", sizes=((500, 3400), (400, 2000)))
    out = tmp_path / "out"
    options = {"format": "nerfstudio", "images": room.folder}
    export_reconstruction(room.recon, out, **options, data_factor=(2, 4))
    document = json.loads((out / "transforms.json").read_text())
    for frame in document["frames"]:
        factor = 1
        while max(frame["w"], frame["h"]) / factor > NERFSTUDIO_LARGEST:
            assert nerfstudio_file(out, frame["file_path"], "images", 2 * factor).is_file()
            factor *= 2


def test_photographs_in_place_get_smaller_ones_beside_them(tmp_path, make_room):
    room = make_room("pad")
    out = tmp_path / "out"
    out.mkdir()
    images = room.folder.rename(out / "images")
    before = {name: (images / name).read_bytes() for name in files_below(images)}
    export_reconstruction(
        room.recon, out, format="nerfstudio", images=images, data_factor=(2,), overwrite=True
    )
    assert {name: (images / name).read_bytes() for name in files_below(images)} == before
    assert files_below(out / "images_2") == sorted(before)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"data_factor": (1,)}, "whole numbers from 2"),
        ({"data_factor": (2, 2)}, "twice"),
        ({"data_factor": (2.5,)}, "whole numbers"),
        ({"data_factor": (2,), "format": "ply"}, "data_factor is for colmap and nerfstudio"),
        ({"depth_maps": True, "format": "glb"}, "depth_maps is for nerfstudio"),
        ({"voxel_size": 0.1, "format": "glb"}, "voxel_size is for mesh"),
        ({"data_factor": (2,), "images": None}, "no such file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, make_room, options, part):
    room = make_room("pad")
    given = {"format": "nerfstudio", "images": room.folder} | options
    if given["format"] not in ("nerfstudio", "colmap"):
        del given["images"]
    with pytest.raises(InputError, match=part):
        export_reconstruction(room.recon, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_names_that_differ_by_folders_alone_are_refused_for_nerfstudio(tmp_path, make_room):
    room = make_room("pad", sizes=((90, 141),) * 2)
    for i, name in enumerate(("a", "b")):
        (room.folder / name).mkdir()
        (room.folder / f"view {i}.png").rename(room.folder / name / "0.png")
    recon = dataclasses.replace(room.recon, names=("a/0.png", "b/0.png"))
    options = {"images": room.folder, "data_factor": (2,)}
    with pytest.raises(InputError, match="without their folders"):
        export_reconstruction(recon, tmp_path / "out", format="nerfstudio", **options)


def test_photographs_that_see_no_point_are_named(tmp_path, make_room):
    pytest.importorskip("pycolmap", reason="needs pycolmap")
    room = make_room("pad")
    poses = room.recon.camera_from_world.copy()
    poses[2] = np.diag([1.0, -1.0, -1.0]) @ np.eye(3, 4)
    poses[2, 0, 3] = 500.0  # Far away from what the others see.
    recon = dataclasses.replace(room.recon, camera_from_world=poses)
    report = export_reconstruction(recon, tmp_path / "out", format="colmap", images=room.folder)
    assert any("1 photograph (view 2.png) see no point" in note for note in report.notes)


def test_depth_of_a_photograph_that_was_cropped():
    # 20x40 shrunk by half to 10x20, of which columns 5 to 15 are the frame's.
    transform = FrameTransform(
        original_size=(20, 40), model_size=(10, 10), scale_x=0.5, scale_y=0.5,
        offset_x=-5.0, offset_y=0.0, content_rows=(0, 10), content_columns=(0, 10),
    )  # fmt: skip
    depth = np.arange(100, dtype=np.float32).reshape(10, 10) + 1
    found = of_photograph(depth, transform)
    assert found.shape == (10, 20)
    np.testing.assert_array_equal(found[:, 5:15], depth)
    assert (found[:, :5] == 0).all() and (found[:, 15:] == 0).all()
