"""Depth Anything 3, any-view models (arXiv:2511.10647)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from pallas_kernels.blocks import leading
from vggt_jax.errors import InputError
from vggt_jax.heads.dpt import frames_per_decoding
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.block import Block
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.shards import FrameShards, of_all, of_own
from vggt_jax.models.base import CameraSource, ModelTraits, Predicted
from vggt_jax.models.da3.cameras import (
    cameras_from_encoding,
    encoding_from_cameras,
    normalised_cameras,
)
from vggt_jax.models.da3.config import DA3Config
from vggt_jax.models.da3.encoder import Encoder
from vggt_jax.models.da3.heads.camera import CameraDecoder, CameraEncoder
from vggt_jax.models.da3.heads.dual_dpt import DualDPT
from vggt_jax.models.da3.outputs import DA3Output
from vggt_jax.models.da3.ray_cameras import cameras_from_rays
from vggt_jax.models.da3.reference import ReferenceView, reference_view
from vggt_jax.models.trunk_model import TrunkModel
from vggt_jax.scene.confidence import PointSource
from vggt_jax.scene.priors import Priors
from vggt_jax.trunk.alternation import (
    Alternation,
    TrunkOutput,
    run_trunk,
)
from vggt_jax.trunk.frames import encode_and_aggregate, encode_frames
from vggt_jax.trunk.token_layout import TokenLayout

_NORM_EPS = 1e-5  # official file: depth_anything_3/model/dinov2/vision_transformer.py

ALTERNATION = Alternation(patches_alike=True)
"""How the blocks of the trunk alternate."""

_NEEDED = {"intrinsics", "poses"}


class DA3(TrunkModel[DA3Output]):
    """Depth Anything 3 with random parameters; `vggt_jax.load_model` reads trained ones.

    Use it as an immutable pytree: pass it to functions under `jax.jit` as an argument.
    """

    output: ClassVar = DA3Output
    traits: ClassVar = ModelTraits(
        name="da3",
        title="Depth Anything 3",
        resize_mode="longest",
        confidence_kind="one_plus_exp",
        has_reference_frame=False,
        chooses_reference=True,
        compute_type_modules=("encoder.", "lead_block.", "frame_blocks.", "global_blocks."),
        takes=("intrinsics", "poses"),
        camera_sources=("head", "rays"),
        divides_frames=True,
        keeps_given_cameras=True,  # depth_anything_3/api.py, align_to_input_ext_scale
    )

    def __init__(self, config: DA3Config, *, rngs: nnx.Rngs):
        self.config = config
        c, dim = config, config.dim
        self.encoder = Encoder(**vars(c.encoder), rngs=rngs)
        normal = lambda *shape: jax.random.normal(rngs.params(), shape, jnp.float32)
        self.camera_token = nnx.Param(0.02 * normal(2, dim))
        spec = {name: x for name, x in vars(c.trunk).items() if name != "depth"}
        self.lead_block = Block(**spec, rngs=rngs) if c.begins_with_scene else None
        self.frame_blocks, self.global_blocks = (c.trunk.make_blocks(rngs) for _ in range(2))
        self.norm = LayerNorm(dim, eps=_NORM_EPS)
        self.head = DualDPT(
            2 * dim,
            patch_size=c.patch_size,
            features=c.head_features,
            out_channels=c.head_out_channels,
            layers=c.taps,
            rngs=rngs,
        )
        self.camera_encoder = CameraEncoder(
            dim,
            depth=c.cam_enc_depth,
            num_heads=c.cam_enc_num_heads,
            mlp_ratio=4.0,
            rngs=rngs,
        )
        self.camera_decoder = CameraDecoder(2 * dim, rngs=rngs)

    # The official exporters unproject whole pixels (depth_anything_3/utils/export/glb.py).
    pixel_centre = 0.0
    predicts: frozenset[Predicted] = frozenset({"cameras", "depth"})

    @property
    def num_dense_heads(self) -> int:
        """Heads with convolutions over whole images, which take long."""
        return 1

    @property
    def point_sources(self) -> tuple[PointSource, ...]:
        """Where a point cloud can come from: "depth" (and cameras)."""
        return ("depth",)

    def check_known(self, priors: Priors, *, first: int) -> None:
        """Finds cameras that are not known whole: the model takes poses and intrinsics of all
        frames, or nothing.

        Raises:
            vggt_jax.InputError: there are some; see `SceneModel`.
        """
        del first
        if set(priors.given) != _NEEDED:
            raise InputError(
                f"{self.traits.title} takes poses and intrinsics of all frames together, not "
                f"{priors.given[0]} alone; give both, or leave them out"
            )
        for kind in priors.given:
            if len(unknown := np.flatnonzero(~np.asarray(priors.known(kind)))):
                raise InputError(
                    f"{self.traits.title} takes poses and intrinsics of all frames, but {kind} of "
                    f"frame {unknown[0]} are not known; give them, or leave priors out"
                )

    def __call__(
        self,
        images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
        *,
        query_points: Float[Array, "b m 2"] | None = None,
        priors: Priors | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        compute_dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
        reference: ReferenceView = "saddle_balanced",
        rays: bool = False,
        camera_source: CameraSource = "head",
    ) -> DA3Output:
        """Predicts cameras, depth and its confidence.

        Args:
            images: RGB, float in [0, 1] or uint8; sides are multiples of the patch size.
            query_points: must be None, since Depth Anything 3 tracks no points.
            priors: poses and intrinsics of all frames, or nothing.
            attention: how the tokens of all frames attend to each other: `Dense()`,
                `Sampled(...)` or `BlockSparse(...)`. Layer `i` of the latter is the `i`-th official
                block that sees all frames.
            num_frames: how many leading frames of each scene count, from 1; the others are
                padding, which changes no output of the valid frames. None: all.
            compute_dtype: of matrix products. `float32` runs at the highest precision; `bfloat16`
                accumulates in float32, and heads run in float32; None is bfloat16 on a GPU.
            mesh: of one axis, whose devices divide the frames; see `TrunkModel`.
            reference: how the reference view is chosen, of three frames or more without poses.
            rays: whether to predict rays, too.
            camera_source: where `extrinsics` and `intrinsics` come from: the head for cameras, as
                `pose_enc` does always, or the rays, see `cameras_from_rays`.

        Raises:
            ValueError: shapes or types do not fit; query points were given; of poses and
                intrinsics only one is there.
        """
        if query_points is not None:
            raise ValueError("query_points were given, but Depth Anything 3 has no track head")
        layout = self.layout(images)
        options: dict[str, Any] = {"attention": attention, "compute_dtype": compute_dtype}
        trunk = encode_and_aggregate(
            self,
            images,
            priors=priors,
            num_frames=num_frames,
            reference=reference,
            mesh=mesh,
            **options,
        )
        return self.decode(
            trunk,
            layout,
            num_frames=num_frames,
            mesh=mesh,
            rays=rays,
            camera_source=camera_source,
            **options,
        )

    def encode(
        self,
        images: Float[Array, "b s height width 3"] | UInt8[Array, "b s height width 3"],
        *,
        priors: Priors | None = None,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
        shards: FrameShards | None = None,
    ) -> Float[Array, "b s p c"]:
        """Runs the blocks before the camera token joins, every frame by itself: tokens of patches
        after the class token, float32; see `Encoder`."""
        del priors, shards
        return encode_frames(
            self.encoder,
            images,
            self.layout(images),
            dense=attention.within_frames,
            precision=Precision.from_compute_dtype(compute_dtype),
        )

    def aggregate(
        self,
        patch_tokens: Float[Array, "b s p c"],
        layout: TokenLayout,
        *,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        taps: tuple[int, ...] | None = None,
        compute_dtype: DTypeLike | None = None,
        shards: FrameShards | None = None,
        priors: Priors | None = None,
        reference: ReferenceView = "saddle_balanced",
        recompute: bool = False,
    ) -> TrunkOutput:
        """Puts camera tokens in place of class tokens and runs the other blocks.

        Args:
            patch_tokens: as `encode` returns them.
            taps: layers to keep; None for those that the heads read.
            shards: see `SceneAttention.attend`.
            reference: see the call.
            recompute: for training, see `run_trunk`.
        """
        precision = Precision.from_compute_dtype(compute_dtype)
        special = self.special_tokens(
            patch_tokens[:, :, 0], priors, layout, num_frames, precision, reference, shards
        )
        tokens = jnp.concatenate([special[:, :, None], patch_tokens[:, :, 1:]], axis=2)
        return run_trunk(
            self.frame_blocks,
            self.global_blocks,
            tokens,
            layout=layout,
            taps=self.config.taps if taps is None else taps,
            attention=attention,
            num_frames=num_frames,
            precision=precision,
            alternation=ALTERNATION,
            lead_block=self.lead_block,
            shards=shards,
            recompute=recompute,
        )

    def special_tokens(
        self,
        class_tokens: Float[Array, "b s c"],
        priors: Priors | None,
        layout: TokenLayout,
        num_frames: Int[Array, " b"] | None,
        precision: Precision,
        reference: ReferenceView,
        shards: FrameShards | None = None,
    ) -> Float[Array, "b s c"]:
        """The camera tokens that take the place of class tokens: those of known cameras, or learned
        ones.

        Of several devices each has the class tokens or cameras of all frames, which are few
        numbers: views are compared with each other, and tokens of cameras attend to each other.
        """
        if priors is None:
            all_tokens = of_all(shards, class_tokens)
            special = self._learned_tokens(all_tokens, num_frames, reference)
        else:
            known = jax.tree.map(lambda x: of_all(shards, x) if np.ndim(x) > 1 else x, priors)
            special = self.camera_tokens(known, layout, num_frames, precision)
        return of_own(shards, special, class_tokens.shape[1])

    def _learned_tokens(self, class_tokens, num_frames, reference) -> Float[Array, "b s c"]:
        """The learned camera tokens: one for the reference view, another for all others.

        The official code also moves the reference view to the front. Only the choice of the token
        depends on that, since tokens of all frames attend to each other without knowing the order.
        """
        index = reference_view(class_tokens, num_frames, strategy=reference)
        is_other = jnp.arange(class_tokens.shape[1], dtype=jnp.int32) != index[:, None]
        return self.camera_token[...].astype(jnp.float32)[is_other.astype(jnp.int32)]

    def camera_tokens(
        self,
        priors: Priors,
        layout: TokenLayout,
        num_frames: Int[Array, " b"] | None,
        precision: Precision,
    ) -> Float[Array, "b s c"]:
        """Camera tokens of known cameras.

        Raises:
            ValueError: poses or intrinsics are missing, or do not fit each other.
        """
        encoding = self.encoding_of_known(priors, layout, num_frames)
        with jax.named_scope("camera_encoder"):
            return self.camera_encoder(encoding, num_frames, precision.heads)

    def encoding_of_known(
        self, priors: Priors, layout: TokenLayout, num_frames: Int[Array, " b"] | None
    ) -> Float[Array, "b s 9"]:
        """What the encoder of cameras is told of known ones."""
        if set(priors.given) != _NEEDED:
            raise ValueError(
                f"{self.traits.title} takes poses and intrinsics together, not "
                f"{' and '.join(priors.given) or 'nothing'}"
            )
        assert priors.intrinsics is not None
        b, s = np.shape(priors.intrinsics)[:2]
        side = self.config.patch_size
        size = layout.rows * side, layout.columns * side
        known = priors.for_images(jax.ShapeDtypeStruct((b, s, *size, 3), jnp.float32))
        assert known.camera_from_world is not None and known.intrinsics is not None
        counts = None if num_frames is None else leading(num_frames, s)
        cameras = normalised_cameras(jnp.asarray(known.camera_from_world), counts)
        return encoding_from_cameras(cameras, jnp.asarray(known.intrinsics), size)

    def decode_scene(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        query_points: Float[Array, "b m 2"] | None = None,
        attention: SceneAttention = Dense(),
        num_frames: Int[Array, " b"] | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> dict[str, Any]:
        """The outputs that need no maps: cameras."""
        del query_points, attention, num_frames
        precision = Precision.from_compute_dtype(compute_dtype)
        side = self.config.patch_size
        with jax.named_scope("camera_decoder"):
            encoding = self.camera_decoder(trunk.first_tokens, precision.heads)
            size = layout.rows * side, layout.columns * side
            extrinsics, intrinsics = cameras_from_encoding(encoding, size)
        return {
            "attention_stats": trunk.attention_stats,
            "pose_enc": encoding,
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
        }

    def decode_frames(
        self,
        trunk: TrunkOutput,
        layout: TokenLayout,
        *,
        attention: SceneAttention = Dense(),
        compute_dtype: DTypeLike | None = None,
        rays: bool = False,
        camera_source: CameraSource = "head",
    ) -> dict[str, Any]:
        """The outputs of the head that looks at every frame by itself: maps of depth, and of rays
        and the cameras that fit them if they are asked for."""
        del attention
        precision = Precision.from_compute_dtype(compute_dtype)
        side = self.config.patch_size
        size = layout.rows * side, layout.columns * side

        def run(kept):
            b, s = kept.shape[:2]
            by_scene = lambda x: x.reshape(b, s, *x.shape[1:])
            levels = self.head.pyramid(self.tapped(kept, trunk, layout), layout, precision.heads)
            maps = {"depth": by_scene(self.head.depth_map(levels, layout, precision.heads))}
            if rays or camera_source == "rays":
                of_rays = by_scene(self.head.ray_map(levels, layout, precision.heads))
                ray = {"ray": of_rays[..., :6], "ray_conf": 1 + jnp.exp(of_rays[..., 6])}
                maps |= ray if rays else {}
                if camera_source == "rays":  # Here, so that rays of all frames are never kept.
                    found = cameras_from_rays(**ray, image_size=size)
                    maps |= dict(zip(("extrinsics", "intrinsics"), found, strict=True))
            return maps

        max_chunk = frames_per_decoding(trunk.kept.shape[0], layout, side)
        with jax.named_scope("depth_head"):
            maps = map_chunks(run, trunk.kept, axis=1, max_chunk=max_chunk)
        raw = maps.pop("depth")
        return {"depth": jnp.exp(raw[..., 0]), "depth_conf": 1 + jnp.exp(raw[..., 1])} | maps

    def tapped(
        self, kept: Float[Array, "b s l p c2"], trunk: TrunkOutput, layout: TokenLayout
    ) -> list[Float[Array, "b s _ c2"]]:
        """Tokens of patches as the dense head reads them, of each of its four layers: as they were
        before the tokens of all frames were seen, and afterwards, normalised.

        Args:
            kept: of `trunk`, or of some of its frames.
        """

        def tap(layer):
            tokens = kept[:, :, trunk.layers.index(layer), layout.num_special :]
            local, after = jnp.split(tokens, 2, axis=-1)
            return jnp.concatenate([local.astype(jnp.float32), self.norm(after)], axis=-1)

        return [tap(layer) for layer in self.config.taps]

    def scene_fields(
        self, outputs: Mapping[str, Any], image_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The fields of a `Reconstruction` that the outputs of all frames together, those of each
        frame, or both give."""
        names = {
            "camera_from_world": "extrinsics",
            "intrinsics": "intrinsics",
            "depth": "depth",
            "depth_confidence": "depth_conf",
            "attention_stats": "attention_stats",
        }
        return {field: outputs[name] for field, name in names.items() if name in outputs}
