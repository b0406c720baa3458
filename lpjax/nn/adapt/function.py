"""Functions of a batch as units: activations, reshapes, pooling."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, PRNGKeyArray

from lpjax.nn.adapt.common import Layers, ModuleUnit, arguments
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

    def run(self, params: dict, stats: dict, x: Array, layers: Layers) -> tuple[Array, dict]:
        """The function of x."""
        return self.function(x, **arguments(self.name, self.function, layers.train)), stats
