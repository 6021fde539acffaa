"""Pi3X against the official PyTorch code, in float32, array by array, alone and with priors.

Errors are the norm of the difference over the norm of the golden, as for π³ (test_pi3_parity.py).
The official code is 3e-7 to 7e-7 from its own result in float64, and up to 4e-6 in maps, at the
pixel where that is largest.
"""

import pytest
import toys

from vggt_jax import BlockSparse

TOY = "pi3x_odd"
LIMITS = dict.fromkeys(("prompted_tokens", "decoded", "metric", "camera_poses", "rays"), 2e-6)
LIMITS |= dict.fromkeys(("points", "local_points", "conf", "normalized_poses"), 5e-6)


def errors(found, expected, relative_error):
    names = expected.keys() - {"images"}
    return {name: relative_error(toys.kept(name, found[name]), expected[name]) for name in names}


@pytest.mark.parametrize("case", ["all", "poses", "some"])
def test_every_array_with_priors_equals_the_official_one(
    case, run_pi3x_toy, golden, relative_error
):
    case = f"b2n3_42x70_{case}"
    found, expected = run_pi3x_toy(TOY, case), golden(f"{TOY}.{case}")
    assert expected.keys() == LIMITS.keys() | {"images"}
    by_name = errors(found, expected, relative_error)
    assert {name: e for name, e in by_name.items() if not e <= LIMITS[name]} == {}


@pytest.mark.slow
def test_every_array_of_images_alone_equals_the_official_one(run_pi3x_toy, golden, relative_error):
    found, expected = run_pi3x_toy(TOY, "n2_56x84"), golden(f"{TOY}.n2_56x84")
    by_name = errors(found, expected, relative_error)
    assert {name: e for name, e in by_name.items() if not e <= LIMITS[name]} == {}
    assert (found["camera_poses"][..., 3, :] == [0, 0, 0, 1]).all()


@pytest.mark.slow
def test_keeping_every_block_is_the_official_result(run_pi3x_toy, golden, relative_error):
    case = "b2n3_42x70_some"
    sparse = BlockSparse(
        min_tokens=0, cdf_threshold=1.0, token_order="hilbert", block_q=32, block_k=16
    )
    by_name = errors(
        run_pi3x_toy(TOY, case, attention=sparse), golden(f"{TOY}.{case}"), relative_error
    )
    # Keys in another order, pooled in blocks: a few roundings more.
    assert {name: e for name, e in by_name.items() if not e <= 5 * LIMITS[name]} == {}
