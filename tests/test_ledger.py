"""The books of a run on many workers, rounds of it, and what a worker tells; without Ray."""

import dataclasses
import socket
import sys
import types

import jax
import numpy as np
import pytest

import vggt_jax
from vggt_jax import InputError
from vggt_jax.pipeline import cluster_worker, on_ray
from vggt_jax.pipeline.cluster_worker import BookedStore, Setting, Worker
from vggt_jax.pipeline.ledger import Ledger, portions, run_rounds, shared_out
from vggt_jax.pipeline.many_scenes import ManyScenesOptions
from vggt_jax.pipeline.resuming import ElsewhereError
from vggt_jax.pipeline.stores import FolderStore

NAMES = ("hall", "attic", "yard", "shed", "barn")


def test_only_the_last_attempt_writes_and_ends():
    ledger = Ledger(NAMES)
    first = ledger.begin("hall", "a")
    assert ledger.may_write("hall", first)
    second = ledger.begin("hall", "b")
    assert (first, second) == (1, 2)
    # The first worker was not dead after all.
    assert not ledger.may_write("hall", first)
    ledger.end("hall", first, "written")
    assert "hall" in ledger.books().waiting
    assert ledger.may_write("hall", second)
    ledger.end("hall", second, "written")
    books = ledger.books()
    assert books.endings == {"hall": ("written", "")} and books.waiting == NAMES[1:]
    assert books.twice.keys() == {"hall"}
    assert ledger.begin("hall", "c") is None
    ledger.lose("hall", second, "too late")
    ledger.fail("hall", "too late")
    assert ledger.books() == books


@pytest.mark.parametrize(
    ("may_write", "ending"), [(True, "written"), (False, "there")], ids=["ours", "of others"]
)
def test_a_result_that_is_there_is_ours_where_the_lost_worker_could_write(may_write, ending):
    ledger = Ledger(NAMES)
    attempt = ledger.begin("hall", "a")
    if may_write:
        ledger.may_write("hall", attempt)
    ledger.lose("hall", attempt, "gone")
    # Not begun a second time yet.
    assert ledger.books().twice == {} and ledger.books().losses == {"hall": 1}
    ledger.end("hall", ledger.begin("hall", "b"), "there")
    books = ledger.books()
    assert books.endings["hall"] == (ending, "") and "gone" in books.twice["hall"]
    assert ("there already" in books.twice["hall"]) == may_write


def test_lost_scenes_come_first_and_alone():
    shares = portions(NAMES, {"yard": 1}, workers=1, batch_size=1)
    assert [share.names for share in shares] == [
        ("yard",),
        ("hall",),
        ("attic",),
        ("shed",),
        ("barn",),
    ]
    assert [share.retried for share in shares] == [True, *4 * [False]]
    for number, workers, batch_size, size in (
        (1000, 2, 1, 16), (40, 2, 1, 5), (40, 2, 4, 8), (3, 8, 1, 1), (3, 8, 2, 2), (1000, 1, 24, 24),
    ):  # fmt: skip
        names = [str(i) for i in range(number)]
        shares = portions(names, {}, workers=workers, batch_size=batch_size)
        assert len(shares[0].names) == min(size, number)
        assert [name for share in shares for name in share.names] == names
    assert portions((), {}, workers=2, batch_size=1) == []


class Engine:
    """Does portions; a worker dies at the scenes named, as often as said."""

    def __init__(self, ledger, dies_at):
        self.ledger, self.dies_at, self.shares, self.written = ledger, dict(dies_at), [], []

    def __call__(self, shares):
        self.shares.append([share.names for share in shares])
        for share in shares:
            begun = {name: self.ledger.begin(name, f"machine of {name}") for name in share.names}
            for name, attempt in begun.items():
                if self.dies_at.get(name, 0):
                    self.dies_at[name] -= 1
                    break  # With the others that were begun.
                if self.ledger.may_write(name, attempt):
                    self.written.append(name)
                self.ledger.end(name, attempt, "written")


def run(dies_at, **changes):
    ledger = Ledger(NAMES)
    engine = Engine(ledger, dies_at)
    options = {"workers": 1, "batch_size": 2, "retries": 2} | changes
    books = run_rounds(ledger, engine, why_lost=lambda machine: f"{machine} burnt", **options)
    return engine, books


