import functools
import json
import os
import signal
import types

import jax
import numpy as np
import pytest

from vggt_jax.errors import InputError
from vggt_jax.loading import load_model, named_parameters
from vggt_jax.training.loop import train
from vggt_jax.training.losses import LossWeights
from vggt_jax.training.optimizer import OptimizerSettings
from vggt_jax.training.predict import Execution
from vggt_jax.training.settings import TrainSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "toy.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs are compiled once for all runs here."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield tmp_path_factory.mktemp("programs")
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def start(config_file, render, tmp_path, cache):
    """Trains with settings changed and returns the state and the lines said."""

    def run(out="run", **changes):
        settings = TrainSettings(
            **{
                "out": tmp_path / out,
                "config": config_file,
                "variants": ("2x2@28x28",),
                "steps_per_dispatch": 1,
                "validate_every": 0,
                "validation_variant": "2x2@28x28",
                "validation_batches": 1,
                "compilation_cache": cache,
                **changes,
            }
        )
        lines = []
        state = train(settings, render=render, render_validation=render, say=lines.append)
        return state, lines

    return run


def test_resuming_continues_bit_for_bit(start, tmp_path, monkeypatch):
    start = functools.partial(
        start,
        optimizer=OptimizerSettings(method="muon"),
        execution=Execution(dense_share=0.5),
        loss=LossWeights(pairs=1.0),
    )
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
    import vggt_jax.training.loop as loop

    report = loop._Run.report

    def report_and_kill(self, step, *rest):
        if step == 2:  # the third is on its way then
            os.kill(os.getpid(), signal.SIGTERM)
        return report(self, step, *rest)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop._Run, "report", report_and_kill)
    stopped, lines = start("cut", steps=6, validate_every=6)
    assert stopped.step == 3 and "signal" in "".join(lines)
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.undo()
    resumed, lines = start("cut", steps=6, validate_every=6)
    assert lines[0] == "going on after step 3 of 6"
    assert resumed.step == 6
    same = jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), resumed, straight)
    assert all(jax.tree.leaves(same))

    _, lines = start("cut", steps=7, validate_every=6)
    assert "steps changed from 6 to 7" in lines[0]
    with pytest.raises(InputError, match="seed: 0 before, 1 now"):
        start("cut", steps=7, seed=1)


def test_a_run_fitted_to_its_minutes(start, monkeypatch):
    import vggt_jax.training.loop as loop

    # 20 steps in 10 seconds, and 25 seconds left 5 seconds later: 60 more since then.
    monkeypatch.setattr(loop.time, "monotonic", lambda: 105.0)
    run = types.SimpleNamespace(
        reported=(40, 100.0), first=20, begin=90.0, seconds_left=lambda: 25.0
    )
    assert loop._Run.steps_that_fit(run) == 100
    monkeypatch.undo()

    state, _ = start("fitted", fit_to_minutes=True, max_minutes=0.0)
    assert state.step == 0
    with pytest.raises(InputError, match="cannot go on.*--init"):
        start("fitted", fit_to_minutes=True, max_minutes=1.0)


def test_it_stops_in_time_and_fine_tunes(start, tmp_path, monkeypatch):
    import vggt_jax.training.loop as loop

    monkeypatch.setattr(loop, "_SECONDS_TO_END", 0.0)
    state, lines = start("short", steps=50, max_minutes=0.0)
    assert state.step == 0 and "minutes are up" in "".join(lines)
    exported = tmp_path / "short" / "model.safetensors"
    state, _ = start("tuned", steps=1, config=None, init=str(exported), freeze=("encoder.",))
    source = named_parameters(load_model(exported))
    for name, x in state.params.items():
        assert (x == source[name]).all() == name.startswith("encoder."), name
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
