"""A decode step of few slots against the time of reading what it must read, and what the constraints cost."""

from __future__ import annotations

import jax

from benchmarks.decode_loop import Decoder, bare_step, masked_step, step_seconds
from benchmarks.gpu.case import Case, data_sheet
from benchmarks.gpu.decode import language, merged_model


def main() -> None:
    case = Case(__doc__, size="7b", attention="einsum", batch_sizes="1,8,64")
    graph, params, experiment, mesh = merged_model(case)
    decoder = Decoder(graph, params, experiment, language(case, experiment)[1], mesh)
    _, bandwidth = data_sheet(jax.devices()[0].device_kind)
    for slots in [2] if case.dry_run else map(int, case.options.batch_sizes.split(",")):
        tables, rows, grants = decoder.begin(slots)
        seconds = step_seconds(masked_step(tables, grants), decoder, rows)
        case.answer.put(f"step_{slots}", [1e3 * s for s in seconds], "ms")
        case.answer.put(f"bytes_{slots}", decoder.bytes_read(rows) / 2**30, "GiB of weights and cache")
        if bandwidth:
            floor = decoder.bytes_read(rows) / bandwidth / 1e9
            case.answer.put(f"bandwidth_{slots}", [100 * floor / s for s in seconds], "% of the data sheet's")
        if not case.has_time(45):
            break
        bare = step_seconds(bare_step(tables), decoder, rows)
        case.answer.put(f"masks_{slots}", [100 * (1 - min(bare) / s) for s in seconds], "% of a step")


if __name__ == "__main__":
    main()
