"""What the benchmarks of databases run beside Kadds: one workload for all, and each peer as its own makers run it."""
