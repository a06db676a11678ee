#!/usr/bin/env bash
set -e
bash "$(dirname "$0")/../setup.sh"
source "$(dirname "$0")/run.sh" tiny "$@"
