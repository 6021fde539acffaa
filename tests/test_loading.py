"""Models from and to checkpoints: what is read, cast, kept and refused."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_checks import loaded_in_bfloat16
from safetensors.numpy import load_file, save_file

import vggt_jax
from vggt_jax import CheckpointError, checkpoints
from vggt_jax.models import conversion, loading


def test_saved_model_is_loaded_again_as_it_was(tmp_path, tiny):
    model = tiny()
    for destination in (tmp_path / "folder", tmp_path / "file.safetensors"):
        vggt_jax.save_model(model, destination)
        loaded = vggt_jax.load_model(destination)
        assert loaded.config == model.config
        saved, found = map(loading.named_parameters, (model, loaded))
        assert saved.keys() == found.keys()
        for name, values in saved.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_ours_is_told_by_content(tmp_path, tiny):
    """Renamed, without an ending, or alone in a folder."""
    (tmp_path / "folder").mkdir()
    vggt_jax.save_model(tiny(), tmp_path / "model.safetensors")
    for name in ("best", "folder/last.ckpt"):
        (tmp_path / name).symlink_to(tmp_path / "model.safetensors")
    assert checkpoints.is_native(tmp_path / "best")
    assert vggt_jax.load_model(tmp_path / "folder").config == tiny().config
    for source in ("best", "folder"):
        with pytest.raises(CheckpointError, match="is converted already"):
            conversion.convert(tmp_path / source, tmp_path / "again")


def test_save_refuses_to_replace(tmp_path, tiny, tiny_pi3):
    vggt_jax.save_model(tiny(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="exists"):
        vggt_jax.save_model(tiny(), tmp_path / "model")
    vggt_jax.save_model(tiny_pi3(), tmp_path / "model", overwrite=True)
    assert vggt_jax.load_model(tmp_path / "model").config == tiny_pi3().config


def test_bfloat16_is_for_product_kernels_of_encoder_and_trunk(tiny):
    cast = loading.named_parameters(loading.with_dtype(tiny(), jnp.bfloat16))
    for name, values in cast.items():
        expected = name.endswith(".kernel") and not name.startswith(
            ("camera_head", "depth_head", "point_head", "track_head")
        )
        assert (values.dtype == jnp.bfloat16) == expected, name
    with pytest.raises(ValueError, match="float16 is not supported"):
        loading.with_dtype(tiny(), jnp.float16)


def test_conversion_and_loading_agree_on_what_becomes_bfloat16(toy_checkpoint):
    loaded_in_bfloat16(toy_checkpoint("vggt_toy"))


@pytest.mark.slow
def test_bfloat16_storage_changes_nothing_under_bfloat16_products(tiny):
    images = np.random.default_rng(1).random((3, 42, 56, 3), np.float32)
    run = jax.jit(lambda model: vggt_jax.reconstruct(model, images, compute_dtype=jnp.bfloat16))
    stored_wide, stored_narrow = run(tiny()), run(loading.with_dtype(tiny(), jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, stored_wide, stored_narrow)


def test_parameters_that_do_not_fit_are_all_listed(tiny):
    model = tiny()
    params = {name: np.asarray(x) for name, x in loading.named_parameters(model).items()}
    del params["encoder.norm.scale"]
    params["camera_token"] = params["camera_token"][:, :, :5]
    params["surprise"] = np.zeros(3)
    with pytest.raises(CheckpointError) as error:
        loading.with_parameters(model, params, source="here")
    message = str(error.value)
    assert message.startswith("here: 3 parameters do not fit")
    for part in ("missing: encoder.norm.scale (16,)", "camera_token (2, 1, 5)", "surprise (3,)"):
        assert part in message


def test_large_official_checkpoints_are_kept_converted(
    tmp_path, toy_checkpoint, golden_folder, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "_CACHE_FROM_BYTES", 1)
    monkeypatch.setenv("VGGT_JAX_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "toy.safetensors"
    tensors = load_file(toy_checkpoint("vggt_toy"))
    save_file(tensors, source)
    config = golden_folder / "vggt_toy.json"
    first = vggt_jax.load_model(source, config=config)
    kept = list((tmp_path / "cache" / "checkpoints").iterdir())
    assert len(kept) == 1

    def never(*args, **kwargs):
        raise AssertionError("converted again")

    with monkeypatch.context() as patched:
        patched.setattr(loading, "load_official", never)
        second = vggt_jax.load_model(source, config=config)
    jax.tree.map(np.testing.assert_array_equal, first, second)

    # Another file under the same name is another checkpoint.
    tensors["aggregator.camera_token"] += 1
    save_file(tensors, source)
    os.utime(source, ns=(1, 1))
    third = vggt_jax.load_model(source, config=config)
    shifted = np.asarray(first.camera_token[...]) + 1
    np.testing.assert_allclose(third.camera_token[...], shifted, atol=1e-6)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, toy_checkpoint, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(loading, "_CACHE_FROM_BYTES", 1)
    monkeypatch.setenv("VGGT_JAX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="is not kept"):
        model = vggt_jax.load_model(toy_checkpoint("vggt_toy"))
    assert model.config.embed_dim == 64


def test_load_errors_name_the_file(tmp_path, tiny, golden_folder):
    with pytest.raises(CheckpointError, match="nothing.safetensors: no such file"):
        vggt_jax.load_model(tmp_path / "nothing.safetensors")
    vggt_jax.save_model(tiny(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds its own configuration"):
        vggt_jax.load_model(tmp_path / "model", config=golden_folder / "vggt_toy.json")


def test_values_that_are_not_finite_are_refused(tmp_path, tiny):
    model = tiny()
    params = {name: np.array(x) for name, x in loading.named_parameters(model).items()}
    params["camera_token"][0, 0, 3] = np.nan
    params["frame_blocks.ls1"][1, 2] = np.inf
    with pytest.raises(CheckpointError, match="2 parameters hold NaN") as error:
        loading.with_parameters(model, params, source="here")
    assert "camera_token" in str(error.value) and "frame_blocks.ls1" in str(error.value)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_half_precision_checkpoints_run(tiny, dtype):
    model = tiny()
    params = loading.named_parameters(model)
    narrow = {name: np.asarray(x).astype(dtype) for name, x in params.items()}
    loaded = loading.with_parameters(model, narrow)
    for name, x in loading.named_parameters(loaded).items():
        stays = dtype == "bfloat16" and name.endswith(".kernel") and "head" not in name
        assert x.dtype == (jnp.bfloat16 if stays else jnp.float32), name
        np.testing.assert_array_equal(
            np.asarray(x).astype(np.float32), narrow[name].astype(np.float32)
        )
    images = np.zeros((3, 28, 42, 3), np.uint8)  # a program that other tests have, too
    assert np.isfinite(vggt_jax.infer(images, model=loaded).depth).all()


def test_a_damaged_cache_is_made_again(tmp_path, toy_checkpoint, monkeypatch):
    monkeypatch.setattr(loading, "_CACHE_FROM_BYTES", 1)
    monkeypatch.setenv("VGGT_JAX_CACHE", str(tmp_path))
    source = toy_checkpoint("vggt_toy")
    first = vggt_jax.load_model(source)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="converting again"):
        second = vggt_jax.load_model(source)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert vggt_jax.load_model(kept).config == first.config
