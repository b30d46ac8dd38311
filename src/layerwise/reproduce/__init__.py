"""The papers' tables and figures beside ours: definitions as data, a runner that resumes, verdicts that are computed.

`definitions.items()` are the tables and figures, `papers.paper(NAME)` what is printed, `runner.reproduce(...)` runs them, `record.Record`
is what comes out. Nothing is imported here: the command line reads its arguments before torch's heavier friends are needed.
"""
