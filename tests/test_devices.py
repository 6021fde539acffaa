"""One scene whose frames several devices divide: the values are those of one device."""

import json
import os
import re
import socket
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


def started(*case):
    """The program for a case."""
    return subprocess.Popen(
        [sys.executable, PROGRAM, *case],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[1])},
    )


def found_by(program):
    """How far several devices are from one, by name."""
    out, said = program.communicate(timeout=600)
    assert program.returncode == 0, said
    found = json.loads(out.splitlines()[-1])
    assert found
    return found


def errors(*case):
    return found_by(started(*case))


@pytest.fixture(scope="module")
def parts():
    """What one program finds of all that is no whole model."""
    return errors("attention,known,scenes", "4")


@pytest.mark.slow
def test_attention_on_several_devices_is_that_on_one(parts):
    assert {name: x for name, x in parts["attention"].items() if not x <= 2e-6} == {}


@pytest.mark.slow
def test_what_is_known_of_a_scene_is_the_same_on_several_devices(parts):
    """Scales are those of all frames, origins that of the first; the view that Depth Anything 3
    chooses is the one of all."""
    found = parts["known"]
    assert {name: x for name, x in found.items() if not x <= 2e-6} == {} and len(found) == 4


@pytest.mark.slow
def test_a_model_on_several_devices_gives_the_values_of_one():
    """The same program does it for `pi3`, `pi3x`, `mapanything` and `da3`, the last three also with
    priors."""
    found = errors("model", "vggt", "sampled", "8")
    assert {name: x for name, x in found.items() if not x <= 2e-5} == {}


@pytest.mark.slow
def test_scenes_that_devices_share_out_are_those_of_one(parts):
    """Seven scenes, of which one cannot be read; bit by bit."""
    used, *found = parts["scenes"].pop("devices"), *parts["scenes"].values()
    assert used == 4 and found == [0.0] * 6


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


@pytest.mark.slow
def test_two_processes_divide_a_scene():
    """Each has half of the devices, and all results in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"{free.getsockname()[1]}"
    two = [started("processes", port, f"{i}", "4") for i in range(2)]
    try:
        found = [found_by(program) for program in two]
    finally:
        for program in two:
            program.kill()
            program.communicate()
    assert found[0] == found[1] and len(found[0]) == 4
    assert {name: x for name, x in found[0].items() if not x <= 2e-5} == {}


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
    enough = tuned.value("devices.bytes_of_group")
    # All of a group's, and as many in each group: as few as that allows.
    heads = lambda num, share: heads_at_a_time(num, own_bytes=int(share * enough))
    assert [heads(16, x) for x in (0.5, 1, 1.9, 2, 3.9, 4, 16, 999)] == [16, 16, 16, 8, 8, 4, 1, 1]
    assert [heads(24, 8), heads(12, 5), heads(15, 4), heads(3, 2.9)] == [3, 3, 5, 3]


@pytest.mark.parametrize("attention", [Dense(), vggt_jax.BlockSparse(sparse_ratio=0.75)])
@pytest.mark.parametrize(("frames", "most"), [(200, 0.66), (400, 0.56)])
def test_each_of_two_devices_needs_little_more_than_half(attention, frames, most):
    """Of VGGT-1B in bfloat16: all but the weights, a quarter of what one has for 200 frames, is
    divided, gathered keys and values included."""
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
