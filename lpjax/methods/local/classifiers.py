"""The stages' classifiers, how they are made and how they are packed."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from lpjax.config.schema.methods import LocalConfig
from lpjax.errors import BadInput, require
from lpjax.network.network import Network
from lpjax.network.packing import PackedChains, Packing, Row, drawn_alike
from lpjax.nn import chain, layers
from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, make_chain
from lpjax.nn.layers import STANDARDISE
from lpjax.nn.schedule import Part
from lpjax.parallel import mesh as meshes
from lpjax.parallel.mesh import Stage


@dataclass(frozen=True)
class Averaged:
    """A unit of weights that are a running mean, then a learnt scale and bias for each channel.

    Attributes:
      unit: The unit.
    """

    unit: UnitLike
    name = property(lambda self: f"mean of {self.unit.name}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, PyTree]:
        """The unit's parameters as "mean"; scale 1 and bias 0; the unit's statistics."""
        params, stats = self.unit.init(key, in_shape)
        channels = make_chain([self.unit], in_shape).out_shape[-1]
        return {"mean": params, "scale": jnp.ones(channels), "bias": jnp.zeros(channels)}, stats

    def apply(self, params: dict, stats: PyTree, x: Array, mode: Mode) -> tuple[Array, PyTree]:
        """scale * unit(x) + bias."""
        y, stats = self.unit.apply(params["mean"], stats, x, mode)
        return layers.affine(params, y), stats


@dataclass(frozen=True, eq=False)
class Classifiers:
    """The classifiers of a network's stages.

    Attributes:
      chains: One a stage; one of no units for the last.
      params: How the parameters that are trained are packed.
      stats: How the statistics are.
      means: How the parameters are that are running means; of no values without "momentum".
      kinds: Stages by kind as in `Network`, those of a kind with equal classifiers.
    """

    chains: tuple[Chain, ...]
    params: Packing
    stats: Packing
    means: Packing
    kinds: tuple[tuple[int, ...], ...]

    def init(self, k: Stage, key: PRNGKeyArray) -> tuple[Row, Row, Row]:
        """Rows of a stage's parameters, statistics and running means before the first step."""
        params, stats = chain.init(self.chains[k.like], key)
        trained, mean = _apart(self.chains[k.like], params)
        return self.params.pack(trained), self.stats.pack(stats), self.means.pack(mean)

    def init_all(self, key: PRNGKeyArray, num_devices: int) -> tuple[Row, Row, Row]:
        """`init` of all stages of one of so many devices along 'stage', under `shard_map`."""
        kinds = drawn_alike(self.chains, self.kinds)
        return meshes.on_stages(lambda k: self.init(k, jax.random.fold_in(key, k.number)), kinds, num_devices)

    def tree(self, k: Stage, trained: PyTree, means: Row) -> PyTree:
        """Parameters of a stage's classifier, from those that are trained and a row of running means."""
        mean = self.means.unpack(k.like, means)
        return (*trained[:-2], trained[-2] | mean, trained[-1]) if mean else trained

    def logits(
        self, params: Sequence[PyTree], stats: Sequence[PyTree], outputs: Sequence[Array], mode: Mode
    ) -> tuple[list[Array], tuple[PyTree, ...]]:
        """What all classifiers make of what their stages put out, and statistics; of the last stage no logits.

        Args:
          params: One tree a stage; of those without running means.
          stats: Likewise.
          outputs: One a stage.
          mode: Of the stages.
        """
        mode, rows = mode._replace(keys=None), zip(self.chains[:-1], params, stats, outputs, strict=False)
        found = [chain.apply(own, params, stats, x, mode) for own, params, stats, x in rows]
        return [logits for logits, _ in found], (*(new for _, new in found), stats[-1])

    def first_unit(self, k: Stage, params: tuple[PyTree, ...]) -> Row:
        """What a stage sends to the one before: the weights of its first unit, as `means` has them.

        Args:
          k: The stage.
          params: Its parameters, one tree a repeat.

        Returns:
          A row; zeros from stage 0.
        """
        first = {} if k.like == 0 else {"mean": jax.tree.map(lambda leaf: leaf[:1], params[0])}
        return self.means.pack(first)

    def parts(self, k: int) -> list[Part]:
        """The classifier of stage k as it is run: no gradient is taken of running means."""
        own, found = self.chains[k], list[Part]()
        count = len(own.units)
        if not _has_mean(own):
            return [Part(k, own)] if own.units else []
        for start, stop in ((0, count - 2), (count - 2, count - 1), (count - 1, count)):
            if stop > start:
                mean = start == count - 2
                found.append(Part(k, own.piece(start, stop), ("input",) if mean else ("input", "weights")))
        return found


