"""A program of its own, because JAX settles the number of CPU devices when it starts: reconstructs
frames on eight of them and on one, and prints how far the results are from each other, as JSON.

    python many_devices.py attention|known|scenes|model|infer|processes ARGUMENT.. DEVICES

or for several of the first three, with commas between them.
"""

import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import conftest
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from models.made_up_model import FAMILY, MadeUpConfig

import vggt_jax
from pallas_kernels import tuned
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneTokens
from vggt_jax.layers.shards import map_frames, mesh_of
from vggt_jax.models import register
from vggt_jax.models.loading import abstract_model
from vggt_jax.models.mapanything.geometric_inputs import GeometricInputs
from vggt_jax.models.pi3x.prompts import Prompts
from vggt_jax.pipeline import many_scenes, placing, plan, streaming
from vggt_jax.trunk.head_groups import attend_by_groups

B, S, SPECIAL, GRID, N, H = 2, 8, 3, (3, 5), 3, 16
WIDTH = SPECIAL + GRID[0] * GRID[1] + 2  # two tokens of padding
SAMPLED = vggt_jax.Sampled(num_keys=17, min_tokens=0)
BLOCKS = vggt_jax.BlockSparse(sparse_ratio=0.7, block_q=7, block_k=4, min_tokens=0)
WAYS = {
    "dense": Dense(),
    "sampled": SAMPLED,
    "sampled special": dataclasses.replace(SAMPLED, sample_special_queries=True),
    # Blocks of 7 queries of 15 patches in a frame: no device begins with a block but the first.
    "blocks": BLOCKS,
    "blocks and a sample": dataclasses.replace(
        BLOCKS, sample_ratio=0.3, block_q=8, score_block_q=4
    ),
}


