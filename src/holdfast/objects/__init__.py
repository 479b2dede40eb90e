"""Object stores: a bucket, or what lies below a prefix in one, as names with bytes. Nothing here knows of checkpoints."""
