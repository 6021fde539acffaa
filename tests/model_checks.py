"""What tests of every model check alike. Imported by tests."""

import jax
import jax.numpy as jnp
import numpy as np
import toys

import vggt_jax
from vggt_jax.layers.attention import Dense
from vggt_jax.models import conversion, loading
from vggt_jax.pipeline import memory


def check_estimate_of_memory(model, *, num_frames, height, width, attention=Dense()):
    """The estimate is near what the compiler plans."""
    images = jax.ShapeDtypeStruct((1, num_frames, height, width, 3), jnp.uint8)
    run = jax.jit(
        lambda model, images: model(images, compute_dtype=jnp.float32, attention=attention)
    )
    plan = run.lower(model, images).compile().memory_analysis()
    planned = plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes
    estimate = memory.estimate_memory(
        model.config,
        weights=memory.weight_bytes(model),
        num_frames=num_frames,
        height=height,
        width=width,
        compute_dtype=jnp.float32,
        attention=attention,
    ).total
    assert planned / 2 < estimate < planned * 2


def loaded_in_bfloat16(source):
    """Parameters by name of an official checkpoint, whose types conversion makes as loading does."""
    loaded = loading.named_parameters(vggt_jax.load_model(source, dtype="bfloat16"))
    converted, _, _ = conversion.load_official(source, dtype="bfloat16")
    assert {name: x.dtype.name for name, x in loaded.items()} == {
        name: x.dtype.name for name, x in converted.items()
    }
    return loaded


def golden_errors(found, expected, names):
    """The largest error of each array, as a share of the golden one's root mean square."""

    def error(name):
        value, golden = toys.kept(name, found[name]), expected[name].astype(np.float64)
        assert value.shape == golden.shape, name
        return np.abs(value - golden).max() / np.sqrt(np.mean(golden**2))

    return {name: error(name) for name in names}
