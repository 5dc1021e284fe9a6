#!/usr/bin/env bash
# Runs a job on the GPUs of a SLURM cluster, with one process per GPU. The job resumes by itself after a time limit.
#
#   launch/slurm.sh --name=llama7b --nodes=2 --gpus=8 -- train --config=configs/llama2_7b.py:tpu --workdir=runs/7b --distributed
#
# --name=NAME       name of the job
# --nodes=1         number of machines
# --gpus=1          GPUs, and processes, per machine; 0 for a job without GPUs
# --time=24:00:00   time limit; two minutes before it the run is saved and the job is queued again
# --partition=, --account=    if the cluster requires them
# --environment=.venv         environment with this repository, installed by: pip install -e '.[cuda]'
# --action=run      or status, or cancel (the job --name)
# --dry_run         print the job and the command only
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="action name nodes gpus time partition account environment"
action=run name="" nodes=1 gpus=1 time=24:00:00 partition="" account="" environment=.venv
read_options "$@"

# Prints the job for sbatch. The batch script gets no signal: --signal reaches the processes that srun started.
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
# 75: the run was saved in time and can resume.
[ "\$status" != 75 ] || scontrol requeue "\$SLURM_JOB_ID"
exit "\$status"
END
}

slurm_actions
