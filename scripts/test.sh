#!/usr/bin/env bash
# Install distillkit and its test tools into .venv, then lint, type-check and test. No network after the installation.
#
#   bash scripts/test.sh [pytest arguments ...]      WORKERS=N: processes; as many as cores if not set
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
setup test
cd "$root"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

echo "== ruff check"
"$python" -m ruff check .
echo "== ruff format"
"$python" -m ruff format --check .
echo "== mypy"
"$python" -m mypy
echo "== pytest"
"$python" -m pytest --numprocesses "${WORKERS:-auto}" --dist loadfile --no-loadscope-reorder "$@"