@functools.lru_cache(maxsize=32)
def classifiers(network: Network, config: LocalConfig) -> Classifiers:
    """Make the classifiers of a network's stages.

    Args:
      network: The network.
      config: The section `local`: read are `classifier` and `blocks`.

    Returns:
      The classifiers.

    Raises:
      BadInput: The units or the network's head do not take what is before them, or the head makes no logits of it.
    """
    chains = []
    head = network.chain.units[-1]
    for k, stage in enumerate(network.stages[:-1]):
        units = _UNITS[config.classifier](network, k, config.blocks)
        try:
            made = make_chain([*units, head], stage.out_shape)
        except ValueError as error:
            raise BadInput(
                f"local classifiers: the network's head does not fit behind stage {k}: {error}; choose other cuts"
            ) from error
        if made.out_shape != network.chain.out_shape:
            raise BadInput(
                f"local classifiers: the network's head behind stage {k} gives {made.out_shape}: expected "
                f"{network.chain.out_shape}, logits; let the head pool its input, or choose other cuts"
            )
        chains.append(replace(made, dtype=stage.dtype, remat=stage.remat))
    chains.append(make_chain([], network.chain.out_shape))
    packed = PackedChains.of(chains)
    trained, means = zip(*map(_apart, chains, packed.params.trees), strict=True)
    kinds: dict[Any, list[int]] = {}
    for i, kind in enumerate(network.kinds):
        for k in kind:
            kinds.setdefault((i, chains[k]), []).append(k)
    by_kind = tuple(map(tuple, kinds.values()))
    return Classifiers(packed.chains, Packing.of(trained), packed.stats, Packing.of(means), by_kind)


def check(config: LocalConfig) -> None:
    """Raises BadInput where classifiers are to be of sampled units, but of none."""
    require(
        config.classifier != "sampled" or config.blocks > 0,
        "local.blocks=0 with local.classifier=sampled: expected at least 1 unit to sample; set "
        "local.classifier=own for the network's head alone",
    )


def _own(network: Network, k: int, count: int) -> list[UnitLike]:
    """Units like the stage's own last one that keeps the shape; none where it has no such unit."""
    stage = network.stages[k]
    shapes = zip(stage.units, stage.shapes[:-1], stage.shapes[1:], strict=True)
    alike = [u for u, before, after in shapes if before == after == stage.out_shape and u != STANDARDISE]
    return alike[-1:] * count


def _sampled(network: Network, k: int, count: int) -> list[UnitLike]:
    """Units drawn evenly from those behind stage k, each to put out what it does in the network."""
    whole, start = network.chain, network.cuts[k]
    behind = len(whole.units) - 1 - start
    count, shape, units = min(count, behind), whole.shapes[start], list[UnitLike]()
    for i in (start - 1 + round(behind * i / count) for i in range(1, count + 1)):
        unit: Any = whole.units[i]
        aim = whole.shapes[i + 1]
        strides = "stride" in getattr(unit, "__dataclass_fields__", {}) and len(shape) == len(aim) == 3
        if strides and shape != whole.shapes[i]:
            unit = replace(unit, stride=max(-(-a // b) for a, b in zip(shape[:2], aim[:2], strict=True)))
        try:
            found = make_chain([unit], shape).out_shape
        except ValueError as error:
            raise BadInput(f"{_drawn(i, unit, k)}: {error}; {_REMEDY}") from error
        if found != aim:
            raise BadInput(f"{_drawn(i, unit, k)}: it makes {found} of {shape}: expected {aim}; {_REMEDY}")
        units.append(unit)
        shape = aim
    return units


_REMEDY = "give it a field `stride`, or choose other cuts, another local.blocks or local.classifier=own"


def _drawn(i: int, unit: UnitLike, k: int) -> str:
    return f"local.classifier=sampled: unit {i} ({unit.name}) drawn for stage {k}"


def _momentum(network: Network, k: int, count: int) -> list[UnitLike]:
    """Those of `_own`, and the next stage's first unit."""
    start = network.cuts[k]
    if start == len(network.chain.units) - 1:
        raise BadInput(
            f"local.classifier=momentum: stage {k + 1} is the network's head alone: expected a unit before it, of "
            f"whose weights stage {k} has a running mean; choose other cuts"
        )
    return [*_own(network, k, count), Averaged(network.chain.units[start])]


_UNITS = {"own": _own, "sampled": _sampled, "momentum": _momentum}


def _has_mean(own: Chain) -> bool:
    return any(isinstance(unit, Averaged) for unit in own.units)


def _apart(own: Chain, params: tuple[PyTree, ...]) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
    """Parameters of a classifier that are trained, and those that are a running mean, {} where there are none."""
    if not _has_mean(own):
        return params, {}
    trained = {name: leaf for name, leaf in params[-2].items() if name != "mean"}
    return (*params[:-2], trained, params[-1]), {"mean": params[-2]["mean"]}
