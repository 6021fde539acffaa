"""A model as StableHLO: a process that has JAX and not this project gets the same numbers."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import vggt_jax
from vggt_jax import InputError
from vggt_jax.pipeline.stablehlo import export_stablehlo

# What docs/stablehlo.md shows, where importing any of the project's own packages or Flax fails.
ELSEWHERE = """
import sys
for name in ("vggt_jax", "pallas_kernels", "flax", "safetensors", "orbax"):
    sys.modules[name] = None

import jax
import numpy as np
from jax import export

folder = sys.argv[1]
with open(f"{folder}/program.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
weights = jax.device_put(dict(np.load(f"{folder}/weights.npz")))
images = np.load(f"{folder}/images.npy")
result = jax.jit(program.call)(weights, images)
np.savez(f"{folder}/result.npz", **result)
print(program.platforms, jax.default_backend())
try:  # It is exactly what is asked for, and another number of frames is an error.
    program.call(weights, images[:2])
except ValueError:
    print("refused")
"""


def run_elsewhere(folder, tmp_path):
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder)],
        cwd=tmp_path,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kind", ["vggt", pytest.param("pi3", marks=pytest.mark.slow)])
def test_a_program_runs_without_the_project(tmp_path, tiny, tiny_pi3, kind, relative_error):
    model = {"vggt": tiny, "pi3": tiny_pi3}[kind]()
    folder = tmp_path / "program"
    export_stablehlo(model, folder, num_frames=3, size=(28, 42))
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 42, 3), np.uint8)
    np.save(folder / "images.npy", images)
    done = run_elsewhere(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "('cpu', 'cuda')" in done.stdout and "refused" in done.stdout

    expected = vggt_jax.infer(images, model=model)
    found = dict(np.load(folder / "result.npz"))
    names = {name for name, x in vars(expected).items() if isinstance(x, np.ndarray)} - {"images"}
    assert set(found) == names and "depth" in names
    # A field of view may be zero, and its focal length infinite; in others it amplifies roundings.
    np.testing.assert_allclose(found["intrinsics"], expected.intrinsics, rtol=1e-3)
    for name in names - {"depth_edges", "intrinsics"}:
        assert relative_error(found[name], getattr(expected, name)) < 1e-4, name
    signature = json.loads((folder / "signature.json").read_text())
    assert signature["images"] == {"shape": [3, 28, 42, 3], "dtype": "uint8"}
    for name, x in found.items():
        assert signature["results"][name] == {"shape": list(x.shape), "dtype": x.dtype.name}


@pytest.mark.slow
def test_bfloat16_kernels_are_stored_as_float32(tmp_path, tiny):
    model = vggt_jax.models.loading.with_dtype(tiny(enable_point=False), "bfloat16")
    export_stablehlo(
        model, tmp_path / "out", num_frames=1, size=(28, 28), platforms=["cpu"],
        compute_dtype="bfloat16",
    )  # fmt: skip
    with open(tmp_path / "out" / "program.stablehlo", "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
    weights = dict(np.load(tmp_path / "out" / "weights.npz"))
    assert {x.dtype for x in weights.values()} == {np.dtype(np.float32)}
    images = np.full((1, 28, 28, 3), 77, np.uint8)
    found = program.call(weights, images)
    expected = vggt_jax.infer(images, model=model, compute_dtype="bfloat16")
    assert "world_points" not in found
    np.testing.assert_allclose(found["depth"], expected.depth, rtol=2e-2)


def test_what_cannot_be_exported_leaves_nothing(tmp_path, tiny):
    out = tmp_path / "out"
    good = dict(num_frames=2, size=(28, 28))
    for wrong, what in [
        ({"num_frames": 0}, "num_frames=0"),
        ({"size": (28, 30)}, "positive multiples of 14"),
        ({"platforms": ["tpu"]}, "some of cpu, cuda"),
        ({"platforms": []}, "some of cpu, cuda"),
        ({"compute_dtype": "float16"}, "float32 or bfloat16"),
    ]:
        with pytest.raises(InputError, match=what):
            export_stablehlo(tiny(), out, **(good | wrong))
    out.mkdir()
    (out / "weights.npz").write_text("earlier")
    with pytest.raises(InputError, match="holds weights.npz already"):
        export_stablehlo(tiny(), out, **good)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
