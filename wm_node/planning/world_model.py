"""A bundle's model as planning sees it: arrays in physical units in, outcomes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import SEARCH_TERMS, Bundle, SearchSize
from wm_node.engine.load import check_golden
from wm_node.engine.protocol import Engine
from wm_node.errors import WmError

Floats = NDArray[np.float32]
Frames = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Context:
    """What the model is prompted with: the present and a few steps before it, oldest first."""

    stamp_ns: int
    """Stamp of the newest frame: the state that predictions start from."""
    latents: Floats
    """(C, latent)."""
    joints: Floats
    """(C, J) positions at the frames' stamps."""
    actions: Floats
    """(C, ticks, A): entry i acted during the step that ended at frame i."""


@dataclass(frozen=True)
class Goal:
    """Where the scene should be: as labelled values, as the latent of a picture, or both."""

    state: Floats | None = None
    """(G,) values of the labels in ``profile.objective.goal``."""
    latent: Floats | None = None
    """(latent,) of a goal picture."""
    via: Floats | None = None
    """(M, G) values that lead to ``state``, in their order, of a demonstration; None: any way."""


@dataclass(frozen=True)
class Outcomes:
    """Predicted futures of N candidates; entry h describes the end of step h + 1."""

    latents: Floats
    """(N, H, latent)."""
    joints: Floats
    """(N, H, J) positions."""
    state: Floats
    """(N, H, S) labelled values, S = 0 without labels."""
    risk: Floats
    """(N, H, E) probability that the event has happened by then, NaN where not available."""
    uncertainty: Floats
    """(N, H) disagreement of the ensemble, in units of its calibration; 1 is usual."""
    time_to_goal: Floats
    """(N, H) model steps left to the goal latent, NaN without one."""

    def pick(self, index: int) -> Outcomes:
        """Return the outcomes of one candidate, N = 1."""
        part = slice(index, index + 1)
        return Outcomes(
            self.latents[part],
            self.joints[part],
            self.state[part],
            self.risk[part],
            self.uncertainty[part],
            self.time_to_goal[part],
        )


@dataclass(frozen=True)
class Futures:
    """The ways that things may go on under one candidate, most likely first."""

    outcomes: Outcomes
    """Of each, N = F; uncertainty and time to goal are NaN."""
    likelihood: Floats
    """(F,), falling, of sum 1."""

    @property
    def risk(self) -> Floats:
        """(H, E) probability over all futures that the event has happened by then."""
        risk: Floats = np.einsum("f,fhe->he", self.likelihood, self.outcomes.risk)
        return risk.astype(np.float32)


def continued(actions: Floats, ticks: int) -> Floats:
    """Return actions (T, A) as a whole horizon (ticks, A), the last one repeated.

    The model is causal: what is repeated does not reach the steps before it.
    """
    return np.concatenate([actions, np.repeat(actions[-1:], ticks - len(actions), 0)])


def _prompt(context: Context) -> dict[str, Floats]:
    """The inputs of a graph that starts from a context."""
    return {
        "latents": context.latents[None],
        "joints": context.joints[None],
        "past_actions": context.actions[None],
    }


@dataclass(frozen=True)
class CompiledSearch:
    """A search that the engine runs as one call."""

    graph: str
    size: SearchSize


