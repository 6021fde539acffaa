"""MapAnything through the same doors as VGGT: infer, many scenes, the command line, memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from model_checks import check_estimate_of_memory, loaded_in_bfloat16
from PIL import Image

import vggt_jax
from vggt_jax import BlockSparse, InputError, cli
from vggt_jax.models import loading
from vggt_jax.pipeline import memory, streaming
from vggt_jax.pipeline.inputs import read, read_frames
from vggt_jax.pipeline.options import Options


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (3, 28, 42, 3), np.uint8)


@pytest.mark.slow
def test_infer_gives_the_values_of_the_official_code(load_toy, golden):
    arrays = golden("mapanything_odd.n2_70x42")
    recon = vggt_jax.infer(arrays["images"][0], model=load_toy("mapanything_odd"))

    def assert_close(name, found, limit):
        expected = arrays[name].astype(np.float64)
        error = np.abs(toys.kept(name, found[None]) - expected).max()
        assert error <= limit * np.sqrt(np.mean(expected**2)), name

    assert_close("pts3d", recon.world_points, 1e-4)
    for found in (recon.depth_confidence, recon.world_points_confidence):
        assert_close("conf", found, 6e-5)
    depth = toys.kept("depth", recon.depth[None])
    np.testing.assert_allclose(depth, arrays["pts3d_cam"][..., 2], rtol=0, atol=1e-3)
    inverse = np.linalg.inv(arrays["camera_poses"][0].astype(np.float64))
    scale = np.abs(inverse[:, :3]).max()
    np.testing.assert_allclose(recon.camera_from_world, inverse[:, :3], rtol=0, atol=1e-4 * scale)
    # The official code counts from the centre of the first pixel.
    intrinsics = recon.intrinsics - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    assert_close("intrinsics", intrinsics, 2e-3)
    differs = toys.kept("mask", ~recon.depth_edges[None]) != arrays["mask"]
    assert differs.sum() <= 1
    assert recon.confidence_kind == "one_plus_exp" and recon.pixel_centre == 0.5
    assert recon.length_unit == "metres"
    assert recon.tracks is None and recon.attention_stats is None
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(recon))


@pytest.mark.slow
def test_streams_of_padded_frames_that_leave_nothing_out_are_the_whole(tiny_mapanything, images):
    """The token of the scene stays where frames are padded, and blocks agree with dense attention."""
    model = tiny_mapanything()
    padded = np.concatenate([images, np.full((1, 28, 42, 3), 200, np.uint8)])
    inputs = {"images": padded, "num_frames": np.int32(3)}
    everything = BlockSparse(min_tokens=0, sparse_ratio=0.0, block_q=16, block_k=8)
    options = {"attention": everything, "compute_dtype": jnp.float32}
    stream = streaming.Stream.of(model, inputs, frames_in_piece=2, **options)
    found, expected = stream(model, **inputs), vggt_jax.infer(images, model=model)
    for name in ("depth", "depth_confidence", "world_points", "camera_from_world", "intrinsics"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-4, err_msg=name
        )
    assert found.length_unit == expected.length_unit == "metres"
    assert found.best_points == expected.best_points == "head"
    assert found.attention_stats.density.shape == (2, 3)  # two pairs of blocks, three heads


@pytest.mark.slow
def test_the_order_of_other_frames_does_not_matter(tiny_mapanything, images):
    model = tiny_mapanything()
    expected = vggt_jax.infer(images, model=model)
    found = vggt_jax.infer(images[[0, 2, 1]], model=model)
    np.testing.assert_allclose(found.depth[[0, 2, 1]], expected.depth, rtol=1e-3, atol=1e-4)
    # Another first frame makes another world.
    found = vggt_jax.infer(images, model=model, reference=1)
    assert np.abs(found.depth / expected.depth - 1).max() > 0.01


@pytest.mark.parametrize(
    ("poses", "rays", "depth", "reference", "message"),
    [
        ([1, 1, 0], [1, 1, 1], [1, 1, 1], 0, None),
        ([0, 1, 0], [1, 1, 1], [1, 1, 1], 1, None),
        ([0, 1, 1], [1, 1, 1], [1, 1, 1], 0, "pose of frame 0 is not known.*by reference"),
        ([1, 1, 0], [1, 1, 1], [1, 1, 1], 2, "pose of frame 2 is not known"),
        ([1, 1, 1], [1, 0, 1], [1, 1, 1], 0, "depth of frame 1 is known, but neither its intri"),
        ([1, 1, 1], [1, 0, 1], [1, 0, 1], 0, None),
    ],
)
def test_what_can_be_known_together(tiny_mapanything, poses, rays, depth, reference, message):
    mask = lambda values: np.array(values, bool)
    priors = vggt_jax.Priors(
        intrinsics=np.tile(np.diag([9, 9, 1.0]), (3, 1, 1)),
        camera_from_world=np.tile(np.eye(4), (3, 1, 1)),
        depth=np.ones((3, 28, 42)),
        poses_known=mask(poses),
        intrinsics_known=mask(rays),
        depth_known=mask(depth),
    )
    model = jax.eval_shape(lambda: tiny_mapanything(img_size=518))
    frames = [np.zeros((28, 42, 3), np.uint8)] * 3
    options = Options(priors=priors, reference=reference, size=(28, 42))
    if message is None:
        assert read(frames, model, options).priors.given == ("intrinsics", "poses", "depth")
    else:
        with pytest.raises(InputError, match=message):
            read(frames, model, options)


@pytest.mark.slow
def test_gradients_reach_every_parameter(tiny_mapanything, images):
    priors = vggt_jax.Priors(
        intrinsics=np.tile(
            np.array([[40, 0, 21], [0, 40, 14], [0, 0, 1.0]], np.float32), (3, 1, 1)
        ),
        camera_from_world=np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
        + np.arange(3, dtype=np.float32)[:, None, None] * np.eye(4, k=3, dtype=np.float32),
        depth=np.full((3, 28, 42), 2.0, np.float32),
        metric=True,
    )

    def loss(model):
        recon = vggt_jax.reconstruct(model, images.astype(np.float32) / 255, priors=priors)
        outputs = (recon.world_points, recon.world_points_confidence, recon.camera_from_world)
        return sum(jnp.mean(jnp.square(x)) for x in outputs)

    model = tiny_mapanything()
    # Of the raw maps the last channel, the mask, is in no loss; nor is its bias.
    gradients = loading.named_parameters(jax.jit(jax.grad(loss))(model))
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, name


def test_a_saved_model_is_loaded_again_as_it_was(tmp_path, tiny_mapanything):
    model = tiny_mapanything()
    vggt_jax.save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"] == "mapanything"
    loaded = vggt_jax.load_model(tmp_path / "model")
    assert isinstance(loaded, vggt_jax.MapAnything) and loaded.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, model)


@pytest.mark.parametrize("toy", ["mapanything_toy", "mapanything_odd"])
def test_conversion_and_loading_agree_on_what_becomes_bfloat16(toy_checkpoint, toy):
    loaded = loaded_in_bfloat16(toy_checkpoint(toy))
    assert loaded["encoder.blocks.attn.qkv.kernel"].dtype == jnp.bfloat16
    assert loaded["depth_encoder.conv_in.kernel"].dtype == jnp.float32


def test_photographs_are_cut_to_one_of_ten_shapes(tiny_mapanything, photographs):
    released = jax.eval_shape(lambda: tiny_mapanything(img_size=518))
    assert read_frames(photographs, released, Options()).images.shape == (3, 294, 518, 3)
    model = tiny_mapanything()
    assert read_frames(photographs, model, Options(size=56)).images.shape == (3, 28, 56, 3)
    Image.fromarray(np.zeros((160, 96, 3), np.uint8)).save(photographs / "3.png")
    with pytest.raises(InputError, match="mode='cover'"):
        read_frames(photographs, released, Options())
    # Of their mean shape, (3 * 5 / 3 + 3 / 5) / 4 = 1.4.
    frames = read_frames(photographs, released, Options(mode="cover"))
    assert frames.images.shape == (4, 392, 518, 3)


@pytest.mark.slow
def test_the_command_line_reconstructs(tmp_path, tiny_mapanything, photographs, capsys):
    vggt_jax.save_model(tiny_mapanything(), tmp_path / "model")
    out = tmp_path / "out"
    args = ["infer", photographs, "--model", tmp_path / "model", "--out", out, "--size", 56]
    assert cli.main([str(arg) for arg in (*args, "--sparse-ratio", 0.5)]) == 0
    assert "3 frames of 56x28" in capsys.readouterr().out
    recon = vggt_jax.load_reconstruction(out)
    assert recon.length_unit == "metres" and recon.best_points == "head"
    cameras = json.loads((out / "cameras.json").read_text())
    assert cameras["pixel_centre"] == 0.5
    assert cli.main([str(arg) for arg in (*args, "--overwrite", "--query-points", "3,4")]) == 2
    assert "has no track head" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("num_frames", "height", "width"), [(9, 140, 112)])
def test_estimate_of_memory_is_near_what_the_compiler_plans(
    tiny_mapanything, num_frames, height, width
):
    model = tiny_mapanything(
        encoder_dim=192, info_sharing_dim=192, encoder_num_heads=6, info_sharing_num_heads=6,
        dpt_features=32,
    )  # fmt: skip
    check_estimate_of_memory(model, num_frames=num_frames, height=height, width=width)


def test_memory_of_the_released_size():
    """200 frames of 518x518 in less than 14 GiB, whose maps leave the device as they come."""
    estimate = memory.estimate_memory(
        vggt_jax.MapAnythingConfig(),
        weights=2_540_000_000,  # kernels of encoder and trunk in bfloat16
        num_frames=200,
        height=518,
        width=518,
        compute_dtype=jnp.bfloat16,
        streamed=True,
    )
    # Three layers of the trunk, and the encoder's tokens.
    assert estimate.kept_tokens == 2 * 200 * 1370 * 4 * 1536
    assert estimate.total < 14 * 2**30


@pytest.mark.slow
def test_many_scenes_are_told_what_is_known_of_each(tmp_path, tiny_mapanything, photographs):
    """The same photographs twice, of which different cameras are known."""
    model, scenes = tiny_mapanything(), dict.fromkeys(("attic", "hall"), photographs)

    def write(scene, step):
        matrix = [[90 * step, 0, 80], [0, 95, 48], [0, 0, 1]]
        frames = [
            {
                "name": f"{i}.png",
                "intrinsics_original": matrix,
                "camera_from_world": np.eye(3, 4, 0).tolist()[:2] + [[0, 0, 1, i * step]],
            }
            for i in range(3)
        ]
        (tmp_path / f"{scene}.json").write_text(json.dumps({"frames": frames}))

    for step, scene in enumerate(scenes, start=1):
        write(scene, step)
    options = {"model": model, "size": 56, "batch_size": 2, "progress": False}
    options["priors"] = tmp_path / "{scene}.json"
    run = lambda scenes: vggt_jax.reconstruct_scenes(scenes, tmp_path / "out", **options)
    report = run({**scenes, "cellar": photographs})
    assert sorted(report.written) == ["attic", "hall"]
    assert "cellar.json" in report.failed["cellar"]
    found = {scene: vggt_jax.load_reconstruction(tmp_path / "out" / scene) for scene in scenes}
    for scene, recon in found.items():
        known = {"size": 56, "priors": tmp_path / f"{scene}.json"}
        expected = vggt_jax.infer(photographs, model=model, **known)
        assert recon.length_unit == "metres" and recon.best_points == "head"
        for name in ("depth", "camera_from_world", "world_points"):
            one, other = getattr(recon, name), getattr(expected, name)
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4, err_msg=name)
    assert np.abs(found["attic"].depth / found["hall"].depth - 1).max() > 1e-3
    # Another file about a scene makes another result of that scene alone.
    assert sorted(run(scenes).skipped) == ["attic", "hall"]
    write("hall", 30)
    report = run(scenes)
    assert report.written == ("hall",) and report.skipped == ("attic",)
    assert "priors were changed since: hall.json" in report.again["hall"]
