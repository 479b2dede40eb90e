"""Other places that hold a run's checkpoints: copied behind the training, fetched from when the run is lost."""
