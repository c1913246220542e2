"""What ``burnish bench`` runs: workloads, the machine's own limit, runners in processes of their own, and what they say."""
