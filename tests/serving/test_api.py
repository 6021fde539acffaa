"""The server over HTTP: load, clients that go, uploads that cannot be, a full queue, passwords."""

import concurrent.futures
import io
import socket
import threading
import time
import zipfile

import numpy as np
import pytest
from stand_in import photograph, scene_of, served

import vggt_jax
from vggt_jax import InputError
from vggt_jax.serving import Limits, Queue
from vggt_jax.serving.guard import check_address

pytest.importorskip("fastapi", reason="needs FastAPI")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from vggt_jax.serving.api import create_api  # noqa: E402
from vggt_jax.serving.client import infer_on_server  # noqa: E402

MODELS = ("small", "other")
# Nothing here is encrypted; certificates take long to load. A busy machine takes its time.
web = httpx.Client(verify=False, timeout=60)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def gate():
    """The stand-in works while it is open."""
    gate = threading.Event()
    gate.set()
    return gate


@pytest.fixture
def server(gate):
    """A queue and the address of its server."""

    def run(files, options, say):
        assert gate.wait(30)
        return scene_of(files, options, say)

    limits = Limits(queue=8, files=5, frames=4, megabytes=1, kept=100)
    with Queue(run, limits) as queue, served(create_api(queue, MODELS)) as url:
        yield queue, url
        gate.set()


def parts(*paths):
    return [("files", (path.name, path.read_bytes())) for path in paths]


def submit(url, *paths, **fields):
    return web.post(f"{url}/jobs", files=parts(*paths), data=fields)


def finished(url, job):
    while job["state"] in ("queued", "running"):
        job = web.get(f"{url}/jobs/{job['id']}", params={"wait": 10}).json()
    return job


def test_fifty_clients_each_get_their_own_scene(tmp_path, server, monkeypatch):
    """They are more than may wait at a time."""
    monkeypatch.setattr("vggt_jax.serving.api._RETRY_SECONDS", 0.1)
    queue, url = server
    reds = list(range(55, 255, 4))
    assert len(reds) == 50

    def client(red):
        folder = tmp_path / str(red)
        files = [photograph(folder, red, "2.png"), photograph(folder, red, "10.png")]
        recon = infer_on_server(url, files, model="other")
        return recon.depth, recon.names, recon.provenance.model

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        results = list(pool.map(client, reds))
    for red, (depth, names, model) in zip(reds, results, strict=True):
        assert (depth == red).all() and names == ("2.png", "10.png") and model == "other"
    assert queue.num_waiting == 0
    wait_for(lambda: not any(queue.folder.iterdir()))  # Clients have their scenes removed.


def test_a_full_queue_says_when_to_come_again(server, gate, pair):
    queue, url = server
    gate.clear()
    answers = [submit(url, *pair) for _ in range(12)]
    wait_for(lambda: queue.num_waiting == 8)
    codes = [answer.status_code for answer in answers]
    assert codes.count(202) in (8, 9) and set(codes) == {202, 503}
    full = answers[-1]
    assert full.headers["Retry-After"] == "2" and "try again" in full.json()["detail"]
    last = next(x for x in reversed(answers) if x.status_code == 202).json()
    assert web.get(f"{url}/jobs/{last['id']}").json()["before_it"] == 8
    # What is refused leaves nothing behind, and what is cancelled makes room.
    assert len(list(queue.folder.iterdir())) == codes.count(202)
    assert web.delete(f"{url}/jobs/{last['id']}").json() == {"state": "cancelled"}
    assert web.get(f"{url}/jobs/{last['id']}").status_code == 404
    assert submit(url, *pair).status_code == 202
    gate.set()
    for answer in answers[:3]:
        assert finished(url, answer.json())["state"] == "done"


