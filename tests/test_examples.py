"""The programs in `examples` run, and what they print and write is so."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from PIL import Image

import vggt_jax
from vggt_jax.models.loading import named_parameters, with_parameters

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLE = Path(vggt_jax.__file__).parent / "samples" / "cellar"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as `python examples/NAME.py ARGUMENTS` does, and returns the lines it prints but
    for those that say which model it was."""

    def run(name, *arguments):
        path = str(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        return [
            line for line in lines if not line.startswith("note: these results are of the small")
        ]

    return run


@pytest.fixture
def toy(monkeypatch, tiny):
    """A model that compiles in seconds in place of the small one, where any model will do."""
    model = tiny(img_size=112, enable_track=False)
    params = named_parameters(model)
    # Cameras that look ahead: in each of two iterations half a radian of the field of view.
    params["camera_head.pose_branch.fc2.kernel"] *= 0.05
    params["camera_head.pose_branch.fc2.bias"] = jnp.array([0.0] * 6 + [0.5] * 3)
    model = with_parameters(model, params)
    monkeypatch.setattr(vggt_jax, "load_model", lambda: model)
    return model


def numbers(line):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", line.replace(",", ""))]


def true_cameras():
    frames = json.loads((SAMPLE / "cameras.json").read_text(encoding="utf-8"))["frames"]
    return {frame["name"]: frame for frame in frames}


def test_every_example_has_a_test_and_is_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(names) >= 6 and names <= tested
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.py)" in listed for name in names)


def test_infer(run, tmp_path):
    _, *frames, report = run("infer", tmp_path)
    cameras, side = true_cameras(), vggt_jax.load_model().config.img_size
    assert [line.split()[0] for line in frames] == ["0001.jpg", "0002.jpg", "0003.jpg"]
    found = []
    for line in frames:
        name, rest = line.split(maxsplit=1)
        *position, focal, depth, confidence = numbers(rest)
        true_focal = cameras[name]["intrinsics_original"][0][0] * side / 448
        assert focal == pytest.approx(true_focal, rel=0.1)
        assert depth > 0 and confidence > 1
        found.append(position)
    assert np.linalg.norm(found[0]) < 0.01  # The first camera is the world.
    # Directions from the first camera to the others, in its axes.
    poses = [np.array(cameras[line.split()[0]]["camera_from_world"]) for line in frames]
    centres = np.array([-pose[:, :3].T @ pose[:, 3] for pose in poses])
    truth = (centres - centres[0]) @ poses[0][:, :3].T
    for i in (1, 2):
        cosine = truth[i] @ found[i] / np.linalg.norm(truth[i]) / np.linalg.norm(found[i])
        assert cosine > np.cos(np.radians(30))
    header = (tmp_path / "points.ply").read_bytes().partition(b"end_header")[0].decode()
    (num_points,) = re.findall(r"element vertex (\d+)", header)
    assert f" {int(num_points):,} points " in report and int(num_points) > 20_000


@pytest.mark.slow
def test_jit_and_vmap(run, toy):
    *scenes, last = run("jit_and_vmap")
    assert len(scenes) == 4
    for line in scenes:
        assert 0 < numbers(line)[-1] < 100
    assert numbers(last)[-1] < 1e-5


@pytest.mark.slow
def test_block_sparse(run, toy):
    _, *layers, last = run("block_sparse")
    assert [numbers(line)[0] for line in layers] == list(range(toy.config.depth))
    for line in layers:
        _, kept, covered, saved, entropy = numbers(line)
        # A quarter of the blocks of patches, and all special keys.
        assert 25 < kept < 33 and kept < covered < 100
        assert 60 < saved < 75 and 0 < entropy <= 1
    (difference,) = numbers(last)
    assert 0 < difference < 15


