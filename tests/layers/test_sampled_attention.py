"""Attention by a sample of the patches: what is drawn, and what it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax import Sampled
from vggt_jax.layers.attention import dense_attention
from vggt_jax.layers.scene_attention import SceneTokens
from vggt_jax.layers.token_order import patch_order
from vggt_jax.trunk.attention.sampled import draw_patches, sampled_attention

S, SPECIAL, ROWS, COLUMNS, N, H = 7, 3, 5, 6, 2, 8
PATCHES = ROWS * COLUMNS
P = SPECIAL + PATCHES

draw = jax.jit(
    draw_patches,
    static_argnames=("seed", "slots", "num_heads", "num_frames", "grid", "token_order"),
)


def drawn(attention, layer=0, frames=None, *, s=S, grid=(ROWS, COLUMNS), heads=N):
    """Patches [keys n], their number, and of how many each is one."""
    found = draw(
        seed=attention.seed,
        slots=attention.num_keys,
        num_heads=heads,
        num_frames=s,
        grid=grid,
        layer=layer,
        frames_that_count=frames,
    )
    return tuple(map(np.asarray, found))


@pytest.fixture(scope="module")
def arrays():
    """q, k, v [s p n h], whose last tokens of a frame do not count."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(S, P + 2, N, H)).astype(np.float32) for _ in range(3)]


@jax.jit
def attend(q, k, v, layer, frames):
    attention = Sampled(num_keys=40, seed=3, min_tokens=0)
    out, _, stats = sampled_attention(
        q,
        k,
        v,
        num_special=SPECIAL,
        grid=(ROWS, COLUMNS),
        attention=attention,
        layer=layer,
        num_frames=frames,
    )
    return out, stats


def exact(arrays, patches, frames=S, of_scene=None):
    """[frames p n h] in float64, where each sampled patch stands for as many as the others."""
    q, k, v = (np.asarray(x, np.float64)[:frames, :P].reshape(frames * P, N, H) for x in arrays)
    is_special = np.arange(frames * P) % P < SPECIAL
    if of_scene is not None:  # They come after the others, in the result, too.
        q, k, v = (np.concatenate(pair) for pair in zip((q, k, v), of_scene, strict=True))
        is_special = np.append(is_special, np.ones(len(of_scene[0]), bool))
    out = np.zeros_like(q)
    for head in range(N):
        sampled = patches[:, head] // PATCHES * P + SPECIAL + patches[:, head] % PATCHES
        weights = np.where(is_special, 1.0, 0.0)
        weights[sampled] = frames * PATCHES / len(sampled)
        scores = np.exp(q[:, head] @ k[:, head].T / H**0.5)
        scores = np.where(is_special[:, None], scores, scores * weights)
        out[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, head]
    return out if of_scene is not None else out.reshape(frames, P, N, H)


def test_the_error_is_that_of_the_sample(arrays):
    """By layer the estimate is as large as the true error, for which dense attention is needed."""
    arrays = [*arrays[:2], arrays[2] + 1]  # Without, results are smaller than errors.
    q, k, v = (np.asarray(x, np.float64)[:, :P].reshape(S * P, N, H) for x in arrays)
    scores = np.exp(np.einsum("qnh,knh->nqk", q, k) / H**0.5)
    dense = np.einsum("nqk,knh->qnh", scores / scores.sum(-1, keepdims=True), v)
    dense = dense.reshape(S, P, N, H)[:, SPECIAL:]
    found, true = [], []
    for layer in range(40):
        out, stats = attend(*arrays, layer, None)
        difference = np.asarray(out)[:, SPECIAL:P] - dense
        true.append(np.sqrt(np.mean(difference**2, (0, 1, 3)) / np.mean(dense**2, (0, 1, 3))))
        found.append(stats.error)
    mean = lambda errors: np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(mean(found), mean(true), rtol=0.3)
    assert np.all(mean(true) > 0.1)


def test_each_sampled_patch_stands_for_as_many_as_were_left_out(arrays, relative_error):
    patches, number, weight = drawn(Sampled(num_keys=40, seed=3), layer=5)
    assert number == 40
    assert weight == S * PATCHES / 40
    out, stats = attend(*arrays, 5, None)
    assert relative_error(np.asarray(out)[:, :P], exact(arrays, patches)) <= 1e-5
    seen = (S * SPECIAL + 40) / (S * P)
    np.testing.assert_allclose(stats.density, seen, rtol=1e-6)
    np.testing.assert_allclose(stats.saved, 1 - (PATCHES * seen + SPECIAL) / P, rtol=1e-6)
    assert np.isnan(stats.covered).all() and np.isnan(stats.entropy).all()