def test_a_client_that_is_killed_while_it_sends(server, pair):
    queue, url = server
    host, port = url.removeprefix("http://").split(":")
    head = (
        "POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + bytes(1000))
    assert finished(url, submit(url, *pair).json())["state"] == "done"
    assert len(list(queue.folder.iterdir())) == 1


def test_a_client_that_is_killed_while_it_waits(server, gate, pair):
    """Its job is done all the same, and the next one's, too."""
    queue, url = server
    gate.clear()
    job = submit(url, *pair).json()
    state = lambda: web.get(f"{url}/jobs/{job['id']}").json()
    wait_for(lambda: state()["state"] == "running")  # The server answers at once to what is new.
    with pytest.raises(httpx.ReadTimeout):
        web.get(f"{url}/jobs/{job['id']}", params={"wait": 30}, timeout=0.2)
    gate.set()
    assert finished(url, job)["state"] == "done"

    def interrupted(step):
        raise KeyboardInterrupt

    gate.clear()
    with pytest.raises(KeyboardInterrupt):
        infer_on_server(url, pair, say=interrupted)
    gate.set()
    wait_for(lambda: len(list(queue.folder.iterdir())) == 1)


@pytest.mark.parametrize(
    ("names", "fields", "status", "part"),
    [
        (["a.png"], {}, 422, "two or more"),
        (["a.png", "b.exe"], {}, 422, "'b.exe'"),
        (["a.png", "b.mp4"], {}, 422, "alone"),
        (["a.png"] * 6, {}, 422, "6 files are more than 5"),
        (["a.png", "b.png"], {"model": "/etc/passwd"}, 422, "one of small, other"),
        (["a.png", "b.png"], {"attention": "keys=-3"}, 422, "attention"),
        (["a.png", "b.png"], {"attention": "import os"}, 422, "keep=PERCENT"),
        (["a.png", "b.png"], {"frames": "3"}, 422, "for a video"),
        (["a.mp4"], {"frames": "5"}, 422, "more than 4"),
        (["a.png", "b.png"], {"size": "100000"}, 422, "size"),
        (["a.png", "b.png"], {"mode": "none"}, 422, "mode"),
        ([], {}, 422, "files"),
    ],
)
def test_what_cannot_be_is_refused_before_it_waits(server, pair, names, fields, status, part):
    queue, url = server
    data = pair[0].read_bytes()
    files = [("files", (name, data)) for name in names]
    answer = web.post(f"{url}/jobs", files=files or None, data=fields)
    assert answer.status_code == status and part in answer.text
    assert not any(queue.folder.iterdir())


@pytest.mark.parametrize("chunked", [False, True])
def test_too_much_is_refused_whether_or_not_it_says_its_length(server, pair, chunked):
    queue, url = server
    files = [("files", (f"{i}.png", bytes(600_000))) for i in range(2)]
    request = httpx.Request("POST", f"{url}/jobs", files=files)
    body, headers = request.read(), {"Content-Type": request.headers["Content-Type"]}
    pieces = (body[i : i + 50_000] for i in range(0, len(body), 50_000))
    answer = web.post(f"{url}/jobs", content=pieces if chunked else body, headers=headers)
    assert answer.status_code == 413 and "1 MB" in answer.json()["detail"]
    assert not any(queue.folder.iterdir())
    assert web.get(f"{url}/health").json()["status"] == "ok"


def test_files_that_are_no_pictures_fail_with_the_reason_and_nothing_else(server, tmp_path, pair):
    _, url = server
    (tmp_path / "c.png").write_bytes(b"no picture")
    job = finished(url, submit(url, pair[0], tmp_path / "c.png").json())
    assert job["state"] == "failed" and "c.png" in job["error"]
    assert web.get(f"{url}/jobs/{job['id']}/files/npz").status_code == 409
    with pytest.raises(InputError, match=r"c\.png"):
        infer_on_server(url, [pair[0], tmp_path / "c.png"])


def test_a_defect_fails_a_job_and_not_the_server(pair):
    def run(files, options, say):
        if options.model == "other":
            raise RuntimeError("secret path /home/somebody/x")
        return scene_of(files, options, say)

    with Queue(run) as queue, served(create_api(queue, MODELS)) as url:
        job = finished(url, submit(url, *pair, model="other").json())
        assert job["state"] == "failed" and "secret" not in job["error"]
        assert finished(url, submit(url, *pair).json())["state"] == "done"


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/x.png", "..\\x.png", "\u202ea.png", ".png", "a" * 300 + ".png"]
)
def test_names_cannot_lead_elsewhere(server, gate, pair, name):
    queue, url = server
    gate.clear()
    data = pair[0].read_bytes()
    files = [("files", (name, data)), ("files", ("b.png", data))]
    answer = web.post(f"{url}/jobs", files=files)
    if answer.status_code == 202:
        (folder,) = queue.folder.iterdir()
        placed = [path for path in folder.rglob("*") if path.is_file()]
        assert len(placed) == 2 and all(path.parent.parent == folder / "uploads" for path in placed)
    else:
        assert answer.status_code == 422


