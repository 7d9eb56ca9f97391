"""kvwstream: training-free unlearning by Knowledge Vector Weakening, for large data."""

__version__ = "0.1.0"
