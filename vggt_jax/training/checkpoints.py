"""Training states on disk, so that a killed run goes on where it was."""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from vggt_jax.training.state import TrainState


class Checkpoints:
    """Numbered states in a folder: each whole or not there, the last few kept.

    Beside each lies a JSON document with what the run was asked for. Use it as a context: leaving
    it waits for what is being written.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
        self.folder = pathlib.Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest state; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, document: dict[str, Any]) -> None:
        """Copies the state off the devices and writes it in the background."""
        if step == self.latest():
            return
        arrays = {name: getattr(state, name) for name in state.__dataclass_fields__}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), document=ocp.args.JsonSave(document)
            ),
        )

    def wait(self) -> None:
        """Until everything saved is on disk."""
        self._manager.wait_until_finished()

    def document(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the state."""
        found = self._manager.restore(
            step, args=ocp.args.Composite(document=ocp.args.JsonRestore())
        )
        return found["document"]

    def restore(self, step: int, like: TrainState, sharding: Sharding) -> TrainState:
        """The state of a step, every array with this sharding.

        Args:
            like: a state of the same shapes; may be abstract.
        """
        arrays = {name: getattr(like, name) for name in like.__dataclass_fields__}
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays
        )
        found = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return TrainState(**found["state"])
