"""Benchmark harness of ``burnish bench`` and ``burnish doctor``: workloads, runners, peers, the machine's limit."""
