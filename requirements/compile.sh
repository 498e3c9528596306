#!/usr/bin/env bash
# Pins every *.in with hashes, for Python 3.11 and later on every platform. Run it after editing an *.in file.
set -euo pipefail
cd "$(dirname "$0")"
for name in uv runtime embedded test go load; do
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$name.in" -o "$name.txt"
done
