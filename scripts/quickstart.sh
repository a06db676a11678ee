#!/usr/bin/env bash
# The whole method on the shipped Tiny-LLaVA, on a CPU: set up, make the data, train exit gates, evaluate with and
# without them, compare with every fixed exit layer. What is finished already is kept; to start anew, remove OUT.
#
#   MODEL, CONV_MODE   checkpoint (playground/tiny/model) and its conversation template (vicuna_v1_nosys)
#   OUT, SEED          folder of the results (outputs/quickstart); seed of gates, sample and training (0)
#   SCENES, FRACTION   training scenes to make (4000), and the share of them that gates train on (1)
#   QUESTIONS          of each benchmark (200)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec "${VENV:-.venv}/bin/python" -m dyvte.reproduce quickstart "$@"
