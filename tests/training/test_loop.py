"""Runs: going on where one ended, stopping in time, what they write and what they refuse.

What is about the run and not about the step is tested with a step made by hand (`by_hand`), which changes
every number of the state by its own number, the key and the step, and compiles nothing.
"""

import dataclasses
import functools
import json
import os
import signal
import types

import jax
import numpy as np
import pytest

import vggt_jax.training.loop as loop
from vggt_jax.errors import InputError
from vggt_jax.models.loading import load_model, named_parameters
from vggt_jax.training.losses import LossWeights
from vggt_jax.training.optimizer import OptimizerSettings
from vggt_jax.training.predict import Execution
from vggt_jax.training.settings import TrainSettings


class StepByHand:
    """In place of a jitted function: `compute` in NumPy, with no more to compile."""

    def __init__(self, compute):
        self.compute = compute

    def lower(self, *_):
        return self

    compile = lower

    def memory_analysis(self):
        return None

    def __call__(self, *args):
        return self.compute(*args)


def step_by_hand(frozen, state, key, total_steps):
    rng = np.random.default_rng([*np.asarray(jax.random.key_data(key)), int(state.step)])
    total_steps = int(total_steps)

    def change(x):
        if x.dtype != np.float32:
            return np.asarray(x) + 1
        return (0.9 * np.asarray(x) + rng.normal(size=x.shape) / total_steps).astype(np.float32)

    found = {"total": rng.random(1, np.float32), "gradient_norm": np.ones(1)}
    found |= {"learning_rate": np.ones(1) / total_steps, "skipped": np.zeros(1, int)}
    changed = jax.tree.map(change, state)
    still = {name: x for name, x in state.params.items() if name.startswith(frozen)}
    return dataclasses.replace(changed, params=changed.params | still), found


def validation_by_hand(params, key):
    return {
        "auc30": np.mean([np.asarray(x).mean() for x in params.values()]),
        "abs_rel": 0.5,
        "total": 1.0,
    }


@pytest.fixture
def by_hand(monkeypatch):
    step_of = lambda recipe: StepByHand(functools.partial(step_by_hand, recipe.frozen))
    monkeypatch.setattr(loop, "make_steps", lambda recipe, *_, **__: step_of(recipe))
    validation = StepByHand(validation_by_hand)
    monkeypatch.setattr(loop, "make_validation", lambda *_, **__: validation)


@pytest.fixture(scope="module")
def jitted():
    """Steps and validations by how they run, for runs of otherwise the same settings: traced once."""
    return {}


@pytest.fixture
def traced_once(jitted, monkeypatch):
    def once(make, recipe, variant, **options):
        name = (make.__name__, recipe.execution, variant)
        return jitted.setdefault(name, make(recipe, variant, **options))

    for make in (loop.make_steps, loop.make_validation):
        monkeypatch.setattr(loop, make.__name__, functools.partial(once, make))


@pytest.fixture
def start(cameras_config, render, tmp_path):
    """Trains with settings changed and returns the state and the lines said."""

    def run(out="run", config=cameras_config, **changes):
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        settings = TrainSettings(
            **{
                "out": tmp_path / out,
                "config": config and tmp_path / "config.json",
                "variants": ("2x2@28x28",),
                "steps_per_dispatch": 1,
                "validate_every": 0,
                "validation_variant": "2x2@28x28",
                "validation_batches": 1,
                **changes,
            }
        )
        lines = []
        state = loop.train(settings, render=render, render_validation=render, say=lines.append)
        return state, lines

    return run


