"""The library in programs that set JAX up in their own way.

64-bit types, strict promotion of types and of ranks, errors where a NaN appears, forbidden transfers, and
no `jax.jit`. What is wrong for the first three shows while tracing, so that nothing need be compiled.
"""

import contextlib
import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax_settings import strict_types

import vggt_jax
from vggt_jax import BlockSparse, Sampled, evaluation, geometry, synthetic
from vggt_jax.images.frames import Frames
from vggt_jax.models.loading import abstract_model
from vggt_jax.pipeline import many_scenes, streaming
from vggt_jax.pipeline.inputs import of_frames
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.reconstruct import reconstruct
from vggt_jax.pipeline.run import with_known
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.training.initialization import initial_model
from vggt_jax.training.losses import LossWeights
from vggt_jax.training.optimizer import OptimizerSettings, make_optimizer
from vggt_jax.training.predict import Execution
from vggt_jax.training.scenes import synthetic as rendered
from vggt_jax.training.state import initial_state
from vggt_jax.training.step import AXIS, Recipe, make_steps, make_validation, update
from vggt_jax.training.variants import Variant
from vggt_jax.viewer.cameras import viewer_cameras
from vggt_jax.viewer.layers import depth_edges

SAMPLE = Path(vggt_jax.__file__).parent / "samples" / "cellar"
INTRINSIC = np.array([[40, 0, 21], [0, 40, 14], [0, 0, 1]], np.float32)
BLOCKS = {"block_q": 16, "block_k": 8, "min_tokens": 0}
SPARSE = BlockSparse(sparse_ratio=0.5, cdf_threshold=0.7, token_order="hilbert", **BLOCKS)
PARTLY = BlockSparse(sparse_ratio=0.5, pool_mode="max", layers=(1,), **BLOCKS)
RANDOM = BlockSparse(sparse_ratio=0.5, random_seed=3, **BLOCKS)
SAMPLED = Sampled(num_keys=11, min_tokens=0)
OTHERS = (SPARSE, PARTLY, RANDOM, SAMPLED)


