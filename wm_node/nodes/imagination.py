"""What the model imagined beside what then happened, as one picture. Nothing here knows ROS.

The picture has three rows of ``horizon + 1`` tiles, each of the model's frame size; column ``h`` is
the end of step ``h`` and column 0 the real frame that the imagination starts from:

1. the current plan, imagined;
2. the plan of one horizon ago, as it was imagined then;
3. what happened after that plan was made (black where no frame was received).

Where the model tells futures apart, each is a further row, most likely first: the ways that things
may go on under the current plan. As much of the first tile is white as the future is likely.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

ROWS = 3


@dataclass(frozen=True)
class _Imagined:
    stamp_ns: int
    start: Frames  # (H, W, 3)
    frames: Frames  # (horizon, H, W, 3)


class Imagination:
    """Keeps imagined plans until what happened can be put beside them.

    Used by the inference thread only.

    Args:
        horizon: steps of a plan.
        step_ns: nanoseconds of a step.
        tick_ns: nanoseconds between stored frames.
    """

    def __init__(self, horizon: int, step_ns: int, tick_ns: int) -> None:
        self._horizon = horizon
        self._step_ns = step_ns
        self._skew_ns = step_ns // 4
        self._seen: deque[tuple[int, Frames]] = deque(maxlen=2 * horizon * step_ns // tick_ns + 8)
        self._imagined: deque[_Imagined] = deque(maxlen=64)

    def reset(self) -> None:
        """Forget all frames and plans."""
        self._seen.clear()
        self._imagined.clear()

    def see(self, stamp_ns: int, frame: Frames) -> None:
        """Store a real frame (Hm, Wm, 3) of the model's size."""
        self._seen.append((stamp_ns, frame))

    def frame_at(self, stamp_ns: int) -> Frames | None:
        """The stored frame nearest to a stamp, or None when it is off by a quarter step."""
        if not self._seen:
            return None
        stamp, frame = min(self._seen, key=lambda item: abs(item[0] - stamp_ns))
        return frame if abs(stamp - stamp_ns) <= self._skew_ns else None

    def picture(
        self,
        stamp_ns: int,
        frame_now: Frames,
        frames: Frames,
        likelihood: NDArray[np.floating] | None = None,
    ) -> Frames:
        """Return the picture ((3 + F) Hm, (horizon + 1) Wm, 3) of a plan, and keep the plan.

        Args:
            stamp_ns: stamp of the frame that the plan starts from.
            frame_now: (Hm, Wm, 3), that frame.
            frames: (horizon, Hm, Wm, 3), imagined at the end of each step of the plan; then, where
                there are F futures, those of each, ((1 + F) horizon, Hm, Wm, 3) in all.
            likelihood: (F,) of the futures.
        """
        frames, further = frames[: self._horizon], frames[self._horizon :]
        self._imagined.append(_Imagined(stamp_ns, frame_now, frames))
        height, width = frame_now.shape[:2]
        picture = np.zeros((ROWS * height, (self._horizon + 1) * width, 3), np.uint8)
        tiles = picture.reshape(ROWS, height, self._horizon + 1, width, 3).swapaxes(1, 2)
        tiles[0, 0], tiles[0, 1:] = frame_now, frames
        past = self._of_one_horizon_ago(stamp_ns)
        if past is not None:
            tiles[1, 0], tiles[1, 1:] = past.start, past.frames
            tiles[2, 0] = past.start
            for step in range(1, self._horizon + 1):
                real = self.frame_at(past.stamp_ns + step * self._step_ns)
                if real is not None:
                    tiles[2, step] = real
        if likelihood is None:
            return picture
        rows = [
            _future_row(float(share), each)
            for share, each in zip(likelihood, further.reshape(-1, *frames.shape), strict=True)
        ]
        return np.concatenate([picture, *rows])

    def _of_one_horizon_ago(self, stamp_ns: int) -> _Imagined | None:
        horizon_ns = self._horizon * self._step_ns
        past = None
        while self._imagined and self._imagined[0].stamp_ns + horizon_ns <= stamp_ns:
            past = self._imagined.popleft()
        if past is not None:
            self._imagined.appendleft(past)
        return past


def _future_row(likelihood: float, frames: Frames) -> Frames:
    """(horizon, Hm, Wm, 3) -> (Hm, (horizon + 1) Wm, 3): a bar for the likelihood, and frames."""
    bar = np.zeros_like(frames[0])
    bar[:, : round(likelihood * bar.shape[1])] = 255
    return np.concatenate([bar, *frames], axis=1)
