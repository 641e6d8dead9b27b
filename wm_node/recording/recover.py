"""Repairs MCAP bags that a killed recorder left behind, without touching the original.

A file is read twice: once to judge it and to collect its channels, once to write what is sound
into a new file. Healthy files of the bag are copied as they are.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mcap.records import Attachment, Channel, Header, Message, Metadata, Schema
from mcap.writer import CompressionType, Writer

from wm_node.errors import WmError
from wm_node.recording.mcap_file import LIBRARY, METADATA_NAME
from wm_node.recording.metadata import (
    FILE_NAME,
    FileInfo,
    Topic,
    bag_document,
    dump_yaml,
    read_metadata,
    write_metadata,
)
from wm_node.recording.scan import Cut, Damage, End, scan

# Called with the bytes done and the bytes to do.
Progress = Callable[[int, int], None]

# How bags before ROS 2 Jazzy numbered what newer ones name.
_QOS_NAMES: dict[str, tuple[str, ...]] = {
    "history": ("system_default", "keep_last", "keep_all", "unknown"),
    "reliability": ("system_default", "reliable", "best_effort", "unknown", "best_available"),
    "durability": ("system_default", "transient_local", "volatile", "unknown", "best_available"),
    "liveliness": (
        "system_default",
        "automatic",
        "manual_by_node",
        "manual_by_topic",
        "unknown",
        "best_available",
    ),
}

# A damaged clock or chunk head can name any time; a longer gap than this is not believed.
_MAX_GAP_S = 3600.0


@dataclass(frozen=True)
class FileReport:
    """What was found in one file and done with it.

    ``action`` is ``kept`` (healthy), ``repaired`` or ``left out`` (nothing could be saved).
    ``lost_s`` is the time between the sound messages around damage, in log time.
    """

    name: str
    action: str
    messages: int
    lost_s: float
    problems: tuple[str, ...]


@dataclass(frozen=True)
class RecoverReport:
    """The outcome of :func:`recover`.

    ``saved`` counts the messages of the whole bag by topic. ``missing`` counts those that the
    bag's old metadata names beyond them. ``open_chunk_s`` is how much the killed recorder may have
    held in memory on top of ``lost_s``: None if the bag does not tell, 0 if it was closed.
    """

    bag: Path
    out: Path | None
    healthy: bool
    files: tuple[FileReport, ...]
    saved: dict[str, int]
    missing: dict[str, int]
    lost_s: float
    open_chunk_s: float | None
    metadata_problem: str | None

    def document(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "bag": str(self.bag),
            "out": None if self.out is None else str(self.out),
            "healthy": self.healthy,
            "messages": sum(self.saved.values()),
            "saved": self.saved,
            "missing": self.missing,
            "lost_s": self.lost_s,
            "open_chunk_s": self.open_chunk_s,
            "metadata_problem": self.metadata_problem,
            "files": [
                {
                    "name": file.name,
                    "action": file.action,
                    "messages": file.messages,
                    "lost_s": file.lost_s,
                    "problems": list(file.problems),
                }
                for file in self.files
            ],
        }


@dataclass
class _Survey:
    """What one pass over a file found."""

    path: Path
    info: FileInfo
    profile: str = ""
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    custom: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost_s: float = 0.0
    cut: bool = False

    @property
    def healthy(self) -> bool:
        return not self.problems


def recover(
    bag: str | Path,
    out: str | Path | None = None,
    in_place: bool = False,
    progress: Progress | None = None,
) -> RecoverReport:
    """Repair a bag and say what was saved.

    Args:
        bag: folder of a rosbag2 MCAP bag, or one ``.mcap`` file.
        out: folder to write; by default ``<bag>_recovered`` beside it.
        in_place: replace the damaged files of the bag instead. Each is replaced only once its
            repaired copy is complete.
        progress: called with (bytes done, bytes to do).

    Returns:
        The report; ``out`` is None if the bag was healthy and nothing was written.

    Raises:
        WmError: no MCAP bag, nothing to save in it, ``out`` exists, or no room for the copy.
    """
    bag = Path(bag)
    paths = _mcap_files(bag)
    if in_place and out is not None:
        raise WmError("give either an output folder or --in-place, not both.")
    meter = _Meter(progress, 2 * sum(path.stat().st_size for path in paths))
    try:
        return _recover(bag, paths, None if out is None else Path(out), in_place, meter)
    except OSError as error:
        raise WmError(f"cannot recover {bag}: {error.strerror or error}.") from error


def _recover(
    bag: Path, paths: list[Path], out: Path | None, in_place: bool, meter: _Meter
) -> RecoverReport:
    surveys, left_out = [], []
    for path in paths:
        try:
            survey = _survey(path, meter)
        except WmError as error:
            if len(paths) == 1:
                raise
            left_out.append(FileReport(path.name, "left out", 0, 0.0, (str(error),)))
            continue
        if survey.info.message_count or survey.healthy:
            surveys.append(survey)
        else:
            left_out.append(FileReport(path.name, "left out", 0, 0.0, tuple(survey.problems)))
    old, metadata_problem = _old_metadata(bag)
    damaged = bool(left_out) or not all(survey.healthy for survey in surveys)
    if metadata_problem is None and not damaged:
        metadata_problem = _disagreement(old, surveys)
    healthy = not damaged and (metadata_problem is None or bag.is_file())
    if not healthy and not any(survey.info.message_count for survey in surveys):
        raise WmError(f"{bag} holds no whole message; there is nothing to save.")

    target: Path | None = None
    if not healthy:
        target = _write_bag(bag, surveys, out, in_place, old, meter)
    meter.finish()
    saved = _sum_counts(survey.info for survey in surveys)
    files = [
        FileReport(
            survey.path.name,
            "kept" if survey.healthy else "repaired",
            survey.info.message_count,
            round(survey.lost_s, 3),
            tuple(survey.problems),
        )
        for survey in surveys
    ]
    order = [path.name for path in paths]
    return RecoverReport(
        bag=bag,
        out=target,
        healthy=healthy,
        files=tuple(sorted(files + left_out, key=lambda file: order.index(file.name))),
        saved=saved,
        missing={
            topic: count - saved.get(topic, 0)
            for topic, count in _old_counts(old).items()
            if count > saved.get(topic, 0)
        },
        lost_s=round(sum(survey.lost_s for survey in surveys), 3),
        open_chunk_s=_open_chunk(surveys),
        metadata_problem=metadata_problem,
    )


# ---------------------------------------------------------------- finding out


def _mcap_files(bag: Path) -> list[Path]:
    """Return the bag's MCAP files in the order of their numbers."""
    if bag.is_file():
        if bag.suffix == ".db3":
            raise WmError(f"{bag} is a sqlite3 bag; 'wm recover' repairs MCAP bags only.")
        return [bag]
    if not bag.is_dir():
        raise WmError(f"there is no bag at {bag}.")
    paths = sorted(bag.glob("*.mcap"), key=_natural)
    if paths:
        return paths
    if list(bag.glob("*.db3")):
        raise WmError(f"{bag} is a sqlite3 bag; 'wm recover' repairs MCAP bags only.")
    if list(bag.glob("*.mcap.zstd")):
        raise WmError(f"{bag} holds compressed files; unpack them with 'zstd -d' first.")
    raise WmError(f"{bag} holds no MCAP file; give the folder of a rosbag2 bag.")


