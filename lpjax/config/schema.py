"""The configuration: typed, frozen, and checked before anything is compiled or allocated.

These dataclasses are the only thing lpjax itself reads; `config_dict` makes them from a config file and the command
line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lpjax.methods import METHODS

Policy = Literal["none", "mean", "per_example", "adjoint", "coarse_tail"]
"""Where the multipliers come from.

none         kappa = 0: the penalty method.
mean         one [...] tensor an interface, updated by the batch mean of (7): enforces E[r_j] = 0.
per_example  one [N, ...] table an interface, the exact method; the examples must not be augmented.
adjoint      kappa_j = - grad of phi(A(x), y) with respect to lambda_j: the multiplier of a KKT point, estimated by the
             AuxNet's own adjoint, recomputed at each step and never stored.
coarse_tail  the non-linear form of `adjoint`: kappa = 0 and local loss (3), the AuxNet's tail seeing the real output.
"""
POLICIES: tuple[str, ...] = get_args(Policy)


@dataclass(frozen=True)
class MeshConfig:
    """Devices.  stage: devices along 'stage', must divide num_stages where each holds its stages (unset: num_stages; 1
    for method=serial).
    data: devices along 'data'; each stage column trains on batch_size / data examples."""

    stage: int | None = None
    data: int = 1


@dataclass(frozen=True)
class DataConfig:
    """The data set, how it is read, and how its images are augmented.

    name: see `lpjax.data.SOURCES`.  dir: folder of the data, for sources that need one.
    image_size: side in pixels of the square crop, for sources of image files of all sizes.
    channels: 3 or 1, what image files are decoded to, for `folder`.
    shrink: images of a set in memory are averaged over shrink x shrink pixels and rounded; 1 for none.
    train_examples: the first so many of the training set of a set in memory (unset: all).
    validation_examples: the last so many of that training set are not trained on, and take the place of the test set:
        for choosing settings without it (unset: none).
    crop: pixels of zero padding for the random crop, 0 for none.  flip: random left-right flip.
    cutout: side in pixels of the square set to the mean, 0 for none (arXiv:1708.04552).
    threads: that read and decode image files.  prefetch: images decoded ahead.
    max_corrupt: image files that cannot be decoded and are skipped before training stops.
    """

    name: str = "digits"
    dir: str | None = None
    image_size: int = 224
    channels: int = 3
    shrink: int = 1
    train_examples: int | None = None
    validation_examples: int | None = None
    crop: int = 1
    flip: bool = False
    cutout: int = 0
    threads: int = 16
    prefetch: int = 1024
    max_corrupt: int = 100


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    function: "resnet", "preact_resnet", "wide_resnet", "imagenet_resnet", or "module:function", anything that can be
        imported; called with the `arguments` and `classes=`, it returns the units of a chain (`chain.Unit`).  In a
        config file the arguments are fields of `model`, beside `function`.
    """

    function: str = "resnet"
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"depth": 20, "width": 16})


@dataclass(frozen=True)
class AuxConfig:
    """The AuxNet (`aux_net`, `lagrangian` (5) and (6)); of coarse_adjoint all but the last three fields.

    function: "convolutions", "own_units", or "module:function" that makes the units of a piece; see `aux_net`.
    blocks_per_stage: residual blocks of a piece besides the transition it must have.
    width: channels of a piece over those of the interface behind it.
    share: of the network's forward cost that the AuxNet may have at most; chooses `width` (unset: as it is).
    grid: side of the maps that it and the coarse tails compute on, at most (unset: those of the stages).
    tail: pieces of a coarse tail before the last one (unset: all that there are); bounds what a stage has to compute.
    tied: with coarse_adjoint, the last piece is made of units of the last stage, those that `own_units` takes, and of
        its weights: these learn from all tails.
    task_weight: weight of the AuxNet's own cross entropy in its training; 0 leaves its head alone, and with
        coarse_adjoint to the tails.
    adjoint_weight: weight of adjoint matching ((9) of `lagrangian`) in its training: that its own gradient at each
        interface, and so that of coarse tails, is what the stages behind it found; 0 for none.
    correction_step: eta, the step of the correction; with inner_steps = 1, eta = 1 is the chain rule.
    inner_steps: optimiser steps of the fit to one correction.
    """

    function: str = "convolutions"
    blocks_per_stage: int = 1
    width: float = 1.0
    share: float | None = None
    grid: int | None = None
    tail: int | None = None
    tied: bool = False
    task_weight: float = 1.0
    adjoint_weight: float = 0.0
    correction_step: float = 1.0
    inner_steps: int = 1


