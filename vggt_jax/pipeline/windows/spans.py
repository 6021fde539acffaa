"""Which frames a window sees, and which of them the scene takes from it."""

import dataclasses

from vggt_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Span:
    """One window, in frames of the scene; all ranges are half-open.

    Attributes:
        start, stop: what the model sees.
        first, last: what the scene takes from this window: up to the middle of what it shares with
            its neighbours.
    """

    start: int
    stop: int
    first: int
    last: int

    @property
    def own(self) -> slice:
        """`first` to `last` in frames of the window."""
        return slice(self.first - self.start, self.last - self.start)

    def part(self, first: int, last: int) -> slice:
        """A range of frames of the scene in frames of the window."""
        return slice(first - self.start, last - self.start)


def check_window(window: int, overlap: int) -> None:
    """Checks that windows can follow one another.

    Raises:
        InputError: they cannot.
    """
    if window < 2:
        raise InputError(f"window={window} must be at least 2 frames")
    if not 1 <= overlap < window:
        raise InputError(
            f"overlap={overlap} must be at least 1 and less than window={window}: windows are "
            "joined by the frames that they share, and each must bring new ones"
        )


def spans_of(num_frames: int, window: int, overlap: int) -> tuple[Span, ...]:
    """The windows of a scene, each of `window` frames.

    Neighbours share `overlap` frames. The last window ends with the scene and may share more.

    Args:
        num_frames: of the scene, at least `window`.

    Raises:
        InputError: windows cannot follow one another.
    """
    check_window(window, overlap)
    starts = list(range(0, max(num_frames - window, 0), window - overlap))
    starts.append(max(num_frames - window, 0))
    stops = [min(start + window, num_frames) for start in starts]
    cuts = [
        0,
        *((start + stop) // 2 for start, stop in zip(starts[1:], stops, strict=False)),
        num_frames,
    ]
    return tuple(map(Span, starts, stops, cuts, cuts[1:]))
