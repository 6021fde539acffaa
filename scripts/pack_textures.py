"""Packs pictures of surfaces into small squares for `scripts/train.py --textures`.

    python scripts/pack_textures.py --out textures \\
        --source textures_of_a_game/ its_copyright_file --source photographs/ CC0-1.0

Writes OUT/textures.tar, squares in WebP, and OUT/licences.csv: which file of which source each
square came from, under which licence and of whom. The second word of a source is a machine-readable
copyright file of Debian (https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/) or the
name of one licence for all.

A picture gives its whole, cut to a square, and, if it is large, cuts at random places and scales.
Maps of normals, gloss and glow, small pictures and pictures with much transparency are left out.
Squares are taken in turn from all pictures until the bytes are used up.
"""

import argparse
import csv
import fnmatch
import io
import pathlib
import random
import sys
import tarfile

import numpy as np
from PIL import Image, ImageOps

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tga")
_MAPS = ("_nm", "_sm", "_gm", "_norm", "_local", "_gloss", "_spec")  # how their names end
_SMALLEST = 128  # pixels of the short side
_FLATTEST = 2.0  # deviation of grey, of 255: below it there is nothing to see
_CLEAREST = 0.02  # share of transparent pixels, at the most
_LARGE = 1.5  # a picture so many times the square gives cuts, too


def read_copyright(path: pathlib.Path) -> list[tuple[list[str], str, str]]:
    """Patterns of files, holder and licence of each paragraph of a Debian copyright file, in
    order."""
    found = []
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] = f"{fields.get(name, '')} {line.strip()}".strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Files" in fields:
            licence = fields.get("License", "").split(" ")[0]
            found.append((fields["Files"].split(), fields.get("Copyright", ""), licence))
    return found


def licence_of(path: pathlib.PurePath, paragraphs: list) -> tuple[str, str]:
    """Holder and licence of a file: of the last paragraph that names it, as the format says.

    A packaged file lies in other folders than that of the source, so a pattern counts if it names
    the same file, or if it or what is left of it without leading folders fits the end of the path;
    at least one folder must be left of a pattern with wildcards. The one that fits most of the path
    counts, of those the last.
    """
    holder = licence = ""
    best = 0
    for patterns, of, name in paragraphs:
        fit = max(_fit(path, pattern) for pattern in patterns)
        if fit and fit >= best:
            holder, licence, best = of, name, fit
    return holder, licence


def _fit(path: pathlib.PurePath, pattern: str) -> int:
    """How many parts of a path a pattern fits, from its end, and one; 0 where it does not."""
    parts = pathlib.PurePath(pattern).parts
    is_name = "*" not in parts[-1] and "?" not in parts[-1]
    for first in range(len(parts)):
        end = "/".join(parts[first:])
        is_enough = is_name or first < len(parts) - 1
        if is_enough and fnmatch.fnmatch(f"/{path.as_posix()}", f"*/{end}"):
            return len(parts) - first + 1
    return int(fnmatch.fnmatch(path.as_posix(), pattern))


def usable(image: Image.Image) -> bool:
    """Whether a picture is large, opaque and varied enough."""
    if min(image.size) < _SMALLEST or max(image.size) > 4 * min(image.size):
        return False
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA").resize((64, 64)))[..., 3]
        if (alpha < 128).mean() > _CLEAREST:
            return False
    return float(np.asarray(image.convert("L").resize((64, 64))).std()) >= _FLATTEST


def squares(image: Image.Image, side: int, rng: random.Random, at_most: int):
    """The middle of a picture as a square, and cuts of a large one at other places and scales."""
    image = image.convert("RGB")
    yield ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    short = min(image.size)
    room = (image.width / short) * (image.height / short) * (short / side) ** 2
    if short >= _LARGE * side:
        for _ in range(min(at_most - 1, int(room) - 1)):
            cut = round(side * (short / side) ** rng.random())
            x, y = (rng.randint(0, length - cut) for length in image.size)
            piece = image.resize((side, side), Image.Resampling.LANCZOS, (x, y, x + cut, y + cut))
            if np.asarray(piece.convert("L")).std() >= _FLATTEST:
                yield piece


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument(
        "--source",
        nargs=2,
        action="append",
        required=True,
        metavar=("FOLDER", "LICENCE"),
        help="a folder, and its copyright file or its licence's name; may be repeated",
    )
    parser.add_argument("--side", type=int, default=256, help="of the squares, in pixels")
    parser.add_argument("--mebibytes", type=float, default=18.0, help="of the pack, at the most")
    parser.add_argument("--quality", type=int, default=60, help="of WebP")
    parser.add_argument("--cuts", type=int, default=24, help="squares of one picture, at the most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    queue = []  # the square's turn, a random number, its bytes, and the row of the list
    for folder, licence in args.source:
        root = pathlib.Path(folder)
        copyright_file = pathlib.Path(licence)
        paragraphs = read_copyright(copyright_file) if copyright_file.is_file() else None
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() not in _PICTURES or path.stem.lower().endswith(_MAPS):
                continue
            place = path.relative_to(root.parent)
            holder, name = licence_of(place, paragraphs) if paragraphs else ("", licence)
            try:
                with Image.open(path) as image:
                    if not usable(image):
                        continue
                    for turn, square in enumerate(squares(image, args.side, rng, args.cuts)):
                        buffer = io.BytesIO()
                        square.save(buffer, "WEBP", quality=args.quality)
                        row = [root.name, path.relative_to(root).as_posix(), name, holder]
                        queue.append((turn, rng.random(), buffer.getvalue(), row))
            except OSError as error:
                print(f"{path}: left out ({error})", file=sys.stderr)
    queue.sort(key=lambda item: item[:2])

    args.out.mkdir(parents=True, exist_ok=True)
    used = 0
    with (
        tarfile.open(args.out / "textures.tar", "w") as tar,
        open(args.out / "licences.csv", "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(["square", "source", "file", "licence", "holder"])
        number = 0
        for _, _, data, row in queue:
            size = -(-len(data) // 512) * 512 + 512  # blocks of a tar file, and its header
            if used + size > args.mebibytes * 2**20:
                break
            used += size
            info = tarfile.TarInfo(f"{number:05}.webp")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            table.writerow([info.name, *row])
            number += 1
    print(f"{number} of {len(queue)} squares, {used / 2**20:.1f} MiB, in {args.out}")


if __name__ == "__main__":
    main()
