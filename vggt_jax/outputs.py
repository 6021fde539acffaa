"""What models and reconstructions return."""

import dataclasses

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VGGTOutput:
    """Predictions of VGGT under their official names, channels last.

    A head that the model does not have, or tracks that were not asked for, are None.

    Attributes:
        pose_enc: translation (3, camera from world), quaternion (4, x y z w, not normalised) and
            vertical and horizontal field of view (2, radians) of every frame.
        pose_enc_list: `pose_enc` after each iteration of the camera head; the last is `pose_enc`.
        depth: distance along the viewing axis, positive, up to the scene's scale.
        world_points: where each pixel's point lies, in the coordinates of the first camera.
        depth_conf, world_points_conf: confidence, `1 + exp(x)`, above 1 and not bounded.
        track: pixels `(x, y)` of the query points in every frame.
        vis, conf: visibility and confidence of each track, in [0, 1].
    """

    pose_enc: Float[Array, "b s 9"] | None = None
    pose_enc_list: Float[Array, "i b s 9"] | None = None
    depth: Float[Array, "b s height width 1"] | None = None
    depth_conf: Float[Array, "b s height width"] | None = None
    world_points: Float[Array, "b s height width 3"] | None = None
    world_points_conf: Float[Array, "b s height width"] | None = None
    track: Float[Array, "b s m 2"] | None = None
    vis: Float[Array, "b s m"] | None = None
    conf: Float[Array, "b s m"] | None = None
