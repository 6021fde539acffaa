"""The shapes of batches, and which one a step takes."""

import dataclasses
import math
import re

import jax
import numpy as np

from vggt_jax.errors import InputError

_PATTERN = re.compile(r"(\d+|\?)x(\d+)@(\d+)x(\d+)(?::(\d+(?:\.\d+)?))?")
_ROUND = 4  # of which the number of scenes is a multiple where it follows from the pixels

# About 250 frames each: what one GPU of 80 GB holds of `small_config` (docs/training.md).
DEFAULT_VARIANTS = (
    "32x8@224x224:3",
    "64x4@224x224:1",
    "28x12@168x224:2",
    "10x24@224x168:1",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One shape of batch: scenes, frames of each, pixels, and how often it is taken."""

    num_scenes: int
    num_frames: int
    height: int
    width: int
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str, pixels: int | None = None, multiple: int = _ROUND) -> "Variant":
        """Reads `SCENESxFRAMES@HEIGHTxWIDTH` with an optional `:WEIGHT`.

        Args:
            pixels: of a batch, at the most, where SCENES is `?`: then as many as these hold, in
                multiples of `multiple`.

        Raises:
            InputError: another form, a zero, or not so many scenes in so many pixels.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise InputError(
                f"variant {text!r} must be SCENESxFRAMES@HEIGHTxWIDTH:WEIGHT, such as "
                "32x8@224x224:3"
            )
        scenes, *sizes = match.groups()[:4]
        sizes = [int(number) for number in sizes]
        if scenes != "?":
            sizes.insert(0, int(scenes))
        elif pixels is None:
            raise InputError(f"variant {text!r}: ? for the number of scenes needs pixels-per-step")
        else:
            fitting = pixels // max(math.prod(sizes), 1)
            sizes.insert(0, fitting // multiple * multiple)
            if sizes[0] == 0:
                raise InputError(
                    f"variant {text!r}: {multiple} scenes are more than {pixels} pixels-per-step"
                )
        weight = float(match[5] or 1)
        if min(sizes) < 1 or weight <= 0:
            raise InputError(f"variant {text!r}: every number must be positive")
        return cls(
            num_scenes=sizes[0],
            num_frames=sizes[1],
            height=sizes[2],
            width=sizes[3],
            weight=weight,
        )

    def check(self, *, patch_size: int, num_special: int, num_devices: int, group: int = 1) -> None:
        """Raises InputError where the model or the devices cannot take it.

        Args:
            group: scenes that a device takes together.
        """
        if self.height % patch_size or self.width % patch_size:
            raise InputError(f"variant {self}: sides must be multiples of {patch_size} pixels")
        tokens = self.height * self.width // patch_size**2 + num_special
        if tokens % 2 and jax.default_backend() == "gpu":
            raise InputError(
                f"variant {self}: its frames have {tokens} tokens, {num_special} special ones "
                "among them; the backward pass of attention on a GPU needs an even number"
            )
        if self.num_scenes % (num_devices * group):
            of = f" in groups of {group}, one of photographs in each" if group > 1 else ""
            raise InputError(
                f"variant {self}: {self.num_scenes} scenes do not divide among {num_devices} "
                f"devices{of}"
            )

    def __str__(self) -> str:
        return f"{self.num_scenes}x{self.num_frames}@{self.height}x{self.width}:{self.weight:g}"


def variant_of(dispatch: int, variants: tuple[Variant, ...], seed: int) -> Variant:
    """Which variant a dispatch takes: random by weight, the same in every run of this seed."""
    weights = np.array([variant.weight for variant in variants])
    rng = np.random.default_rng([seed, dispatch])
    return variants[rng.choice(len(variants), p=weights / weights.sum())]
