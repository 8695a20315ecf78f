# What an administrator does with the package. Each command must succeed.

trap 'journalctl --no-pager --quiet --output=cat --unit=felix-broker.service' EXIT
fails() { if "$@"; then exit 1; fi; }
state() { systemctl show --property=ActiveState,SubState,Result,NRestarts,ExecMainStatus felix-broker.service; }

dpkg -i /package.deb
test "$(stat -c %U:%G:%a /etc/felix/tls)" = root:felix:750
test "$(systemctl is-enabled felix-broker.service || :)" = disabled
fails systemctl is-active felix-broker.service

install -m 640 -g felix /exchange/tls.crt /exchange/tls.key /etc/felix/tls
felix-broker --config /etc/felix/config.yml --validate-config

# A watchdog that does not wait for long.
mkdir -p /run/systemd/system/felix-broker.service.d
printf '[Service]\nWatchdogSec=1\n' >/run/systemd/system/felix-broker.service.d/watchdog.conf
systemctl enable --now felix-broker.service
test "$(ps -o user= -C felix-broker)" = felix
felix-broker --config /etc/felix/config.yml --healthcheck
sleep 3
state | grep -x ActiveState=active
state | grep -x NRestarts=0

# A broker that hangs is started again.
kill -STOP "$(systemctl show --property=MainPID --value felix-broker.service)"
for _ in $(seq 100); do
	if state | grep -x NRestarts=1 && state | grep -x ActiveState=active; then break; fi
	sleep 0.1
done
state | grep -x NRestarts=1
felix-broker --config /etc/felix/config.yml --healthcheck

# An upgrade keeps what was edited, and starts the new one.
before=$(systemctl show --property=MainPID --value felix-broker.service)
echo '# edited' >>/etc/felix/config.yml
dpkg -i /package.deb
tail -n 1 /etc/felix/config.yml | grep -x '# edited'
test "$(systemctl show --property=MainPID --value felix-broker.service)" != "$before"
felix-broker --config /etc/felix/config.yml --healthcheck

systemctl stop felix-broker.service
state | grep -x Result=success
state | grep -x ExecMainStatus=0

# A wrong setting is an error of systemctl.
echo 'quic_bnid: x' >>/etc/felix/config.yml
fails systemctl start felix-broker.service
systemctl stop felix-broker.service

dpkg -r felix
test -f /etc/felix/config.yml
test ! -e /usr/bin/felix-broker
dpkg -P felix
test ! -e /etc/felix/config.yml
test -f /etc/felix/tls/tls.key # not the package's
echo all of it