def test_what_a_lost_worker_had_is_done_again_and_written_once():
    engine, books = run({"hall": 1})
    # Its neighbour had not been its worker's end, and is begun again, too.
    assert engine.shares == [
        [("hall", "attic"), ("yard", "shed"), ("barn",)],
        [("hall",), ("attic",)],
    ]
    assert {name for name, (ending, _) in books.endings.items() if ending == "written"} == {*NAMES}
    assert sorted(engine.written) == sorted(NAMES)
    assert books.twice == {x: f"machine of {x} burnt" for x in ("hall", "attic")}


def test_a_scene_that_takes_its_worker_every_time_fails_alone():
    engine, books = run({"yard": 100})
    ending, reason = books.endings["yard"]
    assert ending == "failed" and "lost 3 times" in reason and "machine of yard burnt" in reason
    assert sorted(engine.written) == sorted({*NAMES} - {"yard"})
    assert 100 - engine.dies_at["yard"] == 3  # Once, and two retries.
    _, books = run({"yard": 1}, retries=0)
    assert {name for name, (ending, _) in books.endings.items() if ending == "failed"} == {
        "yard", "shed",
    }  # fmt: skip
    assert books.twice == {}


def test_a_run_that_gets_nowhere_ends():
    ledger = Ledger(NAMES)
    rules = {"workers": 1, "batch_size": 1, "retries": 1, "why_lost": str}
    with pytest.raises(InputError, match="no worker .* began a scene .Ray says no."):
        run_rounds(ledger, lambda shares: "Ray says no", **rules)
    ledger.stop("input", "another model")
    ledger.stop("defect", "later")
    assert ledger.begin("hall", "a") is None
    with pytest.raises(InputError, match="another model"):
        run_rounds(ledger, lambda shares: None, **rules)
    ledger = Ledger(NAMES)
    with pytest.raises(RuntimeError, match="a defect"):
        run_rounds(ledger, lambda shares: ledger.stop("defect", "a defect"), **rules)


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}, {"CPU": 4}], None, (3, 0, 1)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8}], 1, (1, 0, 1)),
        ([{"CPU": 4}, {"CPU": 4}], None, (2, 4, 0)),
        ([{"CPU": 0}, {"CPU": 2}, {"CPU": 5.0}, {}], None, (3, 2, 0)),  # The head has none.
        ([{"CPU": 4}, {"CPU": 4}], 3, (3, 2, 0)),
        ([{"CPU": 4}, {"CPU": 4}], 1, (1, 4, 0)),
        ([{"CPU": 2}, {"CPU": 1}], 3, (3, 1, 0)),
    ],
)
def test_workers_share_a_cluster(machines, workers, expected):
    number, each = shared_out(machines, workers)
    assert (number, each["num_cpus"], each["num_gpus"]) == expected


@pytest.mark.parametrize(
    ("machines", "workers", "why"),
    [
        ([], None, "no CPU"),
        ([{"CPU": 0}], None, "no CPU"),
        ([{"GPU": 2}], 3, "2 GPUs"),
        ([{"CPU": 2}], 3, "2 CPUs"),
    ],
)
def test_there_are_no_more_workers_than_the_cluster_has_room_for(machines, workers, why):
    with pytest.raises(InputError, match=why):
        shared_out(machines, workers)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """`work(run_scenes, **setting)`: the books after a worker did all scenes with a stand-in."""
    model = object()
    monkeypatch.setattr(cluster_worker, "load", lambda options: model)
    monkeypatch.setattr(cluster_worker, "check_model", lambda model, options: None)
    monkeypatch.setattr(cluster_worker, "fingerprint", lambda model: "some model")

    def do(run_scenes=None, **changes):
        monkeypatch.setattr(cluster_worker, "run_scenes", run_scenes)
        ledger = Ledger(NAMES)
        options = ManyScenesOptions(engine="ray")
        setting = Setting.of(FolderStore(tmp_path / "out"), options)
        worker = Worker(dataclasses.replace(setting, **changes), ledger, "a machine")
        worker.do({name: tmp_path / name for name in NAMES})
        return ledger.books()

    return do


def claimed(store, names):
    for name in names:
        store.claim(name, np.zeros((1, 2, 2, 3), np.uint8), vggt_jax.Options()).release()


