"""Pi3X through the doors: known values reach the model frame by frame, whatever the way."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax_settings import strict_types
from model_checks import check_estimate_of_memory
from PIL import Image

import vggt_jax
from pallas_kernels import tuned
from vggt_jax import InputError, Priors
from vggt_jax.pipeline import streaming

S, SIZE = 3, (28, 42)


@pytest.fixture(scope="module")
def model(tiny_pi3x):
    return tiny_pi3x()


@pytest.fixture(scope="module")
def images():
    return toys.images("pi3x_odd", "n3_28x42")[0]


@pytest.fixture(scope="module")
def priors():
    """Everything of frames 0 and 2, and nothing but intrinsics of frame 1."""
    drawn = {name: x[0] for name, x in toys.priors("pi3x_odd", "b2n3_28x42_all").items()}
    cameras = np.linalg.inv(drawn["poses"].astype(np.float64)).astype(np.float32)
    cameras[1] = np.nan
    known = np.array([True, False, True])
    return Priors(
        intrinsics=drawn["intrinsics"],
        camera_from_world=cameras[:, :3],
        depth=np.where(known[:, None, None], drawn["depths"], 0),
        poses_known=known,
    )


@pytest.fixture(scope="module")
def told(model, images, priors):
    """What the model makes of the images with the priors."""
    return vggt_jax.infer(images, model=model, priors=priors)


def same(found, expected, tolerance=1e-5):
    for name in ("camera_from_world", "depth", "world_points", "depth_confidence"):
        one, other = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)


def test_infer_tells_the_model(model, images, priors, told):
    assert told.length_unit == "metres" and told.depth.shape == (S, *SIZE)
    assert np.isfinite(told.depth).all() and told.confidence_kind == "sigmoid"
    # Lengths count by their ratios alone, and nothing by the world that poses are in.
    turned = np.array(priors.camera_from_world)
    world = np.eye(4, dtype=np.float32)
    world[:3, :3], world[:3, 3] = [[0, 1, 0], [0, 0, 1], [1, 0, 0]], [1, -2, 0.5]
    turned = turned @ world
    turned[..., 3] *= 8
    moved = dataclasses.replace(priors, camera_from_world=turned, depth=8 * priors.depth)
    same(vggt_jax.infer(images, model=model, priors=moved), told, 1e-4)
    # Every kind changes what comes out.
    for kind in ("intrinsics", "poses", "depth"):
        others = np.zeros(S, bool)
        without = dataclasses.replace(priors.checked(S, SIZE), **{f"{kind}_known": others})
        arguments = {"images": images, "priors": without.of_frames(range(S))}
        found = vggt_jax.pipeline.reconstruct.reconstruct_jit(model, **jax.device_put(arguments))
        assert np.abs(np.asarray(found.depth) - told.depth).max() > 1e-3, kind


def test_what_is_known_of_no_frame_is_as_if_nobody_said(model, images, priors):
    nobody = np.zeros((1, S), bool)
    unknown = {f"{kind}_known": nobody for kind in ("intrinsics", "poses", "depth")}
    given = jax.tree.map(lambda x: np.asarray(x)[None], priors.checked(S, SIZE))
    encode = jax.jit(lambda model, images, priors: model.encode(images, priors=priors))
    tokens = encode(model, images[None], dataclasses.replace(given, **unknown))
    alone = encode(model, images[None], None)
    np.testing.assert_allclose(tokens, alone, rtol=0, atol=1e-5)  # another program


@pytest.mark.slow
def test_everything_is_float32_but_products(model, images, priors):
    known = jax.tree.map(lambda x: np.asarray(x)[None], priors.checked(S, SIZE))
    for attention in (vggt_jax.Dense(), vggt_jax.BlockSparse(sparse_ratio=0.5, min_tokens=0)):
        found = jax.eval_shape(
            lambda model, images, priors, attention=attention: model(
                images, priors=priors, attention=attention, compute_dtype=jnp.bfloat16
            ),
            model,
            jnp.asarray(images[None]),
            known,
        )
        assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_types_and_ranks_are_explicit(model, wide_arrays):
    array = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype)
    known = {f"{kind}_known": array(S, dtype=bool) for kind in ("rays", "poses", "depth")}
    priors = Priors(
        intrinsics=array(S, 3, 3),
        rays=array(S, *SIZE, 3),
        camera_from_world=array(S, 3, 4),
        depth=array(S, *SIZE),
        metric=array(dtype=bool),
        **known,
    )
    sparse = vggt_jax.BlockSparse(sparse_ratio=0.5, token_order="hilbert", min_tokens=0)
    with strict_types():
        jaxpr, out = jax.make_jaxpr(
            lambda model, images, num_frames, priors: vggt_jax.reconstruct(
                model, images, num_frames=num_frames, priors=priors, attention=sparse
            ),
            return_shape=True,
        )(model, array(S, *SIZE, 3, dtype=np.uint8), array(dtype=np.int32), priors)
    assert wide_arrays(jaxpr) == []
    assert not [x for x in jax.tree.leaves(out) if x.dtype in (jnp.float64, jnp.int64)]


@pytest.mark.slow
def test_padded_frames_change_nothing(model, images, priors, told):
    known = priors.checked(S, SIZE).of_frames(range(S))
    garbage = np.full((1, *SIZE), 7, np.float32)
    more = {
        "intrinsics": np.concatenate([known.intrinsics, known.intrinsics[:1]]),
        "camera_from_world": np.concatenate([known.camera_from_world, known.camera_from_world[:1]]),
        "depth": np.concatenate([known.depth, garbage]),
    }
    masks = {f"{kind}_known": np.append(known.known(kind), True) for kind in known.given}
    found = jax.jit(vggt_jax.reconstruct)(
        model,
        np.concatenate([images, np.full((1, *SIZE, 3), np.nan, np.float32)]),
        num_frames=np.int32(S),
        priors=dataclasses.replace(known, **more, **masks),
    )
    first = jax.tree.map(lambda x: x[:S], dataclasses.replace(found, attention_stats=None))
    same(first, told)


def test_a_model_that_cannot_be_told_names_one_that_can(tiny_pi3, images, priors):
    expected = re.escape("π³ cannot be told known intrinsics; use Pi3X (yyfz233/Pi3X)")
    with pytest.raises(InputError, match=expected):
        vggt_jax.infer(images, model=tiny_pi3(), priors=priors)
    with pytest.raises(InputError, match="known poses"):
        vggt_jax.reconstruct(tiny_pi3(), images, priors=priors.only(["poses"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": "pose"}, "use='pose' is unknown; use some of intrinsics, rays, poses, depth"),
        ({"use": ("depth", "rays")}, "use='rays': priors hold no rays"),
        ({"priors": None, "use": "depth"}, "is said of priors; give some"),
        ({"priors": Priors()}, "priors are empty"),
    ],
)
def test_options_that_cannot_be(model, images, priors, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        vggt_jax.infer(images, model=model, **{"priors": priors} | options)


@pytest.mark.slow
def test_streams_and_many_scenes(tmp_path, model, images, priors, told):
    with tuned.override({"streaming.from_pixels": 1, "streaming.frames_in_piece": 2}):
        assert streaming.is_streamed(S, *SIZE)
        same(vggt_jax.infer(images, model=model, priors=priors), told)
    for i, image in enumerate(images):
        (tmp_path / "scenes" / "one").mkdir(parents=True, exist_ok=True)
        name = tmp_path / "scenes" / "one" / f"{i}.png"
        Image.fromarray((255 * image).round().astype(np.uint8)).save(name)
    known = priors.checked(S, SIZE)
    frames = [
        {
            "name": f"{i}.png",
            "intrinsics_original": known.intrinsics[i].tolist(),
            "camera_from_world": None if i == 1 else known.camera_from_world[i, :3].tolist(),
        }
        for i in range(S)
    ]
    (tmp_path / "one.json").write_text(json.dumps({"frames": frames}))
    options = {"model": model, "size": 28, "priors": tmp_path / "{scene}.json"}
    report = vggt_jax.reconstruct_scenes(
        tmp_path / "scenes", tmp_path / "out", progress=False, **options
    )
    assert report.written == ("one",) and not report.failed
    found = vggt_jax.load_reconstruction(tmp_path / "out" / "one")
    assert found.length_unit == "metres"
    size = found.images.shape[1:3]
    again = vggt_jax.infer(
        sorted((tmp_path / "scenes" / "one").iterdir()),
        model=model,
        size=28,
        priors=tmp_path / "one.json",
    )
    assert again.images.shape[1:3] == size
    same(found, again)


@pytest.mark.slow
def test_gradients_reach_every_parameter(model, images, priors):
    known = priors.checked(S, SIZE).of_frames(range(S))

    @jax.jit
    @jax.grad
    def gradient(model):
        recon = vggt_jax.reconstruct(model, images, priors=known)
        # Not a sum of all: rotations of cameras would not show in it.
        maps = (recon.world_points, recon.depth_confidence)
        weigh = lambda x: jnp.sum(x * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape))
        return sum(weigh(x) for x in maps)

    leaves = vggt_jax.models.loading.named_parameters(gradient(model))
    # A bias of keys adds the same to all scores of a query.
    for name, leaf in leaves.items():
        assert np.isfinite(leaf).all(), name
        if not name.endswith(("k_proj.bias", "k_norm.bias")):
            assert np.abs(leaf).max() > 0, name


@pytest.mark.slow
def test_the_estimate_of_memory_is_near(tiny_pi3x):
    model = tiny_pi3x(
        encoder_dim=96,
        decoder_dim=96,
        head_dim=64,
        decoder_num_heads=6,
        conv_upsample_dims=(32, 16),
    )
    check_estimate_of_memory(model, num_frames=17, height=112, width=140)
