"""The report is made from a real bag of the real simulator, with a gate's and verdict's topics."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wm_node.data.bag_writer import BagWriter
from wm_node.data.images import encode_jpeg
from wm_node.data.messages import (
    NS,
    boolean,
    compressed_image,
    header,
    joint_state,
    message_class,
    point_stamped,
    pose_stamped,
    twist_stamped,
)
from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.reporting import replay
from wm_node.reporting.hindsight import Moment, look_back, score
from wm_node.reporting.interventions import find_interventions
from wm_node.reporting.report import ReportData, Scene, write_report
from wm_node.reporting.run_log import RunLog, read_frames, read_run
from wm_node.reporting.summary import (
    Episode,
    gate_spans,
    interventions,
    share_figures,
    shares_of_limits,
)
from wm_node.sim.episode import Streams, record_episode
from wm_node.sim.mix import DEFAULT_MIX
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS
from wm_node.sim.tabletop import JOINT_NAMES, TabletopSim
from wm_node.statistics import wilson95

GATE = ((0.0, "HOLD NO_GOAL"), (0.5, "PASS OK"), (2.0, "BRAKE RISK"), (2.4, "PASS OK"))
PLANNED_NS = 5_000_000


def _cloud(stamp_ns: int, values: dict[str, float]) -> object:
    field = message_class("sensor_msgs/msg/PointField")
    data = np.array(list(values.values()), dtype="<f4").view(np.uint8)
    fields = [field(name, 4 * i, 7, 1) for i, name in enumerate(values)]
    return message_class("sensor_msgs/msg/PointCloud2")(
        header(stamp_ns), 1, 1, fields, False, data.size, data.size, data, True
    )


def _status(name: str, message: str, values: dict[str, str]) -> object:
    pair = message_class("diagnostic_msgs/msg/KeyValue")
    status = message_class("diagnostic_msgs/msg/DiagnosticStatus")
    return status(0, name, message, "", [pair(k, v) for k, v in values.items()])


def _write_bag(path: Path, streams: Streams, namespace: str = "") -> None:
    topics = {
        "/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/command": "geometry_msgs/msg/TwistStamped",
        "/mpc_planner/command": "geometry_msgs/msg/TwistStamped",
        "/mpc_planner/verdict": "sensor_msgs/msg/PointCloud2",
        "/safety_gate/status": "diagnostic_msgs/msg/DiagnosticStatus",
        "/sim_robot/mug_pose": "geometry_msgs/msg/PoseStamped",
        "/sim_robot/tip": "geometry_msgs/msg/PointStamped",
        "/events/fell": "std_msgs/msg/Bool",
    }
    rows: list[tuple[int, str, object]] = []
    for stamp, frame in zip(streams.frame_stamps.tolist(), streams.frames, strict=True):
        rows.append(
            (stamp, "/image_raw/compressed", compressed_image(stamp, "", encode_jpeg(frame)))
        )
    for i, stamp in enumerate(streams.stamps.tolist()):
        rows.append((stamp, "/joint_states", joint_state(stamp, JOINT_NAMES, streams.joints[i])))
        if i % 4 == 0:
            mug = pose_stamped(stamp, "table", tuple(streams.mug_position[i]))
            tip = point_stamped(stamp, "table", (*streams.tip[i], 0.03))
            rows += [(stamp, "/sim_robot/mug_pose", mug), (stamp, "/sim_robot/tip", tip)]
            rows.append((stamp, "/events/fell", boolean(bool(streams.fell[i]))))
    for stamp, command in zip(streams.command_stamps.tolist(), streams.commands, strict=True):
        rows.append((stamp, "/command", twist_stamped(stamp, "table", (*command, 0.0))))
        # What the planner asks for, a moment before the gate lets something else through.
        asked = twist_stamped(stamp - PLANNED_NS, "table", (9.0, 9.0, 0.0))
        rows.append((stamp - PLANNED_NS, "/mpc_planner/command", asked))
        second = (stamp - streams.stamps[0]) / NS
        values = {
            "risk_fell": 0.3 + 0.3 * np.sin(second),
            "risk_zone": 0.05,
            "uncertainty": 0.4,
            "surprise_now": 0.5 + 0.2 * np.cos(3 * second) if second > 1 else np.nan,
            "plan_ms": np.nan,  # a replay has no goal to plan for
            "frame_to_command_ms": 88.0,
        }
        rows.append((stamp, "/mpc_planner/verdict", _cloud(stamp, values)))
    for second, message in GATE:
        stamp = int(streams.stamps[0]) + round(second * NS)
        detail = {"detail": "fell 0.62 over 0.5"} if "RISK" in message else {}
        status = _status("safety_gate: gate", message, detail)
        rows.append((stamp, "/safety_gate/status", status))
    with BagWriter(path) as bag:
        for topic, kind in topics.items():
            bag.add_topic(f"{namespace}{topic}", kind)
        for stamp, topic, message in sorted(rows, key=lambda row: row[0]):
            bag.write(f"{namespace}{topic}", message, stamp)


@pytest.fixture(scope="module")
def profile() -> RobotProfile:
    return load_profile("tabletop")


@pytest.fixture(scope="module")
def streams() -> Streams:
    return record_episode(TabletopSim((320, 240)), 5, DEFAULT_MIX, camera_rate_hz=10)


@pytest.fixture(scope="module")
def log(
    tmp_path_factory: pytest.TempPathFactory, streams: Streams, profile: RobotProfile
) -> RunLog:
    path = tmp_path_factory.mktemp("run") / "bag"
    _write_bag(path, streams)
    return read_run(path, profile)


def test_a_bag_is_read_into_arrays(log: RunLog, streams: Streams) -> None:
    np.testing.assert_array_equal(log.frames["front"], streams.frame_stamps)
    np.testing.assert_array_equal(log.joints.stamps, streams.stamps)
    np.testing.assert_allclose(log.joints.values, streams.joints)
    np.testing.assert_array_equal(log.applied.stamps, streams.command_stamps)
    np.testing.assert_allclose(log.applied.values, streams.commands)
    np.testing.assert_allclose(log.labels["mug_x"].values[:, 0], streams.mug_position[::4, 0])
    np.testing.assert_allclose(log.labels["tip_y"].values[:, 0], streams.tip[::4, 1])
    assert {"risk_fell", "risk_zone", "uncertainty", "surprise_now"} < set(log.verdicts)
    assert log.verdicts["risk_zone"].values[:, 0] == pytest.approx(0.05)


def test_what_the_planner_asked_for_is_not_what_acted(log: RunLog, streams: Streams) -> None:
    np.testing.assert_allclose(log.applied.values, streams.commands)
    np.testing.assert_array_equal(log.commanded, streams.command_stamps - PLANNED_NS)


def test_a_bag_of_a_namespace_is_read_like_one_of_the_root(
    tmp_path: Path, log: RunLog, streams: Streams, profile: RobotProfile
) -> None:
    _write_bag(tmp_path / "bag", streams, "/robot1")
    named = read_run(tmp_path / "bag", profile)
    np.testing.assert_array_equal(named.frames["front"], streams.frame_stamps)
    np.testing.assert_allclose(named.joints.values, streams.joints)
    np.testing.assert_allclose(named.applied.values, streams.commands)
    np.testing.assert_array_equal(named.commanded, log.commanded)
    assert set(named.labels) == set(log.labels)
    assert set(named.verdicts) == set(log.verdicts)
    stamp = int(streams.frame_stamps[7])
    assert set(read_frames(named.bag, profile, "front", [stamp])) == {stamp}


def test_only_wanted_frames_are_decoded(
    log: RunLog, streams: Streams, profile: RobotProfile
) -> None:
    stamp = int(streams.frame_stamps[7])
    frames = read_frames(log.bag, profile, "front", [stamp, stamp + 1])
    assert set(frames) == {stamp}
    error = np.abs(frames[stamp].astype(int) - streams.frames[7]).mean()
    assert error < 4  # JPEG
    small = read_frames(log.bag, profile, "front", [stamp], size=(64, 64))
    assert small[stamp].shape == (64, 64, 3)


def test_interventions_count_faults_but_not_holds(log: RunLog) -> None:
    spans = gate_spans(log)
    assert [(s.state, s.reason) for s in spans] == [tuple(m.split()) for _, m in GATE]
    assert (spans[2].end_ns - spans[2].start_ns) / NS == pytest.approx(0.4)
    assert interventions(spans, None) == {"RISK": 1}
    assert interventions(spans, [(log.start_ns, log.start_ns + NS)]) == {}


def test_an_intervention_has_its_reason_what_was_foreseen_and_what_then_happened(
    log: RunLog, streams: Streams
) -> None:
    (one,) = find_interventions(log, gate_spans(log))
    spans = [span for span in gate_spans(log) if span.reason == "RISK"]
    assert (one.reason, one.detail) == ("RISK", "fell 0.62 over 0.5")
    assert one.states == tuple(span.state for span in spans)
    assert (one.start_ns, one.end_ns) == (spans[0].start_ns, spans[-1].end_ns)
    assert set(one.foreseen) == {"fell", "zone"}
    before = log.verdicts["risk_fell"].between(log.start_ns, one.start_ns)
    assert one.foreseen["fell"] == before.values[-1, 0]
    inside = (streams.stamps >= one.start_ns) & (streams.stamps <= one.end_ns + 2 * NS)
    assert one.happened == {"fell": bool(streams.fell[inside].any())}, "the zone was not recorded"


def _moment(stamp_ns: int, streams: Streams, log: RunLog) -> Moment:
    first = int(np.searchsorted(streams.frame_stamps, stamp_ns))
    frames = [
        np.ascontiguousarray(streams.frames[first + 2 * h, ::4, ::4][:64, :64]) for h in range(9)
    ]
    joints = np.stack([streams.joints[10 * (first + 2 * h)] for h in range(9)])
    return Moment(
        stamp_ns=stamp_ns,
        now=frames[0],
        imagined=np.stack(frames[:-1]),
        real=np.stack(frames[1:]),
        joints_predicted=joints[:-1],
        joints_real=joints[1:],
        joints_now=joints[0],
        risk=np.zeros((8, 2)),
        surprise=np.ones(8),
    )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]


def test_the_report_is_one_file_without_links(
    tmp_path: Path, log: RunLog, streams: Streams
) -> None:
    episode = Episode(
        number=1,
        seed=5,
        goal=(0.1, -0.05),
        start_ns=log.start_ns,
        end_ns=log.end_ns,
        success=False,
        fell=True,
        zone=False,
        ticks=60,
        start_distance=0.15,
        final_distance=0.08,
        least_distance=0.08,
    )
    moments = [_moment(int(streams.frame_stamps[k]), streams, log) for k in (2, 25, 40)]
    table, zone = TABLE_BOUNDS, ZONE_BOUNDS
    data = ReportData(
        title="Demo <b>&",
        subtitle="tabletop",
        log=log,
        cards=[("success", "0 of 1", "95 %: 0 to 79 %")],
        details=[("bag", "bag")],
        episodes=[episode],
        scene=Scene(
            (table.x_min, table.x_max, table.y_min, table.y_max),
            (zone.x_min, zone.x_max, zone.y_min, zone.y_max),
            ("mug_x", "mug_y"),
            ("tip_x", "tip_y"),
        ),
        moments=moments,
        scores=score(moments, 0.2),
        latencies={"plan": np.random.default_rng(0).gamma(20, 2.0, 400)},
        deadline_ms=100.0,
    )
    path = tmp_path / "report.html"
    write_report(path, data)
    page = path.read_text(encoding="utf-8")
    links = _Links()
    links.feed(page)
    assert len(links.sources) > 8
    assert all(source.startswith(("data:", "#")) for source in links.sources)
    assert not re.search(r"(url\(|@import)\s*['\"]?http", page)
    assert "Demo &lt;b&gt;&amp;" in page
    for text in ("Episode 1", "fell", "Imagined against real", "BRAKE", "RISK", "simulated robot"):
        assert text in page
    for text in ("Interventions", "fell 0.62 over 0.5", "foreseen risk", "not recorded"):
        assert text in page
    assert page.count("<svg") >= 5
    assert len(page) < 3_000_000


def test_the_report_of_a_replay_has_its_latencies(
    tmp_path: Path, log: RunLog, profile: RobotProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_moments", lambda run, log: [])  # needs no model here
    (tmp_path / "bag").symlink_to(log.bag)
    bundle: Any = SimpleNamespace(path=tmp_path / "bundle", sha256="0" * 64, profile=profile)
    run = replay.ReplayRun(tmp_path, log.bag, bundle, profile, "openvino", 1.0, {}, {}, 6.0)
    replay.finish(run)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "frame to command: p50 88, p99 88 ms" in page
    assert "plan: p50" not in page, "nothing is planned without a goal"


def test_floors_of_the_scores_are_those_of_holding_still(streams: Streams, log: RunLog) -> None:
    moments = [_moment(int(streams.frame_stamps[20]), streams, log)]
    scores = score(moments, 0.2)
    assert scores is not None
    hold = moments[0].joints_now - moments[0].joints_real[3]
    assert scores.joint_rmse_hold[3] == pytest.approx(np.sqrt(np.mean(hold**2)))
    assert scores.psnr_copy[0] == pytest.approx(scores.psnr[0])  # imagined: one step too late
    assert score([], 0.2) is None


class _NoModel:
    """Stands in for the world model where only what it is given matters."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []
        self.futures: list[Any] = []

    def encode(self, frames: Any) -> Any:
        return np.zeros(4, np.float32)

    def rollout(self, context: Any, actions: Any) -> Any:
        self.contexts.append(context)
        self.futures.append(actions[0])
        return SimpleNamespace(
            latents=np.zeros((1, 8, 4)), joints=np.zeros((1, 8, 4)), risk=np.zeros((1, 8, 2))
        )

    def decode(self, *_: Any) -> Any:
        return np.zeros((8, 1, 64, 64, 3), np.uint8)

    def surprise(self, *_: Any) -> float:
        return 1.0


