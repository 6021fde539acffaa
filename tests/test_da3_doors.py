"""Depth Anything 3 through the same doors as VGGT: infer, many scenes, the command line, memory."""

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
from vggt_jax.models.da3.ray_cameras import cameras_from_rays
from vggt_jax.pipeline import inputs, memory, streaming
from vggt_jax.pipeline.inputs import read, read_frames
from vggt_jax.pipeline.options import Options

SIZE = (28, 42)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (3, *SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def priors():
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    poses[:, 0, 3] = 0, 2, 5
    intrinsics = np.array([[40, 0, 21], [0, 40, 14], [0, 0, 1]], np.float32)
    return vggt_jax.Priors(camera_from_world=poses, intrinsics=np.tile(intrinsics, (3, 1, 1)))


@pytest.mark.slow
def test_infer_gives_the_values_of_the_official_code(load_toy, golden):
    arrays = golden("da3_toy.n4_28x42")
    recon = vggt_jax.infer(arrays["images"][0], model=load_toy("da3_toy"))

    def assert_close(name, found, limit):
        expected = arrays[name].astype(np.float64)
        error = np.abs(toys.kept(name, found[None]) - expected).max()
        assert error <= limit * np.sqrt(np.mean(expected**2)), name

    assert_close("depth", recon.depth, 5e-5)
    assert_close("depth_conf", recon.depth_confidence, 5e-5)
    assert_close("extrinsics", recon.camera_from_world, 7e-5)
    assert_close("intrinsics", recon.intrinsics, 3e-5)
    assert recon.confidence_kind == "one_plus_exp" and recon.pixel_centre == 0
    assert recon.length_unit == "arbitrary" and recon.world_points is None
    assert recon.tracks is None and recon.attention_stats is None
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(recon))


@pytest.mark.slow
def test_streams_of_padded_frames_that_leave_nothing_out_are_the_whole(tiny_da3, images):
    """And blocks that leave nothing out agree with dense attention, first block of the scene
    included."""
    starts = dict.fromkeys(("alt_start", "qknorm_start", "rope_start"), 3)
    model = tiny_da3(**starts)
    padded = np.concatenate([images, np.full((1, *SIZE, 3), 200, np.uint8)])
    inputs = {"images": padded, "num_frames": np.int32(3)}
    everything = BlockSparse(min_tokens=0, sparse_ratio=0.0, block_q=16, block_k=8)
    options = {"attention": everything, "compute_dtype": jnp.float32}
    stream = streaming.Stream.of(model, inputs, frames_in_piece=2, **options)
    found, expected = stream(model, **inputs), vggt_jax.infer(images, model=model)
    for name in ("depth", "depth_confidence", "camera_from_world", "intrinsics"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-4, err_msg=name
        )
    assert found.attention_stats.density.shape == (4, 2)  # four blocks of the scene, two heads


@pytest.mark.slow
def test_cameras_from_rays(load_toy, golden):
    """Those that fit the rays of the model, which are the official ones, at once and in pieces of
    padded frames; depth stays what it is."""
    arrays, model = golden("da3_toy.n4_28x42"), load_toy("da3_toy")
    images = arrays["images"][0]
    call = jax.jit(lambda model, x: model(x, rays=True, compute_dtype=jnp.float32))
    rays = call(model, images[None])
    find = jax.jit(lambda ray, conf: cameras_from_rays(ray[0], conf[0], SIZE))
    extrinsics, intrinsics = find(rays.ray, rays.ray_conf)
    recon = vggt_jax.infer(images, model=model, camera_source="rays")
    padded = np.concatenate([images, np.full((1, *SIZE, 3), 200, np.uint8)])
    inputs = {"images": padded, "num_frames": np.int32(4)}
    options = {"compute_dtype": jnp.float32, "camera_source": "rays", "frames_in_piece": 2}
    stream = streaming.Stream.of(model, inputs, **options)
    for found in (recon, stream(model, **inputs)):
        np.testing.assert_allclose(found.camera_from_world, extrinsics, atol=1e-3)
        np.testing.assert_allclose(found.intrinsics, intrinsics, rtol=1e-3)
        np.testing.assert_allclose(found.depth, rays.depth[0], rtol=1e-4)
    assert recon.provenance.options == {"camera_source": "rays"}
    assert np.abs(recon.camera_from_world - arrays["extrinsics"][0]).max() > 0.1


