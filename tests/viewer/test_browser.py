"""What people see: the viewer in a headless Chromium, with software in place of a GPU."""

import io
import math
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from vggt_jax import Reconstruction
from vggt_jax.viewer import Viewer

pytest.importorskip("viser", reason="viser is not installed: pip install 'vggt-jax[view]'")
selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

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
    )


# Points in the middles of the walls.
MIDDLES = {"red": (-0.6, 0.2, 2.0), "green": (0.5, 0.2, 2.0), "blue": (3.4, 0.2, 2.0)}


class Page:
    """A browser that looks at a viewer."""

    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "headless=new", "no-sandbox", "disable-gpu", "use-gl=angle", "use-angle=swiftshader",
            "enable-unsafe-swiftshader", "disable-dev-shm-usage", "disable-quic", "no-first-run",
            "disable-background-networking", "disable-component-update", "disable-sync",
            f"user-data-dir={profile}", "window-size=1000,700",
        ):  # fmt: skip
            options.add_argument(f"--{argument}")
        self.driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(executable_path=DRIVER)
        )

    def open(self, viewer):
        self.viewer = viewer
        self.driver.get(viewer.url)
        self.until(lambda: len(viewer._server.get_clients()) == 1)
        (self.client,) = viewer._server.get_clients().values()
        self.until(lambda: self.client.camera.image_width > 0)

    def until(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            time.sleep(0.1)

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
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
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

        deadline = time.monotonic() + 30
        while not agrees():
            assert time.monotonic() < deadline, f"{seen} is seen, not {expected}"
            time.sleep(0.3)

    def beside(self, label, css):
        """The control to the right of a label."""
        path = f"//label[normalize-space()='{label}']/ancestor::div[.//input or .//button][1]"
        return self.driver.find_element(By.XPATH, path).find_element(By.CSS_SELECTOR, css)

    def slide(self, label, *keys):
        thumb = self.beside(label, "[role=slider]")
        self.driver.execute_script("arguments[0].focus()", thumb)
        thumb.send_keys(*keys)

    def press(self, text):
        path = f"//button[normalize-space()='{text}']"
        self.driver.find_element(By.XPATH, path).click()

    def click_at(self, point):
        column, row = self.pixel_of(point)
        # Offsets count from the middle of the canvas.
        canvas = self.driver.find_element(By.TAG_NAME, "canvas")
        box = canvas.rect
        offsets = column - box["x"] - box["width"] // 2, row - box["y"] - box["height"] // 2
        chain = ActionChains(self.driver)
        chain.move_to_element_with_offset(canvas, *map(int, offsets)).pause(0.7).click().perform()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.driver.quit()


@pytest.fixture
def shown(page):
    # Points large enough to close the walls: a tenth apart in a scene about 6 large.
    with Viewer(walls(), port=0, confidence_percentile=0, point_size=30) as viewer:
        page.open(viewer)
        page.press("Overview")
        yield viewer
        page.driver.get("about:blank")  # A server waits for its browsers when it stops.


def test_points_are_where_they_must_be_and_the_slider_removes_them(page, shown):
    shown.change(camera_size=0.5)  # Pyramids too small to be in the way.
    page.shows(red="red", green="green", blue="blue")
    # A quarter of the points are red, the least confident ones: 26 steps of 1 %.
    page.slide("Leave out %", *[Keys.ARROW_RIGHT] * 26)
    page.shows(red="white", green="green", blue="blue")
    assert shown.settings.percentile == 26
    page.slide("Leave out %", Keys.HOME)
    page.shows(red="red", green="green", blue="blue")


def test_the_smallest_confidence_is_a_field(page, shown):
    shown.change(camera_size=0.5)
    page.shows(red="red", green="green", blue="blue")
    field = page.beside("Confidence above", "input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("2.5", Keys.ENTER)  # Red has 2, the others 5.
    page.shows(red="white", green="green", blue="blue")
    assert shown.settings.min_confidence == 2.5 and shown.settings.percentile == 0


def test_frames_one_by_one(page, shown):
    shown.change(camera_size=0.5)
    page.press("one")
    page.shows(red="red", green="green", blue="white")
    page.slide("Frame", Keys.ARROW_RIGHT)
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
    page.until(lambda: np.allclose(page.client.camera.position, camera.position, atol=1e-3))
    view = page.client.camera
    ahead = (view.look_at - view.position) / np.linalg.norm(view.look_at - view.position)
    np.testing.assert_allclose(ahead, camera.rotation[:, 2], atol=1e-3)
    assert view.fov >= camera.field_of_view - 1e-3
    # The blue wall fills the middle; the walls that this camera cannot see are out of the window.
    page.shows(blue="blue")
    page.until(lambda: not shown._camera_parent.visible)
    page.press("Overview")
    page.until(lambda: shown._camera_parent.visible)
    page.until(lambda: np.allclose(page.client.camera.position, before, atol=1e-3))
