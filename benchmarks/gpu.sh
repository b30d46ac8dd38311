#!/bin/sh
# Everything that a GPU has to show, in order of worth, for a GPU that is there rarely and briefly: docs/performance.md.
#   benchmarks/gpu.sh --limit 570 --output gpu.json     stops by itself before so many seconds; the same again goes on
#   benchmarks/gpu.sh --rehearse                        the same parts at a tiny size, on any machine
set -e
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
