"""Ways to train one network: `METHODS`, by what `config.method` calls them.

Each is one file or one folder here, and says itself what it is (`base.Method`): its step, its schedule, what it keeps
and what it checks.  All share chain, cut, data, optimisers, tests, checkpoints and the training loop.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lpjax.config.check import check, require_one_of
from lpjax.config.load import from_config_dict
from lpjax.config.schema import Config
from lpjax.errors import require
from lpjax.methods import phases
from lpjax.methods.backprop import DataParallel, Serial
from lpjax.methods.base import Method
from lpjax.methods.coarse_adjoint import CoarseAdjoint
from lpjax.methods.corrected import Corrected
from lpjax.methods.delayed import Delayed
from lpjax.methods.layer_parallel.method import LayerParallel
from lpjax.methods.local import Local
from lpjax.methods.pipeline import Pipeline

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LayerParallel(),
        CoarseAdjoint(),
        Serial(),
        DataParallel(),
        Pipeline(),
        Delayed(),
        Corrected(),
        Local(),
    )
}
"""What `config.method` can be; a method of one's own is one more entry."""


def configure(values: Mapping[str, Any]) -> Config:
    """Make a configuration that can be run from (nested) fields.

    Args:
      values: Fields to their values; what is left out has its default.

    Raises:
      BadInput: A field does not exist, has a wrong value, or contradicts another one.
    """
    return resolve(from_config_dict(values))


def resolve(config: Config) -> Config:
    """Fill in the defaults that depend on the methods, and check the configuration.

    What is filled in already stays as it is, so a second time changes nothing.

    Args:
      config: As `configure` or a config file makes it.

    Raises:
      BadInput: See `configure`.
    """
    config = filled_in(config)
    check(config, staged=any(METHODS[name].staged for name in config.all_methods))
    phases.check(config, METHODS)
    for name in config.all_methods:
        METHODS[name].check(config)
        require(
            config.optimizer.accumulate == 1 or METHODS[name].accumulates,
            f"optimizer.accumulate={config.optimizer.accumulate} with method={name}, which does not read it: expected "
            f"1; leave it out (some methods have micro_batches of their own), or choose one of "
            f"{', '.join(own.name for own in METHODS.values() if own.accumulates)}",
        )
        batches = {tuple(age.entered for age in ages) for ages in METHODS[name].ages(config)}
        require(
            config.optimizer.clip_over == "stage" or len(batches) == 1,
            f"optimizer.clip_over=network with method={name}: in a step its stages have gradients of different "
            f"batches, which have no norm in common; set optimizer.clip_over=stage, or choose another method",
        )
    return config


def filled_in(config: Config) -> Config:
    """`resolve` without its checks.

    Raises:
      BadInput: A method does not exist.
    """
    for field, names in (("method", (config.method,)), ("phases.methods", config.phases.methods)):
        for name in names:
            require_one_of(field, name, METHODS)
    methods = [METHODS[name] for name in config.all_methods]
    stage, standardise = config.mesh.stage, config.standardise
    if stage is None:
        stage = 1 if all(method.devices == "one" for method in methods) else config.num_stages
    if standardise is None:
        standardise = any(method.aux_net == "inputs" for method in methods)
    config = replace(
        config, method=config.all_methods[0], mesh=replace(config.mesh, stage=stage), standardise=standardise
    )
    for method in methods:
        config = method.resolve(config)
    return config
