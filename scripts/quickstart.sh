#!/usr/bin/env bash
# Install distillkit into .venv and run the quickstart: a teacher, a student alone, distilled and compressed, in one table.
#
#   bash scripts/quickstart.sh [key=value ...]
#
# Arguments go to `distillkit run quickstart`. scripts/_setup.sh says what the environment can set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
setup onnx

export HF_HUB_OFFLINE=1
"$venv/bin/distillkit" run quickstart "$@"
