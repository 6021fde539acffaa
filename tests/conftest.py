"""Shared by all tests: compiled programs, checks of annotations, toy models, golden arrays, markers."""

import contextlib
import functools
import gc
import os
import sys
import types
from importlib.metadata import version
from pathlib import Path

import jaxtyping

# The simulator of Mosaic GPU kernels has a thread wait for each warp group, in the pool whose size
# JAX's CPU backend reads here when it starts. With as many threads as small machines have cores,
# those that wait leave none for those that they wait for.
os.environ.setdefault("NPROC", "16")

# Tests spend their time compiling. One cache serves all processes of a run, workers and the commands that
# tests start, and the next run; JAX reads these when it is imported. Deleting the folder makes a run cold.
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Nor is Python's code compiled anew in each of these processes, where the environment asks for that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tracing makes millions of objects, few of them in cycles. Looking for those as often as Python does by
# default takes a tenth of a run.
gc.set_threshold(50_000, 50, 50)

# To compile a program of the CPU in one piece instead of up to 32 takes a quarter less of the processor
# with JAX 0.10, and a third less without XLA's newer way to emit fused loops, where there is a choice.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=1"
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Every call of these modules is checked against its annotations, shapes included. This comes before
# they are imported. (Configurations and `pallas_kernels.block_map` stay out: beartype needs
# `typing.Self` explained.)
KERNELS = "attention.overflow blocks devices selection.pooling selection.row".split()
LAYERS = "attention block chunking linear mlp norm precision resize vit".split()
CHECKED_MODULES = [
    *(f"pallas_kernels.{name}" for name in KERNELS),
    "vggt_jax.geometry",
    "vggt_jax.heads",
    "vggt_jax.models.vggt.heads",
    "vggt_jax.models.vggt.model",
    "vggt_jax.models.pi3.model",
    "vggt_jax.models.pi3.trunk",
    *(f"vggt_jax.models.pi3x.{part}" for part in ("injection", "metric", "model", "prompts")),
    *(
        f"vggt_jax.models.mapanything.{part}"
        for part in ("encoders", "geometric_inputs", "heads", "model")
    ),
    "vggt_jax.models.trunk_model",
    *(
        f"vggt_jax.models.da3.{part}"
        for part in ("cameras", "encoder", "heads", "model", "ray_cameras")
    ),
    "vggt_jax.scene.surfaces",
    "vggt_jax.trunk.alternation",
    "vggt_jax.trunk.frames",
    "vggt_jax.trunk.token_layout",
    *(f"vggt_jax.layers.{name}" for name in LAYERS),
]
jaxtyping.install_import_hook(CHECKED_MODULES, "beartype.beartype")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import toys  # noqa: E402
from PIL import Image  # noqa: E402

from pallas_kernels import devices, mosaic_gpu_call  # noqa: E402
from vggt_jax import (  # noqa: E402
    DA3Config,
    MapAnythingConfig,
    Pi3Config,
    Pi3XConfig,
    Priors,
    VGGTConfig,
    geometry,
    load_model,
)
from vggt_jax.layers.abstract import OneKey  # noqa: E402
from vggt_jax.layers.attention import Dense  # noqa: E402
from vggt_jax.layers.precision import Precision  # noqa: E402
from vggt_jax.models.loading import (  # noqa: E402
    abstract_model,
    named_parameters,
    with_parameters,
)
from vggt_jax.models.pi3x.prompts import Prompts  # noqa: E402
from vggt_jax.trunk.frames import encode_frames  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
MOST_MAPS = 30_000


@contextlib.contextmanager
def optimizations(on):
    """Whether programs are compiled as people run them. Without, it takes half as long."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not on)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def pytest_collection_modifyitems(items):
    """Slow tests come first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    gc.freeze()  # Nothing of what was imported is garbage.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Most optimisations are left out, also for the fixtures of a module; not so on a GPU.
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("gpu") is None)
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("no GPU")
    if item.get_closest_marker("new_jax") and not mosaic_gpu_call.is_supported():
        oldest = ".".join(map(str, mosaic_gpu_call.OLDEST_JAX))
        pytest.skip(f"the Mosaic GPU kernels need JAX {oldest} or newer, not {jax.__version__}")
    if item.get_closest_marker("weights") and not os.environ.get("VGGT_JAX_WEIGHTS"):
        pytest.skip("VGGT_JAX_WEIGHTS does not name released weights")


