"""vggt-jax analyze."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.mark.slow
def test_maps(run, photographs, checkpoint, tmp_path, capsys):
    out = tmp_path / "maps"
    options = ("--model", checkpoint, "--layer", 1, "--matches", 3, "--pair", 2, 0)
    assert run("analyze", "maps", photographs, *options, "--out", out) == 0
    assert f"maps.json -> {out}" in capsys.readouterr().out
    about = json.loads((out / "maps.json").read_text())
    assert about["layer"] == 1 and about["pair"] == ["2.png", "0.png"] and about["model"]
    with np.load(out / "maps.npz") as file:
        tokens = about["num_special"] + about["rows"] * about["columns"]
        assert file["map"].shape == (2 * tokens,) * 2 and file["between_frames"].shape == (2, 3, 3)
        np.testing.assert_allclose(file["between_frames"].sum(-1), 1, rtol=1e-5)
        patches = file["map"][about["num_special"] : tokens, tokens + about["num_special"] :]
        assert file["match_value"][0] >= patches.max() > 0 and len(file["match_value"]) == 3
    for name in ("map", "matches", "between_frames"):
        with Image.open(out / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_layers_sparsity_drop_and_runtime(run, photographs, checkpoint, tmp_path):
    def figure(name, *options):
        out = tmp_path / name
        given = ("--model", checkpoint, "--out", out)
        assert run("analyze", name, photographs, *given, *options) == 0
        assert (out / f"{name}.png").stat().st_size > 5000
        return json.loads((out / f"{name}.json").read_text())

    layers = figure("layers")["by_layer_and_head"]
    for name, numbers in layers.items():
        maximum, mean = (np.array(numbers[x]) for x in ("maximum", "mean"))
        assert maximum.shape == mean.shape == (2, 2) and (0 < mean).all() and (mean < maximum).all()
        assert " reads " in name or " read " in name
    sparse = figure("sparsity", "--num-keys", 1, "--min-tokens", 0)
    density = np.array(sparse["by_layer_and_head"]["density"])
    assert sparse["sparsity"] == pytest.approx(1 - density.mean(), rel=1e-4) and density.max() < 1
    drop = figure("drop", "--drop", 0, 2)["results"]
    by_choice = {(x["order"], len(x["layers"])): x for x in drop}
    assert len(by_choice) == 8 and by_choice["front", 0]["auc_30"] == 1
    assert by_choice["back", 2] == by_choice["front", 2] | {"order": "back"}
    assert by_choice["back", 2]["camera"] > 0
    seconds = figure("runtime", "--num-frames", 1, 4, "--repeats", 1)["seconds"]
    assert [x["frames"] for x in seconds] == [1, 4] and min(x["total"] for x in seconds) > 0


def test_what_is_refused(refused, photographs, checkpoint, tmp_path):
    analyze = lambda figure, *args: refused(
        "analyze", figure, *args, "--model", checkpoint, "--out", tmp_path / "out"
    )
    assert "no images given" in analyze("maps")
    assert "--layer is for maps, not for layers" in analyze("layers", photographs, "--layer", 1)
    assert "--pair (0, 3): must be two photographs in [0, 3)" in analyze(
        "maps", photographs, "--pair", 0, 3
    )
    assert "--layer 2: must be in [0, 2)" in analyze("maps", photographs, "--layer", 2)
    assert "--drop 3: must be in [0, 2]" in analyze("drop", photographs, "--drop", 3)
    assert "attention is dense, which leaves nothing out" in analyze("sparsity", photographs)
    assert not (tmp_path / "out").exists()
