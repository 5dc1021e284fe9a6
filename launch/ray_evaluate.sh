#!/usr/bin/env bash
# Runs an evaluation as a SLURM job; its relaxations run on a Ray cluster of the job's CPU machines.
#
#   launch/ray_evaluate.sh --name=evaluate-7b --nodes=8 --cores=64 -- \
#       evaluate --samples=samples/7b/samples.csv --output=evaluation/7b --energy_model=m3gnet --hull=hull.csv.gz
#
# --name=NAME       name of the job
# --nodes=2         number of machines; the first one also runs the evaluation itself
# --cores=32        cores per machine
# --time=24:00:00   time limit; the same command resumes after it
# --partition=, --account=    if the cluster requires them
# --environment=.venv         environment with this repository, requirements-energies.txt and PyTorch
# --port=6379       port of Ray on the first machine
# --action=run      or status, or cancel (the job --name)
# --dry_run         print the job and the command only
#
# On another kind of cluster, start Ray there (ray start --head, ray up) and give its address:
#   crystal-jax evaluate … --ray_address=HOST:6379
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="action name nodes cores time partition account environment port"
action=run name="" nodes=2 cores=32 time=24:00:00 partition="" account="" environment=.venv port=6379
read_options "$@"

# Prints the job for sbatch: Ray's head and the evaluation on the first machine, Ray's workers on the others.
job() {
    cat << END
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=$cores
#SBATCH --time=$time
#SBATCH --output=$name.%j.log
END
    [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
    [ -z "$account" ] || echo "#SBATCH --account=$account"
    cat << END
source $(quoted "$environment/bin/activate")
head="\$(scontrol show hostnames "\$SLURM_JOB_NODELIST" | head -n 1)"
srun --nodes=1 --ntasks=1 -w "\$head" --overlap ray start --head --port=$port --num-cpus=$cores --block &
sleep 20
if [ $nodes -gt 1 ]; then
    srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="\$head" --overlap \\
        ray start --address="\$head:$port" --num-cpus=$cores --block &
    sleep 20
fi
srun --nodes=1 --ntasks=1 -w "\$head" --overlap crystal-jax $(quoted "${command[@]}") --ray_address="\$head:$port"
END
}

[ "$action" != run ] || [ "${command[0]:-evaluate}" = evaluate ] || fail "only evaluate runs on Ray, not ${command[0]}"
slurm_actions