def _memory_maps() -> int:
    """How many memory maps this process has, where the system says it (Linux)."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    # Compiled programs are memory maps, of which Linux gives a process 65,530. Beyond that a compiler
    # fails, and with it what unwinds the stack.
    if (nextitem is None or nextitem.path != item.path) and _memory_maps() > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def optimized():
    """Compiles with all optimisations, for a test that depends on them."""
    with optimizations(on=True):
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """Turns the checks of annotations off, to meet the errors that users meet."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def relative_error():
    """The norm of the difference over the norm of what is expected, in float64."""

    def error(value, expected):
        value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
        assert value.shape == expected.shape
        return np.linalg.norm(value - expected) / np.linalg.norm(expected)

    return error


@pytest.fixture(scope="session")
def golden_folder():
    """Where the arrays, configurations and photographs of the tests lie."""
    return GOLDEN


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory):
    """The path of a toy's checkpoint by name, with its configuration beside it."""
    folder = tmp_path_factory.mktemp("toys")
    return functools.cache(lambda name: toys.write_checkpoint(name, folder))


@pytest.fixture(scope="session")
def golden():
    """The arrays of a file in tests/golden by name; of a toy's case, with its `images`."""

    @functools.cache
    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file}
        toy, _, case = name.partition(".")
        if toy in toys.NAMES:
            arrays["images"] = toys.images(toy, case)
        return arrays

    return read


@pytest.fixture(scope="session")
def load_toy(toy_checkpoint):
    """A toy model by name, with fields of its configuration changed."""

    @functools.cache
    def load(name, **changes):
        path = toy_checkpoint(name)
        kinds = {
            "da3": DA3Config,
            "mapanything": MapAnythingConfig,
            "pi3": Pi3Config,
            "pi3x": Pi3XConfig,
            "vggt": VGGTConfig,
        }
        kind = kinds[name.partition("_")[0]]
        config = kind.from_json(path.with_suffix(".json"))
        return load_model(path, config=kind.from_dict(config.to_dict() | changes))

    return load


@pytest.fixture(scope="session")
def run_toy(load_toy, golden):
    """All arrays of a golden case, under the golden's names, as the project computes them."""

    def run(toy, inputs, *, compute_dtype=jnp.float32):
        model, arrays = load_toy(toy), golden(f"{toy}.{inputs}")
        height, width = arrays["images"].shape[2:4]
        # 70 pixels and fewer are too small for the seven correlation levels of one toy.
        query_points = arrays["query_points"] if "track" in arrays else None

        def compute(model, images, query_points):
            output = model(images, query_points=query_points, compute_dtype=compute_dtype)
            patch_tokens = model.encode(images, compute_dtype=compute_dtype)
            taps = tuple(range(model.config.depth))
            layout = model.layout(images)
            trunk = model.aggregate(patch_tokens, layout, taps=taps, compute_dtype=compute_dtype)
            extrinsic, intrinsic = geometry.camera_from_pose_encoding(
                output.pose_enc, (height, width)
            )
            found = {"patch_tokens": patch_tokens, "extrinsic": extrinsic, "intrinsic": intrinsic}
            found |= {f"aggregated_{i}": trunk.tap(i) for i in taps}
            found |= {f"pose_enc_{i}": x for i, x in enumerate(output.pose_enc_list)}
            names = "pose_enc depth depth_conf world_points world_points_conf track vis conf"
            return found | {name: getattr(output, name) for name in names.split()}

        found = jax.jit(compute)(model, arrays["images"], query_points)
        return {name: np.asarray(x, np.float32) for name, x in found.items() if x is not None}

    return run


@pytest.fixture(scope="session")
def run_pi3_toy(load_toy, golden):
    """`run_toy` for π³."""

    def run(toy, inputs, *, compute_dtype=jnp.float32, **options):
        model, arrays = load_toy(toy), golden(f"{toy}.{inputs}")

        def compute(model, images):
            output = model(images, compute_dtype=compute_dtype, **options)
            patch_tokens = model.encode(images, compute_dtype=compute_dtype)
            trunk = model.aggregate(
                patch_tokens, model.layout(images), compute_dtype=compute_dtype, **options
            )
            (last,) = trunk.layers
            return vars(output) | {"patch_tokens": patch_tokens, "decoded": trunk.tap(last)}

        found = jax.jit(compute)(model, arrays["images"])
        del found["attention_stats"]
        return {name: np.asarray(x, np.float32) for name, x in found.items()}

    return run


