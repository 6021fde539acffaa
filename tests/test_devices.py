"""One scene whose frames several devices divide: the values are those of one device."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

import vggt_jax
from pallas_kernels import tuned
from vggt_jax import Dense
from vggt_jax.layers.shards import map_frames, mesh_of
from vggt_jax.models.vggt.config import VGGTConfig
from vggt_jax.pipeline import plan
from vggt_jax.pipeline.many_scenes import ManyScenesOptions
from vggt_jax.pipeline.memory import estimate_memory
from vggt_jax.pipeline.options import Options
from vggt_jax.trunk.head_groups import heads_at_a_time

PROGRAM = Path(__file__).with_name("many_devices.py")


def errors(*case):
    """How far several devices are from one, by name."""
    run = subprocess.run(
        [sys.executable, PROGRAM, *case],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[1])},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found
    return found


@pytest.mark.slow
def test_attention_on_several_devices_is_that_on_one():
    assert {name: x for name, x in errors("attention", "4").items() if not x <= 2e-6} == {}


@pytest.mark.slow
def test_a_model_on_several_devices_gives_the_values_of_one():
    """The same program does it for `pi3` and `mapanything`."""
    found = errors("model", "vggt", "sampled", "8")
    assert {name: x for name, x in found.items() if not x <= 2e-5} == {}


@pytest.mark.slow
def test_scenes_that_devices_share_out_are_those_of_one():
    """Seven scenes, of which one cannot be read; bit by bit."""
    found = errors("scenes", "3")
    assert found.pop("devices") == 3
    assert found == dict.fromkeys(found, 0.0) and len(found) == 6


@pytest.mark.parametrize(
    "case",
    [
        ("sampled", "streamed", "2"),
        pytest.param(("dense", "whole", "4"), marks=pytest.mark.slow),
    ],
)
def test_infer_on_several_devices_gives_what_it_gives_on_one(case):
    """Five frames, so that the last devices have some that are padding."""
    assert {name: x for name, x in errors("infer", *case).items() if not x <= 2e-5} == {}


def test_frames_must_be_divided_evenly():
    images = np.zeros((1, 3, 2), np.float32)
    one = mesh_of(jax.devices()[:1])
    run = lambda mesh: map_frames(lambda whole, x, shards: (x + shards.num, {}), mesh, {}, images)
    assert (np.asarray(run(one)[0]) == 1).all()
    with pytest.raises(ValueError, match="2 devices do not divide 3 frames evenly"):
        run(AbstractMesh((2,), ("frames",)))
    with pytest.raises(ValueError, match=r"a mesh of one axis, not \('a', 'b'\)"):
        run(Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("a", "b")))


def test_devices_that_cannot_be():
    there = len(jax.devices())
    for devices, said in (
        (0, f"devices=0 must be in [1, {there}], those that JAX sees"),
        (there + 1, f"devices={there + 1} must be in [1, {there}]"),
        ([], "must be one or more, each of them once"),
        (jax.devices()[:1] * 2, "must be one or more, each of them once"),
    ):
        with pytest.raises(vggt_jax.InputError, match=re.escape(said)):
            Options(devices=devices)
        with pytest.raises(vggt_jax.InputError, match=re.escape(said)):
            ManyScenesOptions(devices=devices)
    # Scenes are shared out whole.
    assert ManyScenesOptions(devices=1).of_scene("hall").devices is None


def test_heads_attend_in_groups_where_all_would_gather_much():
    enough = tuned.value("devices.gathered_bytes")
    heads = lambda *numbers, more=1: heads_at_a_time(*numbers, gathered_bytes=enough + more)
    assert heads(16, 2, more=0) == 16
    # Four groups for each device, all of them alike, or each head by itself.
    assert [heads(16, devices) for devices in (2, 3, 4, 8)] == [2, 1, 1, 1]
    assert [heads(24, 2), heads(12, 1), heads(15, 2), heads(3, 8)] == [3, 3, 1, 1]


@pytest.mark.parametrize("attention", [Dense(), vggt_jax.BlockSparse(sparse_ratio=0.75)])
@pytest.mark.parametrize(("frames", "most"), [(200, 0.61), (400, 0.56)])
def test_each_of_two_devices_needs_little_more_than_half(attention, frames, most):
    """Of VGGT-1B in bfloat16: all but the weights is divided, gathered keys and values included."""
    size = {"num_frames": frames, "height": 518, "width": 518, "weights": 3 * 2**30}
    estimate = lambda num: estimate_memory(
        VGGTConfig.vggt_1b(),
        compute_dtype=jnp.bfloat16,
        attention=attention,
        streamed=True,
        num_devices=num,
        **size,
    )
    assert estimate(2).total <= most * estimate(1).total


def test_a_plan_counts_what_each_device_has(tiny, monkeypatch):
    """Frames are padded to a multiple of the devices, and each needs memory for its own."""
    model, images = tiny(enable_track=False), np.zeros((5, 28, 42, 3), np.uint8)
    one = vggt_jax.plan(images, model=model)
    monkeypatch.setattr(plan, "mesh_of_devices", lambda devices: AbstractMesh((2,), ("frames",)))
    two = vggt_jax.plan(images, model=model, devices=1)
    assert one.mesh is None and (one.padded_frames, one.masks_padding) == (5, False)
    assert (two.padded_frames, two.masks_padding) == (6, True)
    needed, alone = two.memory.needed, one.memory.needed
    assert needed.weights == alone.weights and needed.images * 5 == alone.images * 3
    assert "2, which divide the frames" in str(two) and "devices" not in str(one)
