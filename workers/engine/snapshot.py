"""Values of live networks, optimizers and generators, taken and put back bit for bit."""

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

Values = dict[str, Tensor]


def values_of(network: PreTrainedModel) -> Values:
    """The live tensors that are saved with a network, by name; tied ones once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def copy_of(network: PreTrainedModel) -> Values:
    """A copy of `values_of`."""
    return {name: tensor.detach().clone() for name, tensor in values_of(network).items()}


@torch.no_grad()
def put_back(network: PreTrainedModel, values: Values) -> None:
    """Gives a network of the same sizes these values, in the memory that it has: its layout may show in results.

    Raises ValueError where names or shapes are others.
    """
    live = values_of(network)
    if {name: tensor.shape for name, tensor in live.items()} != {name: value.shape for name, value in values.items()}:
        raise ValueError("the values are those of a network of other sizes")
    for name, tensor in live.items():
        tensor.copy_(values[name])


def moments_of(optimizer: Optimizer) -> Values:
    """What an optimizer knows of each parameter, under `PARAMETER.NAME`, parameters numbered in its order."""
    return {
        f"{number}.{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def put_back_moments(optimizer: Optimizer, values: Values) -> None:
    """Gives an optimizer that has made no step what another one knew."""
    parameters = list(_parameters(optimizer))
    for place, value in values.items():
        number, _, name = place.partition(".")
        parameter = parameters[int(number)]
        # Counts of steps stay where they are, all else lies like its parameter.
        home = torch.empty_like(parameter if value.shape == parameter.shape else value, requires_grad=False)
        optimizer.state[parameter][name] = home.copy_(value)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def chance_of(device: torch.device) -> Values:
    """States of PyTorch's own generators, of which dropout draws."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def put_back_chance(device: torch.device, states: Values) -> None:
    """Lets PyTorch's generators go on from there."""
    torch.set_rng_state(states["cpu"].clone())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].clone(), device)