class WorldModel:
    """Typed calls of the engine's graphs. Owned by one thread, as the engine is."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle, self.engine, self.profile = bundle, engine, bundle.profile
        self.latent_size = bundle.model.latent
        usual = bundle.calibration
        self._uncertainty_scale = usual.uncertainty_scale
        self._surprise_scale = np.asarray(usual.surprise_scale, dtype=np.float32)
        trained = usual.events_trained
        self._events_trained = np.array(
            [trained is None or name in trained for name in self.profile.event_names], dtype=bool
        )
        # Inputs of compiled searches that never change.
        available = self._events_trained.astype(np.float32)
        self._search_inputs = {
            "events": available if available.size else np.zeros(1, np.float32),
            "usual_uncertainty": np.array([self._uncertainty_scale], np.float32),
        }
        labels = max(len(self.profile.labels), 1)
        self._label_mean = np.asarray(usual.label_mean or [0.0] * labels, np.float32)
        self._label_std = np.asarray(usual.label_std or [1.0] * labels, np.float32)
        self._joints = self.profile.joints.names
        self._no_goal = np.zeros((1, self.latent_size), dtype=np.float32)

    def prepare(self, candidates: tuple[int, ...], *searches: tuple[int, int]) -> None:
        """Compile and warm every graph that will be used.

        Args:
            candidates: population sizes of rollouts; 1 is always prepared.
            searches: candidates and iterations of planners. Where the bundle holds such a search
                as one graph, it is checked against the golden arrays too.

        Raises:
            WmError: a compiled search does not reproduce the golden arrays.
        """
        for search in searches:
            compiled = self.compiled_search(*search)
            if compiled is not None:
                check_golden(self.bundle, self.engine, [compiled.graph])
        profile, rates = self.profile, self.profile.model
        camera = profile.cameras[0]
        frame = np.zeros((camera.model_height, camera.model_width, 3), dtype=np.uint8)
        frames = {item.name: frame for item in profile.cameras}
        latent = self.encode(frames)
        joints, count = len(profile.joints.names), len(profile.action.names)
        context = Context(
            0,
            np.repeat(latent[None], rates.context_steps, 0),
            np.zeros((rates.context_steps, joints), np.float32),
            np.zeros((rates.context_steps, rates.ticks_per_step, count), np.float32),
        )
        for size in sorted({1, *candidates}):
            for lean in (False, True):
                actions = np.zeros((size, rates.horizon_ticks, count), np.float32)
                self.rollout(context, actions, lean=lean)
        self.read(latent)
        self.futures(context, np.zeros((1, rates.horizon_ticks, count), np.float32))
        self.propose(context, None, None)
        self.decode(
            np.repeat(latent[None], rates.horizon_steps, 0),
            np.repeat(context.joints[:1], rates.horizon_steps, 0),
            latent,
            context.joints[-1],
            frames,
        )

    def encode(self, frames: Frames) -> Floats:
        """Encode the frames of one instant.

        Args:
            frames: camera name -> (H, W, 3) uint8 RGB of the model's size; absent ones are masked.

        Returns:
            (latent,) token.

        Raises:
            WmError: a frame has another size, or no known camera is given.
        """
        cameras = self.profile.cameras
        shape = (cameras[0].model_height, cameras[0].model_width, 3)
        stacked = np.zeros((1, len(cameras), *shape), dtype=np.uint8)
        mask = np.zeros((1, len(cameras)), dtype=np.float32)
        for index, camera in enumerate(cameras):
            frame = frames.get(camera.name)
            if frame is None:
                continue
            if frame.shape != shape:
                raise WmError(
                    f"a frame of camera '{camera.name}' has shape {frame.shape}, the model needs "
                    f"{shape}; resize it first."
                )
            stacked[0, index] = frame
            mask[0, index] = 1.0
        if not mask.any():
            raise WmError("no frame of a camera that the model knows was given.")
        out: Floats = self.engine.run("encode", {"frames": stacked, "mask": mask})["latent"][0]
        return out

    def rollout(
        self,
        context: Context,
        actions: Floats,
        goal_latent: Floats | None = None,
        lean: bool = False,
    ) -> Outcomes:
        """Predict the outcomes of candidates.

        Args:
            context: the prompt.
            actions: (N, T, A), physical units, one action a tick over the whole horizon.
            goal_latent: (latent,) of a goal picture, for ``time_to_goal``.
            lean: leave joints, uncertainty and time to goal out (NaN), which is a fifth faster.

        Returns:
            Outcomes, in memory of their own.
        """
        inputs = {
            **_prompt(context),
            "actions": np.ascontiguousarray(actions, dtype=np.float32),
        }
        if lean:
            out = self.engine.run("search", inputs)
        else:
            goal = self._no_goal if goal_latent is None else goal_latent[None]
            out = self.engine.run("rollout", {**inputs, "goal_latent": goal})
        return self._outcomes(out, lean, goal_latent is not None)

    def futures(self, context: Context, actions: Floats) -> Futures | None:
        """Predict the ways that things may go on; None where the model does not tell them apart.

        Args:
            context: the prompt.
            actions: (1, T, A) of one candidate, as :meth:`rollout`.
        """
        if "futures" not in self.bundle.graphs:
            return None
        out = self.engine.run(
            "futures",
            {
                **_prompt(context),
                "actions": np.ascontiguousarray(actions, dtype=np.float32),
            },
        )
        order = np.argsort(-out["likelihood"], kind="stable")
        sorted_out = {name: values[order] for name, values in out.items()}
        unknown = np.full(out["future_latents"].shape[:2], np.nan, np.float32)
        sorted_out["uncertainty"] = unknown
        outcomes = self._outcomes(sorted_out, lean=False, has_goal=False)
        return Futures(outcomes, sorted_out["likelihood"])

    def _outcomes(self, out: Mapping[str, Floats], lean: bool, has_goal: bool) -> Outcomes:
        shape = out["future_latents"].shape[:2]
        unknown = np.full(shape, np.nan, np.float32)
        risk = out.get("risk")
        if risk is None:
            risk = np.zeros((*shape, 0), np.float32)
        elif not self._events_trained.all():
            risk = np.where(self._events_trained, risk, np.nan).astype(np.float32)
        state = out.get("state")
        if lean:
            joints, uncertainty = np.full((*shape, len(self._joints)), np.nan, np.float32), unknown
        else:
            joints = out["future_joints"]
            uncertainty = (out["uncertainty"] / self._uncertainty_scale).astype(np.float32)
        return Outcomes(
            latents=out["future_latents"],
            joints=joints,
            state=np.zeros((*shape, 0), np.float32) if state is None else state,
            risk=risk,
            uncertainty=uncertainty,
            time_to_goal=unknown if lean or not has_goal else out["time_to_goal"],
        )

    def compiled_searches(self) -> list[CompiledSearch]:
        """Return the bundle's graphs that search in one call.

        A graph of an earlier version, which may lack a term of the cost, is not among them.
        """
        return [
            CompiledSearch(name, spec.search)
            for name, spec in self.bundle.graphs.items()
            if spec.search is not None and spec.search.terms == SEARCH_TERMS
        ]

    def compiled_search(self, candidates: int, iterations: int) -> CompiledSearch | None:
        """Return the bundle's graph that searches with these sizes in one call, if there is one."""
        for search in self.compiled_searches():
            if (search.size.candidates, search.size.iterations) == (candidates, iterations):
                return search
        return None

    def run_search(
        self,
        search: CompiledSearch,
        context: Context,
        goal_latent: Floats | None,
        inputs: Mapping[str, NDArray[np.floating]],
    ) -> tuple[dict[str, NDArray[Any]], Outcomes]:
        """Search a plan in one call.

        Args:
            search: of :meth:`compiled_search`.
            context: the prompt.
            goal_latent: (latent,) of a goal picture.
            inputs: the others of :func:`wm_node.model.plan_graph.plan_search`, but for ``events``
                and ``usual_uncertainty``.

        Returns:
            The graph's outputs, and the outcomes of the winner.
        """
        goal = self._no_goal if goal_latent is None else goal_latent[None]
        out = self.engine.run(
            search.graph,
            {
                **_prompt(context),
                "goal_latent": goal,
                **self._search_inputs,
                **{name: np.asarray(value, np.float32) for name, value in inputs.items()},
            },
        )
        return out, self._outcomes(out, lean=False, has_goal=goal_latent is not None)

    def read(self, latent: Floats) -> Floats:
        """(latent,) -> (S,) labelled values of an observed latent; S = 0 without labels."""
        if "read" not in self.bundle.graphs:
            return np.zeros(0, np.float32)
        out: Floats = self.engine.run("read", {"latents": latent[None]})["state"][0]
        return out

    def picture_goal(self, frames: Frames) -> Goal:
        """Return the goal of a picture: its latent, and the labels read from it if there are any.

        The heads that read labels were trained with their gradient stopped at the latent.
        """
        latent = self.encode(frames)
        names = self.profile.label_names
        wanted = self.profile.objective.goal if self.profile.objective else ()
        state = self.read(latent)
        known = state.size > 0 and bool(wanted)
        chosen = state[[names.index(name) for name in wanted]] if known else None
        return Goal(state=chosen, latent=latent)

    def clip_goal(self, clip: Sequence[Frames]) -> Goal:
        """Return the goal of a demonstration: its last picture's, and the places on the way there.

        Args:
            clip: frames of each instant, in order of time; at least one.

        Raises:
            WmError: the model does not read from pictures where the object is.
        """
        goals = [self.picture_goal(frames) for frames in clip]
        places = [goal.state for goal in goals if goal.state is not None and goal.state.size == 2]
        if not places:
            raise WmError(
                "a goal by a clip needs a model that reads two values of an object's place."
            )
        return replace(goals[-1], via=np.stack(places[:-1] or places))

    def propose_for(self, context: Context, goal: Goal) -> tuple[Floats, Floats] | None:
        """Return the proposal's mean and deviation (T, A) for a goal, None without a goal."""
        if goal.state is None and goal.latent is None:
            return None
        state = None
        if goal.state is not None and self.profile.objective is not None:
            state = np.zeros(len(self.profile.labels), np.float32)
            columns = [self.profile.label_names.index(n) for n in self.profile.objective.goal]
            state[columns] = (goal.state - self._label_mean[columns]) / self._label_std[columns]
        return self.propose(context, goal.latent, state)

    def propose(
        self, context: Context, goal_latent: Floats | None, goal_state: Floats | None
    ) -> tuple[Floats, Floats]:
        """Return the proposal's mean and deviation (T, A) for a goal in normalised labels."""
        labels = max(len(self.profile.labels), 1)
        size = self.latent_size
        goal = np.zeros((1, size + 1 + labels + 1), dtype=np.float32)
        if goal_latent is not None:
            goal[0, :size], goal[0, size] = goal_latent, 1.0
        if goal_state is not None:
            goal[0, size + 1 : -1], goal[0, -1] = goal_state, 1.0
        out = self.engine.run(
            "propose",
            {"latent": context.latents[-1:], "joints": context.joints[-1:], "goal": goal},
        )
        return out["mean"][0], out["deviation"][0]

    def decode(
        self,
        latents: Floats,
        joints: Floats,
        latent_now: Floats,
        joints_now: Floats,
        frames_now: Frames,
    ) -> NDArray[np.uint8]:
        """Draw frames of M predicted instants as changes of the present ones.

        Args:
            latents: (M, latent) and joints: (M, J), as in :class:`Outcomes`.
            latent_now: (latent,) and joints_now: (J,) at the present.
            frames_now: camera name -> (H, W, 3) uint8 of the model's size.

        Returns:
            (M, cameras, H, W, 3) uint8.
        """
        stacked = np.stack([frames_now[camera.name] for camera in self.profile.cameras])[None]
        out = self.engine.run(
            "decode",
            {
                "latents": latents,
                "joints": np.asarray(joints, dtype=np.float32),
                "latent_now": latent_now[None],
                "joints_now": np.asarray(joints_now, dtype=np.float32)[None],
                "frames_now": stacked,
            },
        )["frames"]
        frames: NDArray[np.uint8] = np.clip(np.rint(out), 0, 255).astype(np.uint8)
        return frames

    def surprise(self, predicted: Floats, observed: Floats, step: int) -> float:
        """Distance of an observed latent from the one predicted ``step`` steps before.

        Returns:
            Root mean square difference over its usual value in left-out data: 1 is usual.
        """
        usual = self._surprise_scale[min(step, self._surprise_scale.size) - 1]
        return float(np.sqrt(np.mean((predicted - observed) ** 2)) / usual)
