"""Renders and publishes frames beside the executor, so that rendering never holds up the joints."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.sim.tabletop import SceneCamera

Picture = NDArray[np.uint8]
START_S = 30.0
BACKLOG = 3  # frames, so that a hiccup of the machine costs delay and no frame


@dataclass(frozen=True)
class _Request:
    pose: NDArray[np.float64]
    mover: NDArray[np.float64] | None
    publish: Callable[[Picture], None]
    is_frame: bool


class FrameThread:
    """Owns the camera's OpenGL context.

    Args:
        make_camera: builds the camera, in this thread.
        model_lock: held while the scene is read; whoever resets the simulator holds it too.

    Raises:
        WmError: there is no working OpenGL.
    """

    def __init__(self, make_camera: Callable[[], SceneCamera], model_lock: threading.Lock) -> None:
        self.rendered = 0
        self.skipped = 0
        """Frames that were due while ``BACKLOG`` others were still waiting."""
        self.fault: str | None = None
        self._make_camera, self._lock = make_camera, model_lock
        self._requests: queue.Queue[_Request | threading.Event | None] = queue.Queue()
        self._room = threading.Semaphore(BACKLOG)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_S) or self.fault is not None:
            raise WmError(
                f"the simulated camera cannot render ({self.fault or 'no answer'}); install Mesa's "
                "EGL (libegl1, libgl1-mesa-dri) or set MUJOCO_GL."
            )

    def offer_frame(
        self,
        pose: NDArray[np.float64],
        publish: Callable[[Picture], None],
        mover: NDArray[np.float64] | None = None,
    ) -> None:
        """Render a pose (11,) or longer and publish the picture; skipped with too many waiting.

        ``mover`` (7,) is the pose of a level's moving body, where it has one.
        """
        if not self._room.acquire(blocking=False):
            self.skipped += 1
            return
        self._requests.put(_Request(pose, mover, publish, is_frame=True))

    def request(
        self,
        pose: NDArray[np.float64],
        publish: Callable[[Picture], None],
        mover: NDArray[np.float64] | None = None,
    ) -> None:
        """Render a pose that must not be skipped, such as a goal picture."""
        self._requests.put(_Request(pose, mover, publish, is_frame=False))

    def drain(self) -> None:
        """Wait until everything that was asked for is published."""
        done = threading.Event()
        self._requests.put(done)
        if self.fault is None:
            done.wait(timeout=2.0)

    def close(self) -> None:
        """Finish what is under way and free the context; may be called twice."""
        self._requests.put(None)
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        try:
            camera = self._make_camera()
        except Exception as error:  # MuJoCo and PyOpenGL raise many kinds
            self.fault = f"{type(error).__name__}: {error}"
            return
        finally:
            self._ready.set()
        try:
            while (request := self._requests.get()) is not None:
                if isinstance(request, threading.Event):
                    request.set()
                    continue
                with self._lock:
                    picture = camera.picture(request.pose, request.mover)
                request.publish(picture)
                if request.is_frame:
                    self.rendered += 1
                    self._room.release()
        except Exception as error:  # told by the node's diagnostics; the thread has no caller
            self.fault = f"{type(error).__name__}: {error}"
        finally:
            camera.close()
