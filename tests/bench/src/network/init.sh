#!/bin/busybox sh
# PID 1 in QEMU's guest: the root file system that the other subjects have, the address that
# the kernel's command line names, and the same servers. A panic ends QEMU, and its console
# has the reason.

bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
exec </dev/null >/dev/kmsg 2>&1
set -ex
$bb mkdir /lower /above
$bb mount -t ext4 -o ro /dev/vda /lower
$bb mount -t tmpfs above /above
$bb mkdir /above/upper /above/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/above/upper,workdir=/above/work root /root
$bb mkdir -p /root/dev /root/proc
$bb mount --move /dev /root/dev
$bb mount -t proc proc /root/proc
$bb mv /bench /root/bench
$bb ip link set lo up
$bb ip addr add $address dev eth0
$bb ip link set eth0 up
exec $bb chroot /root /bin/sh -c '/bench serve & exec nginx'
