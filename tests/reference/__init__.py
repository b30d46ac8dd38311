"""Each paper's algorithm written out naively on small networks: the oracle, which shares no code with the package."""
