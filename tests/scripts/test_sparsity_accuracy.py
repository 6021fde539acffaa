"""`scripts/sparsity_accuracy.py` and its scenes, on a CPU with a model that compiles in seconds."""

import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vggt_jax

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts"
H, W = 42, 56
BLOCKS = ["--block-q", "16", "--block-k", "8"]


@pytest.fixture
def script(monkeypatch):
    """The module, and that of the scenes."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import evaluation_scenes
    import sparsity_accuracy

    return types.SimpleNamespace(main=sparsity_accuracy, scenes=evaluation_scenes)


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """The file of a small model without heads for points and tracks."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    vggt_jax.save_model(tiny(enable_point=False, enable_track=False), path)
    return path


def random_scenes(key, num_scenes, num_frames, *, size, split):
    """What the script asks of the synthetic world, of random numbers."""
    assert split == "validation"
    keys = jax.random.split(key, 3)
    shape = (num_scenes, num_frames)
    turn = jnp.linalg.qr(jax.random.normal(keys[0], (*shape, 3, 3)))[0]
    place = jax.random.normal(keys[1], (*shape, 3, 1))
    depth = jax.random.uniform(keys[2], (*shape, *size), minval=-0.2, maxval=2.0)
    return types.SimpleNamespace(
        images=jax.random.uniform(keys[0], (*shape, *size, 3)),
        depth=jnp.maximum(depth, 0.0),
        valid=depth > 0,
        camera_from_world=jnp.concatenate([turn, place], -1),
        intrinsics=jnp.broadcast_to(
            jnp.array([[50.0, 0, size[1] / 2], [0, 50, size[0] / 2], [0, 0, 1]]), (*shape, 3, 3)
        ),
    )


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sparsity_accuracy.py", *map(str, arguments)])
    script.main.main()


def test_from_the_synthetic_world_to_tables_and_plots(script, monkeypatch, checkpoint, tmp_path):
    world = types.ModuleType("vggt_jax.synthetic")
    world.render_scenes = random_scenes
    monkeypatch.setitem(sys.modules, "vggt_jax.synthetic", world)
    out = tmp_path / "results" / "tiny"
    arguments = [
        "--model", checkpoint, "--out", out, "--num-scenes", 3, "--batch-size", 2, "--frames", 4,
        "--size", H, W, "--split", "validation", "--dropped", 0.75, "--rules", "avg", "random",
        "--random-seeds", 3, "--max-points", 500, *BLOCKS,
    ]  # fmt: skip
    run(script, monkeypatch, *arguments)
    about, *lines = map(json.loads, out.with_suffix(".jsonl").read_text().splitlines())
    assert about["run"]["num_scenes"] == 3
    assert about["run"]["tokens"] == 4 * (3 * 4 + 3)
    rules = [(line["rule"], line.get("seed")) for line in lines]
    assert rules == [("dense", None), ("everything", None), ("avg", None), ("random", 3)]
    dense, everything, avg, random = lines
    # Keeping everything is dense attention; nearest points may change where two are about as near.
    for name in ("auc_30", "ate", "rpe_rotation", "abs_rel", "delta1", "chamfer", "f_score"):
        expected = dense["metrics"][name]
        np.testing.assert_allclose(everything["metrics"][name], expected, rtol=1e-3, err_msg=name)
    assert "density" not in dense and everything["density"] == everything["covered"] == 1
    # 48 patches in 6 blocks of 8, of which int(6 / 4) is kept, and 12 special tokens in 2.
    np.testing.assert_allclose([avg["density"], random["density"]], 3 / 8, rtol=1e-6)
    args = types.SimpleNamespace(block_k=8)
    model = vggt_jax.load_model(checkpoint)
    assert script.main.density_of_ratio(args, model, jnp.zeros((1, 4, H, W, 3)), 0.75) == 3 / 8
    assert random["covered"] < avg["covered"] < 1
    assert len({line["metrics"]["abs_rel"] for line in (dense, avg, random)}) == 3
    for line in lines[1:]:
        assert len(line["entropy_by_layer"]) == len(line["density_by_layer"]) == 2
        np.testing.assert_allclose(np.mean(line["covered_by_layer"]), line["covered"], rtol=1e-4)
    text = out.with_suffix(".md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| random (3) | 75% |"))
    assert f"| {random['metrics']['auc_30']:.3f} |" in row
    for name in ("tiny.png", "tiny_layers.png"):
        assert Image.open(out.with_name(name)).width > 500
    # The report can be made anew.
    out.with_suffix(".md").unlink()
    run(script, monkeypatch, "--out", out, "--report-only")
    assert out.with_suffix(".md").read_text() == text


