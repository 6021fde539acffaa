"""`scripts/pack_textures.py`: what it takes, and that each square has its licence."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_jax.synthetic import read_pictures

SCRIPTS = Path(__file__).parents[2] / "scripts"

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2010 The Team
License: GPL-2+

Files:
 base/wall/brick.png
 base/wall/large*.png
Copyright:
 2012 A. Painter
License: CC-BY-3.0
 You may share it.

Files: debian/*
Copyright: 2020 A Packager
License: Expat
"""


@pytest.fixture
def pack(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import pack_textures

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["pack_textures.py", *map(str, args)])
        pack_textures.main()

    return run


def picture(path, size, *, flat=False, alpha=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (8, 8, 3), np.uint8)
    image = Image.fromarray(noise * (not flat)).resize(size, Image.Resampling.NEAREST)
    if alpha is not None:
        image.putalpha(alpha)
    image.save(path)


def test_squares_have_the_licences_of_their_files(pack, tmp_path, capsys):
    textures, photographs = tmp_path / "textures", tmp_path / "photographs"
    (tmp_path / "copyright").write_text(COPYRIGHT)
    picture(textures / "wall" / "brick.png", (256, 256))
    picture(textures / "floor" / "wood.jpg", (256, 200))
    picture(textures / "wall" / "large_1.png", (900, 700))
    picture(photographs / "sea.jpg", (300, 256))
    # Left out: a map of normals, a small one, one without anything on it, a long and a clear one.
    picture(textures / "wall" / "brick_nm.png", (256, 256))
    picture(textures / "small.png", (64, 64))
    picture(textures / "flat.png", (256, 256), flat=True)
    picture(textures / "long.png", (2000, 200))
    picture(textures / "clear.png", (256, 256), alpha=20)
    sources = ["--source", textures, tmp_path / "copyright", "--source", photographs, "CC0-1.0"]
    pack("--out", tmp_path / "pack", *sources, "--cuts", 4)

    rows = list(csv.DictReader((tmp_path / "pack" / "licences.csv").open()))
    assert len(read_pictures(tmp_path / "pack")) == len(rows) == 7
    licences = {row["file"]: (row["licence"], row["holder"]) for row in rows}
    assert licences == {
        "wall/brick.png": ("CC-BY-3.0", "2012 A. Painter"),
        "wall/large_1.png": ("CC-BY-3.0", "2012 A. Painter"),
        "floor/wood.jpg": ("GPL-2+", "2010 The Team"),
        "sea.jpg": ("CC0-1.0", ""),
    }
    # Each picture once before any is cut again.
    assert len({row["file"] for row in rows[:4]}) == 4

    pack("--out", tmp_path / "less", *sources, "--cuts", 4, "--mebibytes", 0.01)
    tar = tmp_path / "less" / "textures.tar"
    assert (
        1 <= len(read_pictures(tmp_path / "less")) < 7
        and tar.stat().st_size <= 0.01 * 2**20 + 10240
    )