def _natural(path: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)
    ]


def _survey(path: Path, meter: _Meter) -> _Survey:
    survey = _Survey(path, FileInfo(path.name))
    counts: dict[int, int] = {}
    previous_ns: int | None = None
    gap_from_ns: int | None = None
    in_gap = False
    meter.begin(path)
    for passed, item in scan(path):
        meter.at(passed)
        if isinstance(item, Message):
            if in_gap:
                survey.lost_s += _gap_s(gap_from_ns, item.log_time)
                in_gap = False
            counts[item.channel_id] = counts.get(item.channel_id, 0) + 1
            previous_ns = max(previous_ns or 0, item.log_time)
            survey.info.start_ns = min(survey.info.start_ns or item.log_time, item.log_time)
        elif isinstance(item, Schema):
            survey.schemas.setdefault(item.id, item)
        elif isinstance(item, Channel):
            survey.channels.setdefault(item.id, item)
        elif isinstance(item, Header):
            survey.profile = item.profile
        elif isinstance(item, Metadata):
            if item.name == METADATA_NAME:
                survey.custom.update(item.metadata)
        elif isinstance(item, Damage):
            survey.problems.append(f"{item.reason} at byte {item.offset}")
            if not in_gap:
                in_gap, gap_from_ns = True, previous_ns
        elif isinstance(item, Cut):
            survey.cut = True
            survey.problems.append(f"{item.reason} at byte {item.offset}")
            survey.lost_s += _gap_s(previous_ns, item.until_ns)
        elif isinstance(item, End) and item.statistics is not None:
            told, found = item.statistics.message_count, sum(counts.values())
            if told != found and survey.healthy:
                survey.problems.append(f"its summary tells of {told} messages, {found} are there")
    survey.info.end_ns = previous_ns
    _count_topics(survey, counts)
    return survey


