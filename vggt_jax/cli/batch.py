"""`vggt-jax batch`."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from vggt_jax.cli.attending import OptionalInt, OptionalText
from vggt_jax.cli.generated import options_of, taken
from vggt_jax.cli.printed import Json, print_outcome
from vggt_jax.cli.scene import WRITTEN_OTHERWISE, Scene
from vggt_jax.errors import InputError, printable
from vggt_jax.files import check_not_input
from vggt_jax.files.addresses import address_of, local_path
from vggt_jax.pipeline.many_scenes import ManyScenesOptions, ScenesReport


@dataclasses.dataclass(frozen=True, kw_only=True)
@options_of(ManyScenesOptions, leave_out=WRITTEN_OTHERWISE)
class Batch(Scene):
    """Reconstruct every scene of a folder, resumably: a folder of photographs, or a video, each.

    Writes OUT/NAME/predictions.npz for each. Run it again to continue after an interruption. Paths
    of masks and intrinsics may have {scene} in place of a scene's name.

        vggt-jax batch scenes/ --model facebook/VGGT-1B --out results --masks masks/{scene}
        vggt-jax batch s3://bucket/scenes --out gs://bucket/results --engine ray
    """

    # Addresses are no paths: they would lose a slash.
    sources: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[PATH ...]", help_behavior_hint=""),
    ] = ()
    """A folder with a folder of photographs, or a video, for each scene; or its address, such as
    s3://bucket/scenes."""
    image_folder: OptionalText = None
    """The same as naming the folder."""
    out: str
    """Folder of results, or its address."""
    json: Json = False
    devices: OptionalInt = None
    """How many devices scenes are shared out among: each has a copy of the model, and scenes of its
    own; results are those of one. By default one."""

    def run(self) -> int:
        from vggt_jax.cli.programs import keep_compiled_programs
        from vggt_jax.pipeline.many_scenes import reconstruct_scenes

        # The folder is one of scenes, and may hold a scene called images.
        folder, *others = self.named()
        if others:
            raise InputError(f"{others[0]}: give one folder, which holds a folder for each scene")
        if changed := self.changed("points", "use_point_map", "confidence_percentile",
                                   "min_confidence", "allow_single_image"):  # fmt: skip
            raise InputError(
                f"--{changed[0].replace('_', '-')} is for point clouds or single scenes; export "
                "results with it later"
            )
        if address_of(self.out, "folder of results") is None:
            is_local = address_of(folder, "folder of scenes") is None
            read = self.inputs([Path(local_path(folder))] if is_local else [])
            check_not_input(Path(local_path(self.out)), read)
        keep_compiled_programs()
        fields: dict[str, Any] = dict(vars(self.options()))
        fields |= taken(self, ManyScenesOptions, *WRITTEN_OTHERWISE)
        fields["progress"] = not self.quiet
        # Standard output is the outcome's; Ray writes news of its machines there.
        with contextlib.redirect_stdout(sys.stderr):
            report = reconstruct_scenes(folder, self.out, **fields)
        self._tell(report)
        return 1 if report.failed else 0

    def _tell(self, report: ScenesReport) -> None:
        for name, reason in report.again.items():
            self.say(printable(f"again: {name}: {reason}"))
        for name, reason in report.twice.items():
            self.say(printable(f"begun twice: {name}: {reason}"))
        for name in report.elsewhere:
            self.say(printable(f"left to another process: {name}"))
        for name, reason in report.failed.items():
            print(printable(f"failed: {name}: {reason}"), file=sys.stderr)
        twice = f", {len(report.twice)} begun twice and written once" if report.twice else ""
        text = printable(
            f"{len(report.written)} scenes written to {self.out}, {len(report.skipped)} were "
            f"there, {len(report.failed)} failed{twice}"
        )
        print_outcome(self, text, {"out": self.out, **dataclasses.asdict(report)})
