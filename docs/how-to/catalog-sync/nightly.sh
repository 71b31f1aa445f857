#!/bin/sh
# Has the collection `shop` follow a shop's catalog. Usage: nightly.sh CATALOG.csv [--server URL]
# Settings (LOOKALIKE_DATA_DIR, LOOKALIKE_MODEL, LOOKALIKE_FETCH_URLS...) come from the environment.
set -eu
catalog=$1
shift

# `|| true`: a dry run says by its exit code what will not be deleted
lookalike sync "$catalog" "$@" --collection shop --dry-run --json > "$catalog.planned.json" || true
lookalike sync "$catalog" "$@" --collection shop --json > "$catalog.done.json"