@dataclass(frozen=True)
class PenaltyConfig:
    """beta and what goes with it (`lagrangian` (2), (5), (7), (8)).

    initial, growth, maximum: beta = min(maximum, initial * growth ** epoch) in the stages' local losses.
        initial unset: 1, but 0.1 with coarse_tail, whose stages have the loss to follow; a linear multiplier needs a
        penalty strong enough to hold the stage where its slope is meant.  maximum unset: no bound.
    aux: beta in the correction of the auxiliary variables.  None, in a config file, is the stages' own: the exact
        Lagrangian.  The AuxNet does better when it follows the stages more than they follow it.  With
        coarse_adjoint the weight of a piece's fit to its stage; 0 spares it.
    multiplier_rate: rho / (2 beta) of the multiplier update, once a pass over the training set; 1 is the classical
        method of multipliers.
    sweeps: coarse correction sweeps of the stages' inputs before each step; after num_stages - 1 they are exact.
    """

    initial: float | None = None
    growth: float = 1.0
    maximum: float | None = None
    aux: float | None = 1.0
    multiplier_rate: float = 1.0
    sweeps: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimiser and its schedule.

    name: "sgd" (weight decay added to the gradient) or "adamw" (decoupled).  momentum, nesterov: for sgd.
    weight_decay: acts on kernels only, not on batch norm and biases.
    clip_norm: maximal L2 norm of a gradient, each stage's by itself (unset: none).
    schedule: "constant", "cosine" (to 0 at the end of training) or "step" (times `step_factor` at each of
        `step_epochs`), all after a linear warm-up from 0 over `warmup_epochs`.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    warmup_epochs: float = 1.0
    step_epochs: tuple[int, ...] = ()
    step_factor: float = 0.1


@dataclass(frozen=True)
class ExchangeConfig:
    """What owners and stages send each other (`exchange`, `methods.layer_parallel`).

    bfloat16: rounded to bfloat16, half the bytes.
    stale: the stages work on what was sent in the step before, so that the exchange can be under way meanwhile.
    """

    bfloat16: bool = False
    stale: bool = False


@dataclass(frozen=True)
class PipelineConfig:
    """micro_batches: M, that a stage column's batch is cut into; see `methods.pipeline`."""

    micro_batches: int = 4


@dataclass(frozen=True)
class DelayedConfig:
    """See `methods.delayed`.

    variant: "fdg", where neither forward nor backward passes wait, or "ddg", where only the backward passes do not.
    shrink: factor on a gradient each time it goes to the stage before, in (0, 1]; 1 for none.
    """

    variant: Literal["fdg", "ddg"] = "fdg"
    shrink: float = 1.0


@dataclass(frozen=True)
class LocalConfig:
    """blocks: of the stage's own units in each local classifier, before the network's head; see `methods.local`."""

    blocks: int = 1


@dataclass(frozen=True)
class PhasesConfig:
    """Methods one after another, such as layer_parallel and then serial: the state carries over (`canonical`).

    methods: in order, instead of `method` (empty: that alone).  epochs: when each but the first begins.
    All are trained on one mesh, so a phase of `serial` is data-parallel where another one has several devices.
    """

    methods: tuple[str, ...] = ()
    epochs: tuple[float, ...] = ()


@dataclass(frozen=True)
class EvalConfig:
    """every_epochs: evaluate on the test set this often (0: only at the end).
    calibration_batches: training batches that recalibrate the batch-norm statistics of the composed network."""

    every_epochs: int = 10
    calibration_batches: int = 10


@dataclass(frozen=True)
class CheckpointConfig:
    """every_steps: steps between checkpoints (unset: an epoch; 0: only at the end).  There is one at the end and at
    SIGTERM or Ctrl-C in any case.  keep: the newest ones kept.  keep_best: and the best ones by test accuracy, among
    those made where the network was tested (choosing one is choosing by the test split)."""

    every_steps: int | None = None
    keep: int = 2
    keep_best: int = 1


