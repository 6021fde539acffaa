"""`scripts/calibrate_confidence.py` on windows whose numbers are given: what it chooses, counts and writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from vggt_jax.checkpoints import read, write

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import calibrate_confidence

    return calibrate_confidence


def line(scene, agreement, auc, kind="photographs"):
    scores = dict.fromkeys(("depth_confidence", "points_confidence", "cameras", "depth"), agreement)
    return {"kind": kind, "scene": scene, "auc_30": auc, "agreement": agreement, **scores}


def test_the_least_agreement_lets_so_many_pass(script):
    # From 0.6 on all are right; from 0.5 on one of five is none, from 0.3 on two of seven.
    aucs = {0.9: 0.9, 0.8: 0.7, 0.7: 0.6, 0.6: 0.5, 0.5: 0.1, 0.4: 0.4, 0.3: 0.1}
    lines = [line("a", agreement, auc) for agreement, auc in aucs.items()]
    assert script.chosen(lines, 0.0) == 0.6
    assert script.chosen(lines, 0.19) == 0.4  # one of six
    assert script.chosen(lines, 0.3) == 0.3
    # Another scene counts as much, of however few windows: half of what passes is none.
    lines += [line("b", 0.95, 0.1)]
    assert script.chosen(lines[:4] + lines[-1:], 0.5) == 0.6
    with pytest.raises(script.InputError, match="more than 10% are none"):
        script.chosen(lines, 0.1)


def test_errors_of_both_kinds(script):
    lines = [line("a", *x) for x in ((0.9, 0.9), (0.9, 0.2), (0.2, 0.4), (0.2, 0.6), (0.2, 0.1))]
    assert script.counts(lines, 0.3) == (
        "1 of 2 (50%) | 1 of 2 (50%) | 2 of 3 (67%) | 1 of 2 (50%)"
    )
    assert script.counts([], 0.3).count("0 of 0") == 4


def test_scores_are_ranked(script):
    rng = np.random.default_rng(2)
    score, auc = rng.integers(0, 9, 50) / 9.0, rng.random(50)  # with ties
    np.testing.assert_allclose(script.rank_correlation(score, auc), spearmanr(score, auc)[0])
    is_sound = auc > 0.4
    pairs = np.sign(score[is_sound][:, None] - score[~is_sound])
    np.testing.assert_allclose(script.roc_area(score, is_sound), np.mean((pairs + 1) / 2))
    assert np.isnan(script.roc_area(score, auc > 2))


def test_lines_become_a_threshold_in_the_checkpoint(script, tmp_path, monkeypatch, capsys):
    """Chosen on the synthetic world and on the first and third scene, judged on the second."""
    model = tmp_path / "model.safetensors"
    write(model, {"x": np.ones(3, np.float32)}, {"model": "vggt", "config": {}})
    rng = np.random.default_rng(0)
    lines = [line("test", x, x, "synthetic") for x in rng.uniform(0.2, 1, 40)]
    lines += [line("a", 0.4567, 0.9), line("a", 0.45, 0.1), line("c", 0.7, 0.7)]
    lines += [line("b", 0.1, 0.9), line("b", 0.8, 0.2), line("x", 0.0, 0.0, script.UNRELATED)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    args = [
        str(model),
        "--lines",
        str(tmp_path / "lines.jsonl"),
        "--out",
        str(tmp_path / "o" / "c"),
    ]
    monkeypatch.setattr(sys, "argv", ["calibrate_confidence.py", *args, "--at-most", "0"])
    script.main()
    assert read(model)[1]["least_agreement"] == 0.456  # downwards
    printed = capsys.readouterr().out
    assert "| **photographs, held out** | 1 of 1 (100%) | 1 of 1 (100%) | 1 of 1" in printed
    assert (tmp_path / "o" / "c.png").is_file() and (tmp_path / "o" / "c.md").is_file()
    monkeypatch.setattr(sys, "argv", ["calibrate_confidence.py", str(model)])
    with pytest.raises(SystemExit):
        script.main()
    assert "give --scenes" in capsys.readouterr().err


def test_windows_are_few_and_spread(script):
    args = script.argparse.Namespace(frames=4, steps=[1, 3], num_windows=3)
    found = [list(window) for window in script.chosen_windows(12, args)]
    assert found == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
        [0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11],
    ]  # fmt: skip
    mixed = script.mixed([np.full((5, 2), i) for i in range(3)], 2, 4)
    assert mixed.shape == (2, 4, 2) and mixed[:, :, 0].tolist() == [[0, 1, 2, 0]] * 2
