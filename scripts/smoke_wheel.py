"""Builds the wheel, and runs the installed package among files that could be taken for parts of it.

    python scripts/smoke_wheel.py

The wheel must hold `vggt_jax` and `pallas_kernels` whole, with their data, and nothing else. It is
installed in a fresh environment, and used on the CPU in a folder that holds `convert.py`,
`scripts/`, `tests/` and `examples.py`, all of which fail when they are imported. Ends with 1, and
says why, if anything goes wrong.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("vggt_jax", "pallas_kernels")

# What a user's folder may hold. The most used Gaussian-splatting code has a convert.py at its root.
IN_THE_WAY = ("convert.py", "examples.py", "scripts/__init__.py", "tests/__init__.py")

IMPORTS = """
    import sys
    assert sys.path[0] == "", sys.path
    import pathlib
    import pallas_kernels, vggt_jax
    for package in (pallas_kernels, vggt_jax):
        place = pathlib.Path(package.__file__).parent
        assert place.is_relative_to(sys.prefix), f"{place} is not in {sys.prefix}"
        assert (place / "py.typed").is_file(), f"{place} lacks py.typed"
    from importlib.metadata import version
    assert vggt_jax.__version__ == version("vggt-jax"), (vggt_jax.__version__, version("vggt-jax"))
"""

KERNELS = """
    import sys
    import jax
    import numpy as np
    from pallas_kernels import block_sparse_attention, select_blocks

    q, k, v = (jax.random.normal(jax.random.key(i), (t, 3, 32)) for i, t in enumerate((96, 80, 80)))
    selection = select_blocks(q, k, sparse_ratio=0.5, block_q=32, block_k=16)
    block_map = selection.block_map
    assert (np.asarray(block_map.counts) == 2).all(), block_map.counts
    out = np.asarray(block_sparse_attention(q, k, v, block_map))
    mask = np.asarray(block_map.to_dense_mask()).repeat(32, axis=1).repeat(16, axis=2)
    scores = np.einsum("tnh,knh->ntk", *(np.asarray(x, np.float64) for x in (q, k))) / 32**0.5
    weights = np.where(mask, np.exp(scores), 0)
    expected = np.einsum("ntk,knh->tnh", weights / weights.sum(-1, keepdims=True), np.asarray(v))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert "vggt_jax" not in sys.modules and "flax" not in sys.modules
"""

# A model of a few layers in the official layout.
OFFICIAL = """
    import json
    import numpy as np
    import safetensors.numpy
    from vggt_jax.checkpoints import rules
    from vggt_jax.models.vggt import keys
    from vggt_jax.models.vggt.config import VGGTConfig

    config = dict(
        img_size=28, embed_dim=32, num_heads=2, depth=4, vit_depth=1, vit_num_heads=2,
        camera_trunk_depth=1, camera_num_heads=2, dpt_layers=[0, 1, 2, 3], enable_depth=False,
        enable_point=False, enable_track=False,
    )
    random = np.random.default_rng(0)
    slots = rules.expand(keys.rules(VGGTConfig.from_dict(config)))
    shapes = {key: slot.rule.shape for key, slot in slots.items()}
    tensors = {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, "official.safetensors")
    open("official.json", "w").write(json.dumps(config))
