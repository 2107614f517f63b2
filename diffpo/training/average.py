"""A running average of the trained weights (EMA), kept beside them, sampled and exported in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from diffpo.compat import ensure_torchvision
from diffpo.training.checkpoint import RESTORE, copied, in_pieces, trained_weights


class Average:
    """diffusers' `EMAModel` over the parameters that are trained, addressed by name.

    `network` is what accelerate returned: its parameters may be shards. `decay` is the largest one; the first updates
    use less, as (1 + n) / (10 + n).
    """

    def __init__(self, network: nn.Module, decay: float):
        ensure_torchvision()
        from diffusers.training_utils import EMAModel

        self._model = EMAModel(trained(network), decay=decay, foreach=True)

    @property
    def updates(self) -> int:
        """Updates averaged so far: what the decay depends on."""
        return self._model.optimization_step

    def update(self, network: nn.Module) -> None:
        """Take the present weights in."""
        self._model.step(trained(network))

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Exchange the weights for their average, and back."""
        self._model.store(trained(network))
        self._model.copy_to(trained(network))
        try:
            yield
        finally:
            self._model.restore(trained(network))

    def whole(self, network: nn.Module) -> dict[str, Tensor]:
        """Collect the average, whole and on the CPU, by name; every process must call this."""
        if in_pieces(network):
            with self.applied(network):
                return trained_weights(network)
        names = [name.removeprefix("module.") for name, p in network.named_parameters() if p.requires_grad]
        return copied(dict(zip(names, self._model.shadow_params, strict=True)))

    def load(self, network: nn.Module, weights: dict[str, Tensor], updates: int) -> None:
        """Put back what `whole` collected; every process must call this."""
        with self.applied(network):
            set_model_state_dict(network, weights, options=RESTORE)
            self._model.shadow_params = [p.detach().clone() for p in trained(network)]
        self._model.optimization_step = updates


def trained(network: nn.Module) -> list[Tensor]:
    """Collect what learns, in the network's order; of a sharded parameter, the piece that this process holds.

    The average works on the pieces, because torch's foreach operations know no shards. A sharded network first lets go
    of what a forward gathered.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    learning = [p for p in network.parameters() if p.requires_grad]
    return [p.to_local() if isinstance(p, DTensor) else p for p in learning]
