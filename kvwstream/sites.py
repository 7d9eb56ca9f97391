"""The value projections of a model, found by structure.

A decoder layer holds one MLP: modules that read the hidden state and widen it to `width` channels,
and one sibling that maps `width` back to the hidden size. That sibling is the site. No list of
class or module names is consulted, so a new family works if it is built this way and is refused,
with what was found, if it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kvwstream.errors import ModelError
from kvwstream.plan import Site


class Projection(NamedTuple):
    """A linear map inside a decoder layer: `path` below the layer, input and output width."""

    path: str
    inputs: int
    outputs: int
    axis: int


def find_sites(model: PreTrainedModel, *, cross_attention: bool = False) -> list[Site]:
    """One site per decoder layer, in layer order, with `tensor` named as in the module tree.

    Layers that attend to images are left out unless `cross_attention` asks for them. Works on a
    model on the meta device. Raises `ModelError` that says what was found where the
    text decoder or the value projection of a layer cannot be told with certainty.
    """
    config = model.config.get_text_config(decoder=True)
    path, layers = _decoder_layers(model, config)
    crossing = getattr(config, "cross_attention_layers", None) or ()
    sites, offset = [], 0
    for index, layer in enumerate(layers):
        if index in crossing and not cross_attention:
            continue  # they run for images only, and are not the language model's memory
        found = _value_projections(layer, config.hidden_size)
        if len(found) > 1:  # grouped attention can look like a fused MLP; the config knows better
            width = getattr(config, "intermediate_size", None)
            found = [projection for projection in found if projection.inputs == width]
        if len(found) != 1:
            raise ModelError(
                f"{path}.{index}: expected one value projection (an MLP's map back to the hidden "
                f"size {config.hidden_size}), found {[p.path for p in found] or 'none'} among "
                f"{[f'{p.path} {p.inputs}->{p.outputs}' for p in _projections(layer)]}"
            )
        (projection,) = found
        name = f"{path}.{index}.{projection.path}"
        tensor = f"{name}.weight"
        sites.append(Site(name, tensor, projection.axis, index, -1, projection.inputs, offset))
        offset += projection.inputs
    return sites


def _decoder_layers(model: PreTrainedModel, config: Any) -> tuple[str, nn.ModuleList]:
    """The module list of the text decoder: as long as the text config says, with MLPs inside."""
    decoder = model.get_decoder()
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    lists = [
        (name, module)
        for name, module in decoder.named_modules(prefix=prefix)
        if isinstance(module, nn.ModuleList)
        and len(module) == config.num_hidden_layers
        and all(_value_projections(layer, config.hidden_size) for layer in module)
    ]
    if len(lists) != 1:
        raise ModelError(
            f"{type(model).__name__}: expected one list of {config.num_hidden_layers} decoder "
            f"layers with recognisable value projections, found {[name for name, _ in lists]}"
        )
    return lists[0]


def inward_projections(model: nn.Module, site: Site) -> list[nn.Module]:
    """The modules of the site's MLP that read the hidden state, in the order of the module tree."""
    parent, _, own = site.path.rpartition(".")
    value = model.get_submodule(site.path)
    hidden = value.weight.shape[1 - site.axis]  # type: ignore[index]
    found = []
    for projection in _projections(model.get_submodule(parent)):
        if (
            projection.path.count(".") == 0
            and projection.path != own
            and projection.inputs == hidden
        ):
            found.append(model.get_submodule(f"{parent}.{projection.path}"))
    return found


def _projections(layer: nn.Module) -> Iterator[Projection]:
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            yield Projection(name, module.in_features, module.out_features, 1)
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            yield Projection(name, inputs, outputs, 0)


def _value_projections(layer: nn.Module, hidden: int) -> list[Projection]:
    """Maps back to the hidden size whose siblings widen to it as an MLP does.

    An MLP widens once (`width`), twice (gate and up, `width` each) or fused (`2 * width`);
    attention reads the hidden state three times, or once with another width; a state space mixer
    reads what it widened more than once.
    """
    groups: dict[str, list[Projection]] = {}
    for projection in _projections(layer):
        groups.setdefault(projection.path.rpartition(".")[0], []).append(projection)
    found = []
    for siblings in groups.values():
        for value in siblings:
            inward = [p.outputs for p in siblings if p is not value and p.inputs == hidden]
            width = value.inputs
            alone = width == hidden or [p for p in siblings if p.inputs == width] == [value]
            if value.outputs == hidden and inward in ([width], [width, width], [2 * width]):
                found += [value] * alone
    return found
