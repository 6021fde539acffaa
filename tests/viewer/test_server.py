"""vggt_jax.viewer.server: what goes over the wire, and what is refused."""

import dataclasses
import socket
import sys
import time

import numpy as np
import pytest

from vggt_jax import InputError, Reconstruction, viewer
from vggt_jax.viewer import Viewer

pytest.importorskip("viser", reason="viser is not installed: pip install 'vggt-jax[view]'")


def scene(frames, height, width, seed=0):
    rng = np.random.default_rng(seed)
    pose = np.zeros((frames, 3, 4), np.float32)
    pose[:, :, :3] = np.eye(3)
    pose[:, 0, 3] = -0.1 * np.arange(frames)
    matrix = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
    return Reconstruction(
        images=rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8),
        camera_from_world=pose,
        intrinsics=np.broadcast_to(matrix, (frames, 3, 3)).copy(),
        depth=rng.uniform(1, 2, (frames, height, width)).astype(np.float32),
        depth_confidence=rng.uniform(1, 9, (frames, height, width)).astype(np.float32),
    )


@pytest.fixture
def small():
    with Viewer(scene(3, 7, 11), port=0) as shown:
        yield shown


class Wire:
    """The bytes that a browser gets."""

    def __init__(self, shown):
        import viser
        from websockets.sync.client import connect

        self._connection = connect(
            shown.url.replace("http", "ws"),
            subprotocols=[f"viser-v{viser.__version__}"],
            max_size=None,
            compression=None,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def received(self, quiet=1.0):
        """How many bytes come until nothing does for so many seconds."""
        total = 0
        while True:
            try:
                total += len(self._connection.recv(timeout=quiet))
            except TimeoutError:
                return total


@pytest.mark.slow
def test_a_million_points_are_sent_once():
    # 100 frames of 100 x 100 pixels.
    with Viewer(scene(100, 100, 100), port=0, confidence_percentile=0) as shown:
        assert len(shown.layers.points) == 1_000_000 and len(shown.cameras) == 100
        with Wire(shown) as wire:
            whole = wire.received(quiet=3.0)
            # Three float32 and three bytes a point; a tenth for messages around chunks, and
            # pictures.
            assert 15e6 < whole < 15e6 * 1.2
            # Steps of 5 %: moving by 25 switches five layers, whatever the number of frames.
            shown.change(percentile=25.0)
            assert 0 < wire.received() < 2_000
            assert shown.layers.shown(25.0, range(100)).sum() == pytest.approx(750_000, abs=2)
            # One frame: those of all others go, chunk by chunk.
            shown.change(frames=frozenset({17}))
            assert 0 < wire.received() < 150_000
            shown.change(frames=frozenset({18}))
            assert 0 < wire.received() < 5_000
            shown.change(point_size=3.0)
            assert 0 < wire.received() < 250_000
            # Nothing new, nothing sent.
            shown.change(point_size=3.0, percentile=26.0)
            assert wire.received() < 100
            assert shown.settings.percentile == 25.0


def test_chunks_are_switched_as_the_settings_say(small):
    def visible():
        """The points of what is switched on, by frame."""
        layers, counts = small.layers, [0] * 3
        for (frame, layer), node in small._chunks.items():
            if node.visible and small._layer_nodes[layer].visible:
                counts[frame] += len(node.points)
        assert sum(counts) == layers.shown(small.settings.percentile, small.settings.frames).sum()
        return counts

    assert small.settings.percentile == 25 and sum(visible()) == 231 - 57
    small.change(percentile=0.0)
    assert visible() == [77, 77, 77]
    small.change(frames=frozenset({0, 2}))
    assert visible() == [77, 0, 77]
    small.change(percentile=60.0, frames=frozenset({1}), hide_edges=True)
    assert visible()[::2] == [0, 0]
    small.change(percentile=100.0, frames=frozenset(range(3)), hide_edges=False)
    assert sum(visible()) == 1
    small.change(show_cameras=False)
    assert not small._camera_parent.visible
    with pytest.raises(TypeError):
        small.change(no_such_setting=1)


def test_controls_that_move_fast_end_where_they_stop(small):
    for percentile in range(100):
        small._wanted.put({"percentile": float(percentile)})
    deadline = time.monotonic() + 10
    while small.settings.percentile != 99 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert small.settings.percentile == 99
    assert [node.visible for node in small._layer_nodes] == [False] * 99 + [True] * 2


def test_defaults_are_those_of_the_model():
    recon = scene(2, 5, 7)
    with Viewer(recon, port=0) as shown:
        assert shown.settings.source == "depth" and not shown.settings.hide_edges
    likely = np.linspace(0.0, 1 / 3, 70).reshape(2, 5, 7).astype(np.float32)
    edges = np.zeros((2, 5, 7), bool)
    pi3 = dataclasses.replace(
        recon,
        world_points=np.random.default_rng(1).normal(size=(2, 5, 7, 3)).astype(np.float32),
        world_points_confidence=likely,
        depth_edges=edges,
        confidence_kind="sigmoid",
    )
    with Viewer(pi3, port=0) as shown:
        assert shown.settings.source == "head" and shown.settings.hide_edges
        assert (shown.settings.percentile, shown.settings.min_confidence) == (0, 0.1)
        assert len(shown.layers.points) == (likely > 0.1).sum() == 49
        shown.change(min_confidence=0.2)
        assert len(shown.layers.points) == (likely > 0.2).sum()
        shown.change(min_confidence=0.5)
        assert shown._counts.content == "no point has a confidence above 0.5"
    # As in exports: no share leaves the absolute threshold as it is.
    with Viewer(pi3, port=0, confidence_percentile=0) as shown:
        assert len(shown.layers.points) == 49
    with Viewer(pi3, port=0, min_confidence=0) as shown:
        assert len(shown.layers.points) == 69
    with Viewer(recon, port=0, min_confidence=4) as shown:
        assert (shown.settings.percentile, shown.settings.min_confidence) == (0, 4)
        assert len(shown.layers.points) == (recon.depth_confidence > 4).sum()


def test_ports():
    recon = scene(2, 5, 7)
    with Viewer(recon, port=0) as first:
        assert first.port > 0 and first.url == f"http://127.0.0.1:{first.port}"
        with pytest.raises(InputError, match=f"port {first.port} cannot be listened at"):
            Viewer(recon, port=first.port)
    # Closed is closed.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port), timeout=1)
    with pytest.raises(InputError, match="cannot be listened at"):
        Viewer(recon, host="192.0.2.1")


def test_browsers_that_do_not_answer_do_not_hold_the_server_up():
    # A connection that says nothing, as that of a tab that sleeps.
    shown = Viewer(scene(2, 5, 7), port=0)
    with socket.create_connection(("127.0.0.1", shown.port), timeout=1):
        time.sleep(0.3)
        start = time.monotonic()
        shown.close()
        # viser itself waits for six seconds.
        assert time.monotonic() - start < 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", shown.port), timeout=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": "head"}, "must be one of depth here"),
        ({"confidence_percentile": 101.0}, "must lie between 0 and 100"),
        ({"min_confidence": -1.0}, "min_confidence=-1.0 must be at least 0"),
        ({"min_confidence": 99}, "no point has a confidence above min_confidence=99; choose less"),
        ({"point_size": 0.0}, "point_size=0.0 must be above 0"),
        ({"max_points": 0}, "max_points=0 must be at least 1"),
        ({"port": 70_000}, "port=70000 must lie between 0"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Viewer(scene(2, 5, 7), **({"port": 0} | options))


def test_scenes_that_are_refused():
    recon = scene(2, 5, 7)
    with pytest.raises(InputError, match="neither points nor cameras"):
        Viewer(Reconstruction(images=recon.images), port=0)
    with pytest.raises(InputError, match="shows one scene"):
        Viewer(Reconstruction(images=recon.images[None]), port=0)
    flat = Reconstruction(images=recon.images, world_points=np.zeros((2, 5, 7, 3), np.float32))
    with pytest.raises(InputError, match="edges of depth need"):
        Viewer(flat, port=0, hide_edges=True)
    with Viewer(flat, port=0) as shown:
        assert shown.cameras == () and len(shown.layers.points) == 70
    only_cameras = dataclasses.replace(recon, depth=None)
    with Viewer(only_cameras, port=0) as shown:
        assert len(shown.cameras) == 2 and len(shown.layers.points) == 0


def test_without_viser_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match=r"pip install 'vggt-jax\[view\]'"):
        viewer.view(scene(2, 5, 7))


def test_view_blocks_until_interrupted(monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("vggt_jax.viewer.viewing.threading.Event.wait", interrupt)
    opened = []
    monkeypatch.setattr("vggt_jax.viewer.viewing.webbrowser.open", opened.append)
    # The servers's own threads wait for events too: the first is ours only with a stub of it.
    monkeypatch.setattr("vggt_jax.viewer.viewing.Viewer", _Shown)
    viewer.view(scene(2, 5, 7), port=0, open_browser=True)
    assert opened == ["http://there"] and _Shown.closed
    assert "http://there" in capsys.readouterr().out


class _Shown:
    url = "http://there"
    closed = False

    def __init__(self, recon, **options):
        assert options["port"] == 0 and "open_browser" not in options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _Shown.closed = True