def _count_topics(survey: _Survey, counts: dict[int, int]) -> None:
    """Turn counts by channel into counts by topic; name what has no channel any more."""
    unknown = 0
    for number, count in counts.items():
        channel = survey.channels.get(number)
        if channel is None or (channel.schema_id and channel.schema_id not in survey.schemas):
            unknown += count
            survey.channels.pop(number, None)
        else:
            survey.info.counts[channel.topic] = survey.info.counts.get(channel.topic, 0) + count
    for channel in survey.channels.values():
        survey.info.counts.setdefault(channel.topic, 0)
    if unknown:
        survey.problems.append(f"{unknown} messages belong to topics whose description is lost")


def _gap_s(start_ns: int | None, end_ns: int | None) -> float:
    if start_ns is None or end_ns is None:
        return 0.0
    gap = (end_ns - start_ns) * 1e-9
    return gap if 0.0 < gap < _MAX_GAP_S else 0.0


def _open_chunk(surveys: list[_Survey]) -> float | None:
    cut = [survey for survey in surveys if survey.cut]
    if not cut:
        return 0.0
    try:
        seconds = [float(survey.custom["chunk_s"]) for survey in cut]
    except (KeyError, ValueError):
        return None
    return max(seconds) if all(0.0 < s <= 3600.0 for s in seconds) else None


def _old_metadata(bag: Path) -> tuple[dict[str, Any], str | None]:
    """Return the bag's metadata, and what is wrong with it."""
    if bag.is_file():
        return {}, None
    if not (bag / FILE_NAME).exists():
        return {}, f"{FILE_NAME} is missing"
    try:
        return read_metadata(bag), None
    except WmError as error:
        return {}, str(error)


def _old_counts(old: dict[str, Any]) -> dict[str, int]:
    """Return the counts by topic that old metadata tells; an unreadable part tells nothing."""
    counts: dict[str, int] = {}
    topics = old.get("topics_with_message_count")
    for entry in topics if isinstance(topics, list) else []:
        try:
            counts[str(entry["topic_metadata"]["name"])] = int(entry["message_count"])
        except (KeyError, TypeError, ValueError):
            continue
    return counts


def _disagreement(old: dict[str, Any], surveys: list[_Survey]) -> str | None:
    """Return how metadata.yaml differs from the files."""
    names = old.get("relative_file_paths")
    told = [Path(str(name)).name for name in names] if isinstance(names, list) else []
    if sorted(told) != sorted(survey.path.name for survey in surveys):
        return f"{FILE_NAME} names other files than the bag holds"
    count = sum(survey.info.message_count for survey in surveys)
    if old.get("message_count") != count:
        return f"{FILE_NAME} tells of {old.get('message_count')} messages, the files hold {count}"
    return None


