"""From a dataset to a bundle: the phases in order, resumable, with the best checkpoint chosen."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from wm_node.bundle import Bundle, load_bundle
from wm_node.data.dataset import Dataset
from wm_node.errors import WmError
from wm_node.model.config import Dims
from wm_node.model.export import export_bundle
from wm_node.model.load import load_network
from wm_node.model.world import WorldModelNet
from wm_node.training import ranks
from wm_node.training.calibration import calibrate
from wm_node.training.data import TrainingData
from wm_node.training.decoder_phase import decoder_phase, validate_decoder
from wm_node.training.dynamics_phase import (
    Windows,
    dynamics_phase,
    fit_baseline,
    fit_joint_labels,
    freeze_encoder,
    set_correction_gain,
    validate,
)
from wm_node.training.encoder_phase import EncoderTraining, encode_all, encoder_phase
from wm_node.training.fitted import carried_files, fitted_files
from wm_node.training.floors import FILE, fit_floors
from wm_node.training.kept import kept_stills_phase, latents_of
from wm_node.training.loop import Checkpoint, Checkpoints, Phase, Recorder, run_phase
from wm_node.training.recipe import Recipe
from wm_node.training.stills import Stills, stills_phase
from wm_node.training.value_phase import value_phase

PHASES = ("stills", "encoder", "dynamics", "value", "decoder", "done")
DYNAMICS_SIZES = ("width", "layers", "heads", "transition_blocks", "transition_hidden", "futures")
"""Sizes in which the recipe may differ from the bundle that a run starts from."""
DYNAMICS_HEADS = ("state", "risk", "joints", "disagreement", "likelihood")
"""Heads that are trained with the dynamics."""
DYNAMICS_PARTS = ("dynamics.", *(f"heads.{name}." for name in DYNAMICS_HEADS))
"""How the names of all that is trained with them begin."""
FUTURES_PARTS = ("dynamics.codes", "heads.likelihood.")
SNAPSHOTS = (0.7, 0.85, 1.0)
"""Shares of the dynamics phase after which a candidate checkpoint is kept."""

PlanningScore = Callable[[Path], Mapping[str, float]]
"""Bundle -> figures of planning with it; ``success`` decides."""


@dataclass(frozen=True)
class RunSettings:
    """Where and with what a training run works."""

    work: Path
    """Folder of checkpoints and logs."""
    seed: int = 0
    device: str = "cpu"
    memory_bytes: int = 6 << 30
    """Frames are kept in memory up to this size, and read from disk as needed beyond it."""
    planning_score: PlanningScore | None = None
    start_from: Bundle | None = None
    """A bundle whose network training goes on with, instead of random weights."""
    stills: Dataset | None = None
    """Of the same robot, frames that labels alone are read from, such as level ``scattered``."""


class _Run:
    """State of a run, between phases."""

    def __init__(
        self, dataset: Dataset, recipe: Recipe, settings: RunSettings, recorder: Recorder
    ) -> None:
        self.recipe, self.settings, self.recorder = recipe, settings, recorder
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.profile = dataset.profile
        self.data = TrainingData(dataset, self.device, settings.memory_bytes)
        if scattered := self.data.scattered_episodes():
            raise WmError(
                f"in {len(scattered)} episodes of {dataset.path}, such as '{scattered[0]}', the "
                "joints jump faster than they can move; scattered scenes are for --stills alone."
            )
        self.stills = Stills(self.data, self._scattered(settings.stills))
        self.net = WorldModelNet(Dims.of(dataset.profile), recipe.model).to(self.device)
        if settings.start_from is None:
            self.net.set_statistics(self.data.statistics())
            fit_baseline(self.net, self.data)
            fit_joint_labels(self.net, self.data)
        else:
            self._start_from(settings.start_from)
        self._start = self._kept_start()
        # Channels last in memory, as frames come: convolutions then need not reorder them.
        self.encoder_training = EncoderTraining(self.net).to(self.device)
        convert_conv2d_weight_memory_format(self.encoder_training, torch.channels_last)
        ranks.norm_over_ranks(self.encoder_training)
        identity = {
            "dataset": dataset.fingerprint,
            "profile": dataset.profile.dump(),
            "recipe": recipe.to_dict(),
            "seed": settings.seed,
            "start_from": settings.start_from.sha256 if settings.start_from else None,
            **({"stills": settings.stills.fingerprint} if settings.stills else {}),
        }
        self.checkpoints = Checkpoints(settings.work, identity)
        self.snapshots: dict[str, dict[str, Tensor]] = {}
        self.metrics: dict[str, Any] = {}
        self._hardness: Tensor | None = None
        self._windows: Windows | None = None

    def _scattered(self, dataset: Dataset | None) -> TrainingData | None:
        """Return the stills' own dataset, in memory where the episodes leave room for it."""
        if dataset is None:
            return None
        if not (self.recipe.stills or self.recipe.stills_steps):
            raise WmError(
                f"the recipe reads no stills, so {dataset.path} would not be used; give it "
                "'stills' or 'stills_steps', or train without --stills."
            )
        if dataset.profile != self.profile:
            raise WmError(
                f"{dataset.path} was ingested with another robot profile than the dataset; ingest "
                "its bags with the same one."
            )
        room = self.settings.memory_bytes - self.data.dataset.frame_bytes
        return TrainingData(dataset, self.device, max(0, room))

    def _start_from(self, bundle: Bundle) -> None:
        """Take weights and normalisation of a bundle of the same robot and encoder.

        Where the recipe has other dynamics they start anew, and with them what reads their state;
        encoder, value, proposal and decoder know the latents alone and go on. Where only the number
        of futures differs, their codes and likelihoods alone start anew.
        """
        if Dims.of(bundle.profile) != self.net.dims:
            raise WmError(
                f"the bundle {bundle.path} is of a robot with other sizes than this dataset; "
                "train without --start-from."
            )
        old, new = bundle.model, self.recipe.model
        taken = load_network(bundle).state_dict()
        if old != new:
            dynamics = {name: getattr(new, name) for name in DYNAMICS_SIZES}
            if replace(old, **dynamics) != new:
                raise WmError(
                    f"the bundle {bundle.path} has another model size than the recipe; give the "
                    "recipe the sizes in its manifest, but for those of the dynamics."
                )
            renewed: tuple[str, ...] = FUTURES_PARTS
            if replace(old, futures=new.futures) != new:
                # A linear law of the joints and what it leaves over are no weights of the dynamics.
                renewed += ("dynamics.", "heads.joints.", "heads.disagreement.")
            kept = {k: v for k, v in taken.items() if not k.startswith(renewed)}
            taken = {**self.net.state_dict(), **kept}
        self.net.load_state_dict(taken)

    def _kept_start(self) -> dict[str, Tensor]:
        """Return the dynamics' weights that ``keep_start`` keeps a share of; none where it is 0."""
        share, start = self.recipe.keep_start, self.settings.start_from
        if not share:
            return {}
        if share > 1.0 or start is None or start.model != self.recipe.model:
            raise WmError(
                "the recipe's 'keep_start' is a share, up to 1, of the weights of the bundle that "
                "the run starts from; name it with --start-from, and give the recipe its model."
            )
        return self._dynamics_state()

    @property
    def windows(self) -> Windows:
        """Cached latents of the frozen encoder, made on first use."""
        if self._windows is None:
            freeze_encoder(self.net)
            views = self.recipe.context_views
            times = "once" if not views else f"{views + 1} times, {views} of them in other colours"
            self.recorder.progress("latents", 0, 1, f"encoding every frame {times}")
            plain = encode_all(self.net, self.data)
            self._windows = Windows(self.net, self.data, plain, self._views())
        return self._windows

    def _views(self) -> Tensor | None:
        """Latents in random colours, the same after a resume; None where the recipe wants none."""
        recipe, views = self.recipe, []
        if not recipe.context_views:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            for _ in range(recipe.context_views):
                seen = encode_all(self.net, self.data, augmentation=recipe.augmentation)
                views.append(seen)
        return torch.stack(views)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds."""
        result = {f"net.{k}": v for k, v in self.encoder_training.state_dict().items()}
        for name, snapshot in self.snapshots.items():
            result |= {f"snapshot.{name}.{k}": v for k, v in snapshot.items()}
        if self._hardness is not None:
            result["hardness"] = self._hardness
        return result

    def restore(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take a checkpoint's tensors back; return those of the optimiser."""
        own = {k[4:]: v for k, v in tensors.items() if k.startswith("net.")}
        self.encoder_training.load_state_dict(own)
        self._hardness = tensors.get("hardness")
        for key, value in tensors.items():
            if key.startswith("snapshot."):
                _, name, rest = key.split(".", 2)
                self.snapshots.setdefault(name, {})[rest] = value
        return {k[10:]: v for k, v in tensors.items() if k.startswith("optimiser.")}

    def phase(self, name: str) -> Phase:
        """Build a phase."""
        recipe, seed = self.recipe, self.settings.seed
        if name == "stills":
            return self._stills_phase()
        if name == "encoder":
            return encoder_phase(self.encoder_training, self.data, self.stills, recipe, seed)
        if name == "dynamics":
            if self._hardness is None and recipe.hard_share > 0.0:
                # Kept in the checkpoint: it is that of the model as phase 1 left it.
                errors = self.windows.errors(self.windows.split.train)
                self._hardness = torch.from_numpy(errors)
            weights = None if self._hardness is None else self._hardness.numpy()
            phase = dynamics_phase(self.windows, recipe, seed, weights)
            return Phase(**{**phase.__dict__, "after_step": self._snapshot})
        if name == "value":
            return value_phase(self.windows, recipe, seed)
        return decoder_phase(self.windows, recipe, seed)

    def _stills_phase(self) -> Phase:
        recipe, seed, start = self.recipe, self.settings.seed, self.settings.start_from
        if recipe.stills_steps and not (recipe.label_weight and self.net.dims.labels):
            raise WmError(
                "the recipe has 'stills_steps', which teach the encoder to read labels; give it a "
                "'label_weight', and the robot's profile labels."
            )
        if not recipe.keep_latents:
            return stills_phase(self.encoder_training, self.net, self.stills, recipe, seed)
        others = (recipe.encoder_steps, recipe.dynamics_steps, recipe.value_steps)
        alone = recipe.stills_steps and not any((*others, recipe.decoder_steps))
        if start is None or start.model != recipe.model or not alone:
            raise WmError(
                "the recipe has 'keep_latents', by which the encoder of a bundle reads on and all "
                "else stays; name the bundle with --start-from, and give the recipe its model and "
                "'stills_steps' alone."
            )
        self.recorder.progress("stills", 0, 1, "encoding every frame as the bundle before does")
        before = latents_of(load_network(start).to(self.device), self.stills.sources)
        return kept_stills_phase(self.net, self.stills, before, recipe, seed)

    def _snapshot(self, step: int) -> None:
        for share in SNAPSHOTS:
            if step + 1 == max(1, round(share * self.recipe.dynamics_steps)):
                self.snapshots[f"{round(100 * share)}"] = self._with_start(self._dynamics_state())

    def _dynamics_state(self) -> dict[str, Tensor]:
        state = self.net.state_dict().items()
        return {k: v.detach().cpu().clone() for k, v in state if k.startswith(DYNAMICS_PARTS)}

    def _with_start(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        share, start = self.recipe.keep_start, self._start
        return {k: torch.lerp(v, start[k], share) if k in start else v for k, v in state.items()}

    def choose_snapshot(self) -> None:
        """Keep the checkpoint that plans best; without a simulator the last one."""
        score = self.settings.planning_score
        if score is not None and len(self.snapshots) >= 2 and ranks.rank() == 0:
            self._play_snapshots(score)
        elif self.snapshots:
            self.net.load_state_dict(self.snapshots[max(self.snapshots, key=int)], strict=False)
        self.snapshots.clear()

    def _play_snapshots(self, score: PlanningScore) -> None:
        best, chosen = (-1.0, -1.0), None
        table = {}
        for name, snapshot in sorted(self.snapshots.items(), key=lambda item: int(item[0])):
            self.net.load_state_dict(snapshot, strict=False)
            figures = validate(self.windows)
            planned = self._plan_with(score)
            table[name] = dict(planned)
            rank = (planned["success"], -figures.get("goal_error_moved", 0.0))
            text = " ".join(f"{key} {value:.3f}" for key, value in planned.items())
            self.recorder.progress("choice", int(name), 100, f"after {name} %: {text}")
            if rank > best or chosen is None:
                best, chosen = rank, name
        assert chosen is not None
        self.net.load_state_dict(self.snapshots[chosen], strict=False)
        self.metrics["checkpoints"] = {"chosen": chosen, "planning": table}

    def _plan_with(self, score: PlanningScore) -> Mapping[str, float]:
        with tempfile.TemporaryDirectory(dir=self.settings.work) as folder:
            path = Path(folder) / "candidate"
            self.export(path)
            figures = score(path)
        self.net.to(self.device)
        return figures

    def export(self, path: Path, final: bool = False) -> Bundle:
        """Write the network as it is now; the final bundle of a real robot gets its floors."""
        state = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        stills = self.settings.stills
        # Where an encoder reads on, all that was measured and fitted holds: on more episodes.
        kept = self.settings.start_from if self.recipe.keep_latents else None
        extra = {
            "data": {
                "fingerprint": self.data.dataset.fingerprint,
                "episodes": len(self.data.dataset.episodes),
                "ticks": self.data.dataset.num_ticks,
                "stills": stills and {"fingerprint": stills.fingerprint, "ticks": stills.num_ticks},
            },
            "training": {
                "seed": self.settings.seed,
                "recipe": self.recipe.to_dict(),
                "start_from": self._lineage(),
            },
            "metrics": self.metrics,
            "calibration": (
                calibrate(self.windows) if kept is None else kept.manifest["calibration"]
            ),
        }
        try:
            attachments: dict[str, Callable[[Path], None]] = {}
            if kept is not None:
                attachments |= carried_files(kept)
            elif final:
                self.recorder.progress("familiar", 0, 1, "fitting what frames and places are usual")
                attachments |= fitted_files(self.data.dataset)
                if not self.profile.simulated:
                    self.recorder.progress("floors", 0, 1, "fitting what predictions must beat")
                    attachments[FILE] = fit_floors(self.data.dataset).save
            return export_bundle(self.net, self.profile, path, extra, attachments)
        finally:
            # Exporting rounds to half precision on the CPU; training goes on with what it had.
            self.net.to(self.device).load_state_dict(state)

    def _lineage(self) -> dict[str, Any] | None:
        """What the run started from: hash and training of that bundle."""
        bundle = self.settings.start_from
        if bundle is None:
            return None
        return {"bundle_sha256": bundle.sha256, "training": bundle.manifest.get("training")}


def train(
    dataset: Dataset, out: Path, recipe: Recipe, settings: RunSettings, recorder: Recorder
) -> Bundle:
    """Train a bundle; an interrupted run with the same settings goes on where it stopped.

    Of several ranks (:mod:`wm_node.training.ranks`) the first one saves, plays and exports.

    Args:
        dataset: ingested episodes of one robot.
        out: the bundle to write.
        recipe: how long and how hard.
        settings: folder, seed, device.
        recorder: takes figures and progress.

    Raises:
        WmError: ``out`` exists, the data are too few, or training diverged.
    """
    if out.exists():
        raise WmError(f"{out} already exists; a bundle never changes, so choose another --out.")
    run = _Run(dataset, recipe, settings, recorder)
    first_rank = ranks.rank() == 0
    first, step, moments = PHASES[0], 0, {}
    checkpoint = run.checkpoints.load()
    if checkpoint is not None:
        first, step = checkpoint.phase, checkpoint.step
        moments = run.restore(checkpoint.tensors)
        run.metrics = dict(checkpoint.metrics)
        recorder.progress(first, step, step, f"resuming in phase '{first}' at step {step}")
    for name in PHASES[PHASES.index(first) : -1]:
        phase = run.phase(name)

        def save(optimiser: dict[str, Tensor], next_step: int, name: str = name) -> None:
            tensors = run.tensors() | {f"optimiser.{k}": v for k, v in optimiser.items()}
            run.checkpoints.save(Checkpoint(tensors, name, next_step, run.metrics))

        ranks.agree(run.encoder_training)
        run_phase(
            phase,
            settings.seed,
            run.device,
            recorder,
            recipe.weight_decay,
            recipe.clip,
            start=step,
            optimiser_state=moments,
            save=save if first_rank else None,
        )
        step, moments = 0, {}
        if name == "dynamics":
            run.choose_snapshot()
            ranks.agree(run.encoder_training)
            set_correction_gain(run.windows)
        _validate(run, name)
        following = PHASES[PHASES.index(name) + 1]
        if first_rank:
            run.checkpoints.save(Checkpoint(run.tensors(), following, 0, run.metrics))
    bundle = run.export(out, final=True) if first_rank else None
    ranks.wait()
    recorder.close()
    return bundle or load_bundle(out)


def _validate(run: _Run, name: str) -> None:
    """Measure on left-out episodes what the phase has changed."""
    if name in ("dynamics", "value"):
        run.metrics["prediction"] = _rounded(validate(run.windows))
    elif name == "decoder":
        run.metrics["prediction"] = _rounded(validate(run.windows))
        run.metrics["decoder"] = _rounded(validate_decoder(run.windows))
    else:
        return
    for group in ("prediction", "decoder"):
        if group in run.metrics:
            run.recorder.scalars("validation", 0, run.metrics[group])
    figures = run.metrics["decoder" if name == "decoder" else "prediction"]
    run.recorder.progress(name, 1, 1, " ".join(f"{k} {v:.4g}" for k, v in figures.items()))


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def discard(work: Path) -> None:
    """Remove the checkpoints of an unfinished run."""
    for file in ("state.json", "state.safetensors"):
        (work / file).unlink(missing_ok=True)
    shutil.rmtree(work / "logs", ignore_errors=True)