def test_downloads(server, tmp_path, pair):
    queue, url = server
    job = finished(url, submit(url, *pair).json())
    assert job["frames"] == 2 and job["names"] == ["a.png", "b.png"]
    get = lambda name: web.get(f"{url}/jobs/{job['id']}/files/{name}")
    assert get("overview").content[:4] == b"\x89PNG"
    assert get("glb").content[:4] == b"glTF" and get("ply").content[:3] == b"ply"
    with zipfile.ZipFile(io.BytesIO(get("nerfstudio").content)) as archive:
        assert {"transforms.json", "images/a.png", "images/b.png"} <= set(archive.namelist())
        assert not any(name.startswith(".") for name in archive.namelist())
    assert get("nerfstudio").content == get("nerfstudio").content
    (tmp_path / "predictions.npz").write_bytes(get("npz").content)
    assert (vggt_jax.load_reconstruction(tmp_path).depth == 100).all()
    assert get("../../../etc/passwd").status_code == 404 and get("exe").status_code == 404
    schema = web.get(f"{url}/openapi.json").json()
    assert {"/jobs", "/jobs/{id}", "/jobs/{id}/files/{name}", "/health"} <= set(schema["paths"])


def test_only_the_last_results_are_kept(pair):
    limits = Limits(kept=2)
    with Queue(scene_of, limits) as queue, served(create_api(queue, MODELS)) as url:
        jobs = [finished(url, submit(url, *pair).json()) for _ in range(4)]
        wait_for(lambda: len(list(queue.folder.iterdir())) == 2)
        codes = [web.get(f"{url}/jobs/{job['id']}").status_code for job in jobs]
        assert codes == [404, 404, 200, 200]
        folder = queue.folder
    assert not folder.exists()


def test_a_password(pair):
    with Queue(scene_of) as queue, served(create_api(queue, MODELS, password="a:b")) as url:
        answer = web.get(f"{url}/health")
        assert answer.status_code == 401 and "Basic" in answer.headers["WWW-Authenticate"]
        assert web.get(f"{url}/health", auth=("any", "wrong")).status_code == 401
        assert web.get(f"{url}/health", auth=("any", "a:b")).status_code == 200
        for headers in ({"Authorization": "Basic ???"}, {"Authorization": "Bearer"}):
            assert web.get(f"{url}/docs", headers=headers).status_code == 401
        with pytest.raises(InputError, match="401"):
            infer_on_server(url, pair)
        assert (infer_on_server(url, pair, password="a:b").depth == 100).all()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.3", "example.org", ""])
def test_other_machines_need_a_password(host):
    with pytest.raises(InputError, match="--password"):
        check_address(host, None)
    check_address(host, "secret")
    for own in ("127.0.0.1", "localhost", "::1"):
        check_address(own, None)


@pytest.mark.parametrize("url", ["nowhere", "ftp://a", "http://", "http://127.0.0.1:1"])
def test_no_server_is_an_input_error(pair, url):
    with pytest.raises(InputError, match=url.replace("?", ".")):
        infer_on_server(url, pair)


def test_infer_by_a_server_writes_what_infer_writes(tmp_path, server, pair, monkeypatch, capsys):
    from vggt_jax import cli

    _, url = server
    args = ["infer", str(pair[0].parent), "--server", url, "--out", str(tmp_path / "out")]
    assert cli.main([*args, "--focal", "30", "--known-distance", "0,1,2", "--export", "glb"]) == 0
    found = vggt_jax.load_reconstruction(tmp_path / "out")
    assert found.names == ("a.png", "b.png") and found.length_unit == "given"
    np.testing.assert_allclose(found.depth, 100 * 20, rtol=1e-5)
    assert (tmp_path / "out" / "points.ply").exists() and (tmp_path / "out" / "scene.glb").exists()
    capsys.readouterr()
    assert cli.main([*args[:-1], str(tmp_path / "b"), "--query-points", "1,2"]) == 2
    assert "--query-points is not for a server" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
