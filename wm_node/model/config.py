"""Sizes of the world model: what the robot profile fixes and what the researcher chooses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any

from wm_node.errors import WmError
from wm_node.profile import RobotProfile

MAY_BE_NONE = ("keypoints", "encoder_blocks", "transition_blocks", "futures")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes that do not depend on the robot. The defaults are the table-top model's."""

    latent: int = 192
    """Numbers of a frame's latent, of all its tokens together."""
    tokens: int = 1
    """Tokens of a frame's latent: 1, or the cells of a square grid on the frame (4, 9, 16), for
    richer scenes. More than one needs ``transition_blocks``, and costs planning time."""
    encoder_channels: tuple[int, int, int] = (64, 96, 160)
    encoder_hidden: int = 512
    keypoints: int = 0
    """Places on the frame that the encoder finds by a spatial softmax; 0: plain convolutions."""
    encoder_blocks: int = 2
    """Residual blocks of an encoder with keypoints."""
    width: int = 192
    """Width of the dynamics: of the transformer, or of the recurrent transition."""
    layers: int = 3
    heads: int = 4
    transition_blocks: int = 0
    """Blocks of the recurrent transition that predicts instead of the transformer; 0: none does."""
    transition_hidden: int = 512
    futures: int = 0
    """Futures that the recurrent transition tells apart where more than one may come; 0: none."""
    head_hidden: int = 256
    value_hidden: int = 256
    ensemble: int = 4
    """Number of disagreement members."""
    ensemble_dim: int = 32
    """Dimensions of the random projection of the latent that the members predict."""
    decoder_channels: tuple[int, int, int, int] = (32, 64, 96, 128)
    """At a half, quarter, eighth and sixteenth of the frame's size; multiples of 8."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the manifest."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @staticmethod
    def from_dict(data: Any) -> ModelConfig:
        """Read what :meth:`to_dict` wrote.

        Raises:
            WmError: nothing there, an unknown key or a value out of range.
        """
        known = ModelConfig.__dataclass_fields__
        if not isinstance(data, dict):
            raise WmError("the manifest names no sizes of the model; train the bundle again.")
        if set(data) - set(known):
            raise WmError("the model configuration holds unknown keys; is it from a newer version?")
        values: dict[str, Any] = {}
        for key, value in data.items():
            usual = getattr(ModelConfig, key)
            numbers = value if isinstance(value, list) else [value]
            wanted = len(usual) if isinstance(usual, tuple) else 1
            fits = isinstance(value, list) == isinstance(usual, tuple) and len(numbers) == wanted
            least = 0 if key in MAY_BE_NONE else 1
            if not fits or not all(
                isinstance(n, int) and not isinstance(n, bool) and least <= n <= 8192
                for n in numbers
            ):
                raise WmError(f"the model configuration's '{key}' is out of range.")
            values[key] = tuple(value) if isinstance(value, list) else value
        config = ModelConfig(**values)
        if any(n % 8 for n in config.decoder_channels):
            raise WmError("the model's 'decoder_channels' must be four multiples of 8.")
        if config.futures == 1 or (config.futures and not config.transition_blocks):
            raise WmError("the model's 'futures' need to be two or more, and 'transition_blocks'.")
        if isqrt(config.tokens) ** 2 != config.tokens or config.latent % config.tokens:
            raise WmError("the model's 'tokens' must be a square number that divides 'latent'.")
        if config.tokens > 1 and not config.transition_blocks:
            raise WmError("a model with more than one of 'tokens' needs 'transition_blocks'.")
        if config.width % config.heads:
            raise WmError("the model's 'width' must be a multiple of its 'heads'.")
        return config


@dataclass(frozen=True)
class Dims:
    """Sizes that follow from the robot profile."""

    cameras: int
    height: int
    frame_width: int
    joints: int
    action: int
    ticks: int
    """Ticks, and so actions, of a model step."""
    context: int
    horizon: int
    labels: int
    events: int

    @staticmethod
    def of(profile: RobotProfile) -> Dims:
        """Derive the sizes from a profile.

        Raises:
            WmError: the cameras differ in model size.
        """
        sizes = {(camera.model_height, camera.model_width) for camera in profile.cameras}
        if len(sizes) != 1:
            raise WmError(
                f"profile '{profile.name}': give all cameras one model_width and model_height."
            )
        ((height, width),) = sizes
        return Dims(
            cameras=len(profile.cameras),
            height=height,
            frame_width=width,
            joints=len(profile.joints.names),
            action=len(profile.action.names),
            ticks=profile.model.ticks_per_step,
            context=profile.model.context_steps,
            horizon=profile.model.horizon_steps,
            labels=len(profile.labels),
            events=len(profile.events),
        )
