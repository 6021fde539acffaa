"""Draws a picture of the viewer: `python scripts/draw_viewer.py RESULTS PICTURE.png`.

RESULTS is a folder that `vggt-jax infer` wrote. Needs viser, selenium, chromium and chromedriver; a
browser without a GPU draws it too, slowly. The picture of the README shows frames with measured
depth and cameras in place of predictions.
"""

import argparse
import io
import pathlib
import shutil
import tempfile
import time

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from vggt_jax import load_reconstruction
from vggt_jax.viewer import Viewer

COLORS = 256  # Of the PNG: a third of the size, and hardly seen in points.


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
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            picture = draw(viewer, profile, options)
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(options.picture, optimize=True)
    print(f"{options.picture}: {options.picture.stat().st_size / 1e3:.0f} KB")


def draw(viewer, profile, options) -> Image.Image:
    arguments = webdriver.ChromeOptions()
    arguments.binary_location = shutil.which("chromium")
    for argument in (
        "headless=new", "no-sandbox", "disable-gpu", "use-gl=angle", "use-angle=swiftshader",
        "enable-unsafe-swiftshader", "disable-dev-shm-usage", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "hide-scrollbars", f"user-data-dir={profile}", "window-size={},{}".format(*options.size),
    ):  # fmt: skip
        arguments.add_argument(f"--{argument}")
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=arguments, service=service)
    try:
        driver.get(viewer.url)
        while not viewer._server.get_clients():
            time.sleep(0.1)
        (client,) = viewer._server.get_clients().values()
        while client.camera.image_width == 0:
            time.sleep(0.1)
        if options.position:
            client.camera.position = options.position
        if options.look_at:
            client.camera.look_at = options.look_at
        time.sleep(options.seconds)
        # The warning that a GPU is missing.
        for button in driver.find_elements(By.CSS_SELECTOR, ".mantine-Notification-closeButton"):
            button.click()
        time.sleep(3)
        picture = driver.get_screenshot_as_png()
        driver.get("about:blank")
    finally:
        driver.quit()
    return Image.open(io.BytesIO(picture)).convert("RGB")


if __name__ == "__main__":
    main()
