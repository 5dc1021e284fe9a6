#!/usr/bin/env bash
# A job on the GPUs of a SLURM cluster, one process a GPU; it goes on by itself where a time limit ended it.
#
#   launch/slurm.sh --name=llama7b --nodes=2 --gpus=8 -- train --config=configs/llama2_7b.py:tpu --workdir=runs/7b --distributed
#
# --name=NAME       of the job
# --nodes=1         machines
# --gpus=1          GPUs, and processes, on each; 0 is a job without any
# --time=24:00:00   the time limit; two minutes before it the run is saved, and the job queued again
# --partition=, --account=    if the cluster asks for them
# --environment=.venv         where the repository is installed, with pip install "jax[cuda12]" on top
# --action=run      or status, or cancel (of the job --name)
# --dry_run         print the job and the command only
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="action name nodes gpus time partition account environment"
action=run name="" nodes=1 gpus=1 time=24:00:00 partition="" account="" environment=.venv
read_options "$@"

# The job, for sbatch. Batch scripts get no signal of their own: --signal reaches the processes that srun started.
job() {
    cat << END
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$((gpus > 1 ? gpus : 1))
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$name.%j.log
END
    [ "$gpus" = 0 ] || echo "#SBATCH --gpus-per-node=$gpus"
    [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
    [ -z "$account" ] || echo "#SBATCH --account=$account"
    cat << END
source $(quoted "$environment/bin/activate")
status=0
srun --kill-on-bad-exit=0 crystal-jax $(quoted "${command[@]}") || status=\$?
# 75: saved in time, to be gone on with.
[ "\$status" != 75 ] || scontrol requeue "\$SLURM_JOB_ID"
exit "\$status"
END
}

slurm_actions
