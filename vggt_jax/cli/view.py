"""`vggt-jax view`."""

import dataclasses
import warnings

from vggt_jax import weights
from vggt_jax.cli.attending import OptionalInt
from vggt_jax.cli.generated import Flag
from vggt_jax.cli.scene import Scene
from vggt_jax.errors import InputError, InputWarning


@dataclasses.dataclass(frozen=True, kw_only=True)
class View(Scene):
    """Look at a scene in the browser: a folder of results, or photographs, reconstructed first.

    vggt-jax view scene/
    vggt-jax view photographs/ --model facebook/VGGT-1B
    """

    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 shows the scene to other machines."""
    port: OptionalInt = None
    """Port to serve at; by default the first free one from 8080."""
    max_points: int = 1_000_000
    """Most points to show."""
    open_browser: Flag = False
    """Open the browser too."""

    def run(self) -> None:
        from vggt_jax.cli.reconstruct_files import read_or_reconstruct
        from vggt_jax.viewer import view
        from vggt_jax.viewer.ports import checked_port
        from vggt_jax.viewer.server import import_viser

        # What is missing or wrong shows before the long work.
        import_viser()
        if self.max_points < 1:
            raise InputError(f"--max-points={self.max_points} must be at least 1")
        checked_port(self.host, self.port)
        recon = read_or_reconstruct(self)
        if recon.provenance:
            self.say(f"made by {recon.provenance}")
        if self.results() is not None and recon.provenance.is_small:
            warnings.warn(InputWarning(weights.SAID_OF_RESULTS), stacklevel=1)
        view(
            recon,
            host=self.host,
            port=self.port,
            points=self.point_source(),
            confidence_percentile=self.confidence_percentile,
            min_confidence=self.min_confidence,
            max_points=self.max_points,
            open_browser=self.open_browser,
            block=True,
        )
