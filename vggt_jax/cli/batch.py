"""`vggt-jax batch`."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from vggt_jax.cli.attending import OptionalInt
from vggt_jax.cli.generated import options_of, taken
from vggt_jax.cli.printed import Json, print_outcome
from vggt_jax.cli.scene import WRITTEN_OTHERWISE, Scene
from vggt_jax.errors import InputError, printable
from vggt_jax.files import check_not_input
from vggt_jax.pipeline.many_scenes import ManyScenesOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
@options_of(ManyScenesOptions, leave_out=WRITTEN_OTHERWISE)
class Batch(Scene):
    """Reconstruct every scene of a folder, resumably: a folder of photographs, or a video, each.

    Writes OUT/NAME/predictions.npz for each. Run it again to continue after an interruption. Paths
    of masks and intrinsics may have {scene} in place of a scene's name.

        vggt-jax batch scenes/ --model facebook/VGGT-1B --out results --masks masks/{scene}
    """

    out: Path
    """Folder of results."""
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
        check_not_input(self.out, self.inputs([folder]))
        keep_compiled_programs()
        fields: dict[str, Any] = dict(vars(self.options()))
        fields |= taken(self, ManyScenesOptions, *WRITTEN_OTHERWISE)
        fields["progress"] = not self.quiet
        report = reconstruct_scenes(folder, self.out, **fields)
        for name, reason in report.again.items():
            self.say(printable(f"again: {name}: {reason}"))
        for name in report.elsewhere:
            self.say(printable(f"left to another process: {name}"))
        for name, reason in report.failed.items():
            print(printable(f"failed: {name}: {reason}"), file=sys.stderr)
        text = printable(
            f"{len(report.written)} scenes written to {self.out}, {len(report.skipped)} were "
            f"there, {len(report.failed)} failed"
        )
        print_outcome(self, text, {"out": str(self.out), **dataclasses.asdict(report)})
        return 1 if report.failed else 0
