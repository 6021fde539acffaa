"""How scripts write what matplotlib draws: pictures of 256 colours, a third of the bytes."""

import io
from pathlib import Path
from typing import Any

from PIL import Image


def save(figure: Any, path: str | Path, *, dpi: int) -> None:
    """Writes a figure as PNG, since a checkout holds many of them."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    with Image.open(drawn) as picture:
        colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(path, format="PNG", optimize=True)
