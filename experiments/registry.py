"""The experiments that measure or predict something; `docs` shows their files."""

from experiments.accuracy import accuracy, compare
from experiments.checks import kill_loop, mesh_agreement
from experiments.predict import scale, scale_check, tradeoff
from experiments.speed import compile_time, feed_rate, memory, references, speedup

MODULES = (accuracy, compare, speedup, references, memory, compile_time, feed_rate, scale, scale_check, tradeoff)
MEASURED = tuple(module.EXPERIMENT for module in (*MODULES, kill_loop, mesh_agreement))
