"""Which package imports which, and that importing does nothing else."""

import ast
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Third-party packages that the model-independent packages get by with.
ALLOWED = {
    "pallas_kernels": {"pallas_kernels", "jax", "numpy", "jaxtyping"},
    "vggt_jax/checkpoints": {
        "vggt_jax", "numpy", "ml_dtypes", "safetensors", "orbax", "jax", "huggingface_hub", "tqdm",
        "torch",
    },
}  # fmt: skip
# The parts of vggt_jax from the bottom up: each imports only parts that stand before it.
ORDER = (
    "errors", "host", "files", "geometry", "checkpoints", "weights", "layers", "images", "masks",
    "video", "trunk", "heads", "scene", "models", "synthetic", "evaluation", "export", "pipeline",
    "analysis", "training", "viewer", "serving", "cli",
)  # fmt: skip


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path, *, at_import_only=False):
    """Full names of the modules that a file imports, `a.b` and `a.b.c` for `from a.b import c`."""
    found = set()
    nodes = [parsed(path)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which package it is of"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if not (at_import_only and isinstance(node, ast.FunctionDef)):
            nodes += ast.iter_child_nodes(node)
    return found


def packages(path, **options):
    return {name.partition(".")[0] for name in imported(path, **options)}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def test_there_is_something_to_check():
    assert len(files("vggt_jax")) > 20 and len(files("vggt_jax/checkpoints")) > 10
    assert "vggt_jax.layers.block" in imported(ROOT / "vggt_jax" / "trunk" / "alternation.py")
    assert "torch" in packages(ROOT / "vggt_jax" / "checkpoints" / "torch_file.py")


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_below_the_model_know_nothing_of_it(package):
    for path in files(package):
        unexpected = packages(path) - ALLOWED[package] - set(sys.stdlib_module_names)
        assert not unexpected, f"{path} imports {unexpected}"


@pytest.mark.parametrize("package", ["vggt_jax", "pallas_kernels"])
def test_nothing_imports_scripts_or_tests(package):
    for path in files(package):
        assert not packages(path) & {"scripts", "tests", "conftest", "pytest"}, path


def test_pytorch_is_imported_only_where_a_pt_file_is_read():
    for path in files("vggt_jax"):
        reads_pt = path.relative_to(ROOT).parts[1] == "checkpoints"
        assert "torch" not in packages(path, at_import_only=reads_pt), path


@pytest.mark.parametrize("part", ORDER)
def test_parts_of_the_package_import_only_what_lies_below(part):
    below = {"vggt_jax", *(f"vggt_jax.{name}" for name in ORDER[: ORDER.index(part) + 1])}
    single_file = ROOT / "vggt_jax" / f"{part}.py"
    for path in [single_file] if single_file.exists() else files(f"vggt_jax/{part}"):
        ours = {name for name in imported(path) if name.partition(".")[0] == "vggt_jax"}
        above = {name for name in ours if ".".join(name.split(".")[:2]) not in below}
        assert not above, f"{path} imports {above}"


def test_every_part_of_the_package_has_its_place():
    found = {path.relative_to(ROOT / "vggt_jax").parts[0] for path in files("vggt_jax")}
    assert {name.removesuffix(".py") for name in found} - {"__init__"} == set(ORDER)


IMPORT_EVERYTHING = """
import importlib, os, pathlib, sys
# These touch the environment on some machines; that is not ours.
import jax.experimental.pallas.mosaic_gpu

before = dict(os.environ)
for package in ("pallas_kernels", "vggt_jax"):
    for path in sorted(pathlib.Path(package).rglob("*.py")):
        parts = path.with_suffix("").parts
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert "torch" not in sys.modules
print("imported", len([name for name in sys.modules if name.startswith("vggt_jax.")]))

try:
    jax.numpy.zeros(1)
except RuntimeError:
    print("and any work on a device would have failed")
"""


def test_importing_does_no_work_on_a_device_and_leaves_the_environment(monkeypatch):
    # No such platform: whatever touches a device, the smallest array included, fails.
    monkeypatch.setenv("JAX_PLATFORMS", "none_such")
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    number, rest = run.stdout.split("\n", 1)
    assert int(number.split()[1]) >= 20
    assert rest == "and any work on a device would have failed\n"


KERNELS_ALONE = """
import sys

import jax
import jax.numpy as jnp

import pallas_kernels

x = jax.random.normal(jax.random.key(0), (67, 2, 32))
blocks = {"block_q": 32, "block_k": 16}
found = pallas_kernels.select_blocks(x, x, sparse_ratio=0.5, **blocks, implementation="xla")
out = pallas_kernels.block_sparse_attention(x, x, x, found.block_map)
out = pallas_kernels.norm_rope(
    out, jnp.ones((67, 32)), jnp.zeros((67, 32)), bias=jnp.zeros((2, 32)), scale=jnp.ones(32),
    offset=jnp.zeros(32), eps=1e-5,
)
out = pallas_kernels.linear(out, jnp.ones((32, 3)), activation="gelu")
assert out.shape == (67, 2, 3), out.shape
pallas = [name for name in sys.modules if "pallas" in name]
backends = [name for name in pallas if "triton" in name or "mosaic" in name]
assert backends == ["pallas_kernels.mosaic_gpu_call"], backends
assert not {"vggt_jax", "flax", "optax", "PIL"} & set(sys.modules)
print(pallas_kernels.__file__)
"""


def test_kernels_work_by_themselves(tmp_path):
    """In a folder with nothing else, and on a CPU they ask for no backend of a GPU."""
    copy = tmp_path / "pallas_kernels"
    shutil.copytree(ROOT / "pallas_kernels", copy)
    run = subprocess.run(
        [sys.executable, "-c", KERNELS_ALONE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(copy / "__init__.py")
