"""The controls beside the scene, and the settings that they change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vggt_jax import weights
from vggt_jax.errors import printable
from vggt_jax.scene.confidence import PointSource
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.viewer.cameras import ViewerCamera
from vggt_jax.viewer.layers import PointLayers

_SOURCES = {"depth": "depth and cameras", "head": "point map"}
Want = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What the controls beside the scene say.

    Attributes:
      source: of the points, "depth" or "head"; None where there are none.
      min_confidence: what a confidence must exceed.
      percentile: how many percent of the points that do, the least confident, are left out.
      hide_edges: whether points at jumps of depth are left out.
      point_size: in thousandths of the scene's size.
      frames: whose points are shown.
      show_cameras: whether cameras are drawn.
      camera_size: of their pyramids, in hundredths of the scene's size.
    """

    source: PointSource | None
    min_confidence: float
    percentile: float
    hide_edges: bool
    point_size: float
    frames: frozenset[int]
    show_cameras: bool
    camera_size: float


def add_about(gui: Any, recon: Reconstruction) -> None:
    """Adds a text that names the scene, and what made it.

    Args:
      gui: of the server.
      recon: the scene.
    """
    gui.add_markdown(about_text(recon))


def about_text(recon: Reconstruction) -> str:
    """What is shown, in Markdown: frames by their names, the model, versions, time, unit."""
    num_frames, height, width, _ = np.shape(recon.images)
    names = [f"`{printable(name)}`" for name in (recon.names[:1] + recon.names[-1:])]
    of = f", {' to '.join(dict.fromkeys(names))}" if names else ""
    lines = [f"**{num_frames} frames** of {width}x{height}{of}; lengths {recon.length_unit}"]
    if made_by := recon.provenance:
        seconds = "" if made_by.seconds is None else f" in {made_by.seconds:.1f} s"
        lines.append(f"by **{printable(made_by.model)}** on {printable(made_by.device)}{seconds}")
    if made_by.is_small:
        lines.append(f"{weights.NAME} was {weights.GOOD_FOR}")
    return "  \n".join(lines)


def add_downloads(
    gui: Any, *, glb: Callable[[], bytes], screenshot: Callable[[Any], bytes]
) -> None:
    """Adds buttons that send a browser the scene as GLB, and what it shows as PNG.

    Args:
      gui: of the server.
      glb: makes the file.
      screenshot: makes the picture, given viser's client.
    """
    with gui.add_folder("Save"):
        of_scene = gui.add_button("GLB", hint="points and cameras as they are shown")
        of_view = gui.add_button("Screenshot", hint="what this window shows")
    # At once, and not by a link in a notification.
    send = lambda event, name, data: event.client.send_file_download(
        name, data, save_immediately=True
    )
    of_scene.on_click(lambda event: send(event, "scene.glb", glb()))
    of_view.on_click(lambda event: send(event, "scene.png", screenshot(event.client)))


def add_point_controls(
    gui: Any,
    settings: ViewSettings,
    layers: PointLayers,
    *,
    sources: Sequence[PointSource],
    has_edges: bool,
    confidence_kind: str,
    want: Want,
) -> Any:
    """Adds the controls of points.

    Args:
      gui: of the server.
      settings, layers: what is shown now.
      sources: where points can come from, at least one.
      has_edges: whether the scene has edges of depth to hide.
      confidence_kind: of the reconstruction.
      want: takes the settings that a control changes.

    Returns:
      The text below them, still empty; see `counts_text`.
    """
    with gui.add_folder("Points"):
        if len(sources) > 1:
            source = gui.add_dropdown(
                "From",
                [_SOURCES[x] for x in sources],
                initial_value=_SOURCES[settings.source or sources[0]],
            )
            by_label = {label: x for x, label in _SOURCES.items()}
            source.on_update(lambda event: want({"source": by_label[event.target.value]}))
        percentile = gui.add_slider(
            "Leave out %",
            min=0.0,
            max=100.0,
            step=layers.step,
            initial_value=settings.percentile,
            hint="the least confident so many percent of all points",
        )
        percentile.on_update(lambda event: want({"percentile": event.target.value}))
        smallest = gui.add_number(
            "Confidence above",
            initial_value=settings.min_confidence,
            min=0.0,
            max=1.0 if confidence_kind == "sigmoid" else None,
            step=0.01,
            hint="points of less are left out before the share above",
        )
        smallest.on_update(lambda event: want({"min_confidence": event.target.value}))
        size = gui.add_slider(
            "Point size",
            min=min(0.1, settings.point_size),
            max=max(10.0, settings.point_size),
            step=0.1,
            initial_value=settings.point_size,
            hint="in thousandths of the scene",
        )
        size.on_update(lambda event: want({"point_size": event.target.value}))
        if has_edges:
            edges = gui.add_checkbox(
                "Hide edges",
                settings.hide_edges,
                hint="points at jumps of depth, which float between two surfaces",
            )
            edges.on_update(lambda event: want({"hide_edges": event.target.value}))
        return gui.add_markdown("")


