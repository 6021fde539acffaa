"""π³ through the same doors as VGGT: infer, many scenes, the command line, checkpoints, memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
import trimesh
from model_checks import check_estimate_of_memory, loaded_in_bfloat16
from PIL import Image

import vggt_jax
from vggt_jax import (
    BlockSparse,
    CheckpointError,
    InputError,
    cli,
    geometry,
)
from vggt_jax.models import loading
from vggt_jax.models.pi3.outputs import Pi3Output
from vggt_jax.pipeline import memory
from vggt_jax.pipeline.inputs import read_frames
from vggt_jax.pipeline.options import Options

SPARSE = BlockSparse(min_tokens=0, sparse_ratio=0.5, block_q=16, block_k=8)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (3, 28, 42, 3), np.uint8)


def test_infer_gives_the_values_of_the_official_code(load_toy, golden, relative_error):
    arrays = golden("pi3_odd.n5_84x42")
    recon = vggt_jax.infer(arrays["images"][0], model=load_toy("pi3_odd"))
    points = toys.kept("points", recon.world_points[None])
    assert relative_error(points, arrays["points"]) <= 1e-4
    depth = toys.kept("depth", recon.depth[None])
    assert relative_error(depth, arrays["local_points"][..., 2]) <= 1e-4
    confidence = 1 / (1 + np.exp(-arrays["conf"][..., 0]))
    for found in (recon.depth_confidence, recon.world_points_confidence):
        found = toys.kept("depth_conf", found[None])
        np.testing.assert_allclose(found, confidence, rtol=0, atol=2e-5)
    assert recon.confidence_kind == "sigmoid"
    inverse = np.linalg.inv(arrays["camera_poses"][0].astype(np.float64))
    np.testing.assert_allclose(recon.camera_from_world, inverse[:, :3], rtol=0, atol=2e-5)
    intrinsics = arrays["intrinsics"][0].copy()
    intrinsics[:, :2, 2] += 0.5  # The official ones count from the centre of the first pixel.
    np.testing.assert_allclose(recon.intrinsics, intrinsics, rtol=1e-3, atol=1e-5)
    assert recon.depth_edges.shape == recon.depth.shape and recon.depth_edges.dtype == bool
    assert recon.tracks is None and recon.attention_stats is None
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(recon))


def test_world_points_and_cameras_agree(tiny_pi3, images):
    recon = vggt_jax.infer(images, model=tiny_pi3())
    flat = jnp.asarray(recon.world_points.reshape(3, -1, 3))
    in_camera = geometry.camera_points_from_world(flat, jnp.asarray(recon.camera_from_world))
    np.testing.assert_allclose(in_camera[..., 2].reshape(recon.depth.shape), recon.depth, rtol=1e-3)


def test_points_from_depth_are_those_of_a_pinhole_camera():
    # Points that a pinhole camera sees through the centres of its pixels, on 5 rows and 7 columns.
    rng = np.random.default_rng(7)
    depth = rng.uniform(1, 3, (1, 2, 5, 7)).astype(np.float32)
    y, x = np.mgrid[:5, :7]
    local = np.stack([(x - 3) / 8 * depth, (y - 2) / 6 * depth, depth], axis=-1)
    poses = np.tile(np.eye(4), (1, 2, 1, 1))
    poses[..., :3, :3] = np.linalg.qr(rng.normal(size=(1, 2, 3, 3)))[0]
    poses[..., :3, 3] = rng.normal(size=(1, 2, 3))
    local, poses = jnp.asarray(local, jnp.float32), jnp.asarray(poses, jnp.float32)
    output = Pi3Output(
        points=geometry.transform_point_maps(local, poses),
        local_points=local,
        conf=jnp.zeros((1, 2, 5, 7, 1)),
        camera_poses=poses,
    )

    class Model(vggt_jax.Pi3):
        def __init__(self):
            pass

        def __call__(self, images, **options):
            return output

    recon = jax.jit(lambda images: vggt_jax.reconstruct(Model(), images))(jnp.zeros((2, 5, 7, 3)))
    np.testing.assert_allclose(
        recon.intrinsics[0], [[8, 0, 3.5], [0, 6, 2.5], [0, 0, 1]], rtol=1e-5
    )
    np.testing.assert_allclose(recon.points_from_depth(), recon.world_points, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_batches_give_what_infer_gives(tmp_path, tiny_pi3, images):
    model = tiny_pi3()
    scenes = {"hall": images, "attic": images[::-1]}
    report = vggt_jax.reconstruct_scenes(
        scenes, tmp_path, model=model, attention=SPARSE, batch_size=2, progress=False
    )
    assert sorted(report.written) == sorted(scenes)
    expected = vggt_jax.infer(images, model=model, attention=SPARSE)
    with np.load(tmp_path / "hall" / "predictions.npz") as found:
        assert str(found["confidence_kind"]) == "sigmoid"
        for name in ("camera_from_world", "depth", "world_points", "attention_density"):
            value = expected.attention_stats.density if "_d" in name[9:] else None
            value = getattr(expected, name) if value is None else value
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_gradients_reach_every_parameter(tiny_pi3, images):
    def loss(model):
        recon = vggt_jax.reconstruct(model, images.astype(np.float32) / 255)
        outputs = (recon.world_points, recon.world_points_confidence, recon.camera_from_world)
        return sum(jnp.mean(jnp.square(x)) for x in outputs)

    gradients = loading.named_parameters(jax.jit(jax.grad(loss))(tiny_pi3()))
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, name


def test_a_saved_model_is_loaded_again_as_it_was(tmp_path, tiny_pi3, load_toy):
    model = tiny_pi3()
    vggt_jax.save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"] == "pi3"
    loaded = vggt_jax.load_model(tmp_path / "model")
    assert isinstance(loaded, vggt_jax.Pi3) and loaded.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, model)


def test_conversion_and_loading_agree_on_what_becomes_bfloat16(toy_checkpoint):
    loaded = loaded_in_bfloat16(toy_checkpoint("pi3_odd"))
    assert loaded["camera_decoder.blocks.mlp.fc1.kernel"].dtype == jnp.bfloat16
    assert loaded["camera_head.fc_rot.kernel"].dtype == jnp.float32


def test_a_configuration_of_the_other_model_is_refused(toy_checkpoint):
    source = toy_checkpoint("pi3_odd")
    with pytest.raises(CheckpointError, match="unknown field .*dpt_layers.* for a Pi3; known"):
        vggt_jax.load_model(source, config=vggt_jax.VGGTConfig.vggt_1b())


def run(*args):
    return cli.main([str(arg) for arg in args])


def test_the_command_line_writes_the_points_that_the_official_code_keeps(
    tmp_path, tiny_pi3, photographs, capsys
):
    # Depth that hardly depends on the tokens, so that some of it is no edge.
    model = jax.tree.map(lambda x: x, tiny_pi3())
    model.point_head.proj = jax.tree.map(lambda x: 0.05 * x, model.point_head.proj)
    vggt_jax.save_model(model, tmp_path / "model")
    out = tmp_path / "out"
    args = ("infer", photographs, "--model", tmp_path / "model", "--out", out, "--size", 56)
    assert run(*args, "--sparse-ratio", 0.5) == 0
    assert "3 frames of 70x42" in capsys.readouterr().out
    with np.load(out / "predictions.npz") as arrays:
        kept = (arrays["world_points_confidence"] > 0.1) & ~arrays["depth_edges"]
        assert kept.any() and not kept.all()
        expected = arrays["world_points"][kept]
    cloud = trimesh.load(out / "points.ply")
    np.testing.assert_allclose(cloud.vertices, expected, rtol=1e-6)
    # A world of edges, such as that of random weights, is shown all the same.
    vggt_jax.save_model(tiny_pi3(), tmp_path / "model", overwrite=True)
    assert run(*args, "--overwrite") == 0
    assert len(trimesh.load(out / "points.ply").vertices) == 3 * 70 * 42
    assert "at an edge of depth" in capsys.readouterr().err
    assert run(*args, "--overwrite", "--query-points", "3,4") == 2
    assert "has no track head" in capsys.readouterr().err


def test_the_mode_follows_from_the_model(tmp_path, tiny_pi3, photographs):
    Image.fromarray(np.zeros((160, 96, 3), np.uint8)).save(photographs / "3.png")
    model = tiny_pi3()
    with pytest.raises(InputError, match="mode='budget'"):
        vggt_jax.infer(photographs, model=model)
    frames = read_frames(photographs, model, Options(mode="budget", size=56))
    assert frames.images.shape == (4, 42, 70, 3)
    # The budget of the released model is that of the official loader, not its square of 518.
    released = jax.eval_shape(lambda: tiny_pi3(img_size=518))
    paths = sorted(photographs.iterdir())[:1]
    assert read_frames(paths, released, Options()).images.shape[1:] == (392, 644, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("num_frames", "height", "width"), [(6, 196, 252), (19, 140, 112)])
def test_estimate_of_memory_is_near_what_the_compiler_plans(tiny_pi3, num_frames, height, width):
    model = tiny_pi3(
        encoder_dim=192, decoder_dim=192, encoder_num_heads=6, decoder_num_heads=6, head_dim=192,
        head_num_heads=6,
    )  # fmt: skip
    check_estimate_of_memory(model, num_frames=num_frames, height=height, width=width)


def test_memory_of_the_released_size():
    estimate = memory.estimate_memory(
        vggt_jax.Pi3Config.pi3(),
        weights=1_930_000_000,
        num_frames=200,
        height=518,
        width=518,
        compute_dtype=jnp.bfloat16,
    )
    assert estimate.kept_tokens == 2 * 200 * 1374 * 2 * 1024  # one layer
    assert estimate.outputs == 4 * 7 * 200 * 518 * 518
    assert estimate.heads <= estimate.trunk
