"""Where the README's numbers come from; see benchmarks/README.md."""