@pytest.mark.slow
def test_the_order_of_frames_does_not_matter(tiny_da3, images):
    """Of three and more: the reference view is chosen by what it shows."""
    model = tiny_da3()
    expected = vggt_jax.infer(images, model=model)
    order = [2, 0, 1]
    found = vggt_jax.infer(images[order], model=model)
    np.testing.assert_allclose(found.depth, expected.depth[order], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        found.camera_from_world, expected.camera_from_world[order], rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_given_cameras_are_kept_and_depth_is_in_their_unit(tiny_da3, images, priors):
    model = tiny_da3()
    found = vggt_jax.infer(images, model=model, priors=priors)
    np.testing.assert_array_equal(found.camera_from_world, priors.camera_from_world[:, :3])
    np.testing.assert_array_equal(found.intrinsics, priors.intrinsics)
    assert found.length_unit == "given" and found.pixel_centre == 0.5
    raw = jax.jit(vggt_jax.reconstruct)(model, images, priors=priors)
    ratio = np.asarray(raw.depth) / found.depth
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)
    predicted = vggt_jax.infer(images, model=model)
    assert np.abs(raw.depth / predicted.depth - 1).max() > 0.01
    # In other units, cameras that are far enough apart say the same.
    far = vggt_jax.Priors(
        camera_from_world=priors.camera_from_world[:, :3] * np.array([1, 1, 1, 10], np.float32),
        intrinsics=priors.intrinsics,
    )
    larger = vggt_jax.infer(images, model=model, priors=far)
    np.testing.assert_allclose(larger.depth, 10 * found.depth, rtol=1e-4)


@pytest.mark.slow
def test_gradients_reach_every_parameter(tiny_da3, images, priors):
    starts = dict.fromkeys(("alt_start", "qknorm_start", "rope_start"), 3)
    model = tiny_da3(**starts, ffn="swiglufused")
    by_scene = jax.tree.map(lambda x: x[None], priors)
    frames = jnp.asarray(images[None].astype(np.float32) / 255)

    def loss(model):
        total = 0.0
        for known in ({}, {"priors": by_scene}):
            output = model(frames, rays=True, **known)
            outputs = (output.depth, output.depth_conf, output.ray, output.ray_conf)
            outputs += (output.extrinsics, output.intrinsics / 100)
            total += sum(jnp.mean(jnp.square(x)) for x in outputs)
        return total

    gradients = loading.named_parameters(jax.jit(jax.grad(loss))(model))
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, name


@pytest.mark.slow
def test_a_saved_model_is_loaded_again_as_it_was(tmp_path, tiny_da3):
    model = tiny_da3()
    vggt_jax.save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model"] == "da3"
    loaded = vggt_jax.load_model(tmp_path / "model")
    assert isinstance(loaded, vggt_jax.DA3) and loaded.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, model)


@pytest.mark.slow
def test_conversion_and_loading_agree_on_what_becomes_bfloat16(toy_checkpoint):
    loaded = loaded_in_bfloat16(toy_checkpoint("da3_odd"))
    assert loaded["encoder.blocks.attn.qkv.kernel"].dtype == jnp.bfloat16
    assert loaded["camera_encoder.trunk.attn.qkv.kernel"].dtype == jnp.float32


