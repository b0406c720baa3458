"""The network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
      function: One that comes with lpjax ("resnet", "preact_resnet", "wide_resnet", "imagenet_resnet", "gpt", "vit"),
        or "module:function", anything that can be imported.  Called with the `arguments` and `classes=`, it returns
        the units of a chain.
      arguments: In a config file they are fields of `model`, beside `function`.
    """

    function: str = "resnet"
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"depth": 20, "width": 16})
