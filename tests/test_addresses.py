"""Scenes and results at addresses: the rules of folders, and nothing is seen before it is whole."""

import os
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import vggt_jax
from vggt_jax import InputError, InputWarning, Options, Reconstruction
from vggt_jax.files import addresses
from vggt_jax.files.addresses import Address, AddressError, address_of, local_path
from vggt_jax.pipeline.remote_scenes import RemoteScene, remote_scenes, sources_of
from vggt_jax.pipeline.resuming import ElsewhereError, record_of
from vggt_jax.pipeline.scenes import scenes_by_name
from vggt_jax.pipeline.stores import AddressStore, FolderStore, scenes_and_store

OPTIONS = Options()
RECON = Reconstruction(images=np.zeros((3, 2, 2, 3), np.uint8))


class Guarded(MemoryFileSystem):
    """Files in memory, some of which refuse, and which are seen while they are being written."""

    protocol, store, pseudo_dirs = "guarded", {}, [""]
    refused: set[str] = set()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("guarded://"))

    def cat_file(self, path, **options):
        self._ask(path)
        return super().cat_file(path, **options)

    def get_file(self, path, *args, **options):
        self._ask(path)
        return super().get_file(path, *args, **options)

    def put_file(self, local, path, **options):
        self._ask(path)
        content = Path(local).read_bytes()
        super().pipe_file(path, content[: len(content) // 2])
        if any(path.endswith(".tmp") and name == "half" for name in self.refused):
            raise ConnectionResetError("the line went dead")
        return super().pipe_file(path, content)

    def _ask(self, path):
        if any(name in path for name in self.refused):
            raise PermissionError(path)


fsspec.register_implementation("guarded", Guarded, clobber=True)


@pytest.fixture
def files():
    """An empty file system at guarded://."""
    Guarded.store.clear()
    Guarded.pseudo_dirs[:] = [""]
    Guarded.refused.clear()
    return fsspec.filesystem("guarded")


@pytest.fixture
def scenes(tmp_path, files):
    """A folder of scenes on this machine, and the same at guarded://bucket/scenes."""
    folder = tmp_path / "scenes"
    for name in ("hall 10", "hall 2", "deep/images", "attic/images", "empty", "notes/more"):
        (folder / name).mkdir(parents=True)
    for i, name in enumerate(("hall 10", "hall 2", "deep/images", "attic")):
        for k in range(3):
            pixels = np.full((4, 6, 3), 20 * i + k, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    (folder / "empty" / "readme.txt").write_text("no photographs")
    (folder / "notes" / "more" / "0.txt").write_text("none")
    (folder / "raw").mkdir()
    (folder / "raw" / "0.nef").write_bytes(b"raw")
    (folder / "hall 2" / "odd").write_bytes((folder / "hall 2" / "0.png").read_bytes())
    (folder / "hall 2" / ".hidden.png").write_bytes(b"x")
    (folder / "clip.mp4").write_bytes(b"a video")
    (folder / "list.txt").write_text("no scene")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe(f"/bucket/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("place", "is_one"),
    [
        ("s3://bucket/x", True), ("gs://b", True), ("memory://", True), ("simplecache::s3://b/x", True),
        ("abfs://c@a.dfs.core.windows.net/x", True), ("scenes", False), ("C:/scenes", False), ("/a://b", False),
        ("a:b", False), ("file:///tmp/x", False), ("local:///tmp/x", False), (Path("a"), False), (3, False),
    ],
)  # fmt: skip
def test_what_is_an_address(place, is_one):
    assert (address_of(place, "folder") is not None) == is_one
    if place == "file:///tmp/x":
        assert local_path(place) == "/tmp/x"


def test_a_path_that_was_an_address_is_refused():
    with pytest.raises(InputError, match="lost a slash"):
        address_of(Path("s3://bucket/x"), "folder of scenes")


def test_addresses_have_folders_below_and_names():
    for url, below, name in (
        ("s3://b/x/", "s3://b/x/hall", "x"),
        ("simplecache::s3://b/x", "simplecache::s3://b/x/hall", "x"),
        ("zip://inner::s3://b/all.zip", "zip://inner/hall::s3://b/all.zip", "inner"),
    ):
        assert Address(url).below("hall").url == below and Address(url).name == name


def test_the_scenes_of_an_address_are_those_of_a_folder(scenes):
    with pytest.warns(InputWarning) as of_folder:
        local = scenes_by_name(scenes)
    with pytest.warns(InputWarning) as of_address:
        remote = remote_scenes(Address("guarded://bucket/scenes"))
    assert list(remote) == list(local) == ["attic", "clip", "deep", "hall 2", "hall 10", "raw"]
    texts = [str(found[0].message) for found in (of_folder, of_address)]
    # Object stores have no empty folders.
    assert texts[1] == texts[0].replace(str(scenes), "guarded://bucket/scenes")
    # What is read, and what is said of the rest, too.
    for name in ("hall 2", "deep"):
        with remote[name].staged(OPTIONS) as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = (vggt_jax.load_images(x, size=14) for x in (place, local[name]))
            np.testing.assert_array_equal(found.images, expected.images)
            assert found.names == expected.names
        assert not place.exists()
    with remote["hall 2"].staged(OPTIONS) as place:
        with pytest.warns(InputWarning, match="picture under another name .odd."):
            vggt_jax.load_images(place, size=14)
    with remote["clip"].staged(OPTIONS) as place:
        assert place.read_bytes() == b"a video" and place.name == "clip.mp4"


def test_only_photographs_are_fetched(scenes, files, monkeypatch):
    fetched = []
    get = Guarded.get_file
    monkeypatch.setattr(
        Guarded,
        "get_file",
        lambda self, path, *args, **x: fetched.append(path) or get(self, path, *args, **x),
    )
    scene = sources_of({"hall": "guarded://bucket/scenes/hall 2"})["hall"]
    with scene.staged(Options(pattern="!1.png")):
        pass
    assert sorted(os.path.basename(path) for path in fetched) == ["0.png", "2.png"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "no such folder"),
        ({"scenes/0.png": b"x"}, "is one scene"),
        ({"scenes/a/readme.txt": b"x"}, "no folders of photographs"),
        ({"scenes": b"x"}, "is a file"),
    ],
)
def test_an_address_without_scenes(files, content, why):
    for path, value in content.items():
        files.pipe(f"/{path}", value)
    with pytest.raises(InputError, match=f"guarded://scenes: .*{why}"):
        remote_scenes(Address("guarded://scenes"))


@pytest.mark.parametrize("name", ["../../escaped.png", "a\\b.png", f"{'x' * 300}.png", "a/./b.png"])
def test_names_that_no_folder_can_hold_fail_their_scene(tmp_path, files, name):
    entry = addresses.Entry(name, 1, "1")
    scene = RemoteScene(Address("guarded://bucket/hall"), (entry,))
    with pytest.raises(InputError, match="guarded://bucket/hall: .*rename"):
        with scene.staged(OPTIONS):
            pass


def test_messages_name_the_address(files):
    files.pipe("/bucket/hall/0.png", b"no picture")
    (scene,) = sources_of({"hall": "guarded://bucket/hall"}).values()
    with pytest.raises(InputError, match="^guarded://bucket/hall/0.png: "):
        with scene.staged(OPTIONS) as place:
            vggt_jax.load_images(place, size=14)


def test_records_change_with_the_photographs(scenes, files):
    record = lambda: record_of(sources_of({"x": "guarded://bucket/scenes/deep"})["x"], OPTIONS)
    before = record()
    assert list(before) == [f"images/{i}.png" for i in range(3)] and record() == before
    with files.open("/bucket/scenes/deep/images/1.png", "wb") as file:
        file.write(b"another")
    changed = record()
    assert {name for name in before if before[name] != changed[name]} == {"images/1.png"}


def test_protocols_that_are_not_known_or_lack_a_package():
    with pytest.raises(AddressError, match="nowhere"):
        Address("nowhere://b/x").entries()
    error = addresses._what_to_install("s3://b/x", ImportError("Install s3fs to access S3"))
    assert "pip install 'vggt-jax[s3]'" in error


def test_results_appear_whole_or_not_at_all(files):
    store = AddressStore(Address("guarded://bucket/out"))
    Guarded.refused.add("half")
    with pytest.raises(AddressError, match="line went dead"):
        store.write("hall", RECON, {})
    assert files.find("/bucket/out") == []
    Guarded.refused.clear()
    seen = []
    put = files.put_file

    def watched(local, path, **options):
        put(local, path, **options)
        seen.append(files.find("/bucket/out"))

    files.put_file = watched
    try:
        store.write("hall", RECON, {"images/0.png": [3, "a"]})
    finally:
        del files.put_file
    assert not any(path.endswith("npz") for paths in seen for path in paths)
    assert files.find("/bucket/out") == ["/bucket/out/hall/predictions.npz"]


def test_earlier_results_hold_while_their_photographs_do(scenes, files):
    store = AddressStore(Address("guarded://bucket/out"))
    remote = sources_of(
        {x: f"guarded://bucket/scenes/{x}" for x in ("deep", "hall 2", "hall 10", "raw")}
    )
    for name in ("deep", "hall 2"):
        store.write(name, RECON, record_of(remote[name], OPTIONS))
    files.pipe("/bucket/out/hall 10/predictions.npz", b"half of a result")
    files.pipe("/bucket/scenes/hall 2/3.png", b"more")
    remote |= sources_of({"hall 2": "guarded://bucket/scenes/hall 2"})
    skipped, again, failed = store.earlier(remote, OPTIONS)
    assert skipped == ("deep",) and failed == {}
    assert again == {
        "hall 2": "photographs were added since: 3.png",
        "hall 10": "its result is damaged",
    }


def test_a_result_of_another_process_stays(scenes, files):
    remote = sources_of({"deep": "guarded://bucket/scenes/deep"})["deep"]
    record = record_of(remote, OPTIONS)
    first, second = (AddressStore(Address("guarded://bucket/out")) for _ in range(2))
    for store in (first, second):
        store.claim("deep", remote, OPTIONS).release()
    first.write("deep", RECON, record)
    before = files.info("/bucket/out/deep/predictions.npz")
    with pytest.raises(ElsewhereError) as caught:
        second.write("deep", RECON, record)
    assert caught.value.is_done
    assert files.info("/bucket/out/deep/predictions.npz") == before
    with pytest.raises(ElsewhereError):
        AddressStore(Address("guarded://bucket/out")).claim("deep", remote, OPTIONS)


def test_settings_are_compared(files):
    store = AddressStore(Address("guarded://bucket/out"))
    store.compare_settings({"size": 28})
    assert files.find("/bucket") == []
    store.check_settings({"size": 28})
    store.check_settings({"size": 28})
    for compare in (store.check_settings, store.compare_settings):
        with pytest.raises(
            InputError, match="guarded://bucket/out: holds results with another size"
        ):
            compare({"size": 14})


def test_results_may_not_replace_scenes(scenes, tmp_path):
    for place in (f"file://{scenes}", "guarded://bucket/scenes"):
        with pytest.raises(InputError, match="is what this command reads"):
            scenes_and_store(place, place, OPTIONS)
    by_name = {"deep": "guarded://bucket/scenes/deep"}
    with pytest.raises(InputError, match="scenes/deep: is what this command reads"):
        scenes_and_store(by_name, "guarded://bucket/scenes", OPTIONS)
    assert scenes_and_store(by_name, "guarded://bucket/out", OPTIONS)[0].keys() == {"deep"}
    with pytest.warns(InputWarning):
        found, store = scenes_and_store(f"file://{scenes}", f"file://{tmp_path}/out", OPTIONS)
    assert store == FolderStore(tmp_path / "out") and found["raw"] == scenes / "raw"
