"""Several processes that train one network, as ``torchrun`` starts them; alone all of it is free.

Each rank computes its share of every batch. Gradients are averaged over the ranks, and so are the
statistics that a batch as a whole is judged by (BatchNorm, SIGReg), so that the ranks do together
what one process would do with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from wm_node.errors import WmError

Rows = TypeVar("Rows")

TIMEOUT = timedelta(hours=2)
"""Others wait for as long while rank 0 plays episodes and exports."""


def rank() -> int:
    """Return the number of this process, 0 for one that trains alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, as its environment says; alone, do nothing.

    Raises:
        WmError: they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    try:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise WmError(
            f"the ranks cannot be joined ({' '.join(str(error).split())}); "
            "start them with torchrun."
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait for the others."""
    if size() > 1:
        dist.barrier()


def share(rows: Rows) -> Rows:
    """Return this rank's rows of an array or tensor: every so many-th.

    Raises:
        WmError: they cannot be shared evenly.
    """
    if size() == 1:
        return rows
    if len(rows) % size():  # type: ignore[arg-type]
        raise WmError(
            f"a batch of {len(rows)} cannot be shared by {size()} processes; "  # type: ignore[arg-type]
            "give the recipe batches and stills that are multiples of their number."
        )
    part: Rows = rows[rank() :: size()]  # type: ignore[index]
    return part


def mean(value: Tensor) -> Tensor:
    """Return the mean over the ranks, through which gradients flow."""
    if size() == 1:
        return value
    result: Tensor = all_reduce(value) / size()  # type: ignore[no-untyped-call]
    return result


def agreed(value: Tensor) -> Tensor:
    """Return what rank 0 has."""
    if size() > 1:
        dist.broadcast(value, 0)
    return value


def agree(module: nn.Module) -> None:
    """Give all ranks the weights and buffers of rank 0."""
    for value in module.state_dict().values():
        agreed(value)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by the mean over the ranks.

    One that some ranks lack counts as zero there. One that all lack stays away, so that the
    optimiser leaves its weights alone.
    """
    if size() == 1:
        return
    owners = list(parameters)
    device = owners[0].device
    used = torch.tensor([p.grad is not None for p in owners], dtype=torch.float32, device=device)
    dist.all_reduce(used)
    owners = [p for p, ranks_with in zip(owners, used.tolist(), strict=True) if ranks_with]
    for parameter in owners:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten().float() for p in owners if p.grad is not None])
    dist.all_reduce(flat)
    parts = torch.split(flat / size(), [p.numel() for p in owners])
    for parameter, part in zip(owners, parts, strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))


def averaged(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return figures as their means over the ranks."""
    if size() == 1:
        return dict(values)
    flat = torch.stack([value.detach().float() for value in values.values()])
    dist.all_reduce(flat)
    return dict(zip(values, flat / size(), strict=True))


def slice_of(total: int) -> range:
    """Return which of so many rows this rank computes: a stretch of them."""
    each = _each(total)
    return range(min(rank() * each, total), min((rank() + 1) * each, total))


def gathered(rows: Tensor, total: int) -> Tensor:
    """Put together, in order, what each rank computed of its :func:`slice_of` so many rows."""
    if size() == 1:
        return rows
    # Only the last ones are short, so that the padding comes behind all rows.
    padded = rows.new_zeros(_each(total), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[:total]


def _each(total: int) -> int:
    return -(-total // size())


class _OverRanks(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose batch is that of all ranks together.

    ``torch.nn.SyncBatchNorm`` does the same on GPUs only.
    """

    def _check_input_dim(self, input: Any) -> None:
        """The module that it stands for has checked."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        values = input.float()
        axes = [axis for axis in range(input.ndim) if axis != 1]
        middle = mean(values.mean(axes))
        square = mean((values**2).mean(axes))
        variance = (square - middle**2).clamp_min(0.0)
        count = input.numel() // input.shape[1] * size()
        with torch.no_grad():
            self.running_mean.lerp_(middle.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * count / max(count - 1, 1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        shape = [1, -1, *[1] * (input.ndim - 2)]
        result = (values - middle.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


def norm_over_ranks(module: nn.Module) -> None:
    """Have every BatchNorm below a module look at the whole batch; alone, change nothing."""
    if size() == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            made = _OverRanks(child.num_features, child.eps, child.momentum, child.affine)
            made.load_state_dict(child.state_dict())
            made.to(next(child.buffers()).device)
            made.train(child.training)
            setattr(module, name, made)
        else:
            norm_over_ranks(child)
