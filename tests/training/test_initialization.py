import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.models.loading import named_parameters
from vggt_jax.training.initialization import initial_model, small_config
from vggt_jax.training.loop import export_model
from vggt_jax.training.predict import predict


def test_the_small_configuration_fits_twenty_mebibytes(tmp_path):
    model = jax.eval_shape(lambda: initial_model(small_config(), jax.random.key(0)))
    params = {name: np.ones(x.shape, np.float32) for name, x in named_parameters(model).items()}
    export_model(model, params, tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < 20 * 2**20
    assert small_config().embed_dim // small_config().num_heads == 64


@pytest.mark.slow
def test_it_starts_in_the_middle_and_passes_signals(config):
    make = jax.jit(lambda seed: initial_model(config, jax.random.key(seed)))
    run = jax.jit(predict)
    images = jax.random.uniform(jax.random.key(2), (2, 3, 28, 28, 3))
    for seed in (0, 1, 2, 4, 5):
        model = make(seed)
        output = run(model, images)
        assert np.median(np.abs(np.log(output.depth))) < 0.7  # depth near 1
        middle = np.array([0, 0, 0, 0, 0, 0, 1, 1.1, 1.1])
        np.testing.assert_allclose(output.pose_enc, np.broadcast_to(middle, (2, 3, 9)), atol=0.2)
    # What a frame shows reaches the predictions of others.
    other = run(model, images.at[:, 2].set(0.5))
    assert np.abs(other.depth[:, :2] - output.depth[:, :2]).max() > 1e-3
    # The first frame is told from the others.
    same = jnp.broadcast_to(images[:, :1], images.shape)
    poses = run(model, same).pose_enc
    np.testing.assert_allclose(poses[:, 1], poses[:, 2], atol=1e-5)
    assert np.abs(poses[:, 0] - poses[:, 1]).max() > 1e-3