@pytest.fixture(scope="session")
def run_mapanything_toy(load_toy, golden):
    """`run_toy` for MapAnything, of what is known in `_known` cases."""

    def run(toy, inputs, *, compute_dtype=jnp.float32):
        model, images = load_toy(toy), golden(f"{toy}.{inputs}")["images"]
        priors = mapanything_priors(toy, inputs) if inputs.endswith("_known") else None

        def compute(model, images, priors):
            precision = Precision.from_compute_dtype(compute_dtype)
            layout, special = model.layout(images), model.config.num_special_tokens
            encoded = encode_frames(
                model.encoder, images, layout, dense=Dense(), precision=precision
            )
            fused = model.encode(images, priors=priors, compute_dtype=compute_dtype)
            trunk = model.aggregate(fused, layout, compute_dtype=compute_dtype)
            raw, *pose = model.decode_raw(trunk, layout, precision)
            output = model.decode(trunk, layout, compute_dtype=compute_dtype)
            fields = model.scene_fields(vars(output), images.shape[2:4])
            return vars(output) | {
                "patch_tokens": encoded[:, :, special:],
                "fused_tokens": fused[:, :, special:],
                "tokens_final": model.norm(trunk.tap(trunk.layers[-1]))[:, :, special:],
                "dense_raw": raw,
                "pose_raw": jnp.concatenate(pose, axis=-1),
                "camera_poses": output.camera_poses,
                # The official code counts from the centre of the first pixel.
                "intrinsics": fields["intrinsics"].at[..., :2, 2].add(-0.5),
                "mask": output.mask,
            }

        found = jax.jit(compute)(model, images, priors)
        return {name: np.asarray(x, np.float32) for name, x in found.items() if x is not None}

    return run


@pytest.fixture(scope="session")
def known_priors():
    """What `toys.priors` draws, as our priors; None where nothing is known."""

    def known(toy, case):
        drawn = toys.priors(toy, case)
        if not drawn:
            return None
        return Priors(
            intrinsics=drawn["intrinsics"],
            camera_from_world=np.linalg.inv(drawn["poses"].astype(np.float64)).astype(np.float32),
            depth=drawn["depths"],
            intrinsics_known=drawn["mask_add_ray"],
            poses_known=drawn["mask_add_pose"],
            depth_known=drawn["mask_add_depth"],
        )

    return known


@pytest.fixture(scope="session")
def run_pi3x_toy(load_toy, golden, known_priors):
    """`run_toy` for Pi3X: one program for all cases of a shape in which something is known."""

    @functools.cache
    def program(**options):
        @jax.jit
        def compute(model, images, priors):
            known = {} if priors is None else {"priors": priors}
            output = model(images, **known, **options)
            encoder_options = {name: options[name] for name in options if name == "compute_dtype"}
            tokens = model.encode(images, **known, **encoder_options)
            layout = model.layout(images)
            trunk = model.aggregate(tokens, layout, **known, **options)
            (last,) = trunk.layers
            found = {"prompted_tokens": tokens, "decoded": trunk.tap(last)}
            if priors is not None:
                found["normalized_poses"] = Prompts.of_priors(priors, images).poses
            return vars(output) | found

        return compute

    def run(toy, case, *, compute_dtype=jnp.float32, **options):
        compute = program(compute_dtype=compute_dtype, **options)
        images = golden(f"{toy}.{case}")["images"]
        found = compute(load_toy(toy), images, known_priors(toy, case))
        del found["attention_stats"]
        return {name: np.asarray(x, np.float32) for name, x in found.items()}

    return run


def mapanything_priors(toy, case):
    """What is known of a toy's case, in the conventions of the project."""
    known = toys.known(toy, case)
    intrinsics = known["intrinsics"].copy()
    intrinsics[..., :2, 2] += 0.5
    by_frame = lambda name: np.broadcast_to(known[f"{name}_known"], known[name].shape[:2])
    return Priors(
        intrinsics=intrinsics,
        rays=known["rays"],
        camera_from_world=geometry.invert_rigid(jnp.asarray(known["camera_poses"])),
        depth=known["depth"],
        metric=known["metric"],
        intrinsics_known=by_frame("intrinsics"),
        rays_known=by_frame("rays"),
        poses_known=by_frame("camera_poses"),
        depth_known=by_frame("depth"),
    )


