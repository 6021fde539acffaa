"""A third model, from one file of the tests and registered by one line, through all doors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from made_up_model import FAMILY, MadeUp, MadeUpConfig

import vggt_jax
from vggt_jax import BlockSparse, CheckpointError, InputError, VGGTConfig, models
from vggt_jax.models import loading, registry
from vggt_jax.models.vggt.family import FAMILY as VGGT_FAMILY
from vggt_jax.pipeline import memory, streaming, timing

SPARSE = BlockSparse(min_tokens=0, sparse_ratio=0.5, block_q=16, block_k=8)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """For these tests alone: others list the models that there are."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry, "_FAMILIES", [*registry._FAMILIES])
        models.register(FAMILY)
        yield


@pytest.fixture(scope="module")
def model(randomised):
    return randomised(lambda rngs: MadeUp(MadeUpConfig(), rngs=rngs))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).integers(0, 256, (3, 28, 42, 3), np.uint8)


@pytest.fixture(scope="module")
def recon(model, images):
    return vggt_jax.infer(images, model=model, attention=SPARSE)


def test_it_is_saved_and_loaded(tmp_path, model, images, recon):
    vggt_jax.save_model(model, tmp_path / "model.safetensors")
    loaded = vggt_jax.load_model(tmp_path / "model.safetensors")
    assert isinstance(loaded, MadeUp) and loaded.config == model.config
    again = vggt_jax.infer(images, model=tmp_path / "model.safetensors", attention=SPARSE)
    np.testing.assert_array_equal(again.world_points, recon.world_points)
    narrow = loading.named_parameters(loading.with_dtype(loaded, jnp.bfloat16))
    assert {name for name, x in narrow.items() if x.dtype == jnp.bfloat16} == {
        name
        for name in narrow
        if name.endswith(".kernel") and not name.startswith(("camera_head", "pixel_head"))
    }


def test_its_work_is_counted():
    work = timing.count_work(MadeUpConfig(), 3, 28, 42, attention=SPARSE)
    assert work["maps"] == 0 and work["attention"] > 0 and work["products"] > 0


def test_without_its_line_it_is_unknown(tmp_path, model, monkeypatch):
    vggt_jax.save_model(model, tmp_path / "model.safetensors")
    monkeypatch.setattr(registry, "_FAMILIES", registry._FAMILIES[:-1])
    known = r"\['da3', 'mapanything', 'pi3', 'pi3x', 'vggt'\]"
    with pytest.raises(CheckpointError, match=f"'made_up' is unknown; known are {known}"):
        vggt_jax.load_model(tmp_path / "model.safetensors")
    with pytest.raises(TypeError, match="is no configuration of a model"):
        loading.abstract_model(MadeUpConfig())


def test_infer_gives_what_its_call_gives(model, images, recon):
    output = jax.jit(lambda model, images: model(images, attention=SPARSE))(model, images[None])
    depth = jnp.exp(output.pixels[0, ..., 0])
    np.testing.assert_allclose(recon.depth, depth, rtol=1e-5)
    np.testing.assert_allclose(recon.world_points, output.pixels[0, ..., 1:4], rtol=0, atol=1e-5)
    assert recon.confidence_kind == "sigmoid" and recon.pixel_centre == 0.5
    assert 0.4 < recon.attention_stats.density.mean() < 1
    vertical = 2 * np.arctan(14 / recon.intrinsics[:, 1, 1])
    np.testing.assert_allclose(vertical, output.pose[0, :, 7], rtol=1e-5)


def test_its_maps_are_streamed(model, images, recon):
    stream = streaming.Stream.of(model, {"images": images}, attention=SPARSE, frames_in_piece=2)
    streamed = stream(model, images=images)
    for name in ("depth", "world_points", "camera_from_world", "world_points_confidence"):
        found, expected = getattr(streamed, name), getattr(recon, name)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_many_scenes_are_written_read_and_exported(tmp_path, model, images, recon):
    report = vggt_jax.reconstruct_scenes(
        {"hall": images, "attic": images[::-1]},
        tmp_path / "out",
        model=model,
        attention=SPARSE,
        progress=False,
    )
    assert sorted(report.written) == ["attic", "hall"] and report.failed == {}
    read = vggt_jax.load_reconstruction(tmp_path / "out" / "hall")
    np.testing.assert_allclose(read.world_points, recon.world_points, rtol=0, atol=1e-5)
    assert read.confidence_kind == "sigmoid"
    vggt_jax.export_reconstruction(
        read, tmp_path / "points.ply", format="ply", points="head", min_confidence=0.0
    )
    cloud = trimesh.load(tmp_path / "points.ply")
    assert len(cloud.vertices) == 3 * 28 * 42
    np.testing.assert_allclose(
        np.sort(cloud.vertices, axis=0),
        np.sort(read.world_points.reshape(-1, 3), axis=0),
        rtol=1e-6,
    )


def test_it_says_what_it_cannot_do(model, images):
    with pytest.raises(InputError, match="the made-up model has no reference frame"):
        vggt_jax.infer(images, model=model, reference=1)
    with pytest.raises(InputError, match="no track head"):
        vggt_jax.infer(images, model=model, query_points=[[3, 4]])
    with pytest.raises(InputError, match="layer"):
        vggt_jax.infer(images, model=model, attention=BlockSparse(sparse_ratio=0.5, layers=(2,)))


def test_its_memory_is_estimated(model):
    of = lambda num_frames: memory.check_memory(model, (num_frames, 28, 42, 3), free=10**6)
    few, many = of(2), of(2000)
    assert few.needed.outputs == 4 * 5 * 2 * 28 * 42
    assert few.shortage is None and "frames fit" in many.shortage


def test_names_and_configurations_are_of_one_model():
    models.register(FAMILY)  # it is there already
    assert [*registry.families()] == ["vggt", "pi3x", "pi3", "mapanything", "da3", "made_up"]
    with pytest.raises(ValueError, match="of the name vggt with the configuration VGGTConfig"):
        models.register(
            models.ModelFamily(model=MadeUp, config=VGGTConfig, memory=VGGT_FAMILY.memory)
        )
    with pytest.raises(CheckpointError, match="unknown field depths for a made-up model"):
        MadeUpConfig.from_dict({"depths": 3})
    with pytest.raises(CheckpointError, match=r"dim=20 must be a multiple of 4 \* num_heads=8"):
        MadeUpConfig(dim=20)
