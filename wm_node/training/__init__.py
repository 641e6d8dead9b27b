"""Training: from a dataset to a bundle, and the measurements that decide which one ships."""
