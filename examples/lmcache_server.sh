#!/bin/sh
# LMCache's server with a disk below its memory: what it keeps outlives it.
#
#     examples/lmcache_server.sh DIRECTORY [more options of lmcache server]
set -eu
directory=$1
shift
exec lmcache server --host 127.0.0.1 --http-host 127.0.0.1 --l1-size-gb 20 --eviction-policy LRU --l2-adapter "{
  \"type\": \"plugin\",
  \"module_path\": \"infer_accel.integrations.lmcache\",
  \"class_name\": \"InferAccelL2Adapter\",
  \"adapter_params\": {\"root_dir\": \"$directory\", \"capacity_bytes\": 1099511627776}
}" "$@"
