"""Small runs for the tests: real digits, a ResNet-8 of width 4 (3 blocks, 5 units) in 4 stages, with small AuxNets."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from lpjax.config.load import from_config_dict
from lpjax.config.schema import Config
from lpjax.data import SOURCES
from lpjax.methods import configure, filled_in
from lpjax.network.network import Network, build
from lpjax.training.run import Run, build_network, prepare

SMALL = {
    "num_stages": 4,
    "batch_size": 16,
    "num_epochs": 2,
    "model": {"depth": 8, "width": 4},
    "aux": {"blocks_per_stage": 0},  # half of what is compiled
    "optimizer": {"warmup_epochs": 0.0},
    "aux_optimizer": {"warmup_epochs": 0.0},
}


def small_config(**fields) -> Config:
    """The small configuration, with all fields filled in; `section__field=value` sets a nested field."""
    return configure(small_values(**fields))


def small_values(**fields) -> dict:
    """Its fields."""
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in SMALL.items()}
    for name, value in fields.items():
        section, _, inner = name.partition("__")
        if inner:
            values.setdefault(section, {})[inner] = value
        else:
            values[section] = value
    return values


def small_run(**fields) -> Run:
    """The run of the small configuration; tests that ask for the same one share it, and so the step it compiles."""
    return _prepared(json.dumps(small_values(**fields)), jax.config.jax_enable_x64)


@functools.lru_cache(maxsize=16)
def _prepared(values: str, x64: bool) -> Run:
    return prepare(from_config_dict(json.loads(values)))


def built(**fields) -> tuple[Network, Config]:
    """The network of a small configuration, and that."""
    config = small_config(**fields)
    return build_network(config, SOURCES[config.data.name].describe(config.data)), config


def cut_network(units, image_shape, **fields) -> Network:
    """The network of these units, cut as a configuration of these fields says."""
    return build(units, image_shape, filled_in(Config(**fields)))


def plain_sgd(rate: float = 1.0) -> dict:
    """Optimiser fields with which new parameters are old ones less `rate` times the gradient."""
    settings = {"learning_rate": rate, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "schedule": "constant"}
    return {f"{section}__{name}": v for section in ("optimizer", "aux_optimizer") for name, v in settings.items()}


def dataset(run: Run):
    """The arrays a run trains and is tested on."""
    return SOURCES[run.config.data.name].load(run.config.data)


def take_steps(run: Run, count: int):
    """State and figures (of every step) after `count` steps, on the host."""
    state, history = run.create(), []
    batches = run.feed.train()
    for _ in range(count):
        state, figures = run.step(state, next(batches))
        history.append(jax.device_get(figures))
    return on_host(state), history


def seconds_by_part(seconds) -> dict[str, float]:
    """What the labels of a schedule come to: `StepSeconds.parts` by purpose."""
    passes = ("forward", "backward")
    labels = {
        "data": ["augment"],
        "stages": [f"{kind} {way}" for kind in ("stage", "tail", "classifier", "recompute") for way in passes],
        "batch_norm": ["batch norm"],
        "gradients": ["gradients"],
        "optimizer": ["update"],
        "fixed": ["launch", "metrics"],
        "exchange": ["exchange", "pack"],
        "aux_forward": ["aux forward"],
        "aux_backward": ["aux backward"],
        "correction": ["correct"],
    }
    assert set(seconds.parts) <= {label for own in labels.values() for label in own}
    return {part: sum(seconds.parts.get(label, 0.0) for label in own) for part, own in labels.items()}


def detach(tree):
    """Arrays tied to no mesh."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def trees(run: Run):
    """Initial parameters and statistics of the stages, one tree a stage, and of the AuxNet, one tree a piece."""
    state, network = run.create(), run.network
    params, stats = network.params.unpack_all(state.stage_params), network.stats.unpack_all(state.stage_stats)
    return detach((params, stats, state.aux_params, state.aux_stats))


def on_host(state):
    return jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))


def assert_close(actual, expected, *, rtol=1e-9, atol=1e-9):
    """Two trees of arrays of equal structure, leaf by leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))
