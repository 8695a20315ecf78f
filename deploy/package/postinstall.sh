#!/bin/sh
set -e
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers felix.conf
elif ! getent passwd felix >/dev/null; then
	useradd --system --user-group --no-create-home --home-dir / --shell /usr/sbin/nologin felix
fi
chgrp felix /etc/felix/tls
if [ -d /run/systemd/system ]; then
	# All of sysctl.d in its order, so that what an administrator has set wins.
	/usr/lib/systemd/systemd-sysctl || :
	systemctl daemon-reload
	# After an upgrade. A first installation waits to be configured and enabled.
	systemctl try-restart felix-broker.service
fi
