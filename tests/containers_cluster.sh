#!/usr/bin/env bash
# Starts three nodes, NATS and HAProxy with docker-compose.yml. Two users on different nodes exchange messages,
# one node stops, its user reconnects to another node, and the users exchange messages again. Needs the same
# as tests/containers.sh, and the image that it builds.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -x ../shared/containers/base-images ]]; then
  NATS_TAG=$(sed -n 's/^ *image: nats://p' docker-compose.yml) ../shared/containers/base-images debian rust distroless nats haproxy
fi
docker info >/dev/null 2>&1 || { echo "containers: no Docker engine answers: docker info fails" >&2; exit 1; }

export COMPOSE_PROJECT_NAME=switchboard-cluster-$$
CLUSTER_PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# The same value as in tests/containers.sh; otherwise Docker builds the image again.
REVISION=$(git rev-parse HEAD)
export CLUSTER_PORT REVISION
compose=(docker compose --profile cluster)
finish() {
  local code=$?
  [ $code = 0 ] || "${compose[@]}" logs --tail 20 >&2 || true
  "${compose[@]}" down --volumes --remove-orphans --timeout 1 >/dev/null 2>&1 || true
  exit $code
}
trap finish EXIT

"${compose[@]}" build node1
docker compose --profile cluster up --wait nats node1 node2 node3 haproxy
python3 tests/python/cluster_talk.py "ws://127.0.0.1:$CLUSTER_PORT/" "${compose[@]}"
