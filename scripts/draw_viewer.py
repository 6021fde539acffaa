"""Draws a picture of the viewer: `python scripts/draw_viewer.py RESULTS PICTURE.png`.

RESULTS is a folder that `vggt-jax infer` wrote. Needs `pip install '.[view]' playwright` and
Chromium; without a GPU it draws slowly. The picture of the README shows the sample that ships with
the package by the small model, with `--point-size 4`.
"""

import argparse
import io
import pathlib
import shutil

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vggt_jax import load_reconstruction
from vggt_jax.viewer import Viewer

COLORS = 256  # Of the PNG: a third of the size, and hardly seen in points.
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--size", type=int, nargs=2, default=(1200, 720), help="of the window")
    parser.add_argument("--percentile", type=float, default=25.0)
    parser.add_argument("--hide-edges", action="store_true")
    parser.add_argument("--point-size", type=float, default=1.5)
    parser.add_argument("--camera-size", type=float, default=3.0)
    parser.add_argument("--max-points", type=int, default=1_000_000)
    parser.add_argument("--position", type=float, nargs=3, help="of the view, in the world")
    parser.add_argument("--look-at", type=float, nargs=3, help="in the world")
    parser.add_argument("--seconds", type=float, default=30.0, help="that the browser draws for")
    options = parser.parse_args()
    shown = dict(
        port=0, confidence_percentile=options.percentile, hide_edges=options.hide_edges,
        point_size=options.point_size, max_points=options.max_points,
    )  # fmt: skip
    with Viewer(load_reconstruction(options.results), **shown) as viewer:
        viewer.change(camera_size=options.camera_size)
        with sync_playwright() as browsers:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = browsers.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            width, height = options.size
            page = browser.new_page(viewport={"width": width, "height": height})
            picture = draw(viewer, page, options)
            browser.close()
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(options.picture, optimize=True)
    print(f"{options.picture}: {options.picture.stat().st_size / 1e3:.0f} KB")


def draw(viewer: Viewer, page: Page, options: argparse.Namespace) -> Image.Image:
    page.goto(viewer.url)
    page.wait_for_selector("canvas", timeout=300_000)
    client = None
    while client is None or client.camera.image_width == 0:
        page.wait_for_timeout(100)
        client = next(iter(viewer._server.get_clients().values()), None)
    if options.position:
        client.camera.position = options.position
    if options.look_at:
        client.camera.look_at = options.look_at
    page.wait_for_timeout(1000 * options.seconds)
    # The warning that a GPU is missing.
    for button in page.locator(".mantine-Notification-closeButton").all():
        button.click()
    page.wait_for_timeout(3000)
    picture = page.screenshot(timeout=300_000)
    page.goto("about:blank")
    return Image.open(io.BytesIO(picture)).convert("RGB")


if __name__ == "__main__":
    main()