def array(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


key = functools.partial(jax.eval_shape, lambda: jax.random.key(0))
IMAGES = array(2, 4, 28, 42, 3, dtype=np.uint8)
NUM_FRAMES = array(2, dtype=np.int32)
CAMERAS, INTRINSICS, POINTS = array(2, 3, 3, 4), array(2, 3, 3, 3), array(2, 3, 7, 3)
DEPTH, MAPS = array(2, 3, 14, 21), array(2, 3, 14, 21, 3)
TRUTH = evaluation.SceneTruth(
    camera_from_world=CAMERAS,
    intrinsics=INTRINSICS,
    depth=DEPTH,
    valid=array(2, 3, 14, 21, dtype=bool),
)

CASES = {}


def case(make):
    """A function of the tiny models that returns what to trace, and its arguments."""
    CASES[make.__name__] = make
    return make


@case
def vggt_with_tracks(vggt, pi3):
    call = lambda model, images, points, num: model(images, query_points=points, num_frames=num)
    return call, vggt, IMAGES, array(2, 5, 2), NUM_FRAMES


@case
def vggt_sparse(vggt, pi3):
    def call(model, images, num_frames):
        """Up to the heads, of which `bfloat16` sees how attention reaches them."""
        options = {"layout": model.layout(images), "num_frames": num_frames}
        tokens = model.encode(images)
        return jax.tree.leaves([model.aggregate(tokens, attention=a, **options) for a in OTHERS])

    return call, vggt, IMAGES, NUM_FRAMES


@case
def pi3_sparse(vggt, pi3):
    call = lambda model, images, num: model(images, num_frames=num, attention=SPARSE)
    return call, pi3, IMAGES, NUM_FRAMES


@case
def one_scene(vggt, pi3):
    call = lambda images, *models: [reconstruct(model, images) for model in models]
    return call, array(3, 28, 42, 3), vggt, pi3


@case
def bfloat16(vggt, pi3):
    call = lambda images, *models: [
        reconstruct(model, images, compute_dtype=jnp.bfloat16, attention=SPARSE) for model in models
    ]
    return call, array(3, 28, 42, 3), vggt, pi3


@case
def many_frames_and_points(vggt, pi3):
    """So many that everything is cut into chunks, and that layers are kept by branches."""
    call = lambda model, images, points: model(images, query_points=points)
    return call, vggt, array(1, 20_001, 28, 42, 3, dtype=np.uint8), array(1, 3000, 2)


@case
def streams(vggt, pi3):
    options = {"attention": SPARSE, "compute_dtype": None}

    def one(model, images, num_frames):
        tokens, read, fields = streaming._run_scene(model, images, num_frames=num_frames, **options)
        start = jnp.int32(1)
        return fields, streaming._run_frames(
            model, tokens, start, read, size=(28, 42), num=2, **options
        )

    call = lambda images, num, *models: [one(model, images, num) for model in models]
    return call, array(4, 28, 42, 3, dtype=np.uint8), array(dtype=np.int32), vggt, pi3


@case
def gradients(vggt, pi3):
    def loss(model, images):
        found = reconstruct(model, images)
        return found.depth.sum() + found.world_points.sum() + found.camera_from_world.sum()

    call = lambda images, *models: [jax.grad(loss, argnums=1)(model, images) for model in models]
    return call, array(3, 28, 42, 3), vggt, pi3


@case
def new_models(vggt, pi3):
    def call(key):
        rngs = nnx.Rngs(params=key)
        own = initial_model(vggt.config, key)
        return vggt_jax.VGGT(vggt.config, rngs=rngs), vggt_jax.Pi3(pi3.config, rngs=rngs), own

    return call, key()


@case
def cameras_and_points(vggt, pi3):
    def call(cameras, intrinsics, points, depth, maps, encoding):
        size = depth.shape[-2:]
        poses = jnp.concatenate([cameras, cameras[..., :1, :]], axis=-2)
        of_camera = geometry.camera_from_pose_encoding(encoding, size)
        rotation_loss = lambda x: geometry.nearest_rotation(x).sum()
        return [
            of_camera,
            geometry.pose_encoding_from_camera(cameras, intrinsics, size),
            geometry.invert_rigid(poses),
            geometry.transform_point_maps(maps, poses),
            geometry.world_points_from_camera(points, cameras),
            geometry.camera_points_from_world(points[0, 0], cameras),
            geometry.intrinsics_from_point_maps(maps),
            geometry.depth_edges(depth),
            geometry.unproject_depth(depth, cameras, intrinsics, pixel_centre=0.5),
            geometry.project_points(points, cameras, intrinsics),
            geometry.project_points(points, cameras[0, 0], intrinsics[0, 0]),
            jax.grad(rotation_loss)(cameras[..., :3]),
        ]

    return call, CAMERAS, INTRINSICS, POINTS, DEPTH, MAPS, array(2, 3, 9)


@case
def metrics(vggt, pi3):
    def call(cameras, depth, maps, truth):
        of_scene = functools.partial(evaluation.scene_metrics, max_points=50)
        valid = depth > 0.5
        aligned = [
            evaluation.depth_metrics(depth, truth.depth, valid, alignment=alignment, per=per)
            for alignment in ("none", "median", "scale", "scale_and_shift")
            for per in ("scene", "frame")
        ]
        chunks = {"queries_per_chunk": 4, "points_per_chunk": 5}
        flat = maps[0].reshape(-1, 3)
        return [
            jax.vmap(of_scene)(cameras, depth, maps, truth),
            aligned,
            evaluation.umeyama(cameras[..., 3], truth.camera_from_world[..., 3], with_scale=False),
            evaluation.nearest_neighbours(flat, 2 * flat, **chunks),
        ]

    return call, CAMERAS, DEPTH, MAPS, TRUTH


@case
def world(vggt, pi3):
    return lambda key: synthetic.render_scenes(key, 2, 2, size=(14, 28)), key()


@case
def wide_world(vggt, pi3):
    def call(key, texels):
        bank = synthetic.PictureBank(texels=texels)
        scenes = synthetic.render_scenes(key, 2, 2, size=(14, 28), split="wide-train", bank=bank)
        points = scenes.world_points()[:, 0].reshape(2, -1, 3)
        return scenes, synthetic.correspondences(scenes, points)

    return call, key(), array(3, 87_380, dtype=np.uint32)


def recipe(config, **settings):
    settings = OptimizerSettings(**settings)
    return Recipe(
        model=abstract_model(config),
        render=rendered("train", at_once=1),
        optimizer=make_optimizer(settings),
        settings=settings,
        weights=LossWeights(pairs=1.0, camera_error="huber"),
        execution=Execution(compute_type="bfloat16", dense_share=0.5, recompute=("trunk",)),
        frozen=("encoder.",),
    )


@case
def training(vggt, pi3):
    """Steps of the first optimiser and an update of the other, the validation, and the state that they
    begin with."""
    config = vggt.config.from_dict(vggt.config.to_dict() | {"enable_track": False})
    mesh, variant = Mesh(np.array(jax.devices()[:1]), (AXIS,)), Variant.parse("2x3@28x28")

    def call(key, model):
        adamw, muon = recipe(config), recipe(config, method="muon", schedule="linear")
        states = [initial_state(model, each.optimizer) for each in (adamw, muon)]
        steps = make_steps(adamw, variant, num_steps=2, mesh=mesh)
        gradients, metrics = states[1].params, {"total": jnp.float32(1)}
        found = (
            steps(states[0], key, jnp.int32(9)),
            update(muon, states[1], gradients, metrics, jnp.int32(9)),
        )
        validate = make_validation(adamw, variant, num_batches=2, mesh=mesh)
        return found, validate(states[0].ema, key)

    return call, key(), abstract_model(config)


# For long, or parts of what others trace.
SLOW_TO_TRACE = ("training", "gradients", "new_models", "one_scene", "pi3_sparse", "world")


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=pytest.mark.slow) if x in SLOW_TO_TRACE else x for x in CASES],
)
def test_types_and_ranks_are_explicit(name, tiny, tiny_pi3, wide_arrays):
    call, *args = CASES[name](tiny(), tiny_pi3())
    with strict_types():
        jaxpr, out = jax.make_jaxpr(call, return_shape=True)(*args)
        assert jax.config.jax_enable_x64  # Code of others may have been run without.
    if name not in ("metrics", "training"):  # JAX masks diagonals of 3 x 3 there, in 64 bits.
        assert wide_arrays(jaxpr) == []
    assert not [x for x in jax.tree.leaves(out) if x.dtype in (jnp.float64, jnp.int64)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggt_with_tracks", "pi3_sparse"])
def test_without_jit(name, tiny, tiny_pi3):
    call, *args = CASES[name](tiny(), tiny_pi3())
    with jax.disable_jit():
        jax.eval_shape(call, *args)


def photographs(num=3):
    return np.random.default_rng(num).integers(0, 256, (num, 28, 42, 3), np.uint8)


def assert_same(found, expected):
    leaves, treedef = jax.tree.flatten(found)
    assert treedef == jax.tree.structure(expected)
    for x, y in zip(leaves, jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggt", "pi3"])
def test_same_values(name, tiny, tiny_pi3):
    """Bit by bit: in 64-bit mode nothing of a model is float64, and nothing is NaN on the way."""
    model = tiny() if name == "vggt" else tiny_pi3()
    options = {"model": model, "attention": SPARSE}
    if name == "vggt":
        options["query_points"] = [[3, 4], [20, 20.5]]
        options["reference"] = 1
    expected = vggt_jax.infer(photographs(), **options)
    with strict_types(), jax.debug_nans(True):
        assert_same(vggt_jax.infer(photographs(), **options), expected)
    with jax.transfer_guard("disallow"):
        assert_same(vggt_jax.infer(photographs(), **options), expected)


@pytest.fixture
def recon():
    """A reconstruction as `infer` returns it."""
    rng = np.random.default_rng(0)
    images = photographs()
    shape = images.shape[:3]
    pose = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)
    poses = np.stack([pose, pose, pose]).astype(np.float32)
    poses[:, 0, 3] = np.arange(3)
    depth = 1.5 + 0.01 * rng.random(shape, np.float32)
    return Reconstruction(
        images=images,
        camera_from_world=poses,
        intrinsics=np.stack([INTRINSIC] * 3),
        depth=depth,
        depth_confidence=1 + rng.random(shape, np.float32),
    )


@contextlib.contextmanager
def every_setting():
    with strict_types(), jax.debug_nans(True), jax.transfer_guard("disallow"):
        yield


def test_around_a_model(recon, tmp_path):
    """Host code that has JAX compute with a reconstruction in NumPy arrays."""

    def compute(folder):
        options = Options(intrinsics=INTRINSIC, mask_edges=True)
        frames = Frames(images=recon.images, names=recon.names, transforms=recon.transforms)
        inputs = of_frames(frames, options)
        inputs = dataclasses.replace(inputs, mask=recon.depth < 1.505)
        known = with_known(recon, inputs, options)
        cameras = viewer_cameras(recon)
        vggt_jax.export_reconstruction(known, folder / "scene.glb", format="glb")
        vggt_jax.export_reconstruction(jax.device_put(recon), folder / "scene.ply", format="ply")
        return [
            known,
            known.points_from_depth(),
            vggt_jax.scale_to_distance(recon, 2.0, cameras=(0, 1)),
            [camera.quaternion for camera in cameras] + [camera.rotation for camera in cameras],
            depth_edges(recon),
            *[np.frombuffer(path.read_bytes(), np.uint8) for path in sorted(folder.iterdir())],
        ]

    (tmp_path / "plain").mkdir()
    (tmp_path / "set").mkdir()
    expected = compute(tmp_path / "plain")
    with every_setting():
        assert_same(compute(tmp_path / "set"), expected)


def on_the_device(*arrays):
    assert all(isinstance(x, jax.Array) for x in arrays)


def test_streams_move_arrays_explicitly(recon, tiny):
    """Around programs that a test need not compile."""
    maps = jax.device_put({"depth": recon.depth, "depth_confidence": recon.depth_confidence})
    take = jax.jit(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, 2))

    def scene(model, images):
        on_the_device(images)
        poses = jax.device_put(recon.camera_from_world)
        return {"kept": images}, {}, {"camera_from_world": poses}

    def frames(model, tokens, start, read):
        on_the_device(tokens["kept"], start)
        return {name: take(x, start) for name, x in maps.items()}

    with every_setting():
        found = streaming.Stream(scene, frames, 2)(tiny(), images=recon.images)
    for name in ("depth", "depth_confidence", "camera_from_world"):
        np.testing.assert_array_equal(getattr(found, name), getattr(recon, name))