@pytest.mark.parametrize("sample_special_queries", [False, True])
def test_tokens_of_the_scene_are_special(arrays, relative_error, sample_special_queries):
    frames, rng = 4, np.random.default_rng(5)
    of_scene = rng.normal(size=(3, 2, N, H)).astype(np.float32)
    attention = Sampled(num_keys=40, seed=3, sample_special_queries=sample_special_queries)
    run = lambda qkv, of_scene, frames: sampled_attention(
        *qkv,
        num_special=SPECIAL,
        grid=(ROWS, COLUMNS),
        attention=attention,
        layer=5,
        num_frames=frames,
        scene=SceneTokens(*of_scene),
    )
    run = jax.jit(run)
    found, of_scene_found, stats = run(arrays, of_scene, np.int32(frames))
    patches, number, _ = drawn(attention, layer=5, frames=frames)
    expected = exact(arrays, patches[:number], frames, of_scene)
    is_patch = np.arange(frames * P) % P >= SPECIAL
    patches_found = np.asarray(found)[:frames, :P].reshape(-1, N, H)
    assert relative_error(patches_found[is_patch], expected[:-2][is_patch]) <= 1e-5
    if sample_special_queries:  # They see what patches see, and not each what no other one does.
        moved = [x.copy() for x in of_scene]
        moved[0][0] = arrays[0][0, SPECIAL]
        of_scene_found = run(arrays, moved, np.int32(frames))[1]
        of_scene_found, found = np.asarray(of_scene_found), np.asarray(found)
        assert relative_error(of_scene_found[0], found[0, SPECIAL]) <= 1e-5
    else:
        assert relative_error(patches_found, expected[:-2]) <= 1e-5
        assert relative_error(of_scene_found, expected[-2:]) <= 1e-5
    seen = (frames * SPECIAL + 2 + 40) / (frames * P + 2)
    np.testing.assert_allclose(stats.density, seen, rtol=1e-6)


def test_all_patches_are_dense_attention(arrays, relative_error):
    attention = Sampled(num_keys=S * PATCHES)
    grid = {"num_special": SPECIAL, "grid": (ROWS, COLUMNS)}
    run = jax.jit(lambda *qkv: sampled_attention(*qkv, attention=attention, **grid))
    out, _, stats = run(*arrays)
    q, k, v = (x[:, :P].reshape(1, S * P, N, H) for x in arrays)
    dense = np.asarray(jax.jit(dense_attention)(q, k, v)).reshape(S, P, N, H)
    assert relative_error(np.asarray(out)[:, :P], dense) <= 1e-6
    np.testing.assert_allclose(stats.density, 1)
    np.testing.assert_allclose(stats.saved, 0, atol=1e-6)


@pytest.mark.parametrize("frames", [3, 1])
def test_padded_frames_have_no_influence(arrays, relative_error, frames):
    """They are never sampled. One frame has fewer patches than are asked for: then all are."""
    patches, number, weight = drawn(Sampled(num_keys=40, seed=3), 2, jnp.int32(frames))
    assert number == min(40, frames * PATCHES)
    patches = patches[:number]
    cut = [x[:frames] for x in arrays]
    spoilt = [x.copy() for x in arrays]
    for x in spoilt:
        x[frames:] = 1e3
    out, stats = attend(*spoilt, 2, jnp.int32(frames))
    assert relative_error(np.asarray(out)[:frames, :P], exact(cut, patches, frames)) <= 1e-5
    np.testing.assert_allclose(stats.density, (frames * SPECIAL + number) / (frames * P), rtol=1e-6)
    if frames == 1:
        assert weight == 1
        assert sorted(patches[:, 0]) == list(range(PATCHES))
    # The same is drawn without padding.
    unpadded, _, _ = drawn(Sampled(num_keys=40, seed=3), 2, s=frames)
    np.testing.assert_array_equal(unpadded, patches)


def test_a_batch_is_what_its_scenes_are(arrays, relative_error):
    batch = [np.stack([x, 2 * x]) for x in arrays]
    frames = np.array([S, 4], np.int32)
    found = np.asarray(jax.vmap(attend, in_axes=(0, 0, 0, None, 0))(*batch, 1, frames)[0])
    for i, own in enumerate(frames):
        alone, _ = attend(*(x[i] for x in batch), 1, own)
        assert relative_error(found[i][:own, :P], np.asarray(alone)[:own, :P]) <= 1e-6


