#!/bin/bash
# Ten jobs of ten minutes, one after another, that are one training: sbatch digits_torch.sh
# By one command instead: holdfast submit --run runs/digits_torch --tasks 10 --time=00:10:00 --partition=gpu --gres=gpu:1 \
#   -- bash -c 'exec python train_torch.py $(( 500 * SLURM_ARRAY_TASK_ID ))'
#SBATCH --job-name=digits
#SBATCH --array=1-10%1
#SBATCH --time=00:10:00
#SBATCH --partition=gpu
#SBATCH --gres=gpu:1
#SBATCH --mem=4G
#SBATCH --output=%A-%a.out
#SBATCH --error=%A-%a.err
#SBATCH --open-mode=append

# What your cluster needs to find your Python; the names are its own.
# module load anaconda3
# source activate digits

# Each task goes 500 steps further than the one before it.
numOfSteps=$(( 500 * SLURM_ARRAY_TASK_ID ))
# Or all have one goal, those that come after it is reached say so and end:
# numOfSteps=5000

# Slurm's signals reach a script's first process alone, which exec makes the training. Without it they would
# end the shell, and the training with it.
exec python train_torch.py $numOfSteps >> log.$SLURM_ARRAY_TASK_ID
