"""Takes the picture of the web page that the README shows, docs/images/app.png.

    pip install '.[app]' playwright
    python scripts/draw_app.py

The small model reconstructs the sample that ships with the package, in a real Chromium.
"""

import argparse
import shutil
import socket
import threading
import time
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from vggt_jax.serving import ModelRunner, Queue
from vggt_jax.serving.api import create_api
from vggt_jax.serving.page import create_page, mount_page

FILE = Path(__file__).parents[1] / "docs" / "images" / "app.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = ModelRunner()
    with Queue(runner) as queue, sync_playwright() as browsers:
        page = create_page(queue, runner.models)
        app = mount_page(create_api(queue, runner.models), page, queue)
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.1)
        browser = browsers.chromium.launch(
            executable_path=args.chromium,
            args=[
                "--no-sandbox",
                "--use-gl=angle",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
            ],
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.set_default_timeout(600_000)
        tab.goto(f"http://127.0.0.1:{port}")
        tab.click("#sample")
        tab.wait_for_function("document.querySelector('#files').innerText.includes('0008')")
        tab.click("#start")
        tab.wait_for_function("document.querySelector('#report').innerText.includes('8 frames by')")
        tab.wait_for_selector("#scene canvas")
        tab.wait_for_timeout(5000)  # For the points to be drawn.
        tab.evaluate("window.scrollTo(0, 0)")
        tab.screenshot(path=args.out)
        browser.close()
        server.should_exit = True
    # 128 colours are enough for a page, and a quarter of the size.
    Image.open(args.out).convert("RGB").quantize(128).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
