"""The whole network, with its normalisation, and the functions that become ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig
from wm_node.model.decoder import FrameDecoder
from wm_node.model.dynamics import Dynamics, Memory
from wm_node.model.encoder import FrameEncoder
from wm_node.model.heads import Heads
from wm_node.model.joint_baseline import JointBaseline
from wm_node.model.joint_labels import JointLabels
from wm_node.model.recurrent_dynamics import RecurrentDynamics

# Buffers of the data's statistics: name -> attribute of Dims that gives their length.
STATISTICS = {"joints": "joints", "actions": "action", "labels": "labels"}


class WorldModelNet(nn.Module):
    """Encoder, dynamics, heads and decoder of one robot."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        self.dims, self.config = dims, config
        self.encoder = FrameEncoder(dims, config)
        recurrent = config.transition_blocks > 0
        self.dynamics = (RecurrentDynamics if recurrent else Dynamics)(dims, config)
        self.heads = Heads(dims, config)
        self.decoder = FrameDecoder(dims, config)
        self.joint_baseline = JointBaseline(dims)
        self.joint_labels = JointLabels(dims)
        self.register_buffer("correction_gain", torch.ones(dims.horizon))
        self.correction_gain: Tensor
        for name, size in STATISTICS.items():
            length = max(int(getattr(dims, size)), 1)
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_std", torch.ones(length))
        self.joints_mean: Tensor
        self.joints_std: Tensor
        self.actions_mean: Tensor
        self.actions_std: Tensor

    def set_statistics(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set mean and deviation of joints, actions and labels from the training data."""
        for name, (mean, std) in statistics.items():
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(std)

    def normalise(self, name: str, values: Tensor) -> Tensor:
        """(..., n) physical -> normalised values of ``joints``, ``actions`` or ``labels``."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        result: Tensor = (values - mean) / std
        return result

    def restore(self, name: str, values: Tensor) -> Tensor:
        """Inverse of :meth:`normalise`."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        result: Tensor = values * std + mean
        return result

    @property
    def codes(self) -> Tensor:
        """(F, width): one for each future, of a model that tells futures apart."""
        codes = self.dynamics.codes
        assert isinstance(codes, Tensor)
        return codes

    def predict(
        self,
        latents: Tensor,
        joints: Tensor,
        past: Tensor,
        actions: Tensor,
        code: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Roll out physical inputs.

        Args:
            latents: (B, C, latent); joints: (B, C, J); past: (B, C, ticks, A);
                actions: (B, N, H, ticks, A).
            code: (B, N, width) of :attr:`codes`, says which future; None: their mean.

        Returns:
            Future latents (B, N, H, latent), hidden states (B, N, H, width), and joints
            (B, N, H, J) by the linear baseline.
        """
        memory = self.remember(latents, joints, past)
        return self.follow(memory, latents[:, -1], joints, past, actions, code)

    def remember(self, latents: Tensor, joints: Tensor, past: Tensor) -> Memory:
        """Read the context once for any number of rollouts; arguments as :meth:`predict`."""
        return self.dynamics.remember(
            latents,
            self.normalise("joints", joints),
            self.normalise("actions", past).flatten(-2),
        )

    def follow(
        self,
        memory: Memory,
        present: Tensor,
        joints: Tensor,
        past: Tensor,
        actions: Tensor,
        code: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Roll out of a remembered context whose newest latent is ``present`` (B, latent).

        The other arguments and the result are those of :meth:`predict`.
        """
        # In full precision even under autocast: the joints' law is known better than bf16 holds.
        with torch.autocast(joints.device.type, enabled=False):
            guess: Tensor = self.joint_baseline(joints, past, actions)
        future, hidden = self.dynamics.follow(
            memory,
            present,
            self.normalise("actions", actions).flatten(-2),
            self.normalise("joints", guess),
            *(() if code is None else (code,)),
        )
        return future, hidden, guess

    def joint_correction(self, hidden: Tensor, guess: Tensor, joints_now: Tensor) -> Tensor:
        """Correct the baseline, before the gain.

        Args:
            hidden: (B, N, H, width); guess: (B, N, H, J) of the baseline; joints_now: (B, J).

        Returns:
            (B, N, H, J), in deviations of what the baseline leaves over.
        """
        change = (guess - joints_now[:, None, None]) / self.joints_std
        correction: Tensor = self.heads.joints(hidden, change)
        return correction

    def future_joints(self, hidden: Tensor, guess: Tensor, joints_now: Tensor) -> Tensor:
        """Return joint positions (B, N, H, J); arguments as :meth:`joint_correction`."""
        correction = self.joint_correction(hidden, guess, joints_now).float()
        scale = self.joint_baseline.residual * self.correction_gain.unsqueeze(-1)
        return guess + correction * scale

    def decode(
        self,
        latents: Tensor,
        joints: Tensor,
        latent_now: Tensor,
        joints_now: Tensor,
        frames_now: Tensor,
    ) -> Tensor:
        """Draw frames; as the decoder, with joints in physical units."""
        drawn: Tensor = self.decoder(
            latents,
            self.normalise("joints", joints),
            latent_now,
            self.normalise("joints", joints_now),
            frames_now,
        )
        return drawn

    def outcome(
        self,
        latents: Tensor,
        joints: Tensor,
        past_actions: Tensor,
        actions: Tensor,
        goal_latent: Tensor,
    ) -> dict[str, Tensor]:
        """Everything that planning reads: the ``rollout`` graph.

        Args:
            latents: (1, C, latent); joints: (1, C, J); past_actions: (1, C, ticks, A);
                actions: (N, H * ticks, A); goal_latent: (1, latent). Physical units.

        Returns:
            future_latents (N, H, latent), state (N, H, S), risk (N, H, E) cumulative probability,
            uncertainty (N, H), time_to_goal (N, H) in model steps, future_joints (N, H, J).
        """
        memory = self.remember(latents, joints, past_actions)
        return self.outcome_of(memory, latents[:, -1], joints, past_actions, actions, goal_latent)

    def outcome_of(
        self,
        memory: Memory,
        present: Tensor,
        joints: Tensor,
        past_actions: Tensor,
        actions: Tensor,
        goal_latent: Tensor,
    ) -> dict[str, Tensor]:
        """As :meth:`outcome`, out of a remembered context with newest latent (1, latent)."""
        future, hidden, future_joints = self._roll(memory, present, joints, past_actions, actions)
        return {
            "future_latents": future,
            "future_joints": future_joints,
            "uncertainty": self._spread(hidden),
            "time_to_goal": self.heads.value(future, goal_latent.unsqueeze(1).expand_as(future)),
            **self._labelled(future, future_joints),
        }

    def futures(
        self, latents: Tensor, joints: Tensor, past_actions: Tensor, actions: Tensor
    ) -> dict[str, Tensor]:
        """The ways that things may go on under one candidate: the ``futures`` graph.

        Args:
            latents, joints, past_actions: the context, as :meth:`outcome`.
            actions: (1, H * ticks, A).

        Returns:
            future_latents (F, H, latent), future_joints (F, H, J), state (F, H, S) and risk
            (F, H, E) where the profile labels them, of each of F futures, and likelihood (F,).
        """
        dims, codes = self.dims, self.codes.unsqueeze(0)
        memory = self.remember(latents, joints, past_actions)
        steps = actions.view(1, 1, dims.horizon, dims.ticks, dims.action)
        given = (memory, latents[:, -1], joints, past_actions)
        _, hidden, _ = self.follow(*given, steps)
        many = steps.expand(-1, codes.shape[1], -1, -1, -1)
        future, state, guess = self.follow(*given, many, codes)
        future_joints = self.future_joints(state, guess, joints[:, -1])[0]
        return {
            "future_latents": future[0],
            "future_joints": future_joints,
            "likelihood": self.likelihood(hidden[0, :, -1]).softmax(-1)[0],
            **self._labelled(future[0], future_joints),
        }

    def likelihood(self, hidden: Tensor) -> Tensor:
        """(..., W) carried states at the end of mean futures -> (..., F) logits of the futures."""
        logits: Tensor = self.heads.likelihood(hidden)
        return logits

    def search(
        self, latents: Tensor, joints: Tensor, past_actions: Tensor, actions: Tensor
    ) -> dict[str, Tensor]:
        """The part of :meth:`outcome` that costs depend on in most searches, for less work.

        Returns:
            future_latents (N, H, latent), and state and risk where the profile labels them.
        """
        memory = self.remember(latents, joints, past_actions)
        return self.search_of(memory, latents[:, -1], joints, past_actions, actions)

    def search_of(
        self,
        memory: Memory,
        present: Tensor,
        joints: Tensor,
        past_actions: Tensor,
        actions: Tensor,
        doubt: bool = False,
    ) -> dict[str, Tensor]:
        """As :meth:`search`, out of a remembered context with newest latent (1, latent).

        ``doubt`` adds ``uncertainty``, as of :meth:`outcome`.
        """
        future, hidden, future_joints = self._roll(memory, present, joints, past_actions, actions)
        outcome = {"future_latents": future, **self._labelled(future, future_joints)}
        return outcome | ({"uncertainty": self._spread(hidden)} if doubt else {})

    def _spread(self, hidden: Tensor) -> Tensor:
        """(N, H, W) hidden states -> (N, H) disagreement of the ensemble."""
        spread: Tensor = self.heads.disagreement.spread(hidden.flatten(0, 1))
        return spread.view(hidden.shape[:2])

    def _roll(
        self,
        memory: Memory,
        present: Tensor,
        joints: Tensor,
        past_actions: Tensor,
        actions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, hidden states and joints, each (N, H, ...), of actions (N, T, A)."""
        dims = self.dims
        steps = actions.view(1, -1, dims.horizon, dims.ticks, dims.action)
        future, hidden, guess = self.follow(memory, present, joints, past_actions, steps)
        return future[0], hidden[0], self.future_joints(hidden, guess, joints[:, -1])[0]

    def _labelled(self, future: Tensor, joints: Tensor) -> dict[str, Tensor]:
        """(N, H, latent) and (N, H, J) -> state and cumulative risk, where the profile has them."""
        outputs = {}
        if self.dims.labels:
            outputs["state"] = self.state(future, joints)
        if self.dims.events:
            outputs["risk"] = running_max(torch.sigmoid(self.heads.risk(future)))
        return outputs

    def state(self, latents: Tensor, joints: Tensor) -> Tensor:
        """(..., latent) and (..., J) -> (..., S): the labelled state, joints where they tell it."""
        read = self.restore("labels", self.heads.state(latents))
        placed: Tensor = self.joint_labels(self.normalise("joints", joints), read)
        return placed

    def read(self, latents: Tensor) -> Tensor:
        """(B, latent) -> (B, S): the labelled state of observed latents alone, as of a picture."""
        return self.restore("labels", self.heads.state(latents))

    def propose(self, latent: Tensor, joints: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Gaussian over the actions of the horizon.

        Args:
            latent: (B, latent); joints: (B, J); goal: (B, latent + 1 + S + 1), see
                :meth:`goal_input`.

        Returns:
            Mean and standard deviation (B, H * ticks, A), physical units.
        """
        dims = self.dims
        inputs = torch.cat([latent, self.normalise("joints", joints), goal], dim=-1)
        out = self.heads.proposal(inputs).view(-1, 2, dims.horizon * dims.ticks, dims.action)
        mean = out[:, 0] * self.actions_std + self.actions_mean
        return mean, torch.exp(out[:, 1].clamp(-4.0, 1.0)) * self.actions_std

    def goal_input(
        self, goal_latent: Tensor | None, goal_state: Tensor | None, batch: int
    ) -> Tensor:
        """(B, latent) or None and (B, S) normalised or None -> (B, latent + 1 + S + 1)."""
        device = self.joints_mean.device
        latent = torch.zeros(batch, self.config.latent, device=device)
        state = torch.zeros(batch, max(self.dims.labels, 1), device=device)
        flags = torch.zeros(batch, 2, device=device)
        if goal_latent is not None:
            latent, flags[:, 0] = goal_latent, 1.0
        if goal_state is not None:
            state, flags[:, 1] = goal_state, 1.0
        return torch.cat([latent, flags[:, :1], state, flags[:, 1:]], dim=-1)


def running_max(values: Tensor) -> Tensor:
    """(N, H, E) -> the same: the highest value up to each step (a risk once run stays run)."""
    steps = [values[:, 0]]
    for step in range(1, values.shape[1]):
        steps.append(torch.maximum(steps[-1], values[:, step]))
    return torch.stack(steps, dim=1)
