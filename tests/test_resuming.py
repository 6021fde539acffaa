"""vggt_jax.pipeline.resuming: which results of many scenes hold, and why others do not."""

import os

import numpy as np
import pytest
from PIL import Image

from vggt_jax import InputError, Options, Reconstruction
from vggt_jax.files import Claim
from vggt_jax.pipeline.resuming import (
    ElsewhereError,
    check_settings,
    claimed,
    earlier_results,
    record_of,
)
from vggt_jax.scene.results import write_reconstruction

OPTIONS = Options()


@pytest.fixture
def scene(tmp_path):
    """A folder of photographs, one of results, and one of masks."""
    for folder in ("hall", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.new("L", (4, 4), 10 * i).save(tmp_path / folder / f"{i}.png")
    return tmp_path


def save(scene, options=OPTIONS):
    recon = Reconstruction(images=np.zeros((3, 2, 2, 3), np.uint8))
    record = record_of(scene / "hall", options)
    write_reconstruction(scene / "out" / "hall", recon, made_from=record)
    return scene / "out" / "hall" / "predictions.npz"


def looked_at(scene, options=OPTIONS):
    return earlier_results({"hall": scene / "hall"}, scene / "out", options)


def touch(path):
    os.utime(path, ns=(5, 5))


CHANGES = {
    "nothing": (lambda s: None, None),
    "another file": (lambda s: (s / "hall" / "notes.txt").touch(), None),
    "added": (lambda s: Image.new("L", (4, 4)).save(s / "hall" / "3.png"), "added since: 3.png"),
    "removed": (lambda s: (s / "hall" / "0.png").unlink(), "removed since: 0.png"),
    "renamed": (
        lambda s: (s / "hall" / "0.png").rename(s / "hall" / "9.png"),
        "photographs were added since: 9.png; photographs were removed since: 0.png",
    ),
    "edited": (
        lambda s: Image.new("L", (5, 4)).save(s / "hall" / "1.png"), "photographs were changed since: 1.png"
    ),
    "another time": (lambda s: touch(s / "hall" / "1.png"), "changed since: 1.png"),
    "another mask": (lambda s: touch(s / "masks" / "2.png"), "masks were changed since: 2.png"),
    "mask removed": (lambda s: (s / "masks" / "2.png").unlink(), "masks were removed since: 2.png"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_read_is_compared(scene, change):
    options = Options(masks=scene / "masks")
    save(scene, options)
    do, why = CHANGES[change]
    do(scene)
    skipped, again, failed = looked_at(scene, options)
    assert not failed and skipped == (() if why else ("hall",))
    assert again.keys() == ({"hall"} if why else set())
    assert why is None or why in again["hall"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ],
)
def test_a_truncated_result_is_not_done(scene, damage):
    damage(save(scene))
    assert looked_at(scene) == ((), {"hall": "its result is damaged or was not finished"}, {})


def test_what_is_no_result_is_not_replaced(scene):
    path = save(scene)
    np.savez(path, mine=np.zeros(3))
    skipped, again, failed = looked_at(scene)
    assert not skipped and not again and "did not write it" in failed["hall"]
    path.unlink()
    path.mkdir()
    assert "is a folder" in looked_at(scene)[2]["hall"]


def test_arrays_are_compared_by_their_values():
    x = np.zeros((2, 4, 4, 3), np.uint8)
    assert record_of(x, OPTIONS) == record_of(x.copy(), OPTIONS) == record_of(x, OPTIONS)
    assert record_of(list(x), OPTIONS) == record_of(list(x), OPTIONS)
    assert record_of(x, OPTIONS) != record_of(x + 1, OPTIONS)
    assert record_of(x, OPTIONS) != record_of(x[:1], OPTIONS)


def test_a_scene_is_done_by_one_process(scene):
    (scene / "out").mkdir()
    first = claimed(scene / "out" / "hall", scene / "hall", OPTIONS)
    with pytest.raises(ElsewhereError, match="is being written by another process"):
        claimed(scene / "out" / "hall", scene / "hall", OPTIONS)
    other = claimed(scene / "out" / "attic", scene / "hall", OPTIONS)
    save(scene)
    first.release()
    with pytest.raises(ElsewhereError, match="was written by another process just now"):
        claimed(scene / "out" / "hall", scene / "hall", OPTIONS)
    other.release()
    assert isinstance(first, Claim) and os.listdir(scene / "out") == ["hall"]


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000, ""])
def test_settings_that_cannot_be_read(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match="settings.json: .*") as caught:
        check_settings(tmp_path, {"size": 28})
    assert "\n" not in str(caught.value)
