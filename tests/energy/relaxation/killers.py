"""Crystals that kill the process that relaxes them: here, those with polonium."""

import os
import signal

from crystal_jax.energy.relaxation.journal import journal, key_of


def of_worker(cifs, job, folder):
    """In place of `runner._of_worker`: writes what is finished, chunk by chunk."""
    for cif in cifs:
        if "Po" in cif:
            os.kill(os.getpid(), signal.SIGKILL)
    with journal(folder) as write:
        for cif in cifs:
            rest = {"steps": 0, "energy": None, "num_atoms": 8, "relaxed_cif": None}
            write({"key": key_of(cif), "status": "converged", "reason": "", **rest})
    return len(cifs)
