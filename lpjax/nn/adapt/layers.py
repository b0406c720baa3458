"""How a module's batch norms and dropouts are computed: by `lpjax.nn.layers`, and not by themselves.

So statistics are those of the batch, over the mesh's axes too, and masks are the same on every mesh.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lpjax.errors import BadInput
from lpjax.nn import layers
from lpjax.nn.chain import Mode

Path = tuple[Any, ...]


class Layers:
    """Computes a module's batch norms and dropouts, in one application of it.

    Attributes:
      name: Of the unit, for errors.
      mode: Of the chain.
      train: What the module is told; other than `mode.train` only where it is checked.
    """

    def __init__(self, name: str, mode: Mode, train: bool | None = None) -> None:
        self.name = name
        self.mode = mode
        self.train = mode.train if train is None else train
        self.norms: set[Path] = set()
        self._dropouts = 0

    def norm_mode(self, path: Path, running: bool | None) -> Mode:
        """The mode of one batch norm.

        Args:
          path: Where it is in the module.
          running: Whether the module asks for the given statistics; None: it leaves it to the mode.  In training that
            freezes the batch norm.

        Raises:
          BadInput: It is applied a second time, or asks for the batch's statistics in tests.
        """
        where = "/".join(map(str, path)) or "itself"
        if path in self.norms:
            raise BadInput(
                f"{self.name}: the batch norm {where} is applied twice; expected once, as its statistics are those of "
                f"one input; make a batch norm for each"
            )
        if running is False and not self.train:
            raise BadInput(
                f"{self.name}: the batch norm {where} normalises by the batch in tests, too; expected the given "
                f"statistics; leave use_running_average (inference) unset, or set it from an argument `train`"
            )
        self.norms.add(path)
        return self.mode._replace(train=self.mode.train and not running)

    def dropout(self, x: Array, rate: float, off: bool | None, shared: tuple[int, ...] = ()) -> Array:
        """One dropout.

        Args:
          x: Activations [b, ..].
          rate: In [0, 1).
          off: Whether the module switches it off; None: it leaves it to the mode.
          shared: Axes along which the mask is the same.

        Returns:
          As x.

        Raises:
          BadInput: It is on in tests, or its mask is the same for all examples.
        """
        number = self._dropouts
        self._dropouts += 1
        if (off is False and not self.train) or not 0 <= rate < 1 or 0 in (axis % x.ndim for axis in shared):
            raise BadInput(
                f"{self.name}: a dropout of rate {rate}, broadcast_dims {shared}, "
                f"{'on in tests' if off is False and not self.train else 'in training alone'}; expected a rate in "
                f"[0, 1), a mask for each example, and none in tests; correct it"
            )
        if off:
            return x
        if not shared:
            return layers.dropout(x, rate, self.mode, number)
        few = jnp.ones([1 if axis in {a % x.ndim for a in shared} else n for axis, n in enumerate(x.shape)], x.dtype)
        return x * layers.dropout(few, rate, self.mode, number)


def batch_norm(
    mode: Mode,
    scale: Array | None,
    bias: Array | None,
    stats: layers.Stats,
    x: Array,
    *,
    axis: int,
    epsilon: float,
) -> tuple[Array, layers.Stats]:
    """`layers.batch_norm` as the libraries have it.

    Args:
      mode: From `Layers.norm_mode`.
      scale: Of the channels; None: 1.
      bias: Likewise; None: 0.
      stats: "mean" and "var".
      x: Activations [b, ..].
      axis: The one of the channels.
      epsilon: Added to the variance.

    Returns:
      As x, and the statistics used.
    """
    one = jnp.ones_like(stats["var"])
    params = {"scale": one if scale is None else scale, "bias": jnp.zeros_like(one) if bias is None else bias}
    y, stats = layers.batch_norm(params, stats, jnp.moveaxis(x, axis, -1), mode, epsilon)
    return jnp.moveaxis(y, -1, axis), stats
