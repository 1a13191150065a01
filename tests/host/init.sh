#!/bin/busybox sh
# PID 1 of the throw-away host, from its initial file system: puts the
# machine's own / (virtio-fs, read-only) under a tmpfs and goes there.
# README.md beside this file has the picture; xtask/src/host/ starts it.

export PATH=/bin:/sbin
bb=/bin/busybox

fail() {
    $bb echo "host: $*" >/dev/kmsg
    for port in /dev/vport*p4; do $bb echo "fail $*" >$port; done
    $bb poweroff -f
}

$bb mount -t devtmpfs dev /dev || fail "no devtmpfs"
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
for module in /modules/*.ko; do
    $bb insmod $module || fail "cannot load $module"
done

$bb mount -t virtiofs -o ro root /low || fail "cannot mount the machine's / (virtiofs)"
$bb mount -t tmpfs -o mode=755,size=75% upper /upper || fail "no tmpfs"
$bb mkdir /upper/files /upper/work
$bb mount -t overlay -o lowerdir=/low,upperdir=/upper/files,workdir=/upper/work root /new ||
    fail "cannot mount the overlay"

$bb mount -t tmpfs -o mode=755 run /new/run
$bb mkdir -p /new/run/host
$bb cp -a /bin/busybox /job/. /new/run/host/
for dir in dev proc sys; do
    $bb mount --move /$dir /new/$dir || fail "cannot move /$dir"
done
exec $bb switch_root /new /run/host/busybox sh /run/host/stage2.sh
fail "cannot switch to the new root"