def test_many_scenes_move_arrays_explicitly(tiny_pi3, tmp_path, monkeypatch):
    def run(model, images, num_frames, query_points, priors, **options):
        on_the_device(images)
        depth = mean_of_colors(images)
        return Reconstruction(images=None, depth=depth, depth_confidence=depth)

    mean_of_colors = jax.jit(lambda images: images.astype(jnp.float32).mean(axis=-1))
    monkeypatch.setattr(many_scenes, "_reconstruct", run)
    scenes = {name: photographs(num) for name, num in (("a", 2), ("b", 2), ("c", 3))}
    # Threads of its own read and write: they know what is set for all, and no context of this one.
    before = jax.config.jax_transfer_guard
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        report = vggt_jax.reconstruct_scenes(
            scenes, tmp_path, model=tiny_pi3(), batch_size=2, progress=False
        )
    finally:
        jax.config.update("jax_transfer_guard", before)
    assert sorted(report.written) == ["a", "b", "c"]
    found = vggt_jax.load_reconstruction(tmp_path / "b")
    np.testing.assert_allclose(found.depth, scenes["b"].mean(-1), rtol=1e-6)


@pytest.mark.slow
def test_the_command_with_everything_set(tmp_path, tiny):
    """As people set it: by the environment, before JAX starts."""
    settings = {
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_DEBUG_NANS": "1",
        "JAX_TRANSFER_GUARD": "disallow",
    }
    vggt_jax.save_model(tiny(), tmp_path / "model")
    pictures = sorted(SAMPLE.iterdir())[:2]
    options = ["--model", tmp_path / "model", "--out", tmp_path / "out"]
    run = subprocess.run(
        [sys.executable, "-m", "vggt_jax.cli", "infer", *pictures, *options],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = vggt_jax.load_reconstruction(tmp_path / "out")
    assert found.depth.shape[0] == 2
    for name in ("camera_from_world", "depth", "depth_confidence", "world_points"):
        assert getattr(found, name).dtype == np.float32
        assert np.isfinite(getattr(found, name)).all()
