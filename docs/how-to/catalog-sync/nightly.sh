#!/bin/sh
# Has the collection `shop` follow a shop's catalog. Usage: nightly.sh CATALOG.csv
# Settings (LOOKALIKE_DATA_DIR, LOOKALIKE_MODEL, LOOKALIKE_FETCH_URLS...) come from the environment.
set -eu

lookalike sync "$1" --collection shop --dry-run --json > "$1.planned.json" || true  # it tells what will not be deleted
lookalike sync "$1" --collection shop --json > "$1.done.json"
