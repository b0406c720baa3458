"""How a run goes on: its devices, phases, tests, checkpoints, recovery, its start, and what it says of itself."""

from dataclasses import dataclass
from typing import Literal

from lpjax.config.schema.limits import at_least, bounded


@dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices.

    Attributes:
      stage: Devices along 'stage'.  Unset: as many as there are stages, or 1 where every method holds the whole network
        on one device.  It must divide num_stages where each device holds its own stages.
      data: Devices along 'data'; each stage column trains on batch_size / data examples.
    """

    stage: int | None = at_least(1, None)
    data: int = at_least(1, 1)


@dataclass(frozen=True)
class PhasesConfig:
    """Methods one after another, such as layer_parallel and then serial; the state carries over.

    All are trained on one mesh, so a phase of `serial` is data-parallel where another one has several devices.

    Attributes:
      methods: In order, instead of `method`.  Empty: that alone.
      epochs: When each but the first begins, by "epochs".
      by: What ends a phase: "epochs", or an indicator of its method, for the next one, and from the last for the first:
        "cosine" of its gradients with backprop's, "violation", or "coarse_error", a mean over the stages or interfaces
        that have it.
      threshold: Of the indicator: a cosine below it, and another one above it, speaks for leaving the method.
      patience: So many measurements in a row have to do so.
      least_epochs: No phase that is left by an indicator is shorter.
      every: Steps between measurements of the indicator.
    """

    methods: tuple[str, ...] = ()
    epochs: tuple[float, ...] = ()
    by: Literal["epochs", "cosine", "violation", "coarse_error"] = "epochs"
    threshold: float | None = None
    patience: int = at_least(1, 3)
    least_epochs: float = at_least(0, 1.0)
    every: int = at_least(1, 100)


@dataclass(frozen=True)
class EvalConfig:
    """Tests.

    Attributes:
      every_epochs: Epochs between tests; 0: only at the end.
      calibration_batches: Training batches that recalibrate the composed network's batch-norm statistics.
      sample: Bytes that a model of text makes at each test, behind the first quarter of the first window of the test
        set, as many as fit the window; each is a pass of the network on every device.
    """

    every_epochs: int = at_least(0, 10)
    calibration_batches: int = at_least(1, 10)
    sample: int = at_least(0, 0)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.  There is one at the end, and at SIGTERM or Ctrl-C, in any case.

    Attributes:
      every_steps: Steps between checkpoints.  Unset: an epoch; 0: only at the end.
      keep: The newest ones that are kept.
      keep_best: And the best ones by test accuracy, among those made where the network was tested.  (Choosing one is
        choosing by the test split.)
    """

    every_steps: int | None = at_least(0, None)
    keep: int = at_least(1, 2)
    keep_best: int = at_least(0, 1)


@dataclass(frozen=True)
class RecoveryConfig:
    """When a metric is no longer finite.

    Attributes:
      policy: "stop", or "reduce": back to the last good checkpoint (or to the start) with smaller learning rates.
      factor: Of all learning rates, each time.
      times: How often at most from one checkpoint.
    """

    policy: Literal["stop", "reduce"] = "stop"
    factor: float = bounded(0.5, above=0, below=1, remedy="it makes the step size smaller")
    times: int = at_least(1, 5)


@dataclass(frozen=True)
class StartConfig:
    """What a new run starts from.

    Attributes:
      workdir: Of another run of the same network; K, cuts, method, mesh and settings may differ.  Unset: random
        weights.
      step: Which of its checkpoints.  Unset: the newest good one.
      optimizer: Also take over the optimisers' state, the multipliers, the step and the place in the data, so that
        schedules go on where they were; otherwise training starts at step 0 with those weights.
    """

    workdir: str | None = None
    step: int | None = at_least(0, None)
    optimizer: bool = False


@dataclass(frozen=True)
class WatchConfig:
    """What a run says of itself while it has no metrics to show.

    Attributes:
      heartbeat_seconds: Of silence until a line says what is going on, where the output is no terminal; 0: never.
      stall_seconds: Without anything finished until it is reported where the run hangs; 0: never.
      profile_first: First step of a trace that `jax.profiler` writes to the workdir's `profile` folder.  Unset: none.
      profile_last: Last step of the trace.
    """

    heartbeat_seconds: float = at_least(0, 60.0)
    stall_seconds: float = at_least(0, 600.0)
    profile_first: int | None = None
    profile_last: int | None = None
