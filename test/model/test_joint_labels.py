"""Labels that follow from the joints are read from the joints, others are left alone."""

from __future__ import annotations

import torch

from wm_node.model.config import Dims
from wm_node.model.joint_labels import JointLabels
from wm_node.profile import load_profile

DIMS = Dims.of(load_profile("tabletop"))


def _fitted() -> tuple[JointLabels, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    joints = torch.randn(6000, DIMS.joints, generator=random).clamp(-2, 2)
    reach = torch.sin(0.4 * joints[:, 1]) + torch.cos(0.3 * joints[:, 2])
    labels = torch.stack(
        [
            torch.randn(6000, generator=random),  # the joints say nothing about it
            0.1 * joints[:, 0] + torch.randn(6000, generator=random),  # and little about this
            reach * torch.sin(0.3 * joints[:, 0]),
            reach * torch.cos(0.3 * joints[:, 0]),
        ],
        dim=-1,
    )
    labels[::7, 3] = torch.nan  # not always known
    fitted = JointLabels(DIMS)
    fitted.fit(joints, labels, torch.arange(6000) >= 5000)
    return fitted, joints, labels


def test_only_what_the_joints_determine_is_taken_from_them() -> None:
    fitted, joints, labels = _fitted()
    assert fitted.determined.tolist() == [0.0, 0.0, 1.0, 1.0]
    read = torch.full_like(labels, 5.0)
    placed = fitted(joints, read)
    assert torch.equal(placed[:, :2], read[:, :2])
    known = torch.isfinite(labels[:, 3])
    assert float((placed - labels)[known, 2:].abs().mean()) < 0.01


def test_without_a_fit_every_label_is_read_from_latents() -> None:
    read = torch.randn(3, 2, DIMS.labels)
    assert torch.equal(JointLabels(DIMS)(torch.randn(3, 2, DIMS.joints), read), read)


def test_too_few_rows_determine_nothing() -> None:
    fitted = JointLabels(DIMS)
    joints = torch.randn(50, DIMS.joints)
    fitted.fit(joints, joints[:, :1].repeat(1, DIMS.labels), torch.arange(50) >= 40)
    assert fitted.determined.sum() == 0.0
