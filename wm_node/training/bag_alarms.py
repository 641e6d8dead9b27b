"""Alarms on recordings: what the risk of each recorded command was before the recorded events.

A recording cannot be played again with the brake from an earlier moment on. So an event counts as
preventable until the robot's stopping time before it, and alarms are judged against that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wm_node.bundle import load_bundle
from wm_node.data.dataset import Dataset, Episode
from wm_node.data.event_labels import load_event_labels
from wm_node.data.ingest import temporary_dataset
from wm_node.data.resample import NO_LABEL
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.planning.supervision import SupervisionConfig, Supervisor
from wm_node.planning.world_model import WorldModel
from wm_node.training.alarm_figures import AlarmRecord, Event
from wm_node.training.recorded import RecordedContexts

COMMITTED = 3  # ticks of commands before the one that is foreseen


def records_of_bags(
    bundle_path: Path,
    bags: Sequence[Path],
    latency_s: float,
    backend: str = "openvino",
    namespace: str = "",
    labels: Path | None = None,
    config: SupervisionConfig | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> list[AlarmRecord]:
    """Foresee each recorded command as :class:`Supervisor` does, up to the episode's first event.

    Args:
        bundle_path: whose risk is wanted; bags that it was trained on flatter it.
        bags: bags or folders of them, with the topics of the profile's events.
        latency_s: from a frame to the effect of the command that is judged by it.
        backend: of the engine.
        namespace: where the profile's topics lie in the bags.
        labels: file of events that a person saw in them.
        config: how commands are foreseen.
        advance: told (episodes done, episodes in all).

    Raises:
        WmError: no usable bag, or no event is labelled in any of them.
    """
    bundle = load_bundle(bundle_path)
    model = WorldModel(bundle, load_engine(bundle, backend, 1))
    supervisor = Supervisor(model, config or SupervisionConfig(), latency_s)
    records = []
    seen = None if labels is None else load_event_labels(labels, bundle.profile)
    with temporary_dataset(bags, bundle.profile, namespace, seen) as (dataset, _):
        if not (np.asarray(dataset.events) != NO_LABEL).any():
            names = ", ".join(event.topic for event in bundle.profile.events) or "no topic"
            raise WmError(f"no event is labelled in these bags: nothing came on {names}.")
        contexts = RecordedContexts(model, dataset)
        for number, episode in enumerate(dataset.episodes):
            records.append(_record(number, episode, dataset, contexts, supervisor, latency_s))
            if advance is not None:
                advance(number + 1, len(dataset.episodes))
    return [record for record in records if record.effect_s.size]


def _record(
    number: int,
    episode: Episode,
    dataset: Dataset,
    contexts: RecordedContexts,
    supervisor: Supervisor,
    latency_s: float,
) -> AlarmRecord:
    profile, rates = dataset.profile, dataset.profile.model
    ticks = slice(episode.start, episode.start + episode.length)
    labelled, actions = np.asarray(dataset.events[ticks]), np.asarray(dataset.actions[ticks])
    begins = {
        name: int(np.argmax(labelled[:, index] == 1))
        for index, name in enumerate(profile.event_names)
        if (labelled[:, index] == 1).any()
    }
    lag = round(latency_s / rates.tick_s)
    first = max(rates.context_steps * rates.ticks_per_step, COMMITTED)
    end = min([episode.length - lag, *begins.values()])
    risk: dict[str, list[float]] = {name: [] for name in profile.event_names}
    for tick in range(first, end):
        seen = supervisor.foresee(
            contexts.at(episode.start + tick),
            actions[tick + lag],
            actions[tick + lag - COMMITTED : tick + lag],
            profile.safety.risk_threshold,
        )
        for name, value in seen.full_risk.items():
            risk[name].append(value)
    # An event that has no label in this episode may have happened: its risk is not judged there.
    known = {
        name: bool((labelled[:, index] != NO_LABEL).any())
        for index, name in enumerate(profile.event_names)
    }
    stopping_s = profile.safety.stopping_time_s
    return AlarmRecord(
        seed=number,
        stream=episode.name,
        effect_s=rates.tick_s * np.arange(first, max(first, end), dtype=np.float64) + latency_s,
        risk={
            name: np.array(values) if known[name] else np.zeros(len(values))
            for name, values in risk.items()
        },
        events={
            name: Event(rates.tick_s * tick, rates.tick_s * tick - stopping_s)
            for name, tick in begins.items()
        },
    )
