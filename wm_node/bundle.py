"""The bundle: one folder with everything that a robot needs to run a trained model.

    manifest.yaml        what it is: profile, sizes, graphs, data, metrics, sha256 of each file
    weights.safetensors  the parameters, once, matrices in half precision
    *.onnx               graphs; their weights lie in weights.safetensors as ONNX external data
    golden.npz           inputs and outputs that every backend must reproduce before it may run
    familiar.safetensors which frames are like those of the training data
    places.safetensors   where the pushed object may be, of a robot that pushes one in a plane
    floors.npz           of a real robot: what predictions on recordings must beat

Nothing in it is code or a pickle. A bundle never changes after it is written; its identity is the
sha256 of its manifest, which holds the sha256 of every other file.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wm_node import __version__
from wm_node.errors import WmError
from wm_node.model.config import ModelConfig
from wm_node.profile import RobotProfile, parse_profile

FORMAT = 1
MANIFEST = "manifest.yaml"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.npz"
GRAPHS = ("encode", "rollout", "search", "propose", "decode")
"""Graphs that every bundle has; ``read`` is there where the profile has labels, ``futures``
where the model tells futures apart, and searches where they are compiled whole."""
MAX_MANIFEST_BYTES = 4_000_000
MAX_FILE_BYTES = 4_000_000_000


NARROW = ("dynamics.", "heads.")
"""Weights of recurrent models whose products a backend may compute in bf16, also in graphs that are
marked ``full_precision``; their values are stored as bf16 holds them."""
NOT_FINITE = 1e30
"""Cost that a graph of a whole search gives candidates whose predictions are not finite."""
SEARCH_TERMS = ("goal", "push", "risk", "smoothness", "uncertainty")
"""Order of its weights and of the terms of its cost."""
FIRST_SEARCH_TERMS = SEARCH_TERMS[:4]
"""Those of graphs whose manifest entry names none."""


@dataclass(frozen=True)
class SearchSize:
    """What is fixed in a graph that searches a whole plan."""

    candidates: int
    """Of each iteration."""
    iterations: int
    seeds: int
    """Candidates of the first iteration that the caller gives."""
    elites: int
    """Candidates that the next iteration is fitted to."""
    terms: tuple[str, ...] = SEARCH_TERMS
    """Of its cost."""


PRESETS = {
    "plan_brief": SearchSize(candidates=32, iterations=2, seeds=11, elites=4),
    "plan_fast": SearchSize(candidates=64, iterations=3, seeds=11, elites=8),
    "plan_normal": SearchSize(candidates=128, iterations=3, seeds=11, elites=15),
    "plan_thorough": SearchSize(candidates=512, iterations=4, seeds=11, elites=61),
}
"""Searches that are compiled whole; a planner with other sizes calls the rollouts one by one."""


@dataclass(frozen=True)
class GraphSpec:
    """Names of the inputs and outputs of one ONNX graph, in its order."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    full_precision: bool = False
    """A backend must not compute it in fewer than 32 bits."""
    search: SearchSize | None = None
    """Of graphs that search a whole plan."""


@dataclass(frozen=True)
class Calibration:
    """What is usual on the episodes that training left out; the defaults change nothing."""

    surprise_scale: tuple[float, ...] = (1.0,)
    """Root mean square distance of a latent from the one predicted, one a step ahead."""
    uncertainty_scale: float = 1.0
    """Mean disagreement of the ensemble."""
    events_trained: tuple[str, ...] | None = None
    """Events whose risk is known; None: all of them."""
    label_mean: tuple[float, ...] | None = None
    """Of each label; None: the bundle does not say."""
    label_std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk."""

    path: Path
    manifest: dict[str, Any]
    profile: RobotProfile
    model: ModelConfig
    calibration: Calibration
    graphs: dict[str, GraphSpec]
    sha256: str

    def file(self, name: str) -> Path:
        """Return the path of one of the bundle's files."""
        return self.path / name

    def checked_file(self, name: str) -> Path:
        """Return the path of a file that is still the one that was checked when it was loaded.

        Raises:
            WmError: it has changed since.
        """
        _check_file(self.path, name, self.manifest["files"].get(name))
        return self.path / name

    def optional_file(self, name: str) -> Path | None:
        """Return the path as :meth:`checked_file`; None where the bundle holds no such file."""
        return self.checked_file(name) if name in self.manifest["files"] else None

    def checked_graph(self, graph: str) -> Path:
        """Return the path of a graph, checked as its weights are; see :meth:`checked_file`."""
        self.checked_file(WEIGHTS)
        return self.checked_file(self.graphs[graph].file)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_bundle(path: Path, parts: Path, manifest: dict[str, Any]) -> Bundle:
    """Seal the files of the folder ``parts`` as the bundle ``path``, atomically.

    Args:
        path: the new bundle; must not exist yet.
        parts: folder with weights, graphs and golden arrays; left empty.
        manifest: everything but the file list, format and version, which are added here.

    Raises:
        WmError: the path is taken, or cannot be written.
    """
    if path.exists():
        raise WmError(f"{path} already exists; a bundle never changes, so choose another path.")
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(parts.iterdir())
    }
    content = {"format": FORMAT, "wm_node": __version__, **manifest, "files": files}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name in files:
            shutil.move(str(parts / name), temporary / name)
            (temporary / name).chmod(0o644)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        (temporary / MANIFEST).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise WmError(f"cannot write the bundle {path}: {error}.") from error
    return load_bundle(path)


