"""How a run's network is cut, for other programs to read: structure.json, and what the tables print."""

from typing import Any

from lpjax.config.schema import Config
from lpjax.methods import METHODS, coarse_adjoint
from lpjax.methods.local import classifiers
from lpjax.network.aux_net import tail
from lpjax.network.network import Network
from lpjax.nn.chain import Chain
from lpjax.nn.count import chain_flops, chain_size


def units(chain: Chain) -> str:
    """Units in short: repeats as "n x name"."""
    return ", ".join((f"{repeat.count} x " if repeat.count > 1 else "") + repeat.unit.name for repeat in chain.repeats)


def beside(network: Network, config: Config) -> list[list[Chain]]:
    """[K], what each stage computes beside its own units: the pieces of its coarse tail (layer_parallel,
    coarse_adjoint), the AuxNet's piece that learns there (coarse_adjoint), or its classifier (local)."""
    K, real_inputs = network.num_stages, config.method == "coarse_adjoint"
    if real_inputs or (config.method == "layer_parallel" and config.multiplier == "coarse_tail"):
        tails = network.aux_tails
        behind = [[tails[i] for i in tail(K, k + 1, config.aux.tail)] if tails else [] for k in range(K)]
        return [
            own + ([tails[k]] if real_inputs and coarse_adjoint.fits(config, k) else []) for k, own in enumerate(behind)
        ]
    if config.method == "local":
        return [[chain] for chain in classifiers(network, config.local.blocks).chains]
    return [[] for _ in range(K)]


def describe(network: Network, config: Config) -> dict[str, Any]:
    """structure.json.

    mesh: [S, D].  examples: of a stage column, batch_size / D.  micro_batches, variant: of `pipeline` and `delayed`.
    stages, aux: the stages and, where the method has one, the AuxNet's pieces, in order.  Of each its units, the shapes
    of an example at both ends, the number of its parameters, and the floating-point operations of its forward pass on
    one example; beside_flops: those of what a stage computes beside its own units, see `beside`.
    """

    def row(chain: Chain) -> dict[str, Any]:
        return {
            "units": units(chain),
            "in_shape": chain.in_shape,
            "out_shape": chain.out_shape,
            "parameters": chain_size(chain),
            "flops": chain_flops(chain),
        }

    chains = zip(network.stages, beside(network, config), strict=True)
    pieces = network.aux_net if METHODS[config.method].aux_net else ()
    return {
        "method": config.method,
        "multiplier": config.multiplier if config.method == "layer_parallel" else None,
        "micro_batches": config.pipeline.micro_batches if config.method == "pipeline" else None,
        "variant": config.delayed.variant if config.method == "delayed" else None,
        "mesh": config.mesh_shape,
        "examples": config.batch_size // config.mesh.data,
        "cuts": network.cuts,
        "stages": [row(stage) | {"beside_flops": sum(map(chain_flops, behind))} for stage, behind in chains],
        "aux": [row(piece) for piece in pieces],
    }
