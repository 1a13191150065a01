#!/usr/bin/env bash
# What `make demo` shows: a real Debian image in a virtual machine of its own.
# Runs where KVM is real, with our programs first on PATH. $1 is the OCI layout.
set -euo pipefail
layout=$1
image=debian:demo

show() {
    printf '\n\033[1;32m$\033[0;1m'
    local word
    for word; do
        case $word in
            *[!a-zA-Z0-9_./:=-]* | '') printf ' %s' "${word@Q}" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\033[0m\n'
    "$@"
}

show bulkhead load --quiet --name "$image" "$layout"
show bulkhead run --rm "$image" cat /etc/os-release
show bulkhead run --rm "$image" uname -r
show bulkhead run --rm "$image" grep ' / overlay ' /proc/mounts
show bulkhead run --rm "$image" python3 -c 'import os; print(os.uname().nodename, sum(range(101)))'
status=0
show bulkhead run --rm "$image" sh -c 'exit 7' || status=$?
printf 'exit status: %s\n' "$status"
[ "$status" = 7 ]