@pytest.fixture(scope="session")
def parity_results(run_toy):
    """`run_toy` in float32, computed once per case."""
    return functools.cache(run_toy)


TINY = VGGTConfig(
    img_size=28,
    embed_dim=16,
    num_heads=2,
    depth=2,
    vit_depth=1,
    vit_num_heads=4,
    mlp_ratio=3.0,
    num_register_tokens=2,
    camera_trunk_depth=1,
    camera_num_heads=2,
    camera_iters=2,
    dpt_features=8,
    dpt_out_channels=(4, 8, 12, 16),
    dpt_layers=(0, 0, 1, 1),
    track_features=8,
    track_hidden_size=12,
    track_num_heads=3,
    track_num_virtual_tracks=5,
    track_corr_levels=4,
    track_corr_radius=1,
    track_depth=1,
    track_iters=2,
)


@pytest.fixture(scope="session")
def tiny():
    """A model that compiles in seconds, with fields of its configuration changed."""

    @functools.cache
    def make(**changes):
        config = VGGTConfig.from_dict(TINY.to_dict() | changes)
        return with_random_parameters(abstract_model(config))

    return make


TINY_PI3 = Pi3Config(
    img_size=28,
    encoder_dim=24,
    encoder_depth=1,
    encoder_num_heads=4,
    encoder_num_register_tokens=1,
    decoder_dim=24,
    decoder_depth=4,
    decoder_num_heads=3,
    num_register_tokens=2,
    head_dim=16,
    head_depth=1,
    head_num_heads=2,
    camera_dim=12,
    mlp_ratio=2.5,
)


@pytest.fixture(scope="session")
def tiny_pi3():
    """A π³ that compiles in seconds, with fields of its configuration changed."""

    @functools.cache
    def make(**changes):
        config = Pi3Config.from_dict(TINY_PI3.to_dict() | changes)
        return with_random_parameters(abstract_model(config))

    return make


TINY_MAPANYTHING = MapAnythingConfig(
    img_size=28,
    encoder_dim=24,
    encoder_depth=1,
    encoder_num_heads=2,
    info_sharing_dim=24,
    info_sharing_depth=4,
    info_sharing_num_heads=3,
    info_sharing_indices=(1, 3),
    mlp_ratio=2.0,
    dense_input_dims=(6, 8, 10),
    global_input_dims=(5, 6, 7),
    dpt_features=8,
    dpt_layer_dims=(4, 8, 12, 16),
    pose_hidden_dim=12,
    pose_num_blocks=1,
    scale_hidden_dim=10,
    scale_num_layers=1,
)


@pytest.fixture(scope="session")
def tiny_mapanything():
    """A MapAnything that compiles in seconds, with fields of its configuration changed."""

    @functools.cache
    def make(**changes):
        config = MapAnythingConfig.from_dict(TINY_MAPANYTHING.to_dict() | changes)
        return with_random_parameters(abstract_model(config))

    return make


@pytest.fixture(scope="session")
def run_da3_toy(load_toy, golden):
    """`run_toy` for Depth Anything 3, of what is known in `_poses` cases."""

    @functools.cache
    def program(**options):
        @jax.jit
        def compute(model, images, priors):
            layout = model.layout(images)
            tokens = model.encode(images, **options)
            known = {} if priors is None else {"priors": priors}
            trunk = model.aggregate(tokens, layout, **known, **options)
            taps = model.tapped(trunk.kept, trunk, layout)
            maps = model.decode_frames(trunk, layout, rays=True, **options)
            found = model.decode_scene(trunk, layout, **options) | maps
            del found["attention_stats"]
            return found | {
                "tap_0": taps[0],
                "tap_3": taps[3],
                "camera_feature": trunk.first_tokens,
            }

        return compute

    def run(toy, case, *, compute_dtype=jnp.float32):
        priors = None
        if case.endswith("_poses"):
            known = toys.known(toy, case)
            poses = np.linalg.inv(known["camera_poses"].astype(np.float64)).astype(np.float32)
            priors = Priors(camera_from_world=poses, intrinsics=known["intrinsics"])
        compute = program(compute_dtype=compute_dtype)
        found = compute(load_toy(toy), golden(f"{toy}.{case}")["images"], priors)
        return {name: np.asarray(x, np.float32) for name, x in found.items()}

    return run