def test_why_no_reference_frame_can_be_chosen(images):
    model = loading.abstract_model(vggt_jax.DA3Config.small())
    with pytest.raises(InputError, match="reference=1: Depth Anything 3 chooses its .* itself"):
        read(images, model, Options(reference=1))
    told = inputs.why_no_reference(vggt_jax.Pi3X.traits)
    assert told.startswith("Pi3X has no reference frame") and "where no poses are known" in told
    assert "does not depend on the order;" in inputs.why_no_reference(vggt_jax.Pi3.traits)


def test_whose_cameras_come_from_rays(images):
    model = loading.abstract_model(vggt_jax.DA3Config.small())
    assert read(images, model, Options(camera_source="rays")).frames.images.shape == images.shape
    other = loading.abstract_model(vggt_jax.VGGTConfig.vggt_1b())
    message = "camera_source='rays' is for Depth Anything 3, not for VGGT; leave it out"
    with pytest.raises(InputError, match=message):
        read(images, other, Options(camera_source="rays"))
    with pytest.raises(InputError, match=message):
        jax.eval_shape(
            lambda model: vggt_jax.reconstruct(model, images, camera_source="rays"), other
        )
    with pytest.raises(InputError, match="camera_source='ray' is unknown; use one of head, rays"):
        Options(camera_source="ray")


def test_photographs_have_a_longer_side_of_504(photographs, priors):
    model = loading.abstract_model(vggt_jax.DA3Config.small())
    assert read_frames(photographs, model, Options()).images.shape == (3, 308, 504, 3)
    assert read_frames(photographs, model, Options(size=56)).images.shape == (3, 28, 56, 3)
    frames = [np.zeros((*SIZE, 3), np.uint8)] * 3
    told = read(frames, model, Options(priors=priors, size=42))
    assert told.keeps_given_cameras and told.priors.given == ("intrinsics", "poses")
    Image.fromarray(np.zeros((160, 96, 3), np.uint8)).save(photographs / "3.png")
    with pytest.raises(InputError, match="or 'longest'"):
        read_frames(photographs, model, Options())
    frames = read_frames(photographs, model, Options(mode="longest"))
    assert frames.images.shape == (4, 308, 308, 3)


@pytest.mark.slow
def test_the_command_line_reconstructs(tmp_path, tiny_da3, photographs, capsys):
    vggt_jax.save_model(tiny_da3(), tmp_path / "model")
    out = tmp_path / "out"
    args = ["infer", photographs, "--model", tmp_path / "model", "--out", out, "--size", 42]
    args += ["--sparse-ratio", 0.5]
    assert cli.main([str(arg) for arg in args]) == 0
    assert "3 frames of 42x28" in capsys.readouterr().out
    recon = vggt_jax.load_reconstruction(out)
    assert recon.world_points is None and recon.points_from_depth().shape == (3, *SIZE, 3)
    cameras = json.loads((out / "cameras.json").read_text())
    assert cameras["pixel_centre"] == 0
    again = [str(arg) for arg in (*args, "--overwrite", "--query-points", "3,4")]
    assert cli.main(again) == 2
    assert "has no track head" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("num_frames", "height", "width"), [(9, 140, 112)])
def test_estimate_of_memory_is_near_what_the_compiler_plans(tiny_da3, num_frames, height, width):
    model = tiny_da3(dim=192, num_heads=6, cam_enc_num_heads=6, head_features=32)
    check_estimate_of_memory(model, num_frames=num_frames, height=height, width=width)


def test_memory_of_a_released_size():
    """200 frames of 504x378 by DA3-LARGE in less than 10 GiB, whose maps leave the device as they
    come."""
    estimate = memory.estimate_memory(
        vggt_jax.DA3Config.large(),
        weights=820_000_000,  # kernels of encoder and trunk in bfloat16
        num_frames=200,
        height=378,
        width=504,
        compute_dtype=jnp.bfloat16,
        streamed=True,
    )
    assert estimate.kept_tokens == 2 * 200 * 973 * 4 * 2048
    assert estimate.total < 10 * 2**30
