"""The Ray backend: samplers in processes of a cluster, and one driver that makes the same step as a local run."""
