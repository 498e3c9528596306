#!/usr/bin/env bash
# Pins every *.in with hashes, for Python 3.11 and later on every platform. Run it after editing an *.in file.
set -euo pipefail
cd "$(dirname "$0")"
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}" # a private certificate authority is among the system's only
for name in uv runtime embedded test go load; do
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$name.in" -o "$name.txt"
done
