"""The language: typed federated computations, traced from Python."""