@dataclass(frozen=True)
class RecoveryConfig:
    """When a figure is no longer finite.

    policy: "stop", or "reduce": back to the last good checkpoint (or to the start), all learning rates times `factor`,
        at most `times` times from one checkpoint.
    """

    policy: Literal["stop", "reduce"] = "stop"
    factor: float = 0.5
    times: int = 5


@dataclass(frozen=True)
class StartConfig:
    """What a new run starts from (unset: random weights).

    workdir: of another run of the same network; K, cuts, method, mesh and recipe may differ.
    step: which of its checkpoints (unset: the newest good one).
    optimizer: also take over the optimisers' state, the multipliers, the step and the place in the data, so that
        schedules go on where they were; otherwise training starts at step 0 with those weights.
    """

    workdir: str | None = None
    step: int | None = None
    optimizer: bool = False


@dataclass(frozen=True)
class WatchConfig:
    """What a run says of itself while it has no figures to show (`watch`).

    heartbeat_seconds: of silence until a line says what is going on, where the output is no terminal (0: never).
    stall_seconds: without anything finished until it is reported where the run hangs (0: never).
    profile_first, profile_last: steps between which `jax.profiler` writes a trace to the workdir's `profile` folder.
    """

    heartbeat_seconds: float = 60.0
    stall_seconds: float = 600.0
    profile_first: int | None = None
    profile_last: int | None = None


@dataclass(frozen=True)
class Config:
    """One run.

    method: how the network is trained, one of `methods.METHODS`; see also `phases`.
    num_stages: K.  cuts: positions in the chain where stages 1..K-1 start (unset: even by cost).
    standardise: parameter-free standardisation at the interfaces, a part of the network (unset: where the method, or
      one of `phases`, needs it, because its AuxNet generates the stages' inputs; see `standardised`).
    multiplier: policy, see `lagrangian.Policy`.
    bfloat16: activations in bfloat16; parameters, statistics and losses stay in single precision.
    remat: keep only the inputs of a network's units for the backward pass and compute the units again.
    seed: of initialisation, order, augmentation and dropout.
    num_epochs: passes over the training set (the last incomplete batch of a pass is left out).
    num_steps: ends training after so many steps, when set; schedules still run over num_epochs.
    batch_size: examples of one step over the whole mesh; must divide by mesh.stage * mesh.data.
    log_every: steps between lines of metrics.jsonl.
    diagnose_every: steps between comparisons of each stage's gradient with backprop's (`diagnosis`); 0: never.
    dry_run: print the tables, compile, and stop; no data is read.
    """

    method: str = "layer_parallel"
    num_stages: int = 4
    cuts: tuple[int, ...] | None = None
    standardise: bool | None = None
    multiplier: Policy = "coarse_tail"
    bfloat16: bool = False
    remat: bool = False
    seed: int = 0
    num_epochs: int = 30
    num_steps: int | None = None
    batch_size: int = 64
    log_every: int = 10
    diagnose_every: int = 0
    dry_run: bool = False
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    aux: AuxConfig = field(default_factory=AuxConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    aux_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    delayed: DelayedConfig = field(default_factory=DelayedConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    start: StartConfig = field(default_factory=StartConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    @property
    def mesh_shape(self) -> tuple[int, int]:
        """(S, D): devices along 'stage' and 'data'."""
        default = 1 if all(METHODS[name].devices == "one" for name in self.all_methods) else self.num_stages
        return (default if self.mesh.stage is None else self.mesh.stage), self.mesh.data

    @property
    def standardised(self) -> bool:
        """Whether interfaces are standardised.  Otherwise the network is as published, however it is cut."""
        default = any(METHODS[name].aux_net == "inputs" for name in self.all_methods)
        return default if self.standardise is None else self.standardise

    @property
    def all_methods(self) -> tuple[str, ...]:
        """All that the run trains by."""
        return self.phases.methods or (self.method,)

    @property
    def staged(self) -> bool:
        """Whether each device along 'stage' holds its stages only; otherwise every device holds the whole network."""
        return METHODS[self.method].staged

    @property
    def initial_penalty_coef(self) -> float:
        """beta of the first step."""
        default = 0.1 if self.multiplier == "coarse_tail" else 1.0
        return default if self.penalty.initial is None else self.penalty.initial
