#!/bin/sh
# First process of a container after tini: make the workspace if there is none, then become `simclr ui`.
set -eu

if [ ! -f "$SIMCLR_WORKSPACE/dvc.yaml" ]; then
    simclr init "$SIMCLR_WORKSPACE"
    cd "$SIMCLR_WORKSPACE"
    if [ -n "${SIMCLR_INBOX:-}" ]; then
        sed -i "s|^  sources: .*|  sources: [$SIMCLR_INBOX]|" params.yaml
    fi
    if [ -n "${SIMCLR_POSTGRES_URL:-}" ]; then
        printf '\nstorage:\n  postgres:\n    postgres_url: {env: SIMCLR_POSTGRES_URL}\n' >>dagster.yaml
    fi
    git add params.yaml dagster.yaml
    git -c user.name=simclr -c user.email=simclr@localhost -c commit.gpgsign=false \
        commit --quiet --allow-empty --message "Settings of the container"
fi
exec simclr ui --host 0.0.0.0