def error(found, expected):
    """The largest difference between trees, as a share of the largest number of each array; they
    must lack the same things."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        x, y = np.nan_to_num(x), np.nan_to_num(y)
        worst = max(worst, float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)))
    return worst


def attention(num_devices):
    """Every way to attend, with padded frames and tokens of the scene."""
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    frames = [draw(i, B, S, WIDTH, N, H) for i in range(3)]
    of_scene = SceneTokens(*(draw(9 + i, B, 2, N, H) for i in range(3)))
    mesh = mesh_of(jax.devices()[:num_devices])
    settings = {
        "num_special": SPECIAL,
        "grid": GRID,
        "token_order": "raster",
        "precision": Precision.from_compute_dtype(jnp.float32),
    }

    def run(value, shards, frames, of_scene, num_frames, heads=N):
        attend = functools.partial(
            value.attend, layer=jnp.int32(1), num_frames=num_frames, shards=shards, **settings
        )
        if shards is not None and value.gathers_keys:
            out, scene_out, stats = attend_by_groups(
                frames,
                of_scene,
                lambda frames, first, num: [
                    jax.lax.dynamic_slice_in_dim(x, first, num, axis=3) for x in frames
                ],
                lambda q, k, v, scene, heads: attend(q, k, v, scene=scene, heads=heads),
                shards=shards,
                num_heads=N,
                heads=heads,
                num_tokens=SPECIAL + GRID[0] * GRID[1],
            )
        else:
            out, scene_out, stats = attend(*frames, scene=of_scene)
        # Tokens beyond the patches mean nothing.
        return out[:, :, : SPECIAL + GRID[0] * GRID[1]], (scene_out, stats)

    errors, num_frames = {}, jnp.array([5, 8])
    for name, value in WAYS.items():
        alone = jax.jit(lambda *arrays, value=value: run(value, None, *arrays))
        expected = alone(frames, of_scene, num_frames)
        # In groups of one head; of one way also all heads at once.
        for heads in (1, N) if value is BLOCKS else (1,):

            def on_mesh(frames, scene, num_frames, value=value, heads=heads):
                fn = lambda whole, split, shards: run(value, shards, split, *whole, heads=heads)
                return map_frames(fn, mesh, (scene, num_frames), frames)

            found = jax.jit(on_mesh)(frames, of_scene, num_frames)
            errors[f"{name}, {heads} heads"] = error(found, expected)
    return errors


def known_of(name):
    """What a model may be told of eight frames, of some of which it is not known."""
    rng = np.random.default_rng(1)
    poses = np.tile(np.eye(4, dtype=np.float32), (8, 1, 1))
    poses[:, :3, :3] = np.linalg.qr(rng.normal(size=(8, 3, 3)))[0]
    poses[:, :3, :3] *= np.linalg.det(poses[:, :3, :3])[:, None, None]
    poses[:, :3, 3] = rng.normal(size=(8, 3))
    intrinsics = np.tile(np.float32([[40, 0, 21], [0, 45, 14], [0, 0, 1]]), (8, 1, 1))
    cameras = vggt_jax.Priors(camera_from_world=poses, intrinsics=intrinsics)
    if name == "da3":
        return cameras
    depth = rng.uniform(1, 3, (8, 28, 42)).astype(np.float32)
    return dataclasses.replace(
        cameras,
        depth=depth,
        metric=np.array(True),
        poses_known=np.arange(8) != 4,
        intrinsics_known=np.arange(8) != 2,
        depth_known=np.isin(np.arange(8), (1, 5, 6)),
    )


def model(name, value, *more):
    """A whole model, of whose eight frames seven count; "known": with priors."""
    *known, num_devices = more
    config = {
        "vggt": conftest.TINY,
        "pi3": conftest.TINY_PI3,
        "mapanything": conftest.TINY_MAPANYTHING,
        "pi3x": conftest.TINY_PI3X,
        "da3": conftest.TINY_DA3,
    }[name]
    made = conftest.with_random_parameters(abstract_model(config))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 28, 42, 3), np.uint8)
    options = {"attention": WAYS[value], "compute_dtype": jnp.float32, "num_frames": np.int32(7)}
    if known:
        options["priors"] = known_of(name)
    run = jax.jit(vggt_jax.reconstruct, static_argnames=("attention", "compute_dtype", "mesh"))
    with tuned.override({"devices.bytes_of_group": 0}):  # Heads attend one after the other.
        found = run(made, images, mesh=mesh_of(jax.devices()[:num_devices]), **options)
    expected = run(made, images, **options)
    found, expected = (
        {k: np.asarray(v)[:7] for k, v in vars(x).items() if isinstance(v, jax.Array)}
        for x in (found, expected)
    )
    return {key: error(found[key], expected[key]) for key in expected}


def known(num_devices):
    """What is of all frames in how models take what is known, or choose a view by themselves: the
    scale and origin of cameras and depth, poses that are shown to all patches."""
    images, counts = jnp.zeros((1, 8, 28, 42, 3), jnp.uint8), jnp.array([7])
    tokens = jax.random.normal(jax.random.key(0), (1, 8, 1 + 6, conftest.TINY_PI3X.decoder_dim))
    dense, heads = {"dense": Dense()}, Precision.from_compute_dtype(jnp.float32)
    of = lambda config: conftest.with_random_parameters(abstract_model(config))
    pi3x, mapanything, da3 = map(
        of, (conftest.TINY_PI3X, conftest.TINY_MAPANYTHING, conftest.TINY_DA3)
    )
    layout = da3.layout(images)
    views = jax.random.normal(jax.random.key(1), (1, 8, conftest.TINY_DA3.dim))

    def shown(priors, images, tokens, shards):
        prompts = Prompts.of_priors(priors, images, shards)
        of_trunk = pi3x.layout(images)
        injected = pi3x.pose_injection(
            jnp.int32(0),
            tokens,
            prompts.poses,
            prompts.poses_shown,
            of_trunk.positions()[of_trunk.num_special - 1 :],
            num_special=1,
            precision=heads,
            frames_per_chunk=2,
            shards=shards,
            **dense,
        )
        return prompts, injected

    def fused(priors, images, tokens, shards):
        found = GeometricInputs.of(priors, images, shards)
        vectors = mapanything.encoded_vectors(found, heads, shards)
        return [found.rotation, found.translation, found.depth, *vectors.values()]

    def of_cameras(priors, images, tokens, shards):
        return da3.special_tokens(tokens, priors, layout, counts, heads, "saddle_balanced", shards)

    chosen = lambda priors, *others: of_cameras(None, *others)
    cases = {
        "pi3x": (shown, known_of("pi3x"), tokens),
        "mapanything": (fused, known_of("mapanything"), tokens),
        "da3": (of_cameras, known_of("da3"), views),
        "da3 without cameras": (chosen, known_of("da3"), views),
    }
    mesh, errors = mesh_of(jax.devices()[:num_devices]), {}
    for name, (fn, priors, tokens) in cases.items():
        priors = jax.tree.map(lambda x: jnp.asarray(x)[None], priors)
        priors, metric = dataclasses.replace(priors, metric=None), priors.metric

        def run(metric, split, shards, fn=fn):
            priors, images, tokens = split
            return fn(dataclasses.replace(priors, metric=metric), images, tokens, shards), {}

        split = (priors, images, tokens)
        found = jax.jit(lambda *split, run=run, metric=metric: map_frames(run, mesh, metric, split))
        alone = jax.jit(lambda *split, run=run, metric=metric: run(metric, split, None))
        errors[name] = error(found(*split)[0], alone(*split)[0])
    return errors


def infer(value, how, num_devices):
    """Five frames through `infer`, by a model that compiles fast; maps leave the devices at once, or
    streamed in pieces of two frames of each."""
    register(FAMILY)
    made = conftest.with_random_parameters(abstract_model(MadeUpConfig()))
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 42, 3), np.uint8)
    options = {"model": made, "attention": WAYS[value], "compute_dtype": jnp.float32}
    expected = vggt_jax.infer(images, **options)
    original, changed = tuned.value, {"streaming.frames_in_piece": 2}
    if how == "streamed":
        plan.is_streamed = lambda *size: True
        streaming.tuned.value = lambda name: changed.get(name) or original(name)
    with tuned.override({"devices.bytes_of_group": 0}):  # Heads attend one after the other.
        found = vggt_jax.infer(images, devices=num_devices, **options)
    names = ("camera_from_world", "depth", "world_points", "world_points_confidence")
    if value != "dense":
        names += ("attention_stats",)
    assert found.depth.shape == expected.depth.shape == (5, 28, 42)
    return {name: error(getattr(found, name), getattr(expected, name)) for name in names}


def scenes(num_devices):
    """Scenes that are shared out, of three frames each; and the devices that had some."""
    register(FAMILY)
    made = conftest.with_random_parameters(abstract_model(MadeUpConfig()))
    rng = np.random.default_rng(0)
    given = {f"{i}": rng.integers(0, 256, (3, 28, 42, 3), np.uint8) for i in range(6)}
    given["damaged"] = np.zeros((2, 28, 42, 4, 3), np.uint8)
    used, run = set(), many_scenes._run

    def spy(model, *arguments):
        used.update(jax.tree.leaves(model)[0].devices())
        return run(model, *arguments)

    many_scenes._run = spy
    written = {}
    with tempfile.TemporaryDirectory() as folder:
        for devices in (1, num_devices):
            out = Path(folder) / f"{devices}"
            report = vggt_jax.reconstruct_scenes(
                given, out, model=made, devices=devices, progress=False
            )
            assert sorted(report.written) == [f"{i}" for i in range(6)]
            assert list(report.failed) == ["damaged"]
            written[devices] = {
                name: {
                    key: value
                    for key, value in vars(vggt_jax.load_reconstruction(out / name)).items()
                    if isinstance(value, np.ndarray) and value.dtype.kind == "f"
                }
                for name in report.written
            }
    many_scenes._run = run
    # A model that lies on all devices, whose results then do, too.
    everywhere = NamedSharding(mesh_of(jax.devices()), PartitionSpec())
    with tempfile.TemporaryDirectory() as folder:
        made = jax.device_put(made, everywhere)
        given = {"0": given["0"]}
        report = vggt_jax.reconstruct_scenes(given, folder, model=made, progress=False)
        assert list(report.written) == ["0"]
    x = np.arange(6, dtype=np.float32)
    pinned = jax.device_put(x, everywhere.with_memory_kind("pinned_host"))
    np.testing.assert_array_equal(placing.on_host(pinned), x)
    one, several = written[1], written[num_devices]
    return {name: error(several[name], one[name]) for name in one} | {"devices": len(used)}


def processes(port, number, num_devices):
    """`infer` in one of two processes that have half of the devices each; and by itself. Cameras
    come at once, maps in pieces."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", num_devices // 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
    assert (jax.device_count(), jax.local_device_count()) == (num_devices, num_devices // 2)
    register(FAMILY)
    made = conftest.with_random_parameters(abstract_model(MadeUpConfig()))
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 42, 3), np.uint8)
    options = {"model": made, "attention": SAMPLED, "compute_dtype": jnp.float32}
    plan.is_streamed = lambda *size: True
    expected = vggt_jax.infer(images, **options)
    found = vggt_jax.infer(images, devices=num_devices, **options)
    assert isinstance(found.depth, np.ndarray) and len(found.depth) == 5
    names = ("camera_from_world", "depth", "world_points", "attention_stats")
    return {name: error(getattr(found, name), getattr(expected, name)) for name in names}


if __name__ == "__main__":
    case, *arguments, number = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)
    cases = {"attention": attention, "model": model, "infer": infer, "scenes": scenes}
    cases |= {"known": known, "processes": processes}
    names = case.split(",")
    found = {name: cases[name](*arguments, int(number)) for name in names}
    print(json.dumps(found if len(names) > 1 else found[case]))