def test_hindsight_takes_joints_and_actions_of_when_the_frame_was_taken(
    log: RunLog, streams: Streams
) -> None:
    data = log.profile.dump()
    data["cameras"][0]["latency_s"] = 0.1  # one tick and one frame
    late = replace(log, profile=parse_profile(data, "test"))
    at = int(streams.frame_stamps[25])
    model = _NoModel()
    (moment,) = look_back(late, model, [at])  # type: ignore[arg-type]
    (earlier,) = look_back(log, model, [int(streams.frame_stamps[24])])  # type: ignore[arg-type]
    assert moment.stamp_ns == at
    np.testing.assert_allclose(moment.joints_now, earlier.joints_now)
    np.testing.assert_allclose(moment.joints_real, earlier.joints_real)
    np.testing.assert_allclose(model.contexts[0].actions, model.contexts[1].actions)
    np.testing.assert_allclose(model.futures[0], model.futures[1])
    assert np.ptp(model.futures[0], axis=0).max() > 0.01  # the arm is told different things


def test_surprise_and_uncertainty_are_shares_of_their_limits(log: RunLog) -> None:
    shares = shares_of_limits(log)
    assert shares["surprise"].stamps.size < shares["uncertainty"].stamps.size  # not known at first
    figures = share_figures(shares)
    assert figures["uncertainty"] == {"p50": 0.4, "p99": 0.4, "max": 0.4}
    assert (
        0.6 < figures["surprise"]["p99"] <= figures["surprise"]["max"] == pytest.approx(0.7, 0.01)
    )
    assert share_figures(shares_of_limits(replace(log, verdicts={}))) == {}


def test_wilson_interval() -> None:
    assert wilson95(0, 0) == (0.0, 1.0)
    low, high = wilson95(93, 100)
    assert low == pytest.approx(0.8625, abs=1e-3)
    assert high == pytest.approx(0.9657, abs=1e-3)


def test_a_missing_bag_is_named(tmp_path: Path, profile: RobotProfile) -> None:
    with pytest.raises(WmError, match=r"cannot read the bag .*nowhere"):
        read_run(tmp_path / "nowhere", profile)
