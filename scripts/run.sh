#!/usr/bin/env bash
# Installs what is missing, builds, and serves the demo model on 127.0.0.1:8080. Arguments are
# passed on to `mlad serve`.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
make -s -j"$(nproc)"

host=${MLAD_HOST:-127.0.0.1} port=${MLAD_PORT:-8080}
[[ " $*" =~ \ --host[=\ ]([^\ ]+) ]] && host=${BASH_REMATCH[1]}
[[ " $*" =~ \ --port[=\ ]([0-9]+) ]] && port=${BASH_REMATCH[1]}

cat <<EOF
When it is ready, try in another terminal:
  curl -N http://$host:$port/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "What is mlad?"}], "stream": true}'
EOF
exec build/mlad serve "$@"