def test_gradient(arrays, relative_error):
    """That of the same attention, written down with a bias for every key."""
    patches, _, weight = drawn(Sampled(num_keys=40, seed=3), layer=1)
    weights = np.random.default_rng(4).normal(size=(S, P, N, H)).astype(np.float32)
    bias = np.zeros((N, S, P), np.float32)
    bias[:, :, SPECIAL:] = -np.inf
    for head in range(N):
        bias[head, patches[:, head] // PATCHES, SPECIAL + patches[:, head] % PATCHES] = np.log(
            weight
        )
    bias = jnp.asarray(bias.reshape(1, N, S * P))

    def plain(q, k, v):
        q, k, v = (x[:, :P].reshape(1, S * P, N, H) for x in (q, k, v))
        of_patches = dense_attention(q, k, v, key_bias=bias)
        of_special = dense_attention(q, k, v)
        is_special = (np.arange(S * P) % P < SPECIAL)[:, None, None]
        return jnp.where(is_special, of_special, of_patches).reshape(S, P, N, H)

    gradient = lambda run: jax.jit(
        jax.grad(lambda *qkv: jnp.sum(weights * run(*qkv)), argnums=(0, 1, 2))
    )(*arrays)
    found = gradient(lambda *qkv: attend(*qkv, 1, None)[0][:, :P])
    for value, expected in zip(found, gradient(plain), strict=True):
        assert relative_error(value, expected) <= 1e-5


def test_special_queries_that_see_the_sample(arrays, relative_error):
    """Then all queries see the same keys."""
    attention = Sampled(num_keys=40, seed=3, sample_special_queries=True)
    run = lambda *qkv: sampled_attention(
        *qkv, num_special=SPECIAL, grid=(ROWS, COLUMNS), attention=attention, layer=5
    )
    run = jax.jit(run)
    out, _, stats = run(*arrays)
    # A special token with the query of a patch gets what that patch gets.
    exact_out, _ = attend(*arrays, 5, None)
    of_patches = lambda x: np.asarray(x)[:, SPECIAL:P]
    np.testing.assert_allclose(of_patches(out), of_patches(exact_out), rtol=1e-4, atol=1e-5)
    q, k, v = arrays
    moved = q.copy()
    moved[:, 0] = q[:, SPECIAL]
    found = np.asarray(run(moved, k, v)[0])
    np.testing.assert_allclose(found[:, 0], found[:, SPECIAL], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats.saved, 1 - (S * SPECIAL + 40) / (S * P), rtol=1e-6)


def test_special_queries_see_the_sample_where_frames_are_many():
    pairs = lambda frames, **options: Sampled(num_keys=40, **options).num_pairs(
        num_frames=frames, num_special=SPECIAL, num_patches=PATCHES
    )
    exact, sampled = {"sample_special_queries": False}, {"sample_special_queries": True}
    assert pairs(511) == pairs(511, **exact) > pairs(511, **sampled)
    assert pairs(512) == pairs(512, **sampled) < pairs(512, **exact)
    with pytest.raises(ValueError, match="True, False or None"):
        Sampled(sample_special_queries="many")


@pytest.mark.gpu
@pytest.mark.parametrize("frames", [None, 11])
def test_kernels_at_the_size_of_vggt(relative_error, frames):
    """In bfloat16 as near to float32 as plain JAX is."""
    rng = np.random.default_rng(0)
    qkv = [jnp.asarray(rng.normal(size=(13, 1376, 16, 64)), jnp.bfloat16) for _ in range(3)]

    def run(implementation, *qkv):
        attend = lambda *qkv: sampled_attention(
            *qkv,
            num_special=5,
            grid=(37, 37),
            attention=Sampled(num_keys=2000, implementation=implementation),
            layer=1,
            num_frames=None if frames is None else jnp.int32(frames),
        )
        return jax.jit(attend)(*qkv)[0][:frames, :1374].astype(jnp.float32)

    expected = run("xla", *(x.astype(jnp.float32) for x in qkv))
    plain = relative_error(run("xla", *qkv), expected)
    for implementation in (None, "triton"):
        assert relative_error(run(implementation, *qkv), expected) <= 1.2 * plain


