"""Memory of a conversion: one copy of the parameters beside the mapped source."""

import tracemalloc

import numpy as np
import orbax.checkpoint  # noqa: F401  imported first, so that its own memory is not measured
import pytest
from safetensors.numpy import save_file

from vggt_jax import VGGTConfig
from vggt_jax.checkpoints.rules import expand
from vggt_jax.models.conversion import convert
from vggt_jax.models.vggt.keys import rules

CONFIG = {
    "embed_dim": 256,
    "num_heads": 4,
    "depth": 8,
    "vit_depth": 8,
    "vit_num_heads": 4,
    "dpt_layers": [1, 3, 5, 7],
    "enable_camera": False,
    "enable_depth": False,
    "enable_point": False,
    "enable_track": False,
}


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_a_conversion_holds_one_copy(tmp_path, name):
    slots = expand(rules(VGGTConfig.from_dict(CONFIG)))
    source = tmp_path / "source.safetensors"
    save_file({key: np.ones(slot.rule.shape, np.float32) for key, slot in slots.items()}, source)
    size = source.stat().st_size
    assert size > 75e6
    tracemalloc.start()
    try:
        convert(source, tmp_path / name, config=CONFIG)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The parameters, and for one tensor at a time a mask of its finite values.
    assert 0.99 * size < peak < 1.1 * size