def add_frame_controls(gui: Any, names: Sequence[str], *, want: Want) -> None:
    """Adds the choice of frames, which are called by these names; `want` as above."""
    everything = frozenset(range(len(names)))
    with gui.add_folder("Frames"):
        mode = gui.add_button_group("Points of", ["all", "one", "chosen"])
        slider = gui.add_slider(
            "Frame",
            min=0,
            max=max(1, len(names) - 1),
            step=1,
            initial_value=0,
            disabled=len(names) == 1,
        )
        with gui.add_folder("Chosen frames", expand_by_default=False):
            boxes = [gui.add_checkbox(name, True) for name in names]

    chosen = lambda: frozenset(i for i, box in enumerate(boxes) if box.value)
    one = lambda: frozenset({int(slider.value)})
    by_mode = {"all": lambda: everything, "one": one, "chosen": chosen}
    show = lambda kind: want({"frames": by_mode[kind]()})
    mode.on_click(lambda event: show(event.target.value))
    # Whoever moves the slider wants to see that frame, and whoever ticks a box the chosen ones.
    slider.on_update(lambda event: show("one"))
    for box in boxes:
        box.on_update(lambda event: show("chosen"))


def add_camera_controls(
    gui: Any,
    settings: ViewSettings,
    cameras: Sequence[ViewerCamera],
    *,
    want: Want,
    look_through: Callable[[Any, ViewerCamera], None],
    look_from_overview: Callable[[Any], None],
) -> None:
    """Adds the controls of cameras.

    Args:
      gui: of the server.
      settings: what is shown now.
      cameras: that are drawn, at least one.
      want: takes the settings that a control changes.
      look_through: moves the view of a browser, given as viser's client, into a camera.
      look_from_overview: moves it to where it began.
    """
    with gui.add_folder("Cameras"):
        shown = gui.add_checkbox("Show", settings.show_cameras)
        shown.on_update(lambda event: want({"show_cameras": event.target.value}))
        size = gui.add_slider(
            "Size", min=0.5, max=20.0, step=0.5, initial_value=settings.camera_size
        )
        size.on_update(lambda event: want({"camera_size": event.target.value}))
        by_name = {f"{camera.frame}: {camera.name}": camera for camera in cameras}
        through = gui.add_dropdown("Through", list(by_name))
        look = gui.add_button("Look through it", hint="or click a camera in the scene")
        back = gui.add_button("Overview")
    look.on_click(lambda event: look_through(event.client, by_name[through.value]))
    back.on_click(lambda event: look_from_overview(event.client))


def counts_text(settings: ViewSettings, layers: PointLayers) -> str:
    """How many points are shown, and from which confidence on."""
    first = layers.layer_of(settings.percentile)
    shown = sum(
        int(layers.ends[frame, -1]) - layers.chunk(frame, first).start for frame in settings.frames
    )
    text = f"{shown:,} points, confidence from {layers.thresholds[first]:.3g}"
    if not layers.candidates:
        text = f"no point has a confidence above {settings.min_confidence:g}"
    if layers.candidates > len(layers.points):
        text += f" ({len(layers.points):,} of {layers.candidates:,} were drawn)"
    return text