def run_that_is_cut(start, tmp_path, monkeypatch):
    """A run of six steps, and one that a signal stopped after three, which went on; equal bit for bit."""
    straight, _ = start("straight", steps=6, validate_every=6)
    export = tmp_path / "straight" / "model.safetensors"
    ema = named_parameters(load_model(export))
    for name, x in straight.ema.items():
        # bfloat16 has 8 bits.
        np.testing.assert_allclose(ema[name], x, rtol=2**-8, err_msg=name)
    log = [json.loads(line) for line in (tmp_path / "straight" / "train.jsonl").open()]
    assert [line["step"] for line in log if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    validations = [line for line in log if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [0, 6]
    assert {"auc30", "abs_rel", "total"} <= validations[0].keys()

    # A signal comes while the third step is reported.
    report = loop._Run.report

    def report_and_kill(self, step, *rest):
        if step == 2:  # the third is on its way then
            os.kill(os.getpid(), signal.SIGTERM)
        return report(self, step, *rest)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "report", report_and_kill)
        stopped, lines = start("cut", steps=6, validate_every=6)
    assert stopped.step == 3 and "signal" in "".join(lines)
    assert signal.getsignal(signal.SIGTERM) == before
    resumed, lines = start("cut", steps=6, validate_every=6)
    assert lines[0] == "going on after step 3 of 6"
    assert resumed.step == 6
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    return straight


def test_resuming_goes_on_where_the_run_ended(start, by_hand, tmp_path, monkeypatch):
    start = functools.partial(start, optimizer=OptimizerSettings(method="muon"))
    run_that_is_cut(start, tmp_path, monkeypatch)
    _, lines = start("cut", steps=7, validate_every=6)
    assert "steps changed from 6 to 7" in lines[0]
    with pytest.raises(InputError, match="seed: 0 before, 1 now"):
        start("cut", steps=7, seed=1)


@pytest.fixture
def start_compiled(start, config, traced_once):
    """Runs of a model with depth by a step as it is, of frames of which half are decoded."""

    def run(out, recompute=(), **changes):
        return start(
            out,
            config=config,
            loss=LossWeights(pairs=1.0),
            execution=Execution(dense_share=0.5, recompute=recompute),
            **changes,
        )

    return run


@pytest.mark.slow
def test_resuming_continues_bit_for_bit(start_compiled, tmp_path, monkeypatch):
    run_that_is_cut(start_compiled, tmp_path, monkeypatch)


@pytest.mark.slow
def test_every_parameter_learns_and_recomputing_changes_nothing(start_compiled):
    found, _ = start_compiled("plain", steps=1)
    again, _ = start_compiled("again", steps=1, recompute=("encoder", "trunk", "heads"))
    # After one step the means of gradients and of their squares tell the gradient of each parameter.
    moments, of_again = map(jax.tree.leaves, (found.moments, again.moments))
    scale = max(np.abs(x).max() for x in moments if x.dtype == np.float32)
    for x, y in zip(moments, of_again, strict=True):
        assert np.isfinite(x).all() and np.any(x)
        np.testing.assert_allclose(y, x, atol=1e-5 * scale)


def test_a_run_fitted_to_its_minutes(start, by_hand, monkeypatch):
    # 20 steps in 10 seconds, and 25 seconds left 5 seconds later: 60 more since then.
    run = types.SimpleNamespace(
        reported=(40, 100.0), first=20, begin=90.0, seconds_left=lambda: 25.0
    )
    with monkeypatch.context() as patched:
        patched.setattr(loop.time, "monotonic", lambda: 105.0)
        assert loop._Run.steps_that_fit(run) == 100

    state, _ = start("fitted", fit_to_minutes=True, max_minutes=0.0)
    assert state.step == 0
    with pytest.raises(InputError, match="cannot go on.*--init"):
        start("fitted", fit_to_minutes=True, max_minutes=1.0)


@pytest.fixture
def restore_cache():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.slow
def test_it_stops_in_time_and_fine_tunes(start, by_hand, tmp_path, monkeypatch, restore_cache):
    monkeypatch.setattr(loop, "_SECONDS_TO_END", 0.0)
    cache = tmp_path / "programs"
    state, lines = start("short", steps=50, max_minutes=0.0, compilation_cache=cache)
    assert jax.config.jax_compilation_cache_dir == str(cache)
    assert state.step == 0 and "minutes are up" in "".join(lines)
    exported = tmp_path / "short" / "model.safetensors"
    state, _ = start("tuned", steps=1, config=None, init=str(exported), freeze=("encoder.",))
    source = named_parameters(load_model(exported))
    for name, x in state.params.items():
        assert np.array_equal(x, source[name]) == name.startswith("encoder."), name
    tuned = load_model(tmp_path / "tuned" / "model.safetensors")
    assert tuned.config.pixel_centre == 0.5


def test_settings_that_cannot_be(start):
    with pytest.raises(InputError, match="multiples of 14"):
        start(variants=("2x2@28x30",))
    with pytest.raises(InputError, match="no parameter begins"):
        start(freeze=("nonsense",))
    with pytest.raises(InputError, match="steps is 0"):
        start(steps=0)
    with pytest.raises(InputError, match="leave one out"):
        start(init="somewhere")
