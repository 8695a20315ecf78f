#!/bin/sh
set -e
# deb says remove, rpm how many versions remain.
case $1 in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now felix-broker.service
	fi
	;;
esac
