#!/bin/bash
# Cluster init script: unpacks the tarball of `make dist` from a volume, on every node.
# Set MLAD_TARBALL in the cluster's environment, e.g. /Volumes/main/default/mlad/mlad.tar.gz.
set -euo pipefail

tarball=${MLAD_TARBALL:-/Volumes/main/default/mlad/mlad.tar.gz}
mkdir -p /opt/mlad
tar -xzf "$tarball" -C /opt/mlad --strip-components=1
ln -sfn /opt/mlad/bin/mlad /usr/local/bin/mlad
mlad --version
