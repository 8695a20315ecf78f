# Boots systemd over this machine's files, which stay as they are, with nothing in it but check.service.
#
#   boot.sh PACKAGE DIRECTORY    DIRECTORY has check.sh and is given what it prints
#
# Process 1 of new mount, network, process, host name, IPC and control group namespaces.
set -eu
package=$1
exchange=$2
mount --make-rprivate /
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mkdir -p exchange old
mount --bind "$exchange" exchange
cp "$package" package.deb
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup || { mount -t tmpfs tmpfs sys/fs/cgroup && mount -t cgroup2 cgroup2 sys/fs/cgroup; }
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
	touch "dev/$device"
	mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
ln -s pts/ptmx dev/ptmx
mount -t devpts devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ip link set lo up
# What is installed on this machine does not start.
rm -rf etc/systemd/system etc/machine-id
mkdir etc/systemd/system
touch etc/machine-id
cat >usr/lib/systemd/system/check.service <<'UNIT'
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/sh -eux /exchange/check.sh
StandardOutput=file:/exchange/log
StandardError=file:/exchange/log
UNIT
pivot_root . old
cd /
umount -l /old
exec env -i container=felix-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=check.service --show-status=no