TINY_DA3 = DA3Config(
    img_size=28,
    dim=16,
    depth=10,
    num_heads=2,
    mlp_ratio=2.0,
    alt_start=2,
    qknorm_start=2,
    rope_start=2,
    out_layers=(3, 5, 7, 9),
    head_features=8,
    head_out_channels=(4, 8, 12, 16),
    cam_enc_depth=1,
    cam_enc_num_heads=4,
)


@pytest.fixture(scope="session")
def tiny_da3():
    """A Depth Anything 3 that compiles in seconds, with fields of its configuration changed."""

    @functools.cache
    def make(**changes):
        config = DA3Config.from_dict(TINY_DA3.to_dict() | changes)
        return with_random_parameters(abstract_model(config))

    return make


TINY_PI3X = Pi3XConfig(
    img_size=28,
    encoder_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    encoder_num_register_tokens=1,
    decoder_dim=16,
    decoder_depth=4,
    decoder_num_heads=2,
    num_register_tokens=2,
    pose_inject_layers=(1,),
    head_dim=16,
    head_depth=1,
    head_num_heads=2,
    camera_dim=12,
    metric_dim=8,
    metric_depth=1,
    metric_num_heads=2,
    conv_upsample_dims=(16,),
    conv_res_blocks=1,
    conv_last_channels=6,
    mlp_ratio=2.5,
)


@pytest.fixture(scope="session")
def tiny_pi3x():
    """A Pi3X that compiles in seconds, with fields of its configuration changed."""

    @functools.cache
    def make(**changes):
        config = Pi3XConfig.from_dict(TINY_PI3X.to_dict() | changes)
        return with_random_parameters(abstract_model(config))

    return make


@pytest.fixture(scope="session")
def randomised():
    """A module with random parameters, all as large as trained ones.

    A fresh module would hardly do: biases of zero and a LayerScale of 0.01 hide what happens. Nor
    is anything compiled for drawing them.
    """

    return lambda make: with_random_parameters(jax.eval_shape(lambda: make(OneKey())))


def with_random_parameters(module):
    rng = np.random.default_rng(0)
    params = {
        name: draw_parameter(name, leaf.shape, rng)
        for name, leaf in sorted(named_parameters(module).items())
    }
    return with_parameters(module, params)


def draw_parameter(name, shape, rng):
    draw = rng.normal(size=shape)
    last = name.rpartition(".")[2]
    if last == "kernel":
        value = draw / np.prod(shape[:-1] if len(shape) == 4 else shape[-2]) ** 0.5
    elif last == "bias":
        value = 0.1 * draw
    elif last == "image_std":
        value = 0.3 + 0.1 * np.abs(draw)
    else:  # scales of norms and layers, tokens, tables
        value = (last in ("scale", "ls1", "ls2")) + 0.3 * draw
    if "flow_head" in name:
        value[..., :2] *= 0.01  # the tracker's steps: longer ones make it chaotic
    return value.astype(np.float32)


@pytest.fixture
def pretend_device(monkeypatch):
    """Makes the library believe in a device: `pretend_device(backend, capability, kind)`."""

    def pretend(backend, compute_capability=None, kind="a device"):
        device = types.SimpleNamespace(device_kind=kind, core_count=132)
        if compute_capability is not None:
            device.compute_capability = compute_capability
        fake = types.SimpleNamespace(default_backend=lambda: backend, devices=lambda: [device])
        monkeypatch.setattr(devices, "jax", fake)

    return pretend


@pytest.fixture(scope="session")
def wide_arrays():
    """What in a jaxpr, and in those inside of it, has elements of 64 bits and is more than a number.

    JAX itself counts loops, and holds Python's numbers, in 64 bits where that is its default.
    """

    def is_jaxpr(x):
        return hasattr(x, "eqns")

    def find(jaxpr):
        for eqn in jaxpr.eqns:
            for out in eqn.outvars:
                dtype = getattr(out.aval, "dtype", np.dtype(bool))
                is_wide = not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
                if is_wide and dtype.itemsize == 8 and out.aval.shape:
                    yield f"{eqn.primitive}: {out.aval}"
            for inner in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr):
                if is_jaxpr(inner):
                    yield from find(inner)

    return lambda jaxpr: sorted(set(find(jaxpr)))


@pytest.fixture
def photographs(tmp_path):
    """A folder of three pictures, 160 wide and 96 high."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (96, 160, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder
