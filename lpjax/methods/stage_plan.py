"""The parts of a step's schedule that several methods have."""

from collections.abc import Iterable, Sequence
from typing import Any

from lpjax.config.schema import Config
from lpjax.errors import require
from lpjax.methods.base import WIDTH, Age
from lpjax.network.network import Network
from lpjax.network.packing import PackedChains
from lpjax.nn.count import chain_arrays, chain_size
from lpjax.nn.losses import features
from lpjax.nn.schedule import Part, Plan
from lpjax.parallel import mesh as meshes
from lpjax.state import optim


class StagePlan(Plan):
    """A schedule of stages on a mesh while it is written.

    Attributes:
      network: The network.
      config: The configuration.
      devices: Along 'stage'.
      slots: Stages of a device, K/S.
      column: Examples of a stage column.
      own: Examples of a device.
      pixels: Values of an image.
      what: Fields of a stage's `Work` on the column's examples.
    """

    def __init__(self, network: Network, config: Config) -> None:
        super().__init__()
        (S, D), self.network, self.config = config.mesh_shape, network, config
        self.devices, self.slots = range(S), network.num_stages // S
        self.column, self.own = config.batch_size // D, config.batch_size // (S * D)
        self.pixels = features(network.chain.in_shape)
        self.what: dict[str, Any] = {"examples": self.column, "norm_axes": ("data",)}
        if config.data.mixup:  # `step_inputs.paired`, before the step
            self.message("ppermute", meshes.ALL_AXES, self.own * (self.pixels + WIDTH), "exchange", count=2)

    def each(self, kind: str, **what: Any) -> None:
        """Add the same `Work` to every device."""
        for d in self.devices:
            self.work(d, kind, **what)

    def augment(self) -> None:
        """Add the augmentation of each device's own examples."""
        self.each("augment", accesses=(8 if self.config.data.mixup else 4) * self.own * self.pixels)

    def column_batch(self, packets: int) -> None:
        """Add `moving.column_batch`; a device has so many packets of a column beside those that it carries."""
        self.augment()
        self.message("all_gather", "stage", WIDTH * self.own * self.pixels, "exchange")
        self.message("all_gather", "stage", tag_values(self.network, self.config) * WIDTH * self.own, "exchange")
        self.each("pack", keeps=packets * packet_bytes(self.network, self.config))

    def forward(self, k: int, **what: Any) -> int:
        """Add the forward pass of stage k, on the column's examples unless said otherwise; returns its position."""
        return self.work(k // self.slots, "stage", stage=k, chain=self.network.stages[k], **self.what | what)

    def backward_of(self, k: int, **what: Any) -> None:
        """Add the backward pass of stage k alone, likewise; it has the activations again of which some were kept."""
        position = self.forward(k, gradients=self.network.parts()[k].gradients, **what)
        self.keep(position, position)

    def backward(self, d: int, stages: Sequence[int], *, again: bool, **what: Any) -> None:
        """Add both passes of stages of a device, one after another; the forward passes are made `again`, or first."""
        parts = [self.network.parts()[k] for k in stages]
        self.passes(d, parts, "stage", again="recompute" if again else "", **self.what | what)

    def local_losses(self, k: int, ages: Sequence[Age], behind: Iterable[Part], kind: str, *, keeps: int = 0) -> None:
        """Add the passes of stage k, whose input is a constant, and of what its local loss needs behind it.

        Args:
          k: The stage.
          ages: One a micro-batch, see `Method.ages`.
          behind: What is applied to its output.
          kind: Of the work behind it.
          keeps: Bytes of an example that its local loss needs of the stage, beside its output.
        """
        M, own, behind = len(ages), Part(k, self.network.stages[k], ("weights",)), list(behind)
        for age in ages:
            examples = self.column // M
            what = {**self.what, "micro": M - 1 - age.entered, "examples": examples}
            self.local(k // self.slots, own, behind, kind, keeps=keeps * examples, **what)

    def shift(self, examples: int | None = None) -> None:
        """Add `exchange.shift` of a column's packets, or of fewer examples; nothing on one device.

        They are written and read twice.
        """
        if len(self.devices) > 1:
            values = (self.column if examples is None else examples) * self.network.packet_length
            self.each("pack", accesses=4 * values)
            self.message("ppermute", "stage", WIDTH * values, "exchange")

    def shift_tags(self, examples: int | None = None) -> None:
        """Add `exchange.shift` of a column's tags, or of fewer examples; nothing on one device."""
        if len(self.devices) > 1:
            count = self.column if examples is None else examples
            self.message("ppermute", "stage", tag_values(self.network, self.config) * WIDTH * count, "exchange")

    def update(self, *beside: PackedChains, more: int = 0, sums: int = 1) -> None:
        """Add the psums of gradients and statistics over 'data', and the optimiser's update of the stages.

        Args:
          *beside: What each stage has beside its own units.
          more: Accesses beside the optimiser's.
          sums: Of gradients, where a step's are not of one batch.
        """
        packed: tuple[Network | PackedChains, ...] = (self.network, *beside)
        for times, packings in ((sums, [own.params for own in packed]), (1, [own.stats for own in packed])):
            lengths = [times * length for packing in packings for length in packing.lengths.values()]
            self.message("psum", "data", WIDTH * self.slots * sum(lengths), "gradients", count=len(lengths))
        if self.config.optimizer.clip_over == "network" and self.slots < self.network.num_stages:
            self.message("psum", "stage", WIDTH, "gradients")
        optimizers = (self.config.optimizer, *[self.config.aux_optimizer] * len(beside))
        values = zip(packed, optimizers, strict=True)
        own = sum(optim.accesses(optimizer) * packing.params.length for packing, optimizer in values)
        self.each("update", accesses=self.slots * own + more)

    def update_aux(self) -> None:
        """Add the psum of the AuxNet's gradients and the update of its own parameters, on every device."""
        pieces = self.network.aux_net
        if arrays := sum(map(chain_arrays, pieces)):
            self.message("psum", meshes.ALL_AXES, WIDTH * sum(map(chain_size, pieces)), "gradients", count=arrays)
            values = sum(map(chain_size, self.network.aux_own))
            self.each("update", accesses=optim.accesses(self.config.aux_optimizer) * values)


def check_micro_batches(section: str, count: int, config: Config) -> None:
    """Check that a stage column's batch can be cut into so many equal micro-batches.

    Args:
      section: Of the configuration, that has `micro_batches`.
      count: Of micro-batches.
      config: Says how large the batch is.

    Raises:
      BadInput: It cannot.
    """
    column = config.batch_size // config.mesh.data
    require(
        column % count == 0,
        f"{section}.micro_batches={count}: expected a divisor of batch_size / mesh.data = {column}, so that "
        f"micro-batches are equal; choose another number",
    )


def packet_bytes(network: Network, config: Config) -> int:
    """Bytes of the packet of one stage of a column, see `moving`."""
    return WIDTH * config.batch_size // config.mesh.data * network.packet_length


def tag_values(network: Network, config: Config) -> int:
    """T, values of an example's tags, see `moving`."""
    return 2 + features(network.label_shape) * (2 if config.data.mixup else 1)
