#!/usr/bin/env bash
# What `make demo` shows: a real Debian image in a virtual machine of its own.
# Runs where KVM is real, with our programs first on PATH. $1 is the OCI layout.
set -euo pipefail
layout=$1
image=debian:demo

show() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

show bulkhead load --quiet --name "$image" "$layout"
show bulkhead run --rm "$image" cat /etc/os-release
show bulkhead run --rm "$image" uname -r
show bulkhead run --rm "$image" grep -E ' / |virtiofs' /proc/mounts
show bulkhead run --rm "$image" python3 /opt/demo/hello.py
status=0
show bulkhead run --rm "$image" sh -c 'echo this ends with 7; exit 7' || status=$?
printf '\nexit status: %s\n' "$status"
[ "$status" = 7 ]
