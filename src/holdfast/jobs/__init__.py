"""Trainings as jobs of Slurm: submitting them, and telling how they stand.

What decides is apart from what asks or writes: `words`, `quoting`, `script` and `tasks` touch nothing.
"""
