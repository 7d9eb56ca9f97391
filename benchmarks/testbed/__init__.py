"""A small LLaVA that knows thirty fictitious persons, and its data in the benchmarks' schemas."""
