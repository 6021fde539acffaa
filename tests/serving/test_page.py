"""The web page: what it says step by step, and from upload to download in a headless Chromium."""

import importlib.util
import shutil
import threading
import time
from pathlib import Path

import pytest
from stand_in import photograph, scene_of, served

from vggt_jax import weights
from vggt_jax.serving import Limits, Queue

pytest.importorskip("fastapi", reason="needs FastAPI")

from vggt_jax.serving.page import create_page, mount_page, sample_files, steps_of  # noqa: E402

MODELS = ("small", "other")
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


def steps(queue, paths, model="other", frames=20, attention="dense"):
    return list(steps_of(queue, MODELS, list(map(str, paths)), model, frames, attention))


def test_the_sample_is_there_offline():
    assert len(sample_files()) == 8 and all(Path(path).is_file() for path in sample_files())


def test_steps_lead_to_files_and_mistakes_to_words(tmp_path, pair):
    with Queue(scene_of, Limits(megabytes=1, queue=1)) as queue:
        *news, (text, id, glb, picture, files) = steps(queue, reversed(pair), model="small")  # noqa: A001
        assert news[-1] == "writing files to download ..." and "2 frames by small" in text
        assert weights.SAID_OF_RESULTS in text and queue.job(id).state == "done"
        assert Path(glb).suffix == ".glb" and Path(picture).name == "overview.png"
        assert set(files) >= {"glb", "ply", "nerfstudio", "npz"}
        assert queue.job(id).files[0].name == "a.png"  # In natural order, however they came.
        assert "two or more" in steps(queue, pair[:1])[0]
        assert "one of small" in steps(queue, pair, model="none")[0]
        large = tmp_path / "large.png"
        large.write_bytes(bytes(1_100_000))
        assert "1 MB are more than 1" in steps(queue, [*pair, large])[0]
        (tmp_path / "no.png").write_text("no picture")
        assert "no.png" in steps(queue, [pair[0], tmp_path / "no.png"])[-1]


def test_who_leaves_the_page_gives_up_the_job(pair):
    gate = threading.Event()

    def run(files, options, say):
        assert gate.wait(30)
        return scene_of(files, options, say)

    with Queue(run, Limits(queue=1)) as queue:
        watching = steps_of(queue, MODELS, list(map(str, pair)), "other", 9, "dense")
        next(watching)
        until = time.monotonic() + 20
        while queue.num_waiting and time.monotonic() < until:  # Until it is being done.
            time.sleep(0.01)
        waiting = steps_of(queue, MODELS, list(map(str, pair)), "other", 9, "dense")
        next(waiting)
        assert queue.num_waiting == 1
        waiting.close()
        assert queue.num_waiting == 0
        gate.set()
        assert list(watching)[-1][0].startswith("2 frames")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio")
def test_from_upload_to_download_in_a_browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    from vggt_jax.serving.api import create_api

    files = [photograph(tmp_path / "in", 90 + i, f"{i}.png") for i in range(3)]
    with Queue(scene_of) as queue, playwright.sync_playwright() as browsers:
        app = mount_page(create_api(queue, MODELS), create_page(queue, MODELS), queue)
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        with served(app) as url:
            page = browser.new_page()
            page.set_default_timeout(200_000)  # Of a busy machine.
            outside = []
            page.on("request", lambda request: outside.append(request.url))
            page.goto(url)
            page.set_input_files("#files input[type=file]", files)
            # Stems and endings are elements of their own, on lines of their own as they are drawn.
            page.wait_for_function(
                "document.querySelector('#files').textContent.replace(/\\s/g, '').includes('2.png')"
            )
            page.click("#start")
            page.wait_for_function(
                "document.querySelector('#report').innerText.includes('3 frames by small')"
            )
            page.wait_for_selector("#scene canvas", timeout=60_000)
            for name, start in (("glb", b"glTF"), ("ply", b"ply"), ("nerfstudio", b"PK")):
                with page.expect_download() as download:
                    page.click(f"#{name}")
                path = tmp_path / name
                download.value.save_as(path)
                assert path.read_bytes().startswith(start), name
            # The page works where there is no network.
            ours = ("blob:", "data:", url)
            assert not [address for address in outside if not address.startswith(ours)]
            browser.close()