def load_bundle(path: str | Path) -> Bundle:
    """Load and check a bundle: structure, profile, and the sha256 of every file.

    Raises:
        WmError: missing, damaged, from a newer version, or with a wrong profile.
    """
    folder = Path(path)
    try:
        with (folder / MANIFEST).open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise WmError(
            f"there is no bundle at {folder} (no {MANIFEST}); give a folder that 'wm train' wrote."
        ) from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise WmError(f"the bundle {folder} is damaged: its {MANIFEST} is far too large.")
    try:
        manifest = yaml.safe_load(raw.decode("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise WmError(f"the bundle {folder} is damaged: its {MANIFEST} is not YAML.") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise WmError(f"the bundle {folder} is damaged: its {MANIFEST} is not a manifest.")
    if manifest["format"] != FORMAT:
        raise WmError(
            f"the bundle {folder} has format {manifest['format']!r}, this version reads {FORMAT}; "
            "train it again or install the matching wm_node."
        )
    _check_files(folder, manifest.get("files"))
    profile = parse_profile(manifest.get("profile"), f"the profile in bundle {folder}")
    return Bundle(
        path=folder,
        manifest=manifest,
        profile=profile,
        model=ModelConfig.from_dict(manifest.get("model")),
        calibration=_read_calibration(folder, manifest.get("calibration"), profile),
        graphs=_read_graphs(folder, manifest),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _read_calibration(folder: Path, entry: Any, profile: RobotProfile) -> Calibration:
    if entry is None:
        return Calibration()
    try:
        events = entry.get("events_trained")
        if not isinstance(events, list | None):
            raise TypeError
        labels = len(profile.labels)
        return Calibration(
            surprise_scale=_numbers(entry.get("surprise_scale", [1.0])),
            uncertainty_scale=_numbers([entry.get("uncertainty_scale", 1.0)])[0],
            events_trained=None if events is None else tuple(map(str, events)),
            label_mean=_of_labels(entry.get("label_mean"), labels, positive=False),
            label_std=_of_labels(entry.get("label_std"), labels, positive=True),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise WmError(
            f"the bundle {folder} is damaged: its manifest's calibration is not one; copy it again."
        ) from error


def _numbers(values: Any, positive: bool = True) -> tuple[float, ...]:
    """Return a list of at least one number that single precision holds.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(values, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    ):
        raise TypeError
    least = 1e-30 if positive else -1e30
    if not values or not all(least <= v <= 1e30 for v in values):
        raise ValueError
    return tuple(map(float, values))


def _of_labels(values: Any, labels: int, positive: bool) -> tuple[float, ...] | None:
    if values is None or not labels:
        return None
    if len(numbers := _numbers(values, positive)) != labels:
        raise ValueError
    return numbers


def _check_files(folder: Path, files: Any) -> None:
    if not isinstance(files, dict) or not {WEIGHTS, GOLDEN} <= set(files):
        raise WmError(f"the bundle {folder} is damaged: its manifest lists no weights or golden.")
    for name, entry in files.items():
        _check_file(folder, name, entry)


def _check_file(folder: Path, name: Any, entry: Any) -> None:
    plain = isinstance(name, str) and Path(name).name == name and not name.startswith(".")
    if not plain or not isinstance(entry, dict):
        raise WmError(f"the bundle {folder} is damaged: bad file entry {name!r}.")
    file = folder / name
    if not file.is_file() or file.is_symlink():
        raise WmError(f"the bundle {folder} is damaged: {name} is missing; copy it again.")
    size = file.stat().st_size
    if size != entry.get("bytes") or size > MAX_FILE_BYTES:
        raise WmError(
            f"the bundle {folder} is damaged: {name} has {size} bytes instead of "
            f"{entry.get('bytes')}; copy it again."
        )
    if file_sha256(file) != entry.get("sha256"):
        raise WmError(f"the bundle {folder} is damaged: {name} fails its sha256; copy it again.")


def _read_graphs(folder: Path, manifest: dict[str, Any]) -> dict[str, GraphSpec]:
    graphs = manifest.get("graphs")
    try:
        if not isinstance(graphs, dict):
            raise TypeError
        specs = {
            str(name): GraphSpec(
                file=str(entry["file"]),
                inputs=tuple(map(str, entry["inputs"])),
                outputs=tuple(map(str, entry["outputs"])),
                full_precision=bool(entry.get("full_precision", False)),
                search=_search_size(entry["search"]) if "search" in entry else None,
            )
            for name, entry in graphs.items()
        }
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise WmError(f"the bundle {folder} is damaged: its manifest lists no graphs.") from error
    if missing := [name for name in GRAPHS if name not in specs]:
        raise WmError(
            f"the bundle {folder} lacks the graphs {missing}: it was written by an older version; "
            "train or export it again."
        )
    for name, spec in specs.items():
        if spec.file not in manifest["files"]:
            raise WmError(f"the bundle {folder} is damaged: graph '{name}' has no checked file.")
    return specs


def _search_size(entry: Any) -> SearchSize:
    sizes = {name: int(entry[name]) for name in ("candidates", "iterations", "seeds", "elites")}
    size = SearchSize(**sizes, terms=tuple(map(str, entry.get("terms", FIRST_SEARCH_TERMS))))
    if not (
        4 <= size.candidates <= 65536
        and 1 <= size.iterations <= 100
        and 1 <= size.seeds < size.candidates
        and 2 <= size.elites <= size.candidates
    ):
        raise ValueError(f"search sizes out of range: {sizes}")
    return size
