#!/usr/bin/env bash
# Pretraining on two machines of Slurm, one process for each GPU: sbatch pretrain.sh, in the workspace.
#SBATCH --job-name=simclr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SIMCLR_COMPUTE="$PWD/.simclr/slurm-$SLURM_JOB_ID.yaml" SIMCLR_START_SECONDS=600
cat > "$SIMCLR_COMPUTE" <<YAML
pretrain: {engine: torchrun, nodes: $SLURM_JOB_NUM_NODES, address: "$first:29500"}
YAML
# The first machine runs DVC, which records the result; the others run the stage's command alone.
# shellcheck disable=SC2016 # expanded on each machine
srun bash -c '
  export SIMCLR_NODE=$SLURM_NODEID
  if [ "$SIMCLR_NODE" = 0 ]; then
    exec dvc repro --single-item pretrain
  fi
  exec python -m simclr_core pretrain
'
