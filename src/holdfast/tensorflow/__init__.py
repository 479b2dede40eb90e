"""TensorFlow's edge: modules, variables, generators and dataset iterators, tracked as they are."""