@pytest.mark.slow
def test_kernels_alone(run):
    tree = ast.parse((EXAMPLES / "kernels_alone.py").read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "pallas_kernels" in modules and not any("vggt" in name for name in modules)
    sizes, kept, covered, row, difference = run("kernels_alone")
    assert numbers(sizes) == [2560, 20, 40]
    assert numbers(kept) == [2, 0.25, 0.25]
    assert 0.9 < numbers(covered)[0] <= 1
    # The place of the first two blocks of 64 tokens, in each of the four rounds.
    blocks = ast.literal_eval(row.partition("blocks ")[2])
    assert len(blocks) == 10 and {0, 1, 10, 11, 20, 21, 30, 31} <= set(blocks)
    assert 0 < numbers(difference)[0] < 2


@pytest.mark.slow
def test_batch(run, tmp_path, toy):
    first, failed, again, failed_again, last = run("batch", tmp_path)
    assert first == "written ('first', 'second'), there already ()"
    assert again == "written (), there already ('first', 'second')"
    for line in (failed, failed_again):
        assert line.startswith("failed: missing: ") and "no such file" in line
    assert last == "second: 0004.jpg, 0005.jpg, 0006.jpg, depth (3, 112, 112)"
    recon = vggt_jax.load_reconstruction(tmp_path / "first")
    assert recon.names == ("0001.jpg", "0002.jpg", "0003.jpg")
    assert np.isfinite(recon.depth).all()


def test_export(run, tmp_path, monkeypatch):
    """Of a scene made by hand: a wall that three cameras see."""
    monkeypatch.setattr(vggt_jax, "load_model", lambda: None)
    monkeypatch.setattr(vggt_jax, "infer", lambda pictures, model: a_wall(pictures))
    ply, glb, nerfstudio, *frames = run("export", tmp_path)
    assert ply == f"ply: 20,000 points -> {tmp_path / 'scene.ply'}"
    scene = trimesh.load(tmp_path / "scene.glb")
    assert scene.geometry["points"].vertices.shape == (20_000, 3)
    cameras = [name for name in scene.geometry if name.startswith("camera_")]
    assert len(cameras) == 3 and glb.startswith("glb: 3 cameras, 20,000 points")
    assert nerfstudio.startswith("nerfstudio: 3 cameras, 20,000 points")
    document = json.loads((tmp_path / "nerfstudio" / "transforms.json").read_text())
    assert len(frames) == len(document["frames"]) == 3
    for line, frame in zip(frames, document["frames"], strict=True):
        picture = tmp_path / "nerfstudio" / frame["file_path"]
        assert picture.read_bytes() == (SAMPLE / picture.name).read_bytes()
        with Image.open(picture) as image:
            size = f"{image.width}x{image.height}"
        assert line == f"{frame['file_path']}: {size}, focal length {frame['fl_x']:.1f} px"


def a_wall(pictures):
    frames = vggt_jax.load_images(pictures, size=112)
    shape = frames.images.shape[:3]
    poses = np.tile(np.eye(3, 4, dtype=np.float32), (len(pictures), 1, 1))
    poses[:, 0, 3] = -0.1 * np.arange(len(pictures))
    matrix = np.array([[112, 0, 56], [0, 112, 56], [0, 0, 1]], np.float32)
    return vggt_jax.Reconstruction(
        images=frames.images,
        camera_from_world=poses,
        intrinsics=np.tile(matrix, (len(pictures), 1, 1)),
        depth=np.full(shape, 2, np.float32),
        depth_confidence=np.full(shape, 3, np.float32),
        pixel_centre=0.5,
        names=frames.names,
        transforms=frames.transforms,
    )


def cells(kind):
    notebook = json.loads((EXAMPLES / "vggt_jax.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(x["source"]) for x in notebook["cells"] if x["cell_type"] == kind]


def test_the_notebook_is_as_it_is_kept():
    """Without results, so that changes to it can be read, and every cell is Python but the first."""
    text = (EXAMPLES / "vggt_jax.ipynb").read_text(encoding="utf-8")
    assert all(x["outputs"] == [] for x in json.loads(text)["cells"] if x["cell_type"] == "code")
    first, *others = cells("code")
    assert "%pip install" in first and len(cells("markdown")) > 3
    for code in others:
        ast.parse(code)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path, monkeypatch):
    """In a kernel of Jupyter, without the cell that installs; the viewer does not block it."""
    for module in ("viser", "pycolmap", "ipykernel"):
        pytest.importorskip(module, reason=f"needs {module}")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    import nbformat

    if (programs := jax.config.jax_compilation_cache_dir) is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs))
    notebook = nbformat.read(EXAMPLES / "vggt_jax.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "%pip" not in cell.source]
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", ())]
    printed = "".join(x.text for x in outputs if x.output_type == "stream")
    assert "8 frames of " in printed and "colmap: " in printed
    shown = [x.data for x in outputs if x.output_type == "display_data"]
    assert any("image/png" in data for data in shown)
    assert any('<iframe src="http://127.0.0.1' in data.get("text/html", "") for data in shown)
    assert (tmp_path / "scene_colmap" / "sparse" / "0").is_dir()
    assert vggt_jax.load_reconstruction(tmp_path / "scene").depth.shape[0] == 8
