"""JAX's edge. Its arrays live in `run.state`; there is nothing to track and no global stream."""
