"""One of the processes of test_ranks.py: the first gradient of phase 1, and a few steps of it.

torchrun --nproc-per-node 2 ranks_worker.py DATASET FOLDER
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wm_node.data.dataset import Dataset
from wm_node.model.config import Dims
from wm_node.model.world import WorldModelNet
from wm_node.training import encoder_phase as phase_1
from wm_node.training import loop, ranks
from wm_node.training.data import TrainingData
from wm_node.training.encoder_phase import EncoderTraining, encode_all, encoder_phase
from wm_node.training.loop import Recorder, run_phase
from wm_node.training.recipe import load_recipe
from wm_node.training.sigreg import sigreg
from wm_node.training.stills import Stills

# Nothing that a rank draws for its own frames: then both must do what one process does.
RECIPE = replace(
    load_recipe(Path(__file__).with_name("small.yaml")),
    encoder_batch=8,
    stills=12,
    augmentation=0.0,
    sketch_weight=0.0,
)


def same_directions(latents: Tensor) -> Tensor:
    """SIGReg along directions that do not depend on what was drawn before, by frames of a rank."""
    torch.manual_seed(0)
    return sigreg(latents)


def main() -> None:
    """Work as the rank that the environment names."""
    dataset, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    loop.precision = lambda device: nullcontext()  # the same arithmetic on every machine
    phase_1.sigreg = same_directions
    cpu = torch.device("cpu")
    with ranks.group(cpu):
        torch.manual_seed(0)
        data = TrainingData(Dataset.open(dataset), cpu, 1 << 30)
        net = WorldModelNet(Dims.of(data.profile), RECIPE.model)
        net.set_statistics(data.statistics())
        module = EncoderTraining(net)
        ranks.norm_over_ranks(module)
        phase = encoder_phase(module, data, Stills(data), RECIPE, seed=0)
        batches = phase.batches(0)
        drawn = [next(batches) for _ in range(3)]
        module.train()
        torch.manual_seed(0)
        losses = phase.losses(drawn[0], 0)
        torch.stack(list(losses.values())).sum().backward()
        ranks.average_gradients(module.parameters())
        gradients = {
            f"gradient.{name}": parameter.grad.clone()
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }
        run_phase(phase, 0, cpu, Recorder(None, lambda *_: None), weight_decay=0.0, clip=1.0)
        arrays = {
            "starts": torch.stack([batch.starts for batch in drawn]),
            "stills": torch.stack([batch.stills.ticks for batch in drawn]),
            "latents": encode_all(net, data),
            **gradients,
            **{f"net.{name}": value for name, value in net.state_dict().items()},
            **{f"loss.{name}": value for name, value in ranks.averaged(losses).items()},
        }
        file = folder / f"rank_{ranks.rank()}_of_{ranks.size()}.npz"
        np.savez(file, **{name: value.detach().numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main()
