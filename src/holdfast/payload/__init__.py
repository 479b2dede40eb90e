"""Arrays to blocks to files, and back: the fast path."""
