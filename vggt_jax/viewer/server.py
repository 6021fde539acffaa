"""The browser view of a reconstruction, on viser."""

import dataclasses
import io
import math
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.export.reconstruction import export_reconstruction
from vggt_jax.scene.confidence import PointSource, confidence_limits, confidence_of, point_sources
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.stretches import thinned
from vggt_jax.viewer.cameras import FIELD_OF_VIEW, ViewerCamera, overview, viewer_cameras
from vggt_jax.viewer.controls import (
    ViewSettings,
    add_about,
    add_camera_controls,
    add_downloads,
    add_frame_controls,
    add_point_controls,
    counts_text,
)
from vggt_jax.viewer.layers import PointLayers, cut_points
from vggt_jax.viewer.ports import checked_port
from vggt_jax.viewer.rays import track_rays

_JPEG_QUALITY = 70
_STOP_SECONDS = 1.0
_BLUE, _ORANGE = (60, 120, 200), (235, 130, 30)


class Viewer:
    """A server that shows a reconstruction to browsers until it is closed.

    Works as a context manager. Settings are shared by all browsers that look; each has its own
    view.

    Attributes:
      url: where to look.
      settings: what is shown now; `change` changes it.
      cameras: the cameras that are drawn.
      layers: the points of the present source, and how they are cut.
    """

    def __init__(
        self,
        recon: Reconstruction,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        points: PointSource | None = None,
        confidence_percentile: float | None = None,
        min_confidence: float | None = None,
        hide_edges: bool | None = None,
        point_size: float = 1.5,
        max_points: int = 1_000_000,
    ):
        """Starts the server; the arguments are those of `view`.

        Raises:
          InputError: viser is missing, an argument is out of its range, or the port is taken.
        """
        viser = import_viser()
        if np.ndim(recon.images) != 4:
            raise InputError(
                f"the viewer shows one scene, not images of shape {np.shape(recon.images)}; "
                "take one with jax.tree.map(lambda x: x[i], reconstruction)"
            )
        recon = jax.device_get(thinned(recon))
        percentile, smallest = confidence_limits(
            recon.confidence_kind,
            confidence_percentile=confidence_percentile,
            min_confidence=min_confidence,
        )
        if not 0 < point_size < math.inf:
            raise InputError(f"{point_size=} must be above 0, in thousandths of the scene's size")
        sources = point_sources(recon)
        if points is not None and points not in sources:
            raise InputError(f"{points=} must be one of {', '.join(sources) or 'nothing'} here")
        self.cameras = viewer_cameras(recon)
        if not sources and not self.cameras:
            raise InputError("the reconstruction has neither points nor cameras to show")
        has_edges = recon.depth is not None or recon.depth_edges is not None
        if hide_edges and not has_edges:
            raise InputError("edges of depth need a reconstruction with depth")
        if hide_edges is None:
            hide_edges = recon.depth_edges is not None
        port = checked_port(host, port)

        self._recon = recon
        self._max_points = max_points
        self._num_frames = len(recon.images)
        source = points or next(iter(sources), None)
        self.layers = self._cut(source, smallest, hide_edges)
        if source is not None and min_confidence is not None and not self.layers.candidates:
            raise InputError(
                f"no point has a confidence above {min_confidence=:g}; choose less (the largest "
                f"confidence is {np.max(confidence_of(recon, source)):g})"
            )
        self._overview = overview(self.layers.points, self.cameras)
        self._tracks: Any = None  # Lines through the points that were followed.
        self.settings = ViewSettings(
            source=source,
            min_confidence=float(smallest),
            percentile=float(self.layers.percentiles[self.layers.layer_of(percentile)]),
            hide_edges=hide_edges,
            point_size=point_size,
            frames=frozenset(range(self._num_frames)),
            show_cameras=True,
            camera_size=3.0,
        )
        self._server: Any = viser.ViserServer(host=host, port=port, label="vggt-jax", verbose=False)
        self.port = self._server.get_port()
        self.url = f"http://{'127.0.0.1' if host in ('', '0.0.0.0') else host}:{self.port}"
        self._chunks: dict[tuple[int, int], Any] = {}
        self._frustums: dict[int, Any] = {}
        self._counts: Any = None  # A text, where there are points.
        self._looking_through: dict[int, int] = {}  # Frames by client.
        self._arrived: set[int] = set()  # Clients whose view has reached that frame's camera.
        self._lock = threading.Lock()  # Of settings and of the scene's nodes.
        self._wanted: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with self._server.atomic():
            self._set_stage()
            self._add_layers()
            self._add_cameras()
            self._add_tracks()
            self._add_controls(sources, has_edges)
        self._show_counts()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """The page itself, below a cell of a notebook."""
        return (
            f'<iframe src="{self.url}" width="100%" height="600" style="border: 0"></iframe>'
            f'<p><a href="{self.url}" target="_blank">{self.url}</a></p>'
        )

    def close(self) -> None:
        """Stops the server. Browsers keep what they show."""
        self._wanted.put(None)
        self._worker.join()
        # The port is free at once. viser then waits for up to six seconds for browsers that do not
        # answer, such as one in a sleeping tab; nobody else needs to.
        stopping = threading.Thread(target=self._server.stop, daemon=True)
        stopping.start()
        stopping.join(timeout=_STOP_SECONDS)

    def change(self, **settings: Any) -> None:
        """Changes fields of `settings` and sends what differs to the browsers.

        The controls in the browser call this too, one change after another in a thread of its own.

        Raises:
          TypeError: there is no such field.
        """
        with self._lock:
            old = self.settings
            new = dataclasses.replace(old, **settings)
            step = self.layers.layer_of(new.percentile)
            new = dataclasses.replace(new, percentile=float(self.layers.percentiles[step]))
            with self._server.atomic():
                self._apply(old, new)
            self.settings = new
            self._show_counts()

    # What is sent

    def _cut(
        self, source: PointSource | None, min_confidence: float, hide_edges: bool
    ) -> PointLayers:
        if source is None:
            nothing = np.zeros((0, 3))
            return PointLayers(
                points=nothing.astype(np.float32),
                colors=nothing.astype(np.uint8),
                ends=np.zeros((self._num_frames, 5), int),
                percentiles=np.linspace(0, 100, 5),
                thresholds=np.zeros(5),
                candidates=0,
            )
        return cut_points(
            self._recon,
            source=source,
            min_confidence=min_confidence,
            hide_edges=hide_edges,
            max_points=self._max_points,
        )

    def _apply(self, old: ViewSettings, new: ViewSettings) -> None:
        cut = lambda settings: (settings.source, settings.min_confidence, settings.hide_edges)
        if cut(old) != cut(new):
            self.layers = self._cut(*cut(new))
            self.settings = new
            self._add_layers()
        else:
            # A layer is a parent of its chunks: one message switches those of all frames.
            first, first_before = map(self.layers.layer_of, (new.percentile, old.percentile))
            for i in range(min(first, first_before), max(first, first_before)):
                self._layer_nodes[i].visible = i >= first
            changed = old.frames ^ new.frames
            for (frame, _), node in self._chunks.items():
                if frame in changed:
                    node.visible = frame in new.frames
            if old.point_size != new.point_size:
                for node in self._chunks.values():
                    node.point_size = self._world_point_size(new)
        if old.camera_size != new.camera_size:
            for node in self._frustums.values():
                node.scale = self._frustum_scale(new)
        self._show_frustums(new)

    def _set_stage(self) -> None:
        view = self._overview
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.gui.main_panel.dock_right()
        self._server.scene.set_up_direction(view.up)
        camera = self._server.initial_camera
        camera.position, camera.look_at, camera.up = view.position, view.look_at, view.up
        camera.fov = FIELD_OF_VIEW
        camera.near, camera.far = 1e-3 * view.size, 1e2 * view.size

    def _add_layers(self) -> None:
        """Sends all points; those of an earlier source go."""
        scene, layers, settings = self._server.scene, self.layers, self.settings
        scene.remove_by_name("/points")
        scene.add_frame("/points", show_axes=False)
        self._chunks.clear()
        first = layers.layer_of(settings.percentile)
        self._layer_nodes = [
            scene.add_frame(f"/points/{i}", show_axes=False, visible=i >= first)
            for i in range(len(layers.percentiles))
        ]
        for frame in range(self._num_frames):
            for i in range(len(layers.percentiles)):
                chunk = layers.chunk(frame, i)
                if chunk.start == chunk.stop:
                    continue
                # Half precision would be three bytes of fifteen less, and show as steps.
                self._chunks[frame, i] = scene.add_point_cloud(
                    f"/points/{i}/{frame}",
                    layers.points[chunk],
                    layers.colors[chunk],
                    point_size=self._world_point_size(settings),
                    point_shape="rounded",
                    point_shading="flat",
                    precision="float32",
                    visible=frame in settings.frames,
                )

    def _add_cameras(self) -> None:
        scene = self._server.scene
        self._camera_parent = scene.add_frame("/cameras", show_axes=False)
        for camera in self.cameras:
            node = scene.add_camera_frustum(
                f"/cameras/{camera.frame}",
                camera.field_of_view,
                camera.aspect,
                scale=self._frustum_scale(self.settings),
                thickness=1.5,
                thickness_units="screen",
                color=_ORANGE if camera.frame == 0 else _BLUE,
                image=camera.picture,
                format="jpeg",
                jpeg_quality=_JPEG_QUALITY,
                wxyz=camera.quaternion,
                position=camera.position,
                cast_shadow=False,
                receive_shadow=False,
            )
            node.on_click(lambda event, camera=camera: self._look_through(event.client, camera))
            self._frustums[camera.frame] = node
        self._server.on_client_connect(lambda client: client.camera.on_update(self._left_camera))
        self._server.on_client_disconnect(self._gone)

    def _world_point_size(self, settings: ViewSettings) -> float:
        return settings.point_size * 1e-3 * self._overview.size

    def _frustum_scale(self, settings: ViewSettings) -> float:
        return settings.camera_size * 1e-2 * self._overview.size

    def _show_frustums(self, settings: ViewSettings) -> None:
        self._camera_parent.visible = settings.show_cameras and not self._looking_through

    # Looking through a camera

    def _look_through(self, client: Any, camera: ViewerCamera) -> None:
        """Moves a browser's view into a camera. Pyramids go: they would be in the way."""
        view = client.camera
        with self._lock, client.atomic():
            self._looking_through[client.client_id] = camera.frame
            self._arrived.discard(client.client_id)
            # All of the photograph fits into the window.
            widening = max(1.0, camera.aspect / view.aspect)
            view.fov = 2 * math.atan(math.tan(camera.field_of_view / 2) * widening)
            forward, up = camera.rotation[:, 2], -camera.rotation[:, 1]
            view.position = camera.position
            # What the mouse turns the view around; near the scene's middle as far as depth goes.
            distance = (self._overview.look_at - camera.position) @ forward
            view.look_at = camera.position + max(distance, 0.1 * self._overview.size) * forward
            view.up_direction = up
            view.near = self._nearest_to(camera)
            self._show_frustums(self.settings)

    def _nearest_to(self, camera: ViewerCamera) -> float:
        """From which depth on to draw: single points before the lens would hide everything."""
        layers = self.layers
        whole = slice(layers.chunk(camera.frame, 0).start, layers.ends[camera.frame, -1])
        depth = (layers.points[whole] - camera.position) @ camera.rotation[:, 2]
        nearest = 0.5 * np.percentile(depth, 1) if len(depth) else 0.0
        return float(max(nearest, 1e-3 * self._overview.size))

    def _left_camera(self, view: Any) -> None:
        """Shows cameras again when the view has left the one it was in."""
        with self._lock:
            client = view.client.client_id
            frame = self._looking_through.get(client)
            if frame is None:
                return
            position = next(x.position for x in self.cameras if x.frame == frame)
            # Where the view was before may be reported after it was sent to the camera.
            if np.linalg.norm(view.position - position) <= 1e-3 * self._overview.size:
                self._arrived.add(client)
            elif client in self._arrived:
                del self._looking_through[client]
                view.near = 1e-3 * self._overview.size
                self._show_frustums(self.settings)

    def _gone(self, client: Any) -> None:
        with self._lock:
            if self._looking_through.pop(client.client_id, None) is not None:
                self._show_frustums(self.settings)

    def _look_from_overview(self, client: Any) -> None:
        view, camera = self._overview, client.camera
        with client.atomic():
            camera.fov = FIELD_OF_VIEW
            camera.position, camera.look_at = view.position, view.look_at
            camera.up_direction = view.up

    # Controls

    def _add_controls(self, sources: tuple[PointSource, ...], has_edges: bool) -> None:
        gui, want = self._server.gui, self._wanted.put
        add_about(gui, self._recon)
        if sources:
            self._counts = add_point_controls(
                gui,
                self.settings,
                self.layers,
                sources=sources,
                has_edges=has_edges,
                confidence_kind=self._recon.confidence_kind,
                want=want,
            )
            names = self._recon.names or [f"frame {i}" for i in range(self._num_frames)]
            add_frame_controls(gui, names, want=want)
        if self.cameras:
            add_camera_controls(
                gui,
                self.settings,
                self.cameras,
                want=want,
                look_through=self._look_through,
                look_from_overview=self._look_from_overview,
            )
        add_downloads(gui, glb=self._glb, screenshot=self._screenshot)

    def _glb(self) -> bytes:
        """What is shown now, points and cameras, as a GLB file."""
        with tempfile.TemporaryDirectory(prefix="vggt-jax-") as folder:
            file, settings = Path(folder) / "scene.glb", self.settings
            export_reconstruction(
                self._recon,
                file,
                format="glb",
                points=settings.source,
                confidence_percentile=min(settings.percentile, 99.0),
                min_confidence=settings.min_confidence or None,
                cameras=settings.show_cameras and bool(self.cameras),
            )
            return file.read_bytes()

    def _screenshot(self, client: Any) -> bytes:
        """What a browser shows, as PNG, at the size of its window."""
        view = client.camera
        height, width = view.image_height, view.image_width
        drawn = Image.fromarray(client.get_render(height, width, transport_format="png"))
        # Where nothing is drawn it is transparent, and the page white.
        page = Image.new("RGBA", drawn.size, "white")
        out = io.BytesIO()
        Image.alpha_composite(page, drawn.convert("RGBA")).convert("RGB").save(out, format="PNG")
        return out.getvalue()

    def _add_tracks(self) -> None:
        """Lines from each camera that saw a point to the point, hidden at first."""
        lines = track_rays(self._recon)
        if lines is None:
            return
        segments, colors = lines
        self._tracks = self._server.scene.add_line_segments(
            "/tracks",
            points=segments,
            colors=colors,
            thickness=1.0,
            thickness_units="screen",
            visible=False,
        )
        box = self._server.gui.add_checkbox(
            "Tracks", False, hint="rays from cameras to the points that were followed"
        )
        box.on_update(lambda event: setattr(self._tracks, "visible", event.target.value))

    def _show_counts(self) -> None:
        if self._counts is not None:
            self._counts.content = counts_text(self.settings, self.layers)

    def _work(self) -> None:
        """Applies what the controls want. What waits is done at once: a slider may move fast."""
        while (wanted := self._wanted.get()) is not None:
            while not self._wanted.empty():
                more = self._wanted.get()
                if more is None:
                    return
                wanted |= more
            self.change(**wanted)


def import_viser() -> Any:
    """The module viser.

    Raises:
        InputError: it is missing.
    """
    try:
        import viser
    except ImportError as error:
        raise InputError("the viewer needs viser: pip install 'vggt-jax[view]'") from error
    return viser
