"""Formats of exports: one that is made up, and where the options of all are spelled."""

import dataclasses
import inspect

import numpy as np
import pytest

from vggt_jax import InputError, cli, export_reconstruction
from vggt_jax.cli import commands
from vggt_jax.export import ExportOptions, FileFormat, FolderFormat, Written, register_format
from vggt_jax.export import format as formats
from vggt_jax.files import replacing


def write_xyz(recon, path, options):
    points, colors = options.cloud(recon)
    with replacing(path) as file:
        np.savetxt(file, np.concatenate([points, colors], axis=1))
    return Written(num_points=len(points))


def write_poses(recon, folder, cameras, options):
    lines = [f"{name} {' '.join(map(str, pose.ravel()))}\n" for name, pose in
             zip(cameras.names, cameras.camera_from_world)]  # fmt: skip
    (folder / "poses.txt").write_text("".join(lines))
    return Written(num_points=0, num_frames=len(lines), notes=("without points",))


XYZ = FileFormat(
    name="xyz", description="points as text", options=("points",), write=write_xyz
)  # fmt: skip
POSES = FolderFormat(
    name="poses",
    description="poses as text, and images",
    options=("images",),
    entries=("poses.txt",),
    write=write_poses,
)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(formats, "_formats", dict(formats._formats))
    register_format(XYZ)
    register_format(POSES)


def test_a_file_of_another_format(tmp_path, make_room, made_up):
    room, path = make_room(), tmp_path / "out" / "points.xyz"
    report = export_reconstruction(room.recon, path, format="xyz", confidence_percentile=0)
    found = np.loadtxt(path)
    np.testing.assert_allclose(found[:, :3], room.recon.points_from_depth()[room.valid], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 3:], room.recon.images[room.valid])
    assert str(report) == f"xyz: {len(found):,} points -> {path}"
    with pytest.raises(InputError, match="exists; choose another"):
        export_reconstruction(room.recon, path, format="xyz")
    with pytest.raises(
        InputError, match="images is for colmap and nerfstudio and poses, not for xyz"
    ):
        export_reconstruction(room.recon, path, format="xyz", images=room.folder)
    with pytest.raises(InputError, match="cameras is for glb, not for xyz"):
        export_reconstruction(room.recon, path, format="xyz", cameras=False)


def test_a_folder_of_another_format(tmp_path, make_room, made_up, contents):
    room, out = make_room(), tmp_path / "out"
    report = export_reconstruction(room.recon, out, format="poses", images=room.folder)
    assert sorted(path.name for path in out.iterdir()) == [".vggt-jax.json", "images", "poses.txt"]
    assert contents(out / "images") == contents(room.folder)
    assert (out / "poses.txt").read_text().startswith("view 0.png ")
    assert report.num_frames == 4 and "note: without points" in str(report)
    with pytest.raises(InputError, match="holds images, poses.txt already"):
        export_reconstruction(room.recon, out, format="poses", images=room.folder)
    with pytest.raises(InputError, match="points is for ply and glb and nerfstudio and xyz"):
        export_reconstruction(room.recon, out, format="poses", points="depth")


def test_the_command_line_knows_it(tmp_path, make_room, made_up, capsys):
    from vggt_jax.scene.results import write_reconstruction

    recon = make_room().recon
    write_reconstruction(tmp_path / "scene", recon)
    out = tmp_path / "points.xyz"
    args = ["export", tmp_path / "scene", "--format", "xyz", "--max-points", 7, "--out", out]
    assert cli.main([str(arg) for arg in args]) == 0
    assert len(np.loadtxt(out)) == 7
    assert cli.main([str(arg) for arg in [*args, "--images", tmp_path]]) == 2
    assert "xyz has no place for photographs" in capsys.readouterr().err


def test_formats_that_cannot_be(made_up):
    with pytest.raises(ValueError, match="a format 'xyz' already"):
        register_format(XYZ)
    other = dataclasses.replace(XYZ, name="other", options=("points", "colour"))
    with pytest.raises(ValueError, match="other: no option is called colour"):
        register_format(other)
    with pytest.raises(InputError, match="one of ply, glb, colmap, nerfstudio, mesh, xyz, poses"):
        ExportOptions(format="other")


def test_every_option_has_one_meaning():
    """The function, the options and the command have the same names and defaults."""
    function = inspect.signature(export_reconstruction).parameters
    for field in dataclasses.fields(ExportOptions):
        default = function[field.name].default
        if field.name != "format":
            assert default == field.default, field.name
        assert field.name in {option.name for option in dataclasses.fields(commands.Export)}
    assert set(function) - {"recon", "path"} == {x.name for x in dataclasses.fields(ExportOptions)}
    for option in dataclasses.fields(commands.Export):
        if option.name in function and option.name != "format":
            assert option.default == function[option.name].default, option.name
