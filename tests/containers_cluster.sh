#!/usr/bin/env bash
# Starts three nodes, NATS and HAProxy by docker-compose.yml: two people on different nodes talk, one
# node is stopped, its user comes back on another, and they talk again. Needs what tests/containers.sh
# needs, and the image that it builds.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -x ../shared/containers/base-images ]]; then
  ../shared/containers/base-images debian rust distroless nats haproxy
fi
docker info >/dev/null 2>&1 || { echo "containers: no Docker engine answers" >&2; exit 1; }

export COMPOSE_PROJECT_NAME=switchboard-cluster-$$
CLUSTER_PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
files=$(ulimit -Hn)
[[ $files != unlimited && $files -le 100000 ]] || files=100000
# As tests/containers.sh says it, or the same image would be built again.
REVISION=$(git rev-parse HEAD)
export CLUSTER_PORT REVISION NOFILE=$files
compose=(docker compose --profile cluster)
finish() {
  local code=$?
  [ $code = 0 ] || "${compose[@]}" logs --tail 20 >&2 || true
  "${compose[@]}" down --volumes --remove-orphans --timeout 1 >/dev/null 2>&1 || true
  exit $code
}
trap finish EXIT

"${compose[@]}" build node1
"${compose[@]}" up --wait --quiet-pull node1 node2 node3 nats haproxy
python3 tests/python/cluster_talk.py "ws://127.0.0.1:$CLUSTER_PORT/" "${compose[@]}"
