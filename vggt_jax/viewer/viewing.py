"""`view`: a reconstruction in the browser by one call, from programs and from notebooks."""

import builtins
import threading
import webbrowser
from typing import Literal

from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.viewer.server import Viewer


def view(
    recon: Reconstruction,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    points: Literal["depth", "head"] | None = None,
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
    hide_edges: bool | None = None,
    point_size: float = 1.5,
    max_points: int = 1_000_000,
    open_browser: bool = False,
    block: bool | None = None,
) -> Viewer | None:
    """Shows a reconstruction in the browser: until Ctrl-C, or in a notebook, beside it.

    Args:
        recon: one scene, without scene axis.
        host: the address to listen at. The default serves this machine alone; "0.0.0.0" serves
            everybody who can reach it.
        port: None is 8080, or the next one that is free; 0 any free one.
        points: "depth", unprojected with the cameras, or "head", the point map. None is what the
            model is better at: depth for VGGT, its points for π³.
        confidence_percentile: how many percent of the points, the least confident, are left out at
            first; rounded to a step of the slider (1 % for up to 24 frames, 2.5 % for up to 60, 5 %
            for up to 119). None is the default of the model, see `confidence.confidence_limits`.
        min_confidence: what a confidence must exceed, before the percentage; None is the default of
            the model. The page has a field to change it.
        hide_edges: whether points at jumps of depth are left out at first. None is what users of
            the model do: yes for π³, no for VGGT.
        point_size: in thousandths of the scene's size.
        max_points: of a larger scene so many points are drawn at random.
        open_browser: whether to open the page.
        block: whether to return only when it ends. None is no in a notebook, where the page is
            shown below the cell, and yes elsewhere.

    Returns:
        The viewer, to be closed by `close`, where this does not block; else None.

    Raises:
        InputError: viser is missing (`pip install 'vggt-jax[view]'`), the reconstruction has
            nothing to show, an argument is out of its range, or the port is taken.
    """
    viewer = Viewer(
        recon,
        host=host,
        port=port,
        points=points,
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
        hide_edges=hide_edges,
        point_size=point_size,
        max_points=max_points,
    )
    if block is False or (block is None and in_notebook()):
        if open_browser:
            webbrowser.open(viewer.url)
        return viewer
    with viewer:
        print(f"{viewer.url}   (Ctrl-C ends it)", flush=True)  # noqa: T201
        if open_browser:
            webbrowser.open(viewer.url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()  # noqa: T201
    return None


def in_notebook() -> bool:
    """Whether this runs in a notebook, Jupyter's or Colab's."""
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return shell is not None and type(shell).__name__ in ("ZMQInteractiveShell", "Shell")
