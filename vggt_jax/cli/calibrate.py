"""`vggt-jax calibrate`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vggt_jax.cli.generated import Flag, in_dashes, options_of
from vggt_jax.errors import InputError
from vggt_jax.files import check_file
from vggt_jax.images.files import scene_folder
from vggt_jax.images.kinds import is_picture
from vggt_jax.pipeline.calibration_report import PICTURE_MARK
from vggt_jax.pipeline.options import Options
from vggt_jax.trunk.attention.plan import FORMAT, AttentionPlan

# Of the options of a scene, those that matter to a plan.
_TAKEN = (
    "config",
    "mode",
    "size",
    "fps",
    "frames",
    "reference",
    "compute_dtype",
    "memory_check",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
@options_of(
    Options,
    take=_TAKEN,
    as_types={
        "config": Path | None,
        "size": int | None,
        "reference": str,
        "compute_dtype": Literal["float32", "bfloat16"] | None,
    },
)
class Calibrate:
    """Find how many keys each layer shall sample, by photographs alone, and write it as a plan.

    Reconstructs the scenes by dense attention, and with one layer after the other sampled: layers
    that move cameras and depth more get more keys. The whole is compared with all layers alike,
    which costs as much, and the better is written, with a picture of what was measured beside it.

        vggt-jax calibrate facebook/VGGT-1B kitchen/ garden/ --keys 4096 --out plan.json
        vggt-jax infer photographs/ --model facebook/VGGT-1B --attention plan.json --out scene
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Checkpoint, as `vggt-jax infer` takes it with --model."""
    sources: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint=""),
    ] = ()
    """Folders or videos, each a scene, or the image files of one scene. At least three frames each,
    better some dozens, like the scenes that the plan is for."""
    out: Path
    """The file to write, such as plan.json; the picture beside it is plan.png."""
    num_keys: Annotated[int, tyro.conf.arg(aliases=["--keys"])] = 4096
    """Patches that a layer samples, the mean over layers; a multiple of 64."""
    seed: int = 0
    """Of the draw of the sample."""
    sample_special_queries: Flag = False
    """Let special tokens see the sample, too, instead of everything, in scenes of any length; from
    512 frames on they do anyhow."""
    min_tokens: int = AttentionPlan.min_tokens
    """The plan runs scenes of fewer tokens (1,374 for a frame of 518x518) dense."""
    overwrite: Flag = False
    """Replace the file and its picture if they are there."""

    def run(self) -> None:
        check_file(self.out, overwrite=self.overwrite, mark=FORMAT.encode())
        picture = self.out.with_suffix(".png")
        if picture == self.out:
            raise InputError(f"--out {self.out}: is to be a plan, such as plan.json")
        check_file(picture, overwrite=self.overwrite, mark=PICTURE_MARK)
        scenes = self._scenes()
        try:
            self._run(scenes, picture)
        except InputError as error:
            raise InputError(in_dashes(str(error), Calibrate)) from error

    def _scenes(self) -> list[Any]:
        paths = [scene_folder(path).path if path.is_dir() else path for path in self.sources]
        if not paths:
            raise InputError("no images given; name folders, videos or image files")
        if missing := [path for path in paths if not path.exists()]:
            raise InputError(f"{missing[0]}: no such file")
        are_images = [path.is_file() and is_picture(path) for path in paths]
        if not any(are_images):
            return paths
        if not all(are_images):
            raise InputError(
                f"{paths[are_images.index(False)]}: name folders and videos, each of a scene, or "
                "the image files of one"
            )
        return [paths]

    def _run(self, scenes: list[Any], picture: Path) -> None:
        import jax

        import vggt_jax
        from vggt_jax.cli.programs import keep_compiled_programs
        from vggt_jax.pipeline.calibrate import calibrate

        keep_compiled_programs()
        plan, report = calibrate(
            scenes,
            model=self.model,
            num_keys=self.num_keys,
            seed=self.seed,
            sample_special_queries=self.sample_special_queries or None,
            min_tokens=self.min_tokens,
            progress=sys.stderr.isatty(),
            **{name: getattr(self, name) for name in _TAKEN},
        )
        about = {
            "model": self.model,
            "photographs": [str(path) for path in self.sources],
            **report.to_dict(),
            "vggt_jax": vggt_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        plan.save(self.out, about=about)
        report.write_picture(picture)
        print(report)
        print(f"plan -> {self.out}, picture -> {picture}")
