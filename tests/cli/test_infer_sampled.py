"""`vggt-jax infer --num-keys`."""

import numpy as np
import pytest


@pytest.mark.slow
def test_a_sample_of_keys(tmp_path, photographs, checkpoint, run, capsys):
    args = ["infer", photographs, "--model", checkpoint, "--size", 28, "--num-keys", 5]
    assert run(*args, "--min-tokens", 0, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "attention saw" in printed.out and "dense" not in printed.err
    density = np.load(tmp_path / "out" / "predictions.npz")["attention_density"]
    assert density.ndim == 2 and (density < 1).all()


def test_a_sample_and_blocks_contradict_each_other(tmp_path, photographs, checkpoint, refused):
    args = ["infer", photographs, "--model", checkpoint, "--out", tmp_path / "out"]
    assert "give one of them" in refused(*args, "--num-keys", 5, "--sparse-ratio", 0.5)