def _sum_counts(infos: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for info in infos:
        for topic, count in info.counts.items():
            counts[topic] = counts.get(topic, 0) + count
    return dict(sorted(counts.items()))


# ---------------------------------------------------------------- writing


def _write_bag(
    bag: Path,
    surveys: list[_Survey],
    out: Path | None,
    in_place: bool,
    old: dict[str, Any],
    meter: _Meter,
) -> Path:
    custom = _custom(old, surveys)
    alike = _descriptions(surveys)
    if in_place:
        for survey in surveys:
            if not survey.healthy:
                part = survey.path.with_name(survey.path.name + ".recovering")
                part.unlink(missing_ok=True)  # of a run that was killed
                try:
                    _rewrite(survey, part, alike, custom, meter)
                    part.replace(survey.path)
                except BaseException:  # Ctrl-C as well: what is left would be in the way
                    part.unlink(missing_ok=True)
                    raise
        folder = bag.parent if bag.is_file() else bag
        if bag.is_dir():
            write_metadata(folder, _document(surveys, custom), sync=True)
        return bag
    name = bag.stem if bag.is_file() else bag.resolve().name
    target = out if out is not None else bag.resolve().parent / f"{name}_recovered"
    if target.exists():
        raise WmError(f"{target} exists already; choose another folder with --out.")
    target.mkdir(parents=True)
    try:
        for survey in surveys:
            if survey.healthy:
                shutil.copy2(survey.path, target / survey.path.name)
            else:
                _rewrite(survey, target / survey.path.name, alike, custom, meter)
        write_metadata(target, _document(surveys, custom), sync=True)
    except BaseException:  # a half-written bag must not be taken for the recovered one
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def _descriptions(surveys: list[_Survey]) -> dict[str, Channel]:
    """Return the first description of each topic: readers want the same in all files of a bag."""
    first: dict[str, Channel] = {}
    for survey in surveys:
        for channel in survey.channels.values():
            first.setdefault(channel.topic, channel)
    return first


def _rewrite(
    survey: _Survey,
    path: Path,
    alike: dict[str, Channel],
    custom: dict[str, str],
    meter: _Meter,
) -> None:
    """Write what is sound of a file into a new one."""
    schemas: dict[int, int] = {}
    channels: dict[int, int] = {}
    meter.begin(survey.path)
    with path.open("xb") as file:
        writer = Writer(file, compression=CompressionType.ZSTD)
        writer.start(profile=_profile(survey), library=LIBRARY)
        for passed, item in scan(survey.path):
            meter.at(passed)
            if isinstance(item, Message):
                source = survey.channels.get(item.channel_id)
                if source is None:
                    continue
                if item.channel_id not in channels:
                    about = alike[source.topic].metadata
                    channels[item.channel_id] = _register(writer, survey, source, about, schemas)
                writer.add_message(
                    channels[item.channel_id],
                    item.log_time,
                    item.data,
                    item.publish_time,
                    item.sequence,
                )
            elif isinstance(item, Metadata) and item.name != "rosbag2":
                writer.add_metadata(item.name, item.metadata)
            elif isinstance(item, Attachment):
                writer.add_attachment(
                    item.create_time, item.log_time, item.name, item.media_type, item.data
                )
        document = _document([survey], custom)["rosbag2_bagfile_information"]
        writer.add_metadata("rosbag2", {"serialized_metadata": dump_yaml(document)})
        writer.finish()


def _profile(survey: _Survey) -> str:
    """Return the file's MCAP profile; no checksum guards the header, so the schemas decide."""
    of_ros = any(schema.encoding.startswith("ros2") for schema in survey.schemas.values())
    return "ros2" if of_ros else survey.profile


def _register(
    writer: Writer,
    survey: _Survey,
    channel: Channel,
    about: dict[str, str],
    schemas: dict[int, int],
) -> int:
    number = channel.schema_id
    if number and number not in schemas:
        schema = survey.schemas[number]
        schemas[number] = writer.register_schema(schema.name, schema.encoding, schema.data)
    return int(
        writer.register_channel(
            channel.topic, channel.message_encoding, schemas.get(number, 0), about
        )
    )


def _custom(old: dict[str, Any], surveys: list[_Survey]) -> dict[str, str]:
    told = old.get("custom_data")
    if isinstance(told, dict):
        return {str(key): str(value) for key, value in told.items()}
    custom = dict(surveys[0].custom) if surveys else {}
    custom.pop("chunk_s", None)
    return custom


def _document(surveys: list[_Survey], custom: dict[str, str]) -> dict[str, Any]:
    schemas: dict[str, str] = {}
    for survey in surveys:
        for channel in survey.channels.values():
            schema = survey.schemas.get(channel.schema_id)
            schemas.setdefault(channel.topic, schema.name if schema else "")
    topics: list[tuple[Topic, list[dict[str, Any]] | None]] = []
    for name, channel in sorted(_descriptions(surveys).items()):
        topic = Topic(
            name=name,
            type=schemas[name],
            definition="",
            type_hash=channel.metadata.get("topic_type_hash", ""),
            encoding=channel.message_encoding,
        )
        topics.append((topic, _qos(channel.metadata.get("offered_qos_profiles", ""))))
    infos = [survey.info for survey in surveys]
    return bag_document(infos, topics, custom)


def _qos(text: str) -> list[dict[str, Any]]:
    """Return the QoS that a channel carries, with names in place of older bags' numbers."""
    try:
        profiles = yaml.safe_load(text) if text else []
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    if not isinstance(profiles, list):
        return []
    named = []
    for profile in profiles:
        if not isinstance(profile, dict):
            return []
        one = dict(profile)
        for key, names in _QOS_NAMES.items():
            value = one.get(key)
            if isinstance(value, int):
                one[key] = names[value] if 0 <= value < len(names) else "unknown"
        named.append(one)
    return named


class _Meter:
    """Adds up the progress over files that are read twice."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = max(1, total)
        self._base = 0
        self._size = 0

    def begin(self, path: Path) -> None:
        self._base += self._size
        self._size = path.stat().st_size
        self.at(0)

    def at(self, passed: int) -> None:
        if self._progress is not None:
            self._progress(min(self._base + passed, self._total), self._total)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total)
