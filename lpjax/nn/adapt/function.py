"""Functions of a batch as units: activations, reshapes, pooling."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.nn.adapt.call import arguments, flags
from lpjax.nn.adapt.layers import Layers
from lpjax.nn.adapt.unit import ModuleUnit
from lpjax.nn.chain import Shape


@dataclass(frozen=True)
class FunctionUnit(ModuleUnit):
    """A function without weights.

    Attributes:
      name: Of the function.
      function: x [b, ..] -> y [b, ..].
    """

    name: str
    function: Callable[..., Array]

    def draw(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """None."""
        return {}, {}

    def run(self, params: dict, stats: dict, x: Array, layers: Layers) -> tuple[Any, PyTree]:
        """The function of x."""
        return self.function(x, **arguments(self.name, self.function, flags(layers.train))), stats
