"""The data sets and their layouts that tests go through."""

import pytest

LAYOUTS = {
    "re10k": ("original", "pi3", "cut3r", "pixelsplat"),
    "co3d": ("original", "vggt", "dust3r"),
    "tanks": ("original", "image_sets"),
    "eth3d": ("original", "undistorted", "pi3"),
    "7scenes": ("original", "raw"),
    "nrgbd": ("original",),
    "dtu": ("mvsnet", "training", "views64"),
    "scannet": ("original", "sens", "processed", "cpp"),
}
CASES = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]
# Those of the quick tier in tests that take long: one layout of each data set.
FIRST_QUICK = [
    pytest.param(name, layout, marks=() if layout == LAYOUTS[name][0] else pytest.mark.slow)
    for name, layout in CASES
]
OPTIONS = {"7scenes": {"split": "all"}}