def test_summary_of_several_batches(script):
    attention = vggt_jax.BlockSparse(min_tokens=0, sparse_ratio=0.5, random_seed=1)
    setting = script.main.Setting(rule="random", dropped=0.5, attention=attention, seed=1)
    stats = np.arange(12.0).reshape(3, 2, 2)  # scene, layer, head
    stats[:, 1] = np.nan  # a dense layer
    batches = [
        {"metrics": {"ate": np.array([1.0, 3.0]), "abs_rel": np.array([0.1, np.inf])},
         "stats": {"entropy": stats[:2]}},
        {"metrics": {"ate": np.array([np.nan]), "abs_rel": np.array([0.3])},
         "stats": {"entropy": stats[2:]}},
    ]  # fmt: skip
    dense = [
        {"metrics": {"ate": np.array([0.5, 2.0]), "abs_rel": np.array([0.05, 0.1])}},
        {"metrics": {"ate": np.array([np.nan]), "abs_rel": np.array([0.2])}},
    ]
    line = script.main.summarise(setting, batches, dense)
    # Where the truth defines no number it does not count; a failure makes the mean infinite.
    assert line["metrics"] == {"ate": 2.0, "abs_rel": None} and line["failed_scenes"] == 1
    assert line["standard_errors"]["ate"] == 1.0
    # Differences are those of the same scenes: 0.5 and 1.
    assert line["differences"] == {"ate": (0.75, 0.25), "abs_rel": (None, None)}
    assert line["entropy"] == 4.5 and line["entropy_by_layer"] == [4.5, None]
    assert line["seed"] == 1 and "threshold" not in line


