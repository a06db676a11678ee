#!/usr/bin/env bash
source "$(dirname "$0")/run.sh" table3 "$@"
