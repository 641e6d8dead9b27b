"""One training loop for every phase: schedule, clipping, logging, checkpoints, resuming."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wm_node.errors import WmError
from wm_node.training import ranks

CHECKPOINT_S = 60.0
LOG_EVERY = 50
WARM_UP = 0.03  # of the steps
FREE_SPACE = (
    "free space there and give the same command again: training goes on from its last checkpoint"
)


@dataclass(frozen=True)
class Phase:
    """What one phase optimises."""

    name: str
    steps: int
    module: nn.Module
    """Its parameters are trained, those with ``requires_grad``."""
    rate: float
    batches: Callable[[int], Iterator[Any]]
    """First step -> endless batches."""
    losses: Callable[[Any, int], Mapping[str, Tensor]]
    """Batch and step -> losses by name; their sum is minimised, all are logged."""
    after_step: Callable[[int], None] | None = None


@contextmanager
def _writing(what: str, remedy: str) -> Iterator[None]:
    """Turn a disk that is full or may not be written into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WmError(f"cannot write {what}: {reason}; {remedy}.") from error


class Recorder:
    """Where figures of a run go: TensorBoard, and a callback for the progress display.

    ``folder`` None, of all ranks but the first: nowhere.
    """

    def __init__(self, folder: Path | None, show: Callable[[str, int, int, str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._show = folder, show
        self._writer: SummaryWriter | None = None
        if folder is None:
            return
        with _writing(f"to {folder}", "choose another --work"):
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard writes in a thread of its own, which would only print a traceback.
            tempfile.TemporaryFile(dir=folder).close()
            self._writer = SummaryWriter(str(folder))

    def scalars(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Log figures of a phase under ``phase/name``."""
        if self._writer is None:
            return
        with _writing(f"figures into {self._folder}", FREE_SPACE):
            for name, value in values.items():
                self._writer.add_scalar(f"{phase}/{name}", value, step)

    def progress(self, phase: str, step: int, steps: int, text: str) -> None:
        """Show how far a phase is."""
        if self._writer is not None:
            self._show(phase, step, steps, text)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is None:
            return
        with _writing(f"figures into {self._folder}", "free space there"):
            self._writer.close()


@dataclass(frozen=True)
class Checkpoint:
    """Where an unfinished run stands."""

    tensors: dict[str, Tensor]
    phase: str
    step: int
    metrics: dict[str, Any]
    """Figures of the phases that have ended."""


class Checkpoints:
    """The state of an unfinished run: tensors as safetensors, the rest as JSON; no pickles."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        self._identity = json.loads(json.dumps(identity))
        with _writing(f"to {folder}", "choose another --work"):
            folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint, or None.

        Raises:
            WmError: it is damaged, or of another dataset, recipe or seed.
        """
        state, tensors = self._folder / "state.json", self._folder / "state.safetensors"
        if not state.is_file():
            return None
        try:
            data = json.loads(state.read_text(encoding="utf-8"))
            if data["identity"] != self._identity:
                raise WmError(
                    f"{self._folder} holds a run with another dataset, recipe or seed; give "
                    "--restart to discard it, or another --out."
                )
            metrics = dict(data["metrics"])
            return Checkpoint(
                load_file(str(tensors)), str(data["phase"]), int(data["step"]), metrics
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise WmError(
                f"the checkpoint in {self._folder} is damaged; give --restart to discard it."
            ) from error

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; an interruption or a full disk leaves the previous one.

        Raises:
            WmError: it cannot be written.
        """
        new = self._folder / "state.safetensors.new"
        text = self._folder / "state.json.new"
        data = {
            "identity": self._identity,
            "phase": checkpoint.phase,
            "step": checkpoint.step,
            "metrics": checkpoint.metrics,
        }
        with _writing(f"the checkpoint in {self._folder}", FREE_SPACE):
            try:
                whole = {k: t.detach().contiguous().cpu() for k, t in checkpoint.tensors.items()}
                save_file(whole, str(new))
                text.write_text(json.dumps(data), encoding="utf-8")
                new.replace(self._folder / "state.safetensors")
                text.replace(self._folder / "state.json")
            finally:  # half a checkpoint would only take room on a full disk
                new.unlink(missing_ok=True)
                text.unlink(missing_ok=True)


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero: the factor on the rate."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where it helps: bf16 on CUDA and on CPUs that multiply it natively (AMX)."""
    if device.type == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def run_phase(
    phase: Phase,
    seed: int,
    device: torch.device,
    recorder: Recorder,
    weight_decay: float,
    clip: float,
    start: int = 0,
    optimiser_state: Mapping[str, Tensor] | None = None,
    save: Callable[[dict[str, Tensor], int], None] | None = None,
    mixed: bool = True,
) -> None:
    """Run a phase from step ``start`` to its end.

    Args:
        phase: what to optimise.
        seed: decides batches and noise; a resumed run repeats what an unbroken one does.
        device: of the tensors.
        recorder: takes the figures.
        weight_decay: of AdamW, on matrices only.
        clip: largest norm of the gradient.
        start: step to go on from.
        optimiser_state: moments by ``<index>.<name>``, from a checkpoint.
        save: called now and then with the optimiser's tensors and the next step.
        mixed: whether precision may be mixed, see :func:`precision`; False: all of it in fp32.

    Raises:
        WmError: the loss is not finite.
    """
    parameters = [p for p in phase.module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=phase.rate, betas=(0.9, 0.95), fused=True)
    if optimiser_state:
        _restore_moments(optimiser, optimiser_state)
    phase.module.train()
    batches = phase.batches(start)
    begun = saved = time.monotonic()
    totals: dict[str, Tensor] = {}
    for step in range(start, phase.steps):
        # One seed a step, so that a resumed run draws the noise an unbroken one would have.
        torch.manual_seed((seed * 1_000_003 + step + ranks.rank() * 500_000_003) % 2**31)
        for group in optimiser.param_groups:
            group["lr"] = phase.rate * schedule(step, phase.steps)
        batch = next(batches)
        with precision(device) if mixed else nullcontext():
            losses = phase.losses(batch, step)
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        ranks.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        for name, value in losses.items():
            totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value.detach()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == phase.steps:
            count = min(step % LOG_EVERY, step - start) + 1  # a resumed run begins in between
            means = {name: float(v) / count for name, v in ranks.averaged(totals).items()}
            if not all(math.isfinite(value) for value in means.values()):
                raise WmError(
                    f"training diverged in phase '{phase.name}' at step {step + 1} ({means}); "
                    "lower its rate in the recipe."
                )
            rate = (step + 1 - start) / (time.monotonic() - begun)
            recorder.scalars(phase.name, step + 1, {**means, "steps_per_s": rate})
            text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
            recorder.progress(phase.name, step + 1, phase.steps, f"{text}  {rate:.1f} steps/s")
            totals = {}
        if phase.after_step is not None:
            phase.after_step(step)
        if save is not None and time.monotonic() - saved > CHECKPOINT_S:
            save(_moments(optimiser), step + 1)
            saved = time.monotonic()
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
    }


def _restore_moments(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    full = optimiser.state_dict()
    full["state"] = state
    optimiser.load_state_dict(full)
    # Checkpoints are contiguous. The fused step walks a parameter and its moments in the order of
    # memory, so they must be laid out alike.
    for parameter, entry in optimiser.state.items():
        for name, value in entry.items():
            if value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter).copy_(value)


def default_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def find_device(name: str) -> str:
    """Return the device, ``cpu`` or ``cuda``, that a ``--device`` means; ``auto``: a GPU if any.

    Raises:
        WmError: it is unknown or not here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise WmError(f"device '{name}' is not available here; use --device auto or cpu.")
    return name