def test_thresholds_are_fitted_between_measured_ones(script, monkeypatch):
    def aggregate(model, images, tokens, *, attention, compute_dtype, taps):
        # Three scenes, two layers of which the first is dense, five heads.
        density = np.ones((3, 2, 5))
        density[:, 1] = max(attention.cdf_threshold**2, 0.01)
        return types.SimpleNamespace(attention_stats=types.SimpleNamespace(density=density))

    monkeypatch.setattr(script.main, "aggregate", aggregate)
    monkeypatch.setattr(script.main, "encode", lambda model, images, compute_dtype: None)
    ratio = lambda args, model, images, dropped: max(1 - dropped, 0.01)
    monkeypatch.setattr(script.main, "density_of_ratio", ratio)
    args = types.SimpleNamespace(compute_dtype=None, dropped=[0.0, 0.4, 0.9, 1.0], layers=[1])
    found = script.main.fit_thresholds(args, None, None, vggt_jax.BlockSparse)
    assert found[0.0] == 1 and found[1.0] == 0
    # Between 0.75 and 0.9, and between 0.2 and 0.5, along a line.
    expected = 0.75 + 0.15 * (0.6 - 0.75**2) / (0.9**2 - 0.75**2)
    np.testing.assert_allclose(found[0.4], expected, atol=1e-4)
    np.testing.assert_allclose(found[0.9], 0.2 + 0.3 * (0.1 - 0.04) / (0.25 - 0.04), atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    """Two scenes of five photographs each, higher than the model wants them; one without depth."""
    rng = np.random.default_rng(0)
    for name in ("bridge", "arch"):
        (tmp_path / name / "images").mkdir(parents=True)
        frames = []
        for i in range(5):
            image = rng.integers(0, 256, (100, 56, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / name / "images" / f"{i}.png")
            pose = np.c_[np.eye(3), [0.5 * i, 0, 0]]
            matrix = [[60, 0, 28], [0, 60, 50], [0, 0, 1]]
            frames.append(
                {
                    "name": f"{i}.png",
                    "camera_from_world": pose.tolist(),
                    "intrinsics_original": matrix,
                }
            )
        (tmp_path / name / "cameras.json").write_text(json.dumps({"frames": frames}))
    (tmp_path / "arch" / "depth").mkdir()
    for i in range(5):
        # Which row a number comes from shows where it went.
        depth = np.broadcast_to(np.arange(100.0)[:, None] + 1000 * i, (100, 56)).copy()
        depth[:, 7] = np.nan
        np.save(tmp_path / "arch" / "depth" / f"{i}.npy", depth)
    return tmp_path


def test_scenes_of_a_folder(script, folder, tiny):
    model = tiny(enable_point=False, enable_track=False)  # frames of 28 x 28
    images, truth = script.scenes.read_scene(
        folder / "arch", model=model, num_frames=3, image_side=56
    )
    assert images.shape == (3, 56, 56, 3)
    # Frames 0, 2 and 4; as wide as they are, with the middle 56 of 98 rows (of whole patches).
    np.testing.assert_allclose(truth.camera_from_world[:, 0, 3], [0, 1, 2])
    scale, top = 98 / 100, 21
    rows = np.rint((np.arange(56) + top + 0.5) / scale - 0.5)
    for frame, number in enumerate((0, 2, 4)):
        np.testing.assert_allclose(truth.depth[frame, :, 20], rows + 1000 * number)
    assert not truth.valid[:, :, 7].any() and truth.valid[:, :, 8].all()
    np.testing.assert_allclose(
        truth.intrinsics[0, :2], [[60, 0, 28], [0, 60 * scale, 50 * scale - top]]
    )
    _, unknown = script.scenes.read_scene(
        folder / "bridge", model=model, num_frames=None, image_side=56
    )
    assert len(unknown.depth) == 5 and not unknown.valid.any()
    batches = list(
        script.scenes.folder_batches(folder, model=model, batch_size=2, num_frames=4, image_side=28)
    )
    assert [batch.names for batch in batches] == [("arch", "bridge")]
    assert batches[0].images.shape == (2, 4, 28, 28, 3) and batches[0].truth.valid.shape[0] == 2


def test_scenes_that_cannot_be_used(script, folder, tiny):
    model = tiny(enable_point=False, enable_track=False)
    read = lambda **options: list(
        script.scenes.folder_batches(
            folder, model=model, batch_size=1, image_side=None, **{"num_frames": 5, **options}
        )
    )
    with pytest.raises(vggt_jax.InputError, match="arch: has 5 images, fewer than the 9 asked for"):
        read(num_frames=9)
    np.save(folder / "arch" / "depth" / "3.npy", np.zeros((2, 3)))
    with pytest.raises(vggt_jax.InputError, match=r"3.npy: is \(2, 3\), but its image \(100, 56\)"):
        read()
    (folder / "arch" / "cameras.json").write_text('{"frames": [{"name": "0.png"}]}')
    with pytest.raises(vggt_jax.InputError, match="cameras.json: no cameras can be read"):
        read()
    (folder / "arch" / "cameras.json").write_text('{"frames": []}')
    with pytest.raises(vggt_jax.InputError, match="has no camera for 0.png, 1.png, 2.png"):
        read()


def test_errors_end_in_one_line(script, monkeypatch, tmp_path):
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(SystemExit, match=f"sparsity_accuracy: error: {missing}"):
        run(script, monkeypatch, "--out", tmp_path / "x", "--model", missing)
    with pytest.raises(SystemExit, match="holds no results"):
        run(script, monkeypatch, "--out", tmp_path / "x", "--report-only")