"""

CONVERTED = """
    import numpy as np
    import safetensors.numpy
    import vggt_jax
    from vggt_jax.models.loading import named_parameters

    found = named_parameters(vggt_jax.load_model("converted"))["encoder.patch_embed.kernel"]
    official = safetensors.numpy.load_file("official.safetensors")
    expected = official["aggregator.patch_embed.patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(np.asarray(found), expected)
"""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the Python to use, in whose environment the dependencies are; this one by default",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="install the dependencies anew, which takes minutes"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smoke_wheel_") as folder:
        try:
            smoke(pathlib.Path(folder), args.python, fresh=args.fresh)
        except SmokeError as error:
            sys.exit(f"smoke_wheel: error: {error}")


class SmokeError(Exception):
    """What is wrong, for people."""


def smoke(folder: pathlib.Path, python: str, *, fresh: bool) -> None:
    """Builds, checks, installs and runs everything below `folder`."""
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = copy_source(folder / "source")
    run("building the wheel", [*pip, "wheel", "--no-deps", "-w", folder, source], cwd=folder)
    (wheel,) = folder.glob("*.whl")
    check_contents(wheel, source)
    environment = folder / "environment"
    run("making an environment", [python, "-m", "venv", "--without-pip", environment], cwd=folder)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    own = str(binaries / "python")
    if not fresh:
        share_packages(python, own)
    into_own = ["install", *([] if fresh else ["--no-deps"]), wheel]
    run("installing the wheel", [*pip, "--python", own, *into_own], cwd=folder)

    here = folder / "here"
    for name in IN_THE_WAY:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f'raise ImportError("{name} of the folder was imported")\n')
    pictures = source / "vggt_jax" / "samples" / "cellar"
    (here / "pictures").mkdir()
    for name in ("0001.jpg", "0004.jpg"):
        shutil.copy(pictures / name, here / "pictures")
    command = str(binaries / "vggt-jax")
    check = lambda what, code: run(what, [own, "-c", textwrap.dedent(code)], cwd=here)
    check("importing both packages", IMPORTS)
    check("kernels by themselves", KERNELS)
    run("vggt-jax doctor", [command, "doctor"], cwd=here)
    run("vggt-jax infer", [command, "infer", "pictures", "--out", "out"], cwd=here)
    check_results(here / "out", 2)
    check("writing an official checkpoint", OFFICIAL)
    run("vggt-jax convert", [command, "convert", "official.safetensors", "converted"], cwd=here)
    check("reading what was converted", CONVERTED)


def copy_source(destination: pathlib.Path) -> pathlib.Path:
    """A copy of the repository without what building leaves behind, which a wheel may pick up."""
    left_out = shutil.ignore_patterns(".*", "build", "dist", "out", "golden", "*.egg-info", "*.pyc")
    return pathlib.Path(shutil.copytree(ROOT, destination, ignore=left_out))


def check_contents(wheel: pathlib.Path, source: pathlib.Path) -> None:
    """Compares the files of a wheel with those of the packages.

    Raises:
        SmokeError: some are missing, or there are others.
    """
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for package in PACKAGES:
        if f"{package}/py.typed" not in found:
            raise SmokeError(f"{wheel.name} lacks {package}/py.typed")
    if missing := expected - found:
        raise SmokeError(f"{wheel.name} lacks {', '.join(sorted(missing))}")
    if others := found - expected:
        raise SmokeError(f"{wheel.name} holds {', '.join(sorted(others))}")
    print(f"{wheel.name}: {len(found)} files, {wheel.stat().st_size / 2**20:.1f} MiB")


def share_packages(python: str, own: str) -> None:
    """Lets an environment find the packages of another one behind its own."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    theirs, mine = (
        subprocess.run([x, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
        for x in (python, own)
    )
    (pathlib.Path(mine.strip()) / "dependencies.pth").write_text(theirs)


def check_results(out: pathlib.Path, num_frames: int) -> None:
    """Checks that the files of a scene are there, with so many frames.

    Raises:
        SmokeError: one is missing, or there are more or fewer frames.
    """
    for name in ("predictions.npz", "points.ply", "cameras.json", "overview.png", "depth_pictures"):
        if not (out / name).exists():
            raise SmokeError(f"vggt-jax infer wrote no {name}")
    cameras = json.loads((out / "cameras.json").read_text())["frames"]
    if len(cameras) != num_frames:
        raise SmokeError(f"vggt-jax infer wrote {len(cameras)} cameras, not {num_frames}")


def run(what: str, command: list, *, cwd: pathlib.Path) -> str:
    """Runs a command, says how long it took, and returns what it wrote.

    Raises:
        SmokeError: its exit code is not 0.
    """
    without = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    start = time.perf_counter()
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SmokeError(f"{what} ended with {result.returncode}:\n{result.stdout}")
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
    return result.stdout


if __name__ == "__main__":
    main()
