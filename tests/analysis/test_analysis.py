"""Where attention looks, and models without some layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.analysis import Observed, dropped_layers, strongest_matches, without_layers
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneTokens
from vggt_jax.layers.token_order import patch_order
from vggt_jax.models.loading import named_parameters
from vggt_jax.trunk.attention.plan import AttentionPlan
from vggt_jax.trunk.attention.sampled import Sampled
from vggt_jax.trunk.token_layout import TokenLayout

B, S, N, H, SPECIAL, GRID = 1, 5, 2, 8, 3, (2, 4)
P = SPECIAL + GRID[0] * GRID[1]


def attend(value, arrays, *, order="raster", num_frames=None, scene=None):
    return value.attend(
        *arrays,
        num_special=SPECIAL,
        grid=GRID,
        token_order=order,
        layer=jnp.int32(0),
        num_frames=num_frames,
        precision=Precision.from_compute_dtype("float32"),
        scene=scene,
    )


@pytest.fixture(scope="module")
def arrays():
    """Queries, keys, values of five frames, of eleven tokens and one of padding."""
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(2 * rng.normal(size=(B, S, P + 1, N, H)), jnp.float32) for _ in "qkv")


def matrix(arrays, valid=S, more_keys=None):
    """The attention matrix of the tokens that count, [n queries keys], in float64."""
    q, k = (np.asarray(x, np.float64)[0, :valid, :P].reshape(-1, N, H) for x in arrays[:2])
    if more_keys is not None:
        k = np.concatenate([np.asarray(more_keys, np.float64)[0], k])
    scores = np.einsum("tnh,knh->ntk", q, k) / np.sqrt(H)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("case", ["whole", "padded frames", "hilbert", "tokens of the scene"])
def test_what_is_observed_is_the_softmax_of_all_scores(case, arrays):
    valid, order, options, first = S, "raster", {}, 0
    if case == "padded frames":
        valid, options = 3, {"num_frames": jnp.array([3], jnp.int32)}
    if case == "hilbert":
        order = options["order"] = "hilbert"
    if case == "tokens of the scene":
        rng = np.random.default_rng(5)
        few = [jnp.asarray(rng.normal(size=(B, 2, N, H)), jnp.float32) for _ in "qkv"]
        options, first = {"scene": SceneTokens(*few)}, 2
    # Three queries at a time, which do not divide the 55.
    value = Observed(pair=(2, 0), max_score_bytes=4 * N * S * P * 3)
    attended, of_scene, found = attend(value, arrays, **options)
    dense, dense_of_scene, _ = attend(Dense(), arrays, **options)
    assert np.array_equal(attended, dense)
    assert first == 0 or np.array_equal(of_scene, dense_of_scene)
    expected = matrix(arrays, valid, options["scene"].k if first else None)
    special = np.tile(np.arange(P) < SPECIAL, valid)
    of_keys = np.concatenate([np.ones(first, bool), special])
    for i, queries in enumerate((special, ~special)):
        for j, keys in enumerate((of_keys, ~of_keys)):
            part = expected[:, queries][..., keys]
            np.testing.assert_allclose(found.mean[0, :, i, j], part.mean((1, 2)), rtol=2e-5)
            np.testing.assert_allclose(found.maximum[0, :, i, j], part.max((1, 2)), rtol=2e-5)
    heads = expected[..., first:].mean(0).reshape(valid, P, valid, P)
    between = heads.sum(-1).mean(1)
    np.testing.assert_allclose(found.between_frames[0][:valid, :valid], between, rtol=2e-5)
    # Rows of the map are tokens in raster order, whatever the order in the trunk.
    places = [*range(SPECIAL), *(SPECIAL + np.argsort(patch_order(order, *GRID)))]
    pair = heads[:, places][..., places][[2, 0]][:, :, [2, 0]].reshape(2 * P, 2 * P)
    np.testing.assert_allclose(found.pair_map[0], pair, rtol=2e-5, atol=1e-9)


def test_each_layer_of_a_plan_is_observed():
    plan = AttentionPlan(layers=(Dense(), Sampled(num_keys=64, min_tokens=0)), min_tokens=0)
    values = Observed(inner=plan).for_scene(2, num_tokens=1000, num_patches=900)
    assert [x.inner for x in values] == list(plan.layers)
    with pytest.raises(ValueError, match="for 2 layers, but there are 3"):
        Observed(inner=plan).of_layers(3)
    with pytest.raises(ValueError, match=r"pair=\(0, 5\) must be frames in \[0, 5\)"):
        arrays = (jnp.zeros((B, S, P, N, H)),) * 3
        jax.eval_shape(lambda *x: attend(Observed(pair=(0, 5)), x)[0], *arrays)


def test_strongest_matches_are_between_patches_of_both_frames():
    layout = TokenLayout(num_special=SPECIAL, rows=GRID[0], columns=GRID[1])
    pair_map = np.zeros((2 * P, 2 * P), np.float32)
    pair_map[0, P] = pair_map[SPECIAL, SPECIAL + 1] = 0.9  # special, and within a frame
    pair_map[SPECIAL + 1, P + SPECIAL + 6] = 0.5
    pair_map[P + SPECIAL + 3, SPECIAL + 4] = 0.7
    found = strongest_matches(pair_map, layout, 14, 2)
    np.testing.assert_array_equal(found.value, np.float32([0.7, 0.5]))
    assert found.query_frame.tolist() == [1, 0] and found.key_frame.tolist() == [0, 1]
    assert found.query_pixel.tolist() == [[49, 7], [21, 7]]
    assert found.key_pixel.tolist() == [[7, 21], [35, 21]]


def test_which_layers_are_dropped():
    of = lambda number: {
        x: dropped_layers(7, number, x) for x in ("front", "back", "both", "middle")
    }
    assert of(3) == {"front": (0, 1, 2), "back": (4, 5, 6), "both": (0, 1, 6), "middle": (2, 3, 4)}
    assert of(2)["both"] == (0, 6) and of(2)["middle"] == (3, 4)
    assert set(of(0).values()) == {()} and set(of(7).values()) == {tuple(range(7))}
    with pytest.raises(ValueError, match=r"number=8 must be in \[0, 7\]"):
        dropped_layers(7, 8, "front")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny_pi3"])
def test_dropped_blocks_add_nothing_and_others_stay(name, request):
    model = request.getfixturevalue(name)()
    assert without_layers(model, []) is not model
    whole, attention = without_layers(model, [1]), without_layers(model, [1], "attention")
    before, after = named_parameters(model), named_parameters(whole)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert {x.split(".")[0] for x in changed} == {"global_blocks"}
    assert all(np.array_equal(before[x][0], after[x][0]) for x in changed)
    x = jax.random.normal(jax.random.key(0), (1, 3, before["global_blocks.norm1.scale"].shape[-1]))
    for dropped, is_identity in ((whole, True), (attention, False), (model, False)):
        block = jax.tree.map(lambda y: y[1], dropped.global_blocks)
        heads = block.attn.num_heads
        attended = 1 + jnp.zeros((1, 3, heads, x.shape[-1] // heads))
        out = block.after(x, attended, Precision.from_compute_dtype("float32"))
        assert np.array_equal(out, x) == is_identity
    with pytest.raises(ValueError, match=r"layer 2 must be in \[0, 2\)"):
        without_layers(model, [2])
