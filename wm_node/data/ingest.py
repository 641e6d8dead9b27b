"""Many bags and a robot profile to a dataset: in parallel, in a fixed order, all or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2

from wm_node.data.bag_ingest import BagReport, ingest_bag, segments
from wm_node.data.bags import BagSource, find_bags
from wm_node.data.contact_sheet import write_contact_sheet
from wm_node.data.dataset import Dataset, DatasetWriter
from wm_node.data.event_labels import EventLabels
from wm_node.data.summary import summarise
from wm_node.errors import WmError
from wm_node.profile import RobotProfile

CONTACT_SHEET = "contact_sheet.png"

Progress = Callable[[int, int, BagReport], None]  # bags done, bags in all, the last report


@dataclass(frozen=True)
class IngestResult:
    """A finished dataset and what happened to every bag."""

    path: Path
    summary: dict[str, Any]
    reports: tuple[BagReport, ...]


def default_workers() -> int:
    """Processes to use: the CPUs that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def ingest(
    bags: Sequence[str | Path],
    profile: RobotProfile,
    out: str | Path,
    *,
    namespace: str = "",
    workers: int = 1,
    overwrite: bool = False,
    onto: str | Path | None = None,
    labels: EventLabels | None = None,
    progress: Progress | None = None,
) -> IngestResult:
    """Turn bags into a dataset.

    The order of episodes is that of the bags, whatever the number of workers. Bags that cannot be
    used are skipped and named with the reason in the summary.

    Args:
        bags: rosbag2 directories, ``.mcap`` or ``.db3`` files, or folders of them.
        profile: the robot; its delays decide which command acted when.
        out: the dataset's directory, which appears only when everything is done.
        namespace: where the profile's relative topics lie in the bags.
        workers: processes that read bags.
        overwrite: replace a dataset at ``out``.
        onto: a dataset whose episodes come first, as they are; it stays what it is.
        labels: events that a person saw in the bags, by the bags' names.
        progress: called after every bag.

    Raises:
        WmError: a label of a bag that is not there, no bag is usable, the dataset cannot be
            written, or ``onto`` is of another profile or holds one of the bags already.
    """
    sources = find_bags(bags)
    _check_labelled(sources, labels)
    out = Path(out)
    base = None if onto is None else _base(Path(onto), profile, sources)
    reports: list[BagReport] = []
    with DatasetWriter(out, profile, overwrite) as writer:
        try:
            if base is not None:
                writer.append_dataset(base)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}.staging-", dir=out.parent) as tmp:
                staged = _stage(sources, profile, namespace, Path(tmp), workers, labels)
                for report, folder in staged:
                    for segment in segments(report, profile, folder):
                        writer.append_rows(segment.name, segment.ticks, segment.rows)
                    shutil.rmtree(folder, ignore_errors=True)
                    reports.append(report)
                    if progress is not None:
                        progress(len(reports), len(sources), report)
            used = [report for report in reports if report.skipped is None]
            if not used:
                raise WmError(_nothing_usable(reports))
            summary, mark = summarise(reports, profile), fingerprint(used)
            if labels is not None:
                mark = hashlib.sha256(f"{labels.digest}\n{mark}\n".encode()).hexdigest()
            if base is not None:
                mark = hashlib.sha256(f"{base.fingerprint}\n{mark}\n".encode()).hexdigest()
                counts = {"episodes": len(base.episodes), "ticks": base.num_ticks}
                summary["onto"] = {"fingerprint": base.fingerprint, **counts}
            writer.finish(mark, summary)
            write_contact_sheet(Dataset.open(writer.partial), writer.partial / CONTACT_SHEET)
            writer.commit()
        except OSError as error:
            raise WmError(
                f"cannot write the dataset {out}: {error.strerror or error}; free space or choose "
                "another --out."
            ) from error
    return IngestResult(out, summary, tuple(reports))


@contextmanager
def temporary_dataset(
    bags: Sequence[str | Path],
    profile: RobotProfile,
    namespace: str = "",
    labels: EventLabels | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Dataset, IngestResult]]:
    """Ingest bags to look at them once; the dataset is gone afterwards. As :func:`ingest`."""
    with tempfile.TemporaryDirectory(prefix="wm_dataset-") as folder:
        out = Path(folder) / "dataset"
        result = ingest(bags, profile, out, namespace=namespace, labels=labels, progress=progress)
        yield Dataset.open(result.path), result


def _base(path: Path, profile: RobotProfile, sources: Sequence[BagSource]) -> Dataset:
    """Open the dataset that others are put onto."""
    base = Dataset.open(path)
    if base.profile != profile:
        raise WmError(
            f"the dataset {path} was ingested with another profile; ingest its bags again with "
            "this one."
        )
    there = {episode.name.rsplit("#", 1)[0] for episode in base.episodes}
    twice = [source.name for source in sources if source.name in there]
    if twice:
        more = f" and {len(twice) - 1} more are" if len(twice) > 1 else " is"
        raise WmError(f"'{twice[0]}'{more} in {path} already; give only bags that are new.")
    return base


def _check_labelled(sources: Sequence[BagSource], labels: EventLabels | None) -> None:
    there = {source.name for source in sources}
    missing = sorted({bag for bag, _ in labels.spans} - there) if labels is not None else []
    if missing:
        raise WmError(f"labels are given for '{missing[0]}', which is none of the bags.")


def fingerprint(reports: Sequence[BagReport]) -> str:
    """Return the sha256 over the names, sizes and message counts of the bags."""
    digest = hashlib.sha256()
    for report in sorted(reports, key=lambda item: item.name):
        digest.update(f"{report.name}\t{report.size_bytes}\t{report.message_count}\n".encode())
    return digest.hexdigest()


def _nothing_usable(reports: Sequence[BagReport]) -> str:
    first = reports[0]
    more = f" and {len(reports) - 1} more bags were skipped" if len(reports) > 1 else ""
    return f"no bag can be used: '{first.name}' was skipped ({first.skipped}){more}."


def _stage(
    sources: Sequence[BagSource],
    profile: RobotProfile,
    namespace: str,
    tmp: Path,
    workers: int,
    labels: EventLabels | None,
) -> Iterator[tuple[BagReport, Path]]:
    """Ingest bags into folders of ``tmp`` and yield them in order."""
    folders = [tmp / str(number) for number in range(len(sources))]
    workers = min(workers, len(sources))
    if workers <= 1:
        for source, folder in zip(sources, folders, strict=True):
            yield ingest_bag(source, profile, namespace, folder, labels), folder
        return
    # Processes are spawned, not forked: the parent runs threads (progress bar, compression).
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    jobs = iter(zip(sources, folders, strict=True))
    waiting: deque[tuple[Future[BagReport], Path]] = deque()
    try:
        while True:
            # Few bags ahead of the one being written, so that staging takes little room on disk.
            while len(waiting) < 4 * workers and (job := next(jobs, None)) is not None:
                source, folder = job
                future = pool.submit(ingest_bag, source, profile, namespace, folder, labels)
                waiting.append((future, folder))
            if not waiting:
                break
            future, folder = waiting.popleft()
            yield future.result(), folder
    except BrokenProcessPool as error:
        raise WmError(
            "a process that read bags was killed, probably for want of memory; use fewer --workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    cv2.setNumThreads(1)
