"""Timings: steps against the standard one, against plain code and against other libraries', and the time to robustness."""
