"""Builds the torch network of a bundle."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load_file

from wm_node.bundle import WEIGHTS, Bundle
from wm_node.errors import WmError
from wm_node.model.config import Dims
from wm_node.model.world import WorldModelNet


def load_network(bundle: Bundle) -> WorldModelNet:
    """Return the network in evaluation mode, fp32, on the CPU.

    Raises:
        WmError: the weights do not fit the sizes that the manifest names.
    """
    config = bundle.model
    net = WorldModelNet(Dims.of(bundle.profile), config)
    try:
        tensors = load_file(str(bundle.checked_file(WEIGHTS)))
        net.load_state_dict(
            {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            }
        )
    except (SafetensorError, RuntimeError) as error:
        raise WmError(
            f"the weights of bundle {bundle.path} do not fit its manifest; train it again."
        ) from error
    return net.eval()
