#!/bin/sh
# terrace as LMCache's second level: a daemon, and LMCache's own `bench l2` over it, once through shared
# memory (native_plugin) and once through the protocol of Redis (resp).
#
#   PYTHON=build/engines/venv/bin/python examples/lmcache_l2.sh
#
# PYTHON is one that has lmcache; terraced and libterrace.so are taken from BUILD (build/release).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/build/engines/venv/bin/python}
build=${BUILD:-$root/build/release}
port=${PORT:-6380}
directory=$(mktemp -d /var/tmp/terrace-lmcache.XXXXXX)

cat > "$directory/terrace.toml" <<TOML
[server]
socket_path = "$directory/terraced.sock"
state_dir = "$directory/state"
[host]
capacity = "2GiB"
headroom = "1GiB"
[nvme]
capacity = "4GiB"
[resp]
listen = "127.0.0.1:$port"
lmcache = true
TOML

"$build/terraced" --config "$directory/terrace.toml" 2> "$directory/log" &
daemon=$!
trap 'kill $daemon; wait $daemon || true; rm -rf "$directory"' EXIT
for _ in $(seq 200); do
  [ -S "$directory/terraced.sock" ] && break
  kill -0 $daemon || { cat "$directory/log"; exit 1; }
  sleep 0.1
done

export PYTHONPATH="$root/client/python${PYTHONPATH:+:$PYTHONPATH}"
export TERRACE_LIBRARY="$build/libterrace.so"

bench() {
  "$python" -m lmcache.cli.main bench l2 --l2-adapter "$1" --num-keys 64 --data-size-kb 4096 \
    --l1-align-bytes 4096 --rounds 3 --warmup-rounds 1 --lookup-max-hit-rate 1.0
}

echo "== native_plugin"
bench "{\"type\": \"native_plugin\", \"module_path\": \"terrace_kv.connectors.lmcache\",
        \"class_name\": \"TerraceConnector\",
        \"adapter_params\": {\"socket\": \"$directory/terraced.sock\"}}"
echo "== resp"
bench "{\"type\": \"resp\", \"host\": \"127.0.0.1\", \"port\": $port, \"num_workers\": 4}"
"$build/terrace" --socket "$directory/terraced.sock" status
