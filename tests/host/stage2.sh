# PID 1 of the throw-away host, second half: /, /dev, /proc and /sys are the
# new ones. Makes what a server would have (disk, cgroups, modules, loopback),
# runs the command, reports its status. Written for busybox sh.

bb=/run/host/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The channels to xtask: virtio-serial ports 1 (stdin), 2 (stdout), 3 (stderr)
# and 4 (control), which is open here for good: a port can be opened once only.
tries=0
until port=$(echo /dev/vport*p4) && [ -e "$port" ] || [ $tries -gt 100 ]; do
    $bb usleep 20000
    tries=$((tries + 1))
done
port=${port%4}
exec 9>${port}4
fail() {
    echo "fail $*" >&9
    $bb sleep 5
    $bb poweroff -f
}
. /run/host/job.conf # modules_dir, kernel, and what the caller asked for

# The scratch disk: overlayfs wants a real file system under its upper layers.
mkdir -p /run/host/disk
$bb mount -t ext4 -o noatime,nobarrier,nodiscard /dev/vda /run/host/disk || fail "cannot mount the scratch disk"
for name in containerd docker containers bulkhead; do
    mkdir -p /run/host/disk/$name /var/lib/$name
    $bb mount --bind /run/host/disk/$name /var/lib/$name || fail "cannot mount /var/lib/$name"
done
mkdir -p /run/host/disk/tmp && chmod 1777 /run/host/disk/tmp

# Kernel file systems, as systemd would mount them.
mkdir -p /dev/pts /dev/shm /dev/mqueue
$bb mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$bb mount -t tmpfs -o mode=1777 shm /dev/shm
$bb mount -t mqueue mqueue /dev/mqueue 2>/dev/null
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do
    [ -e /dev/${n#*:} ] || ln -s /proc/self/fd/${n%:*} /dev/${n#*:}
done
# One hierarchy for each controller that this kernel has, named after it; some together,
# by either name; and one of no controller.
legacy_cgroups() {
    $bb mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    for controller in $($bb awk '!/^#/ && $4 == 1 && $1 !~ /^(cpu|cpuacct|net_cls|net_prio)$/ { print $1 }' /proc/cgroups) cpu,cpuacct net_cls,net_prio; do
        mkdir /sys/fs/cgroup/$controller
        # Linux 6.12 names some that it has for cgroup v2 alone.
        $bb mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller 2>/dev/null || rmdir /sys/fs/cgroup/$controller
    done
    for both in cpu,cpuacct net_cls,net_prio; do
        ln -s $both /sys/fs/cgroup/${both%,*}
        ln -s $both /sys/fs/cgroup/${both#*,}
    done
    mkdir /sys/fs/cgroup/systemd
    $bb mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd || fail "no cgroup v1"
}
case $cgroup in
v1) legacy_cgroups ;;
*)
    $bb mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup || fail "no cgroup2"
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
    done
    ;;
esac
$bb mount -t bpf bpf /sys/fs/bpf 2>/dev/null
$bb mount -t securityfs securityfs /sys/kernel/security || fail "no securityfs"
$bb mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
$bb mount --make-rshared /

# Modules of this kernel, unpacked beside it.
mkdir -p /lib/modules/$kernel
$bb mount --bind "$modules_dir" /lib/modules/$kernel || fail "cannot see $modules_dir"
modprobe -a kvm-amd tun veth bridge br_netfilter loop nf_tables || fail "cannot load the modules"
[ -e /dev/net/tun ] || fail "no /dev/net/tun"
# As udev has them (50-udev-default.rules), but that /dev/kvm stays in root's group.
chmod 0666 /dev/net/tun
chmod 0660 /dev/kvm

# What `bulkhead doctor` recommends.
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled

$bb ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
$bb hostname bulkhead-host
$bb ip link show lo >/dev/null
mkdir -p /run/lock /run/user/0

# The command, its three streams through pipes: what it leaves running may
# hold them, and programs may reopen /dev/stdout.
$bb mkfifo /run/host/out /run/host/err
$bb cat </run/host/out >${port}2 9>&- &
cat_out=$!
$bb cat </run/host/err >${port}3 9>&- &
cat_err=$!
echo "start" >&9
if [ "$stdin" = yes ]; then
    $bb cat <${port}1 2>/dev/null 9>&- | $bb setsid /bin/bash /run/host/job.sh >/run/host/out 2>/run/host/err 9>&- &
else
    $bb setsid /bin/bash /run/host/job.sh </dev/null >/run/host/out 2>/run/host/err 9>&- &
fi
wait $!
status=$?

# Whatever still runs would keep the pipes open.
for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    case $pid in 1 | $cat_out | $cat_err) continue ;; esac
    [ -n "$($bb readlink $dir/exe)" ] && $bb kill -9 $pid 2>/dev/null
done
wait $cat_out $cat_err
echo "exit $status" >&9
$bb sleep 10 # xtask ends the machine as soon as it has read the line
$bb poweroff -f
