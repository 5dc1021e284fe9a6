"""Compiles a relaxation step for a TPU chip that is not there: memory, operations, and a bound on its speed.

The bound is the longer of two times: products at the chip's peak, which for the float32 that energies need is a sixth
of the published bfloat16 rate (six passes), and HBM traffic at its published bandwidth. Looking up atoms for bonds
takes longer on a TPU than its traffic says, so a real step takes longer.

    JAX_PLATFORMS=cpu PYTHONPATH=. python benchmarks/relax_tpu.py \
        --energy_weights=../shared/weights/m3gnet/MP-2021.2.8-EFS
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from jax.sharding import SingleDeviceSharding

from crystal_jax.compile.analysis.cost import count
from crystal_jax.compile.analysis.hlo import parse
from crystal_jax.compile.topology import topology
from crystal_jax.energy.model import load_model
from crystal_jax.energy.potentials.graph import pack
from crystal_jax.energy.potentials.jax_model import JaxModel, buckets
from crystal_jax.energy.relaxation.batch import pack_crystals
from crystal_jax.energy.relaxation.fire import Limits
from crystal_jax.energy.relaxation.steppers import DEFAULT_SKIN, Batch, Built, relax_batch

FLAGS = flags.FLAGS
flags.DEFINE_string("energy_model", "m3gnet", "Potential in JAX.")
flags.DEFINE_string("energy_weights", None, "Folder of its weights.")
flags.DEFINE_string("topology", "v5e:2x2", "Slice of which one chip is used.")
flags.DEFINE_float("evaluations", 20.0, "Evaluations of a relaxation: measured on displaced crystals of mp20_open.")
flags.DEFINE_float("bonds", 350.0, "Bonds of a crystal within cut-off and skin: 10 atoms of 35.")

_FLOAT32_PASSES = 6


def main(_: Sequence[str]) -> None:
    """Prints a JSON object for each size of a batch."""
    model = load_model(FLAGS.energy_model, weights=Path(FLAGS.energy_weights) if FLAGS.energy_weights else None)
    assert isinstance(model, JaxModel)
    where = topology(FLAGS.topology)
    here = SingleDeviceSharding(where.devices[0])
    for bucket in buckets(None, "tpu"):
        state, crystals = pack_crystals([], bucket, np.float32)
        empty = np.zeros((bucket.atoms, 3), np.float32), np.zeros((bucket.crystals, 3, 3), np.float32)
        batch = Batch(pack([], [], bucket), state, crystals, Built(*empty))
        arguments = (model.params, batch, Limits(np.float32(0.1), np.int32(500)), np.float32(0.15))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=here), arguments)
        run = functools.partial(relax_batch, model.potential.energies, model.potential.cutoff, DEFAULT_SKIN)
        start = time.perf_counter()
        compiled = jax.jit(run).lower(*shapes).compile()
        seconds = time.perf_counter() - start
        memory, cost = compiled.memory_analysis(), count(parse(compiled.as_text()))
        assert memory is not None
        products = _FLOAT32_PASSES * cost.flops / (1e12 * where.chip.tflops)
        traffic = cost.bytes / (1e9 * where.chip.hbm_gbps)
        step = max(products, traffic)
        print(
            json.dumps(
                {
                    "chip": where.chip.name,
                    "atoms": bucket.atoms,
                    "bonds": bucket.bonds,
                    "compile_seconds": round(seconds, 1),
                    "GiB": round((memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30, 2),
                    "GFLOP_a_step": round(cost.flops / 1e9, 1),
                    "HBM_GB_a_step": round(cost.bytes / 1e9, 1),
                    "step_ms_at_least": round(1e3 * step, 2),
                    "bound_by": "products" if products > traffic else "HBM",
                    "relaxations_an_hour_at_most": round(3600 / step * bucket.bonds / FLAGS.bonds / FLAGS.evaluations),
                }
            )
        )


if __name__ == "__main__":
    app.run(main)
