"""Scenes in overlapping windows: how they are cut, joined, closed, kept and written."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

import vggt_jax
from vggt_jax import InputError, geometry
from vggt_jax.evaluation import umeyama
from vggt_jax.evaluation.alignment import Similarity
from vggt_jax.evaluation.robust_alignment import robust_similarity
from vggt_jax.host import with_numpy
from vggt_jax.images.loading import load_images
from vggt_jax.images.parts import ImageParts
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.windows import run as windows
from vggt_jax.pipeline.windows.closing import candidates, close, is_apart
from vggt_jax.pipeline.windows.graph import chained, compose, inverse, optimised
from vggt_jax.pipeline.windows.joining import join
from vggt_jax.pipeline.windows.spans import spans_of
from vggt_jax.scene import results
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.stretches import frames_of

SIDE, FRAMES, WINDOW, OVERLAP = 28, 23, 7, 3


def random_similarity(random):
    return Similarity(
        scale=np.float64(np.exp(random.normal() * 0.4)),
        rotation=Rotation.from_rotvec(random.normal(size=3)).as_matrix(),
        translation=random.normal(size=3) * 3,
    )


def in_world(recon, at):
    """A scene in another world: x becomes scale * rotation @ x + translation."""
    rotation = recon.camera_from_world[..., :3] @ at.rotation.T
    shift = at.scale * recon.camera_from_world[..., 3] - rotation @ at.translation
    points = at.scale * recon.world_points @ at.rotation.T + at.translation
    return dataclasses.replace(
        recon,
        camera_from_world=np.float32(np.concatenate([rotation, shift[..., None]], -1)),
        depth=np.float32(recon.depth * at.scale),
        world_points=np.float32(points),
    )


def unprojected(depth, poses, intrinsics):
    return with_numpy(geometry.unproject_depth, depth, poses, intrinsics, pixel_centre=0.5)


def a_walk(num_frames=FRAMES, seed=1):
    """True cameras and depth of a walk along a wavy wall, in float64 but for images."""
    random = np.random.default_rng(seed)
    angle = 0.2 * random.normal(size=(num_frames, 3))
    rotation = Rotation.from_rotvec(angle).as_matrix()
    centre = np.stack([0.3 * np.arange(num_frames), *(0.1 * random.normal(size=(2, num_frames)))])
    shift = -np.einsum("sij,js->si", rotation, centre)
    poses = np.concatenate([rotation, shift[..., None]], -1)
    depth = 2 + random.random((num_frames, SIDE, SIDE))
    focal = 1.1 * SIDE
    intrinsics = np.array([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1.0]])
    intrinsics = np.broadcast_to(intrinsics, (num_frames, 3, 3))
    points = unprojected(depth, poses, intrinsics)
    return Reconstruction(
        images=random.integers(0, 256, (num_frames, SIDE, SIDE, 3), dtype=np.uint8),
        camera_from_world=poses,
        intrinsics=np.float32(intrinsics),
        depth=depth,
        depth_confidence=np.float32(1 + random.random(depth.shape)),
        world_points=points,
        world_points_confidence=np.float32(1 + random.random(depth.shape)),
        pixel_centre=0.5,
        provenance=Provenance(model="a stand-in", created="then"),
    )


class StandIn:
    """Reconstructs frames of a walk without error, each time in another world.

    Attributes:
        worlds, references: of each call, in their order; its world, and the frame it was to see
            first.
        wrong: the share of pixels whose depth is anything.
    """

    def __init__(self, walk, *, wrong=0.0, fails_at=None, seed=3):
        self.walk, self.wrong, self.fails_at, self.seed = walk, wrong, fails_at, seed
        self.worlds, self.references, self.starts = [], [], []

    def __call__(self, inputs, model, options, *, say):
        del model, say
        self.references.append(options.reference)
        images = inputs.frames.images
        starts = [i for i, x in enumerate(self.walk.images) if np.array_equal(x, images[0])]
        if len(self.worlds) == self.fails_at:
            raise KeyboardInterrupt
        self.starts.append(starts[0])
        random = np.random.default_rng((self.seed, starts[0]))
        self.worlds.append(random_similarity(random))
        part = frames_of(self.walk, slice(starts[0], starts[0] + len(images)))
        assert np.array_equal(part.images, images)
        found = in_world(part, self.worlds[-1])
        is_wrong = random.random(found.depth.shape) < self.wrong
        depth = np.where(
            is_wrong, found.depth * random.uniform(0.3, 3, is_wrong.shape), found.depth
        )
        return dataclasses.replace(
            found,
            depth=np.float32(depth),
            names=inputs.frames.names,
            transforms=inputs.frames.transforms,
            provenance=dataclasses.replace(found.provenance, agreement=1 / (1 + starts[0])),
        )


class Traits:
    """A model of which windows ask only what it is."""

    point_sources = ("depth", "head")
    predicts = frozenset({"cameras", "depth", "points"})
    num_layers = 2
    config = types.SimpleNamespace(img_size=SIDE, patch_size=14, to_dict=dict)
    traits = dataclasses.replace(vggt_jax.VGGT.traits, has_reference_frame=False)
    resize_mode = traits.resize_mode


@pytest.fixture
def walk():
    return a_walk()


@pytest.fixture
def stand_in(monkeypatch, walk):
    def use(**settings):
        found = StandIn(walk, **settings)
        monkeypatch.setattr(windows, "reconstructed", found)
        return found

    monkeypatch.setattr(windows, "fingerprint", lambda model: "a model")
    return use


def infer(images, **options):
    options = Options(model=Traits(), window=WINDOW, overlap=OVERLAP) if not options else Options(
        **{"model": Traits(), "window": WINDOW, "overlap": OVERLAP} | options
    )  # fmt: skip
    return windows.infer_in_windows(ImageParts(images), options.model, options)


@pytest.mark.parametrize(
    ("frames", "window", "overlap"), [(23, 7, 3), (20, 8, 4), (9, 8, 7), (6, 5, 1)]
)
def test_every_frame_comes_from_one_window_and_neighbours_share_enough(frames, window, overlap):
    spans = spans_of(frames, window, overlap)
    assert spans[0].start == spans[0].first == 0 and spans[-1].stop == spans[-1].last == frames
    taken = [i for span in spans for i in range(span.first, span.last)]
    assert taken == list(range(frames))
    for before, after in zip(spans, spans[1:], strict=False):
        assert before.stop - after.start >= overlap and after.stop > before.stop
        assert abs((before.stop - before.last) - (after.first - after.start)) <= 1
    assert {span.stop - span.start for span in spans} == {window}


def test_weights_are_as_repeated_pairs():
    random = np.random.default_rng(0)
    source, target = random.normal(size=(2, 9, 3)).astype(np.float32)
    counts = np.array([0, 1, 2, 3, 1, 1, 2, 0, 4])
    weighted = umeyama(source, target, weights=jnp.asarray(counts, jnp.float32))
    repeated = umeyama(np.repeat(source, counts, 0), np.repeat(target, counts, 0))
    for name in ("scale", "rotation", "translation"):
        np.testing.assert_allclose(
            getattr(weighted, name), getattr(repeated, name), rtol=2e-5, atol=2e-6
        )


def test_pairs_that_contradict_most_others_do_not_count():
    random = np.random.default_rng(0)
    true = random_similarity(random)
    source = random.normal(size=(500, 3))
    target = true.scale * source @ true.rotation.T + true.translation
    wrong = np.arange(500) < 200
    target[wrong] = random.normal(size=(200, 3)) * 5
    found = robust_similarity(
        jnp.float32(source), jnp.float32(target), jnp.ones(500), jnp.ones(500)
    )
    np.testing.assert_allclose(found.similarity.scale, true.scale, rtol=1e-5)
    np.testing.assert_allclose(found.similarity.rotation, true.rotation, atol=1e-5)
    np.testing.assert_allclose(found.similarity.translation, true.translation, atol=2e-5)
    assert 0.6 <= float(found.inliers) < 0.65
    nothing = robust_similarity(jnp.ones((4, 3)), jnp.ones((4, 3)), jnp.zeros(4), jnp.ones(4))
    assert np.isnan(nothing.error) and np.isnan(nothing.similarity.scale)


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_windows_of_a_true_walk_are_the_walk(stand_in, walk, wrong, monkeypatch):
    monkeypatch.setattr(results, "_MAPPED_FROM", 0)
    model = stand_in(wrong=wrong)
    found = infer(walk.images)
    assert len(model.worlds) == 5
    expected = in_world(walk, model.worlds[0])
    # Of depths that are wrong some are nearly right, and pull: by less than 1 % of the walk.
    atol = 0.1 if wrong else 2e-4
    np.testing.assert_allclose(found.camera_from_world, expected.camera_from_world, atol=atol)
    np.testing.assert_allclose(found.world_points, expected.world_points, atol=5 * atol)
    if not wrong:
        np.testing.assert_allclose(found.depth, expected.depth, rtol=1e-4)
    assert np.array_equal(found.images, walk.images)
    assert found.names == tuple(f"{i:04d}" for i in range(FRAMES)) and len(found.transforms) == 23
    assert np.array_equal(found.depth_confidence, walk.depth_confidence)
    assert isinstance(found.depth, np.memmap) and found.provenance.options["window"] == WINDOW
    # What three of four windows reach.
    agreement = [1 / (1 + start) for start in model.starts]
    assert found.agreement == pytest.approx(np.quantile(agreement, 0.25))


def test_metres_are_those_of_all_windows_on_average(stand_in, walk, monkeypatch):
    model = stand_in()
    metric = dataclasses.replace(Traits.traits, length_unit="metres")
    monkeypatch.setattr(Traits, "traits", metric)
    found = infer(walk.images)
    of_windows = [np.log(world.scale) for world in model.worlds]
    np.testing.assert_allclose(found.depth, walk.depth * np.exp(np.mean(of_windows)), rtol=1e-4)


def test_the_world_is_the_first_camera_where_a_model_has_a_reference_frame(
    stand_in, walk, monkeypatch
):
    monkeypatch.setattr(Traits, "traits", vggt_jax.VGGT.traits)
    model = stand_in()
    found = infer(walk.images)
    assert model.references == [WINDOW // 2] * 5
    pose = in_world(walk, model.worlds[0]).camera_from_world[0].astype(np.float64)
    camera = Similarity(scale=1.0, rotation=pose[:, :3], translation=pose[:, 3])
    expected = in_world(walk, compose(camera, model.worlds[0]))
    np.testing.assert_allclose(found.camera_from_world[0], np.eye(3, 4), atol=1e-5)
    np.testing.assert_allclose(found.camera_from_world, expected.camera_from_world, atol=3e-4)


def test_a_known_length_is_the_unit_of_the_scene(stand_in, walk):
    stand_in()
    centre = geometry.camera_positions(jnp.float32(walk.camera_from_world))
    length = float(np.linalg.norm(centre[2] - centre[20]))
    found = infer(walk.images, known_distance=(2, "0020", 3 * length))
    np.testing.assert_allclose(found.depth, 3 * walk.depth, rtol=1e-4)
    assert found.length_unit == "given"
    found = infer(walk.images, known_depth=(19, 5, 9, 2 * walk.depth[19, 9, 5]))
    np.testing.assert_allclose(found.depth, 2 * walk.depth, rtol=1e-4)


def write_photographs(folder, walk):
    folder.mkdir()
    for i, image in enumerate(walk.images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(stand_in, walk, tmp_path):
    write_photographs(tmp_path / "photographs", walk)
    options = {"window_folder": tmp_path / "killed"}
    stand_in(fails_at=3)
    with pytest.raises(KeyboardInterrupt):
        infer(tmp_path / "photographs", **options)
    again = stand_in()
    infer(tmp_path / "photographs", **options)
    assert len(again.worlds) == 2
    whole = stand_in()
    infer(tmp_path / "photographs", window_folder=tmp_path / "whole")
    assert len(whole.worlds) == 5
    files = [(tmp_path / x / "predictions.npz").read_bytes() for x in ("killed", "whole")]
    assert files[0] == files[1]

    # A damaged window, and one whose photographs changed, are done again with those that follow.
    (tmp_path / "killed" / "000003.npz").write_bytes(b"damaged")
    again = stand_in()
    infer(tmp_path / "photographs", **options)
    assert len(again.worlds) == 2
    assert (tmp_path / "killed" / "predictions.npz").read_bytes() == files[1]
    Image.fromarray(walk.images[22]).save(tmp_path / "photographs" / "022.png", compress_level=0)
    again = stand_in()
    infer(tmp_path / "photographs", **options)
    assert len(again.worlds) == 1
    with pytest.raises(InputError, match="another overlap; choose another folder"):
        infer(tmp_path / "photographs", overlap=2, **options)


def test_closures_take_drift_away_and_wrong_ones_do_not_count():
    """A lap of 40 windows whose joins are a little wrong, each in the same sense."""
    random = np.random.default_rng(0)
    true, n = [], 40
    for k in range(n):
        turn = 2 * np.pi * k / n
        rotation = Rotation.from_rotvec([0, turn, 0]).as_matrix()
        place = 10 * np.array([np.sin(turn), 0, np.cos(turn)])
        true.append(Similarity(scale=np.exp(0.1 * random.normal()), rotation=rotation,
                               translation=place))  # fmt: skip
    between = lambda a, b: compose(inverse(true[a]), true[b])
    off = Similarity(scale=np.float64(1.004), translation=np.array([0.004, -0.003, 0.002]),
                     rotation=Rotation.from_rotvec([0.004, 0.003, -0.003]).as_matrix())  # fmt: skip
    joins = [compose(between(k, k + 1), off) for k in range(n - 1)]
    places = lambda at: compose(true[0], at).translation
    wanted = np.stack([x.translation for x in true])
    error = lambda at: np.linalg.norm(places(at) - wanted, axis=1).max()
    drifted = error(chained(joins))
    right = {(0, 39): between(0, 39), (1, 38): between(1, 38)}
    depths = np.full(n, 2.0)
    closed = error(optimised(joins, right, depths))
    assert drifted > 1.5 and closed < 0.25 * drifted
    wrong = {(5, 25): between(5, 26 + 5), (10, 30): random_similarity(random)}
    with_wrong = error(optimised(joins, right | wrong, depths))
    assert with_wrong < closed + 0.1
    assert np.array_equal(optimised(joins, {}, depths).translation, chained(joins).translation)


def seen_wall(places):
    """Frames that look straight at a wall 3 away, from places beside each other."""
    scene = a_walk(len(places))
    poses = np.tile(np.eye(3, 4), (len(places), 1, 1))
    poses[:, 0, 3] = -np.asarray(places)
    depth = np.full(scene.depth.shape, 3.0)
    points = unprojected(depth, poses, scene.intrinsics)
    # A place of the wall has the same colour from everywhere.
    x, y = points[..., 0], points[..., 1]
    waves = [np.sin(5 * x) + np.cos(4 * y), np.sin(3 * x + 2 * y), np.cos(6 * x) + np.sin(9 * y)]
    images = np.uint8(127 + 60 * np.stack(waves, -1))
    return dataclasses.replace(
        scene, images=images, camera_from_world=poses, depth=depth, world_points=points
    )


def together(*scenes):
    names = ("images", "camera_from_world", "intrinsics", "depth", "depth_confidence",
             "world_points", "world_points_confidence")  # fmt: skip
    parts = {name: np.concatenate([getattr(x, name) for x in scenes]) for name in names}
    return dataclasses.replace(scenes[0], **parts)


@pytest.mark.parametrize(
    ("seen", "is_closed"),
    [
        (dict(shift=0.0, depth=1.0), True),
        (dict(shift=50.0, depth=1.0), False),  # Nothing of one side lies in pictures of the other,
        (dict(shift=0.0, depth=0.4), False),  # or something else is seen there,
        (dict(shift=0.0, depth="anything"), False),  # or anything at all,
        (dict(shift=0.0, depth=1.0, colours="others"), False),  # or it looks different.
    ],
)
def test_windows_of_one_place_are_closed_and_others_are_not(seen, is_closed):
    random = np.random.default_rng(5)
    left, right = seen_wall(np.linspace(0, 0.7, 8)), seen_wall(np.linspace(0.05, 0.75, 8))
    if seen.get("colours"):
        right = dataclasses.replace(right, images=right.images[:, ::-1].copy())
    worlds = [random_similarity(random) for _ in range(2)]

    def run(frames):
        sides = [frames_of(side, slice(2, 6)) for side in (left, right)]
        poses = sides[1].camera_from_world.copy()
        poses[:, 0, 3] += seen["shift"]
        if seen["depth"] == "anything":
            depth = sides[1].depth * random.uniform(0.7, 1.3, sides[1].depth.shape)
        else:
            depth = sides[1].depth * seen["depth"]
        sides[1] = dataclasses.replace(sides[1], camera_from_world=poses, depth=depth)
        both = in_world(together(*sides), random_similarity(random))
        assert np.array_equal(frames.images, both.images)
        return both

    found = close(in_world(left, worlds[0]), in_world(right, worlds[1]), run, 8)
    assert (found is not None) == is_closed
    if found is not None:
        expected = compose(worlds[0], inverse(worlds[1]))
        for name in ("scale", "rotation", "translation"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=5e-4)


def test_places_that_look_alike_are_found_where_windows_share_no_frame():
    random = np.random.default_rng(2)
    num_windows, lap = 14, 8
    views = random.normal(size=(4 * lap + 2, 64))
    smooth = views[:-2] + views[1:-1] + views[2:]
    described = [
        smooth[4 * (k % lap) : 4 * (k % lap) + 4] + 0.05 * random.normal(size=(4, 64))
        for k in range(num_windows)
    ]
    spans = spans_of(4 * num_windows + 2, 6, 2)
    assert not is_apart(spans[0], spans[2]) and is_apart(spans[0], spans[3])
    found = candidates(described, spans)
    assert found and all(second - first == lap for first, second in found)
    assert [pair[0] for pair in found] == [0, 3]
    assert candidates(described[:lap], spans[:lap]) == []


def test_frames_that_nobody_trusts_do_not_join(walk):
    nothing = dataclasses.replace(walk, depth=np.full_like(walk.depth, np.nan))
    with pytest.raises(InputError, match="use a larger overlap"):
        join(nothing, walk)


@pytest.mark.parametrize("source", ["folder", "list", "array", "PIL", "video"])
def test_frames_in_parts_are_those_that_are_read_at_once(walk, tmp_path, source):
    write_photographs(tmp_path / "photographs", walk)
    settings = {"size": SIDE, "patch_size": 14}
    sources = {
        "folder": lambda: tmp_path / "photographs",
        "list": lambda: sorted((tmp_path / "photographs").iterdir()),
        "array": lambda: walk.images,
        "PIL": lambda: [Image.fromarray(x) for x in walk.images],
        "video": lambda: write_video(tmp_path / "clip.mp4", walk.images),
    }
    images = sources[source]()
    options = {"frames": FRAMES} if source == "video" else {}
    parts = ImageParts(images, **options)
    whole = load_images(images, **options, **settings)
    assert len(parts) == FRAMES and parts.names == whole.names
    for start, stop in ((0, 7), (7, 11), (11, 23), (3, 5)):
        part = parts.read(start, stop, **settings)
        assert np.array_equal(part.images, whole.images[start:stop])
        assert part.names == whole.names[start:stop]
        assert part.transforms == whole.transforms[start:stop]


def write_video(path, images):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_all_parts_have_the_size_of_the_first(tmp_path):
    for i, shape in enumerate([(28, 42), (28, 42), (42, 28)]):
        Image.new("RGB", shape).save(tmp_path / f"{i}.png")
    parts = ImageParts(tmp_path)
    parts.read(0, 2, size=28, mode="crop")
    with pytest.raises(InputError, match="mode='budget'"):
        parts.read(2, 3, size=28, mode="crop")
    stretched = ImageParts(tmp_path)
    settings = {"size": 28, "mode": "budget"}
    sizes = {stretched.read(i, i + 1, **settings).images.shape for i in range(3)}
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 7}, "overlap=7 must be at least 1 and less than window=7"),
        ({"overlap": 0}, "overlap=0 must be at least 1"),
        ({"window": 1}, "window=1 must be at least 2"),
        ({"priors": vggt_jax.Priors()}, "priors cannot be used with window=7"),
        ({"query_points": [[1, 1]]}, "query_points cannot be used with window=7"),
        ({"stretch": True}, "stretch cannot be used with window=7"),
        ({"reference": 3}, "reference=3 cannot be used with window=7"),
    ],
)
def test_options_that_windows_cannot_honour_are_refused(stand_in, walk, options, message):
    stand_in()
    with pytest.raises(InputError, match=message):
        infer(walk.images, **options)


@pytest.mark.parametrize(("name", "value"), [("overlap", 3), ("loop_closure", True)])
def test_options_of_windows_need_a_window(name, value):
    with pytest.raises(InputError, match=f"{name}={value} is of windows; give window"):
        Options(**{name: value})


def test_many_scenes_take_no_window(tmp_path):
    with pytest.raises(InputError, match="window is of one scene"):
        vggt_jax.reconstruct_scenes({}, tmp_path, window=4)


def test_results_can_be_used_where_they_lie(walk, tmp_path):
    walk.save(tmp_path)
    read = vggt_jax.load_reconstruction(tmp_path)
    mapped = vggt_jax.load_reconstruction(tmp_path, memory_map=True)
    for field in dataclasses.fields(read):
        first, second = getattr(read, field.name), getattr(mapped, field.name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype and np.array_equal(first, second), field.name
    assert np.array_equal(mapped.points_from_depth(), read.points_from_depth())
    # What is compressed, or of another order, cannot be mapped, and is read.
    with np.load(tmp_path / "predictions.npz") as arrays:
        changed = {name: np.asarray(x, order="F") for name, x in arrays.items()}
    np.savez_compressed(tmp_path / "predictions.npz", **changed)
    again = vggt_jax.load_reconstruction(tmp_path, memory_map=True)
    assert np.array_equal(again.depth, read.depth)


@pytest.mark.slow
def test_the_small_model_sees_the_cellar_in_windows(tmp_path):
    """Through the command line: what windows give is near what the model sees at once."""
    from vggt_jax.cli import main

    cellar = vggt_jax.__path__[0] + "/samples/cellar"
    options = ["--window", "6", "--overlap", "3", "--size", "112"]
    main(["infer", cellar, *options, "--out", str(tmp_path / "scene")])
    names = {path.name for path in (tmp_path / "scene").iterdir()}
    assert {"predictions.npz", "points.ply", "cameras.json", "overview.png"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
    found = vggt_jax.load_reconstruction(tmp_path / "scene")
    whole = vggt_jax.infer(cellar, size=112)
    errors = vggt_jax.evaluation.trajectory_errors(found.camera_from_world, whole.camera_from_world)
    centres = with_numpy(geometry.camera_positions, whole.camera_from_world)
    assert float(errors.ate) < 0.1 * np.linalg.norm(np.ptp(centres, axis=0))
    assert json.loads((tmp_path / "scene" / "cameras.json").read_text())["provenance"]
