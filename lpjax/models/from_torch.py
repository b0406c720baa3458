"""Weights trained with PyTorch: a state dict -> the parameters and statistics of a chain.

    network = make_chain(imagenet_resnet(depth=50, classes=1000), (224, 224, 3))
    state_dict = torchvision.models.resnet50(weights="IMAGENET1K_V2").state_dict()
    params, stats = from_torch(network, state_dict, torchvision_resnet_names)
    logits, _ = chain.apply(network, params, stats, images, Mode(train=False))

Nothing here imports torch.  For another naming write a function like those below: the chain -> one dict a unit, from
the parts of the unit's parameters, such as "first/norm", to the names of torch modules.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lpjax.errors import BadInput
from lpjax.models.resnet import PARTS
from lpjax.nn.chain import Chain, init

Names = Callable[[Chain], list[dict[str, str]]]

_LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_LEAVES |= {leaf: leaf for leaf in ("position", "class_token")}


def from_torch(
    chain: Chain, state_dict: Mapping[str, Any], names: Names
) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Take over weights from PyTorch.

    Args:
      chain: A whole network, not a stage of one.
      state_dict: Torch tensors or numpy arrays by name; "num_batches_tracked" is not read.
      names: How the modules of `state_dict` are called, such as `torchvision_resnet_names`.

    Returns:
      Parameters and statistics of `chain` as `lpjax.nn.chain.init` lays them out.

    Raises:
      ValueError: A key is missing, left over or of another shape, or `names` does not fit the chain.
    """
    left = {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    modules = {(i, part): module for i, parts in enumerate(names(chain)) for part, module in parts.items()}

    def take(position: int, path: list[str], shape: tuple[int, ...]) -> np.ndarray:
        *part, leaf = path
        if leaf in ("mean", "var"):  # statistics lie where the parameters of the norm do, less the "norm"
            part.append("norm")
        unit, name = f"unit {position} ({chain.units[position].name})", "/".join(part)
        if (position, name) not in modules:
            raise BadInput(
                f"no torch module is named for the part {name!r} of {unit}: expected `names` to give its name; "
                f"use the names of this kind of network"
            )
        key = f"{modules[position, name]}.{_LEAVES[leaf]}"
        if key not in left:
            raise BadInput(
                f"the state dict has no {key!r}, expected for {unit}; its keys are {_some(state_dict)}; use the names, "
                f"kind and depth of the network it was saved from"
            )
        value = left.pop(key)
        value = _numpy(value)
        if leaf == "kernel":  # torch has the two axes of channels first, and the output before the input
            shape = (shape[-1], shape[-2], *shape[:-2])
        if value.shape != shape:
            raise BadInput(
                f"{key!r} has shape {value.shape}: expected {shape}; build the network with the width, classes and "
                f"channels of the one that was saved, or replace this array"
            )
        return np.moveaxis(value, (0, 1), (-1, -2)) if leaf == "kernel" else value

    def stack(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        repeat, keys = chain.repeats[path[1].idx], [entry.key for entry in path[2:]]
        values = [take(repeat.first + i, keys, leaf.shape[1:]) for i in range(repeat.count)]
        return jnp.asarray(np.stack(values), leaf.dtype)

    trees = jax.tree.map_with_path(stack, jax.eval_shape(lambda key: init(chain, key), jax.random.key(0)))
    if left:
        raise BadInput(
            f"{len(left)} keys of the state dict are left over: {_some(left)}; expected those of this network of "
            f"{len(chain.units)} units alone; remove them, or use the depth of the network that was saved"
        )
    return trees


def _numpy(value: Any) -> np.ndarray:
    """A torch tensor, or an array, as a numpy array."""
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _some(keys: Mapping[str, Any]) -> str:
    return ", ".join([*list(keys)[:5], "..."] if len(keys) > 5 else keys)


def torchvision_resnet_names(chain: Chain) -> list[dict[str, str]]:
    """Names of torchvision's `resnet18` .. `resnet152`, for an `imagenet_resnet`."""
    block = _layers(3) | {"shortcut/conv": "downsample.0", "shortcut/norm": "downsample.1"}
    return [{"conv": "conv1", "norm": "bn1"}, {}, *_blocks(chain, 2, "layer{}.{}", block), {"": "fc"}]


def wide_resnet_names(chain: Chain) -> list[dict[str, str]]:
    """Names of github.com/xternalz/WideResNet-pytorch and the many that follow it, for a `wide_resnet`."""
    block = _layers(2) | {"shortcut/conv": "convShortcut"}
    return [{"": "conv1"}, *_blocks(chain, 1, "block{}.layer.{}", block), {"norm": "bn1", "linear": "fc"}]


def torchvision_vit(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of torchvision's `vit_b_16` and its kin as `torchvision_vit_names` names it.

    The convolution that makes tokens of patches becomes a matrix, position and class token lose their axis of examples.

    Args:
      state_dict: Torch tensors or numpy arrays by name.

    Returns:
      What `from_torch` takes.
    """
    arrays = {}
    for name, tensor in state_dict.items():
        value, key = _numpy(tensor), name.replace("in_proj_", "in_proj.")
        if name == "conv_proj.weight":
            value = np.moveaxis(value, 1, -1).reshape(len(value), -1)
        elif name in ("class_token", "encoder.pos_embedding"):
            key = "tokens." + ("class_token" if name == "class_token" else "position")
            value = value[0, 0] if name == "class_token" else value[0]
        arrays[key] = value
    return arrays


def torchvision_vit_names(chain: Chain) -> list[dict[str, str]]:
    """Names of what `torchvision_vit` returns, for a `vit`."""
    block = {f"attention_{end}": f"self_attention.{end}_proj" for end in ("in", "out")}
    block |= {"attention_norm": "ln_1"} | {"forward_norm": "ln_2", "forward_in": "mlp.0", "forward_out": "mlp.3"}
    place = "encoder.layers.encoder_layer_{}.{}"
    blocks = [{part: place.format(i, name) for part, name in block.items()} for i in range(len(chain.units) - 2)]
    return [{"": "tokens", "linear": "conv_proj"}, *blocks, {"norm": "encoder.ln", "linear": "heads.head"}]


def _layers(count: int) -> dict[str, str]:
    """Names of a block's convolutions and batch norms, which both number: "first/conv" is conv1, "first/norm" bn1."""
    numbered = list(enumerate(PARTS[:count], 1))
    return {f"{part}/conv": f"conv{i}" for i, part in numbered} | {f"{part}/norm": f"bn{i}" for i, part in numbered}


def _blocks(chain: Chain, first: int, place: str, parts: dict[str, str]) -> list[dict[str, str]]:
    """Names of the units from `first` to the last but one: blocks, in groups that begin where the map shrinks."""
    names: list[dict[str, str]] = []
    group, index = 1, 0
    for position in range(first, len(chain.units) - 1):
        if chain.shapes[position][:2] != chain.shapes[position + 1][:2]:
            group, index = group + 1, 0
        names.append({part: f"{place.format(group, index)}.{name}" for part, name in parts.items()})
        index += 1
    return names
