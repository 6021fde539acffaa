"""What will run is decided once: options, plans, and the estimate of time."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import vggt_jax
from pallas_kernels import tuned
from vggt_jax import (
    BlockSparse,
    Dense,
    InputError,
    Options,
    Pi3Config,
    Priors,
    Sampled,
    VGGTConfig,
)
from vggt_jax.pipeline import timing
from vggt_jax.pipeline.many_scenes import ManyScenesOptions

BENCHMARKS = Path(__file__).parents[1] / "docs" / "benchmarks"


def photographs(num_frames):
    return np.zeros((num_frames, 28, 42, 3), np.uint8)


@pytest.fixture
def model(tiny):
    return tiny(enable_track=False, enable_point=False, enable_depth=False)


def test_a_plan_says_what_infer_would_run(model, monkeypatch):
    monkeypatch.setattr("vggt_jax.pipeline.reconstruct.reconstruct_jit", None)  # Nothing to call.
    sparse = BlockSparse(sparse_ratio=0.5)
    plan = vggt_jax.plan(photographs(33), model=model, attention=sparse)
    assert (plan.num_frames, plan.padded_frames, plan.masks_padding) == (33, 34, True)
    assert plan.size == (28, 42) and not plan.streamed and plan.compute_dtype == "float32"
    assert plan.attention == Dense() and "33 frames have 297 tokens" in plan.why_dense
    assert 0 < plan.seconds < 60
    for part in ("33 of 42x28, padded to 34", "fewer than min_tokens=4096", "GiB", "at once"):
        assert part in str(plan)
    sparse = dataclasses.replace(sparse, min_tokens=0)
    plan = vggt_jax.plan(photographs(3), model=model, attention=sparse, pad_frames=False)
    assert plan.attention == sparse and plan.why_dense is None
    assert plan.padded_frames == 3 and not plan.masks_padding


def test_a_plan_says_what_is_known(tiny_pi3x, monkeypatch):
    intrinsics = np.tile(np.diag([40.0, 40, 1]), (3, 1, 1))
    priors = Priors(intrinsics=intrinsics, depth=np.ones((3, 28, 42)))
    plan = vggt_jax.plan(photographs(3), model=tiny_pi3x(), priors=priors)
    assert plan.known == ("intrinsics", "depth") and "known: intrinsics, depth\n" in str(plan)
    needed = plan.memory.needed
    assert needed.priors == 4 * 3 * (9 + 28 * 42) and needed.known > 0
    alone = vggt_jax.plan(photographs(3), model=tiny_pi3x())
    assert alone.known == () and "known:" not in str(alone)
    few = dataclasses.replace(alone.memory, free=needed.total - 1)
    monkeypatch.setattr("vggt_jax.pipeline.memory.free_memory", lambda model: few.free)
    options = {"model": tiny_pi3x(), "priors": priors}
    assert "3 frames of 42x28 need" in vggt_jax.plan(photographs(3), **options).memory.shortage


@pytest.mark.parametrize("name", ["pi3x", "mapanything"])
def test_work_is_done_for_what_is_known_alone(name):
    config = {"pi3x": vggt_jax.Pi3XConfig, "mapanything": vggt_jax.MapAnythingConfig}[name]()
    work = lambda *known: timing.count_work(config, 7, 28, 42, attention=Dense(), known=known)
    alone, tokens, patches = work(), 7 * (6 + config.num_special_tokens), 7 * 6
    values = {
        kind: work(kind)["products"] - alone["products"] for kind in ("rays", "poses", "depth")
    }
    dim, hidden = 1024, 4096
    block = 4 * dim**2 + 2 * dim * hidden
    unit = lambda i, o: 9 * i * o + 9 * o * o + i * o
    of_maps = lambda c: 9 * 196 * c * 588 + unit(588, 768) + unit(768, 1024) + 1024 * 1536
    expected = {
        "pi3x": {"rays": 392 * dim, "poses": 5 * block, "depth": 24 * block + 392 * dim},
        "mapanything": {"rays": of_maps(3), "poses": 0, "depth": of_maps(1)},
    }[name]
    assert values == {kind: 2.0 * tokens * number for kind, number in expected.items()}
    added = work("poses")["attention"] - alone["attention"]
    assert added == (4.0 * dim * 5 * patches**2 if name == "pi3x" else 0)


def test_too_little_memory_is_planned_and_refused(model, monkeypatch):
    monkeypatch.setattr("vggt_jax.pipeline.memory.available_memory", lambda: 1000)
    plan = vggt_jax.plan(photographs(2), model=model)
    assert "not even one fits" in plan.memory.shortage
    with pytest.raises(InputError, match="not even one fits: use a smaller size, or try in spite"):
        vggt_jax.infer(photographs(2), model=model)


def test_options_are_keyword_arguments():
    for function, kind, given in (
        (vggt_jax.infer, Options, ["images"]),
        (vggt_jax.plan, Options, ["images"]),
        (vggt_jax.reconstruct_scenes, ManyScenesOptions, ["scenes", "out"]),
    ):
        names = [field.name for field in dataclasses.fields(kind)]
        assert list(inspect.signature(function).parameters) == given + names
        assert function.__doc__ is not None
    with pytest.raises(TypeError, match="nonsense"):
        vggt_jax.infer(photographs(2), nonsense=3)
    with pytest.raises(TypeError, match=r"infer\(\) takes images by place"):
        vggt_jax.infer(photographs(2), "facebook/VGGT-1B")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="images"):
        vggt_jax.infer(mode="crop")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"focal": -1.0}, "focal=-1 must be positive"),
        ({"focal": 9.0, "intrinsics": np.eye(3)}, "focal and intrinsics say the same"),
        ({"known_distance": (0, 1, 0.0)}, "must end in a positive length"),
        ({"known_distance": (0, 1, 1.0), "known_depth": (0, 1, 1, 1.0)}, "give one of them"),
        ({"background": "grey"}, "background='grey' is unknown"),
        ({"config": "x.json"}, "config=x.json is for an official checkpoint"),
        ({"intrinsics": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_options_validate_themselves(fields, message):
    with pytest.raises(InputError, match=message):
        Options(**fields)


def test_known_lengths_and_focal_lengths_of_infer(tiny):
    model = tiny(enable_track=False, enable_point=False)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 42, 3), np.uint8)
    scene = vggt_jax.infer(images, model=model, focal=50.0)
    np.testing.assert_allclose(scene.intrinsics[1], [[50, 0, 21], [0, 50, 14], [0, 0, 1]])
    found = vggt_jax.infer(images, model=model, focal=50.0, known_depth=(1, 4, 5, 2.5))
    assert found.depth[1, 5, 4] == pytest.approx(2.5)
    np.testing.assert_allclose(found.depth, scene.depth * (2.5 / scene.depth[1, 5, 4]), rtol=1e-5)
    with pytest.raises(InputError, match="names photograph 1 twice"):
        vggt_jax.infer(images, model=model, known_distance=(1, 1, 2.0))


def measured():
    """(configuration, attention, frames, with heads, seconds) of the last benchmarks."""
    for file in ("model_h100", "sampled_h100", "pi3_h100"):
        lines = (BENCHMARKS / f"{file}.jsonl").read_text().splitlines()
        newest = {}
        for line in map(json.loads, lines):
            if line.get("model") and line.get("size") == [518, 518] and "ms" in line:
                key = [line[x] for x in ("part", "model", "frames", "sparse_ratio")]
                newest[(*key, line.get("num_keys"))] = line
        for (part, name, frames, ratio, keys), line in newest.items():
            # The trunk and encoder of π³ are measured without its decoders, which are estimated.
            if frames < 50 or (part, name) == ("aggregator", "pi3"):
                continue
            attention = Dense()
            if keys:
                attention = Sampled(num_keys=keys)
            elif ratio is not None:
                attention = BlockSparse(sparse_ratio=ratio)
            config = VGGTConfig() if name == "vggt" else Pi3Config()
            yield config, attention, frames, part != "aggregator", line["ms"] / 1000


def test_the_estimate_of_time_is_near_what_was_measured(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("pallas_kernels.devices.device_kind", lambda: "NVIDIA H100 80GB HBM3")
    cases = list(measured())
    assert len(cases) > 10
    for config, attention, frames, with_heads, seconds in cases:
        values = {} if with_heads else {"throughput.maps": 1e9}
        with tuned.override(values):
            found = timing.estimate_seconds(
                config, frames, 518, 518, attention=attention, compute_dtype="bfloat16"
            )
        assert found == pytest.approx(seconds, rel=0.15), (config, attention, frames)
    monkeypatch.setattr("pallas_kernels.devices.device_kind", lambda: "another")
    options = {"attention": Dense(), "compute_dtype": "bfloat16"}
    assert timing.estimate_seconds(VGGTConfig(), 2, 518, 518, **options) is None


def test_narrow_dense_heads_take_less_time_on_a_cpu(tiny, monkeypatch):
    monkeypatch.setattr(timing, "products_per_second", lambda: 1e9)
    found = [
        timing.estimate_seconds(
            tiny(dpt_features=features).config,
            3, 28, 42, attention=Dense(), compute_dtype="float32",
        )
        for features in (64, 16)
    ]  # fmt: skip
    # Two heads; half of the rate of a product; convolutions have the square of 16 channels in 256.
    assert found[0] - found[1] == pytest.approx(3 * 28 * 42 * 2 * 2.5e6 / 0.5e9 * (16 - 1) / 256)
