"""How long and how hard each phase of training works: one frozen recipe, kept in the bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from wm_node.errors import WmError
from wm_node.model.config import ModelConfig


@dataclass(frozen=True)
class Recipe:
    """Steps, batches and weights of the phases.

    The defaults are a start for a new robot; ``config/recipes`` holds what the bundles differ in.
    """

    # Phase 0: encoder and labels, from single frames.
    stills_steps: int = 0
    stills_batch: int = 256
    """Frames a step."""
    stills_rate: float = 1e-3
    keep_latents: float = 0.0
    """Weight of leaving the latents of well read frames where the bundle that the run starts from
    has them, while its encoder alone learns to read more; 0: encoder and label heads learn anew."""
    shake: float = 0.0
    """Strength of the random moves of a still's picture, against cameras that were knocked."""
    # Phase 1: encoder and dynamics together, from frames.
    encoder_steps: int = 2500
    encoder_batch: int = 48
    """Sequences a step."""
    encoder_length: int = 12
    """Model steps of a sequence."""
    encoder_rate: float = 1e-3
    augmentation: float = 0.5
    """Strength of the random colours that every frame is seen in."""
    sigreg_weight: float = 0.1
    inverse_weight: float = 0.1
    """Weight of predicting the actions between two observed latents."""
    joints_weight: float = 0.1
    """Weight of predicting future joint positions."""
    label_weight: float = 0.0
    """Weight of reading the labels from the latent, with gradient into the encoder; 0: the encoder
    learns from video, joints and actions alone."""
    stills: int = 0
    """Frames a step, drawn one by one from all the data, that labels are read from beside those of
    the sequences, whose frames look much alike."""
    sketch_weight: float = 100.0
    """Weight of redrawing frames from the latent and another frame of the episode."""
    reconstruction_weight: float = 0.0
    """Weight of redrawing frames through the decoder, with gradient into the encoder."""
    # Phase 2: dynamics and heads on latents that are computed once.
    dynamics_steps: int = 4500
    dynamics_batch: int = 384
    """Windows a step."""
    dynamics_rate: float = 1e-3
    latent_noise: float = 0.1
    """Deviation of the noise on the context's latents."""
    context_views: int = 0
    """Copies of each latent, each seen in other random colours, that contexts are drawn from
    beside the latent as it is; 0: contexts are the latents as they are."""
    hard_share: float = 0.5
    """Share of windows drawn in proportion to their prediction error after phase 1."""
    rollout_label_weight: float = 1.0
    """Weight of reading the labels from predicted and observed latents."""
    keep_start: float = 0.0
    """Share of the weights of dynamics and their heads that the run started from, in the mean with
    what they have learnt since; up to 1. New data, and little of the old, then cost less of what
    was known (Wortsman et al., arXiv 2109.01903)."""
    label_gradient: float = 0.0
    """Share of the label heads' gradient that reaches the dynamics; 0: labels train heads only."""
    # Phase 3: value and proposal on the same latents.
    value_steps: int = 4000
    value_batch: int = 1024
    value_rate: float = 5e-4
    discount: float = 0.95
    """A model step."""
    expectile: float = 0.9
    """Above 0.5 favours the short ways among those seen."""
    # Phase 4: decoder.
    decoder_steps: int = 2000
    decoder_batch: int = 32
    decoder_rate: float = 1e-3
    colour_jitter: float = 0.05
    """Deviation of a random gain and offset of the colours, against other light."""
    # All phases.
    weight_decay: float = 1e-3
    clip: float = 1.0
    model: ModelConfig = field(default_factory=ModelConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for manifest and checkpoints."""
        return {**asdict(self), "model": self.model.to_dict()}


def load_recipe(path: Path | None) -> Recipe:
    """Read a recipe from YAML; keys that are absent keep their defaults.

    Raises:
        WmError: unreadable, an unknown key, or a value that is not a finite number.
    """
    if path is None:
        return Recipe()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WmError(f"cannot read the recipe {path}: {' '.join(str(error).split())}.") from error
    return recipe_from_dict(data, str(path))


def recipe_from_dict(data: Any, source: str) -> Recipe:
    """Check plain data as a recipe.

    Raises:
        WmError: not a mapping, an unknown key, or a value of the wrong kind or sign.
    """
    if not isinstance(data, dict):
        raise WmError(f"{source} is not a recipe: it must be a YAML mapping.")
    known = {item.name for item in fields(Recipe)}
    if unknown := sorted(set(data) - set(known)):
        raise WmError(f"{source}: unknown recipe keys {unknown}; known are {sorted(known)}.")
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key == "model":
            values[key] = ModelConfig.from_dict({**ModelConfig().to_dict(), **(value or {})})
            continue
        wanted = type(getattr(Recipe(), key))
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or (wanted is int and not isinstance(value, int)) or not 0 <= value < 1e9:
            raise WmError(f"{source}: '{key}' must be a {wanted.__name__}, 0 or more.")
        values[key] = wanted(value)
    return Recipe(**values)
