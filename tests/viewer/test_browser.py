"""What people see: the viewer in a headless Chromium, with software in place of a GPU."""

import io
import math
import shutil
import time

import numpy as np
import pytest
import trimesh
from PIL import Image

from vggt_jax import Reconstruction
from vggt_jax.scene.provenance import Provenance
from vggt_jax.viewer import Viewer

pytest.importorskip("viser", reason="viser is not installed: pip install 'vggt-jax[view]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # Of a busy machine, whose CPU draws.
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]
ARGUMENTS = ["no-sandbox", "use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader"]
SECONDS = 120  # What is waited for at most.

HEIGHT, WIDTH = 14, 22
RED, GREEN, BLUE, WHITE = (230, 20, 20), (20, 200, 20), (20, 20, 230), (255, 255, 255)


def walls():
    """Two cameras side by side before walls at depth 2: red and green (surer), and blue."""
    images = np.empty((2, HEIGHT, WIDTH, 3), np.uint8)
    images[0, :, : WIDTH // 2], images[0, :, WIDTH // 2 :], images[1] = RED, GREEN, BLUE
    confidence = np.full((2, HEIGHT, WIDTH), 5.0, np.float32)
    confidence[0, :, : WIDTH // 2] = 2.0
    pose = np.zeros((2, 3, 4), np.float32)
    pose[:, :, :3] = np.eye(3)
    pose[1, 0, 3] = -3.0  # The second camera stands 3 to the right.
    matrix = np.array([[20, 0, WIDTH / 2], [0, 20, HEIGHT / 2], [0, 0, 1]], np.float32)
    return Reconstruction(
        images=images,
        camera_from_world=pose,
        intrinsics=np.stack([matrix, matrix]),
        depth=np.full((2, HEIGHT, WIDTH), 2.0, np.float32),
        depth_confidence=confidence,
        pixel_centre=0.5,
        names=("left.jpg", "right.jpg"),
        provenance=Provenance(model="some/model"),
    )


# Points in the middles of the walls.
MIDDLES = {"red": (-0.6, 0.2, 2.0), "green": (0.5, 0.2, 2.0), "blue": (3.4, 0.2, 2.0)}


class Page:
    """A browser that looks at a viewer."""

    def __init__(self, browser):
        self.page = browser.new_page(viewport={"width": 1000, "height": 700})
        self.page.set_default_timeout(1000 * SECONDS)

    def open(self, viewer):
        self.viewer = viewer
        self.page.goto(viewer.url)
        self.until(lambda: len(viewer._server.get_clients()) == 1)
        (self.client,) = viewer._server.get_clients().values()
        self.until(lambda: self.client.camera.image_width > 0)

    def until(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            self.page.wait_for_timeout(100)

    def pixel_of(self, point):
        """Where a world point appears in the window, by the camera that the browser reports."""
        camera = self.client.camera
        w, x, y, z = camera.wxyz
        rotation = np.array([
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ])  # fmt: skip
        right, down, ahead = rotation.T @ (np.asarray(point) - camera.position)
        assert ahead > 0
        focal = camera.image_height / 2 / math.tan(camera.fov / 2)
        column = camera.image_width / 2 + focal * right / ahead
        row = camera.image_height / 2 + focal * down / ahead
        return round(column), round(row)

    def colour_at(self, point):
        """The name of the colour that is seen where a world point appears."""
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        red, green, blue = map(int, picture.getpixel(self.pixel_of(point)))
        if min(red, green, blue) > 240:
            return "white"
        names = {"red": red, "green": green, "blue": blue}
        name = max(names, key=names.get)
        others = [value for other, value in names.items() if other != name]
        return name if names[name] > 2 * max(others) else f"{red, green, blue}"

    def shows(self, **expected):
        """Waits until the middles of the walls have these colours."""
        seen = {}

        def agrees():
            seen.update({wall: self.colour_at(MIDDLES[wall]) for wall in expected})
            return seen == expected

        deadline = time.monotonic() + SECONDS
        while not agrees():
            assert time.monotonic() < deadline, f"{seen} is seen, not {expected}"
            self.page.wait_for_timeout(300)

    def beside(self, label, css):
        """The control to the right of a label."""
        path = f"//label[normalize-space()='{label}']/ancestor::div[.//input or .//button][1]"
        return self.page.locator(f"xpath={path}").locator(css).first

    def enter(self, label, value):
        """Types into a field, such as the one beside a slider. Arrows would move the view, too."""
        field = self.beside(label, "input:not([type=hidden])")
        field.fill(str(value))
        field.press("Enter")

    def press(self, text):
        self.page.locator(f"xpath=//button[normalize-space()='{text}']").click()

    def download(self, text, path):
        """Presses a button, and keeps the file that comes."""
        with self.page.expect_download() as download:
            self.press(text)
        download.value.save_as(path)
        return download.value.suggested_filename

    def click_at(self, point):
        column, row = self.pixel_of(point)
        self.page.mouse.move(column, row)
        self.page.wait_for_timeout(700)
        self.page.mouse.click(column, row)


@pytest.fixture(scope="module")
def page():
    with playwright.sync_playwright() as browsers:
        arguments = [f"--{argument}" for argument in ARGUMENTS]
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield Page(browser)
        browser.close()


@pytest.fixture
def shown(page):
    # Points large enough to close the walls: a tenth apart in a scene about 6 large.
    with Viewer(walls(), port=0, confidence_percentile=0, point_size=30) as viewer:
        page.open(viewer)
        page.press("Overview")
        yield viewer
        page.page.goto("about:blank")  # A server waits for its browsers when it stops.


def test_points_are_where_they_must_be_and_the_slider_removes_them(page, shown):
    shown.change(camera_size=0.5)  # Pyramids too small to be in the way.
    page.shows(red="red", green="green", blue="blue")
    # A quarter of the points are red, the least confident ones.
    page.enter("Leave out %", 26)
    page.shows(red="white", green="green", blue="blue")
    assert shown.settings.percentile == 26
    page.enter("Leave out %", 0)
    page.shows(red="red", green="green", blue="blue")


def test_the_smallest_confidence_is_a_field(page, shown):
    shown.change(camera_size=0.5)
    page.shows(red="red", green="green", blue="blue")
    page.enter("Confidence above", 2.5)  # Red has 2, the others 5.
    page.shows(red="white", green="green", blue="blue")
    assert shown.settings.min_confidence == 2.5 and shown.settings.percentile == 0


def test_frames_one_by_one(page, shown):
    shown.change(camera_size=0.5)
    page.press("one")
    page.shows(red="red", green="green", blue="white")
    page.enter("Frame", 1)
    page.shows(red="white", green="white", blue="blue")
    page.press("all")
    page.shows(red="red", green="green", blue="blue")


def test_a_click_on_a_camera_looks_through_it(page, shown):
    shown.change(camera_size=8.0)
    camera = shown.cameras[1]
    # A point on the base of its pyramid, where its picture is.
    depth = page.viewer._frustums[1].compute_canonical_frustum_size()[2] * shown._frustum_scale(
        shown.settings
    )
    before = np.array(page.client.camera.position)
    assert np.linalg.norm(before - camera.position) > 1
    page.until(lambda: page.colour_at(camera.position + np.array([0.0, 0.0, depth])) == "blue")
    page.click_at(camera.position + np.array([0.0, 0.0, depth]))
    view = page.client.camera

    def looks_through():
        # Position, direction and field of view arrive one after another.
        ahead = view.look_at - view.position
        found = [*view.position, *(ahead / np.linalg.norm(ahead))]
        wanted = [*camera.position, *camera.rotation[:, 2]]
        return np.allclose(found, wanted, atol=1e-3) and view.fov >= camera.field_of_view - 1e-3

    page.until(looks_through)
    # The blue wall fills the middle; the walls that this camera cannot see are out of the window.
    page.shows(blue="blue")
    page.until(lambda: not shown._camera_parent.visible)
    page.press("Overview")
    page.until(lambda: shown._camera_parent.visible)
    page.until(lambda: np.allclose(page.client.camera.position, before, atol=1e-3))


def test_the_page_tells_the_model_and_gives_a_picture_and_a_scene(page, shown, tmp_path):
    shown.change(camera_size=0.5)
    page.shows(red="red", green="green", blue="blue")
    assert "some/model" in page.page.inner_text("body")
    assert page.download("Screenshot", tmp_path / "a.png").endswith(".png")
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    camera = page.client.camera
    assert picture.size == (camera.image_width, camera.image_height)
    red, green, blue = picture.getpixel(page.pixel_of(MIDDLES["blue"]))
    assert blue > 2 * max(red, green)
    assert min(picture.getpixel((2, picture.height - 2))) > 240  # As white as the page.
    assert page.download("GLB", tmp_path / "a.glb").endswith(".glb")
    scene = trimesh.load(tmp_path / "a.glb")
    assert len(scene.geometry["points"].vertices) == 2 * HEIGHT * WIDTH
