"""What Slurm tells: the job that this process is in, and what the controller says of any job.

Nothing here knows of runs or checkpoints.
"""
