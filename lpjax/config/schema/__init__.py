"""What a user can write, as plain data.

These dataclasses are the only thing lpjax itself reads; `lpjax.config.load` makes them from a config file and the
command line, and `lpjax.methods.resolve` fills in the defaults that depend on the method.
"""

from dataclasses import dataclass, field

from lpjax.config.schema.aux import AuxConfig
from lpjax.config.schema.data import DataConfig
from lpjax.config.schema.limits import at_least, bounded
from lpjax.config.schema.methods import (
    CorrectedConfig,
    DelayedConfig,
    ExchangeConfig,
    LocalConfig,
    PipelineConfig,
    SerialConfig,
)
from lpjax.config.schema.model import ModelConfig
from lpjax.config.schema.optimizer import OptimizerConfig
from lpjax.config.schema.penalty import PenaltyConfig, Policy
from lpjax.config.schema.run import (
    CheckpointConfig,
    EvalConfig,
    MeshConfig,
    PhasesConfig,
    RecoveryConfig,
    StartConfig,
    WatchConfig,
)


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
      method: How the network is trained, one of `lpjax.methods.METHODS`; see also `phases`.
      num_stages: K, how many stages the network is cut into.
      cuts: Positions in the chain where stages 1..K-1 start.  Unset: even by cost.
      standardise: Parameter-free standardisation at the interfaces, a part of the network.  Unset: where the method, or
        one of `phases`, needs it, because its AuxNet generates the stages' inputs.
      multiplier: Where layer_parallel's multipliers come from.
      bfloat16: Activations in bfloat16; parameters, statistics and losses stay in single precision.
      remat: Keep only the inputs of a network's units for the backward pass and compute the units again.
      seed: Of initialisation, order, augmentation and dropout; at least 0.
      num_epochs: Passes over the training set (the last incomplete batch of a pass is left out).
      num_steps: Ends training after so many steps; schedules still run over num_epochs.  Unset: all.
      ema_decay: Of a moving average of the network's weights, updated in each step and tested beside them; in step t
        it is at most (1 + t) / (10 + t), so that a short run forgets its start.  Unset: no average.
      batch_size: Examples of one step over the whole mesh; must divide by mesh.stage * mesh.data.
      log_every: Steps between lines of metrics.jsonl.
      diagnose_every: Steps between comparisons of each stage's gradient with backprop's; 0: never.
      dry_run: Print the tables, compile, and stop; no data is read.
      mesh: The mesh of devices.
      data: The data set.
      model: The network.
      aux: The AuxNet.
      penalty: The penalty and the multipliers.
      exchange: What layer_parallel sends.
      optimizer: Of the stages.
      aux_optimizer: Of the AuxNet, and of local classifiers.
      serial: Settings of the methods serial and data_parallel.
      pipeline: Settings of the method pipeline.
      delayed: Settings of the method delayed.
      corrected: Settings of the method corrected.
      local: Settings of the method local.
      phases: Methods one after another.
      eval: Tests.
      checkpoint: Checkpoints.
      recovery: When a metric is no longer finite.
      start: What a new run starts from.
      watch: What a run says of itself.
    """

    method: str = "layer_parallel"
    num_stages: int = at_least(1, 4)
    cuts: tuple[int, ...] | None = None
    standardise: bool | None = None
    multiplier: Policy = "coarse_tail"
    bfloat16: bool = False
    remat: bool = False
    seed: int = 0
    num_epochs: int = at_least(1, 30)
    num_steps: int | None = at_least(1, None)
    ema_decay: float | None = bounded(None, at_least=0, below=1, remedy="leave it unset for no average")
    batch_size: int = at_least(1, 64)
    log_every: int = at_least(1, 10)
    diagnose_every: int = at_least(0, 0)
    dry_run: bool = False
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    aux: AuxConfig = field(default_factory=AuxConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    aux_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    serial: SerialConfig = field(default_factory=SerialConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    delayed: DelayedConfig = field(default_factory=DelayedConfig)
    corrected: CorrectedConfig = field(default_factory=CorrectedConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    start: StartConfig = field(default_factory=StartConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    @property
    def mesh_shape(self) -> tuple[int, int]:
        """(S, D): devices along 'stage' and 'data'.

        Raises:
          ValueError: `mesh.stage` is not filled in yet (`lpjax.methods.resolve`).
        """
        if self.mesh.stage is None:
            raise ValueError("mesh.stage is unset: expected a configuration that `lpjax.methods.resolve` has filled in")
        return self.mesh.stage, self.mesh.data

    @property
    def all_methods(self) -> tuple[str, ...]:
        """All that the run trains by, in order."""
        return self.phases.methods or (self.method,)