def test_a_worker_tells_what_became_of_each_scene(work):
    def scenes_run(model, scenes, store, options, *, done, fail):
        claimed(store, scenes)
        done("hall")
        fail("attic", InputError("torn photographs"))
        fail("yard", ElsewhereError("locked"))
        fail("shed", ElsewhereError("just now", is_done=True))

    books = work(scenes_run)
    assert books.endings == {
        "hall": ("written", ""),
        "attic": ("failed", "torn photographs"),
        "yard": ("elsewhere", ""),
        "shed": ("there", ""),
    }
    assert books.waiting == ("barn",) and books.problem is None


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")]
)
def test_the_scene_that_takes_all_memory_fails_and_the_rest_goes_on(work, error):
    def scenes_run(model, scenes, store, options, *, done, fail):
        claimed(store, scenes)
        for name in scenes:
            if name == "yard":
                raise error
            done(name)

    books = work(scenes_run)
    assert books.waiting == ()
    assert {name for name, (ending, _) in books.endings.items() if ending == "written"} == {
        *NAMES
    } - {"yard"}
    ending, reason = books.endings["yard"]
    assert ending == "failed" and "memory" in reason


def test_a_worker_stops_a_run_that_cannot_go_on(work):
    def full(model, scenes, store, options, **others):
        raise InputError("the disk is full")

    assert work(full).problem == ("input", "the disk is full")
    assert "same version" in work(full, version="0.0.1").problem[1]

    def broken(model, scenes, store, options, **others):
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError):
        work(broken)


def test_results_of_another_model_are_noticed_by_workers(work, monkeypatch):
    nothing = lambda *args, **others: None
    assert work(nothing).problem is None
    monkeypatch.setattr(cluster_worker, "fingerprint", lambda model: "another")
    kind, reason = work(nothing).problem
    assert kind == "input" and "another model" in reason


def test_a_worker_that_everybody_took_for_dead_writes_nothing(tmp_path):
    ledger = Ledger(NAMES)
    store, other = (BookedStore(FolderStore(tmp_path), ledger, machine) for machine in "ab")
    images = np.zeros((1, 2, 2, 3), np.uint8)
    recon = vggt_jax.Reconstruction(images=images)
    store.claim("hall", images, vggt_jax.Options()).release()
    other.claim("hall", images, vggt_jax.Options()).release()
    with pytest.raises(ElsewhereError, match="another worker"):
        store.write("hall", recon, {})
    assert not (tmp_path / "hall").exists()
    other.write("hall", recon, {})
    assert (tmp_path / "hall" / "predictions.npz").is_file()


def test_the_lock_of_a_lost_machine_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_worker, "_PAUSE", 0)
    images, options = np.zeros((1, 2, 2, 3), np.uint8), vggt_jax.Options()
    answers = []

    class Locked(FolderStore):
        def claim(self, *arguments):
            if answers:
                raise answers.pop()
            return super().claim(*arguments)

    ledger = Ledger(NAMES)
    store = BookedStore(Locked(tmp_path), ledger, "a machine")
    locked, done = ElsewhereError("locked"), ElsewhereError("just now", is_done=True)
    answers += [locked]  # By somebody who has nothing to do with this run.
    with pytest.raises(ElsewhereError, match="locked"):
        store.claim("hall", images, options)
    ledger.lose("hall", 1, "gone")
    answers += [locked, locked]
    store.claim("hall", images, options).release()
    assert answers == []
    answers += [locked, done]
    with pytest.raises(ElsewhereError, match="just now"):
        store.claim("hall", images, options)
    monkeypatch.setattr(cluster_worker, "_LOCKS_LAST", 0)
    with pytest.raises(ElsewhereError, match="locked"):
        store.claim("hall", images, options)


def test_without_ray_the_engine_says_what_to_install(tmp_path, monkeypatch, photographs):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'vggt-jax\[ray\]'"):
        vggt_jax.reconstruct_scenes({"hall": photographs}, tmp_path / "out", engine="ray")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"engine": "spark"}, "local or ray"),
        ({"workers": 2}, "engine='ray'"),
        ({"engine": "ray", "workers": 0}, "at least 1"),
        ({"retries": -1}, "at least 0"),
        ({"engine": "ray", "devices": 1}, "give workers"),
    ],
)
def test_options_of_engines_are_checked(options, why):
    with pytest.raises(InputError, match=why):
        ManyScenesOptions(**options)


def test_nobody_is_waited_for_at_an_address_without_a_cluster(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # And does not listen.
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        nothing = types.SimpleNamespace(is_initialized=lambda: False)
        with pytest.raises(InputError, match="no Ray cluster at RAY_ADDRESS=127.*ray start --head"):
            with on_ray._connected(nothing):
                pass


def test_photographs_travel_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    travels = lambda images: on_ray._for_all_machines("hall", images)
    assert travels("hall") == tmp_path / "hall" and travels(["0.png"]) == [tmp_path / "0.png"]
    for images in (np.zeros((1, 2, 2, 3)), [np.zeros((2, 2, 3))]):
        with pytest.raises(InputError, match="hall: .* save them to files"):
            travels(images)