def test_samples_are_drawn_anew_for_each_layer_head_and_seed():
    first = drawn(Sampled(num_keys=40))[0]
    np.testing.assert_array_equal(first, drawn(Sampled(num_keys=40))[0])
    assert len(np.unique(first, axis=0)) == 40
    others = [drawn(Sampled(num_keys=40), 1)[0], drawn(Sampled(num_keys=40, seed=1))[0]]
    for other in [*others, first[:, ::-1]]:
        shared = np.intersect1d(first[:, 0], other[:, 0])
        assert len(shared) < 20  # 7.6 of 40 by chance


@pytest.mark.parametrize("num_keys", [2048, 1000, 5000])
def test_samples_are_spread_evenly(num_keys):
    """Over frames, over the picture of each, and over the pictures of all together."""
    s, grid = 32, (16, 16)
    patches, number, _ = drawn(Sampled(num_keys=num_keys), s=s, grid=grid, heads=3)
    assert number == num_keys
    per_frame = num_keys / s
    for head in range(3):
        frame, patch = np.divmod(patches[:, head], 256)
        assert len(np.unique(patches[:, head])) == num_keys
        assert np.abs(np.bincount(frame, minlength=s) - per_frame).max() < 1
        # Along the curve, from one to the next: one stride, but where it closes.
        place = np.argsort(patch_order("hilbert", *grid))
        for i in range(s):
            along = np.sort(place[patch[frame == i]])
            steps = np.diff(along)
            stride = 256 / per_frame
            inside = (np.floor(stride) <= steps) & (steps <= np.ceil(stride))
            assert np.count_nonzero(~inside) <= 1
        # Quarters of the picture, within what one stride at each end can change.
        y, x = np.divmod(patch, 16)
        quarters = np.bincount(2 * (y // 8) + x // 8, minlength=4)
        assert np.abs(quarters / num_keys - 0.25).max() < 0.03
        # Frames show different patches: none is drawn far more often than others.
        times = np.bincount(patch, minlength=256)
        assert times.max() <= 2 * num_keys / 256 + 2


@pytest.mark.parametrize(
    ("s", "grid", "num_keys"), [(2000, (37, 37), 2**16), (1000, (37, 37), 10_240)]
)
def test_large_scenes_stay_within_32_bits(s, grid, num_keys):
    patches, _, _ = drawn(Sampled(num_keys=num_keys), s=s, grid=grid, heads=1)
    frame = np.bincount(patches[:, 0] // (37 * 37), minlength=s)
    assert len(np.unique(patches)) == num_keys
    assert frame.min() >= np.floor(num_keys / s) and frame.max() <= np.ceil(num_keys / s)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_keys": 0}, r"num_keys=0 must be in \[1, 65536\]"),
        ({"num_keys": 2**16 + 1}, r"num_keys=65537 must be in \[1, 65536\]"),
        ({"num_keys": 0.5}, "num_keys=0.5 must be a whole number"),
        ({"seed": -1}, r"seed=-1 must be in \[0, 4294967295\]"),
        ({"min_tokens": -1}, "min_tokens=-1 must be at least 0"),
        ({"implementation": "cudnn"}, "implementation='cudnn' is unknown"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampled(**settings)


def test_settings_are_a_value():
    assert Sampled(num_keys=np.int64(7)) == Sampled(num_keys=7)
    assert hash(Sampled(num_keys=np.int64(7))) == hash(Sampled(num_keys=7))
    few = {"num_tokens": 4095, "num_patches": 4000}
    assert "fewer than min_tokens=4096" in Sampled(num_keys=100).why_dense(**few)
    assert Sampled(num_keys=100).decided().why_dense(**few) is None
    assert "no more than num_keys=4000" in Sampled(num_keys=4000).decided().why_dense(**few)


@pytest.mark.parametrize("order", ["hilbert", "tiles"])
def test_the_same_patches_in_any_order_of_tokens(order):
    in_raster = drawn(Sampled(num_keys=40))[0]
    options = {"num_heads": N, "num_frames": S, "grid": (ROWS, COLUMNS)}
    found = np.asarray(draw(seed=0, slots=40, layer=0, token_order=order, **options)[0])
    frame, place = np.divmod(found, PATCHES)
    patch = patch_order(order, ROWS, COLUMNS)[place]
    np.testing.assert_array_equal(frame * PATCHES + patch, in_raster)
