#!/bin/sh
# The tools that some tests make small file systems with, and Slurm. They are installed where this user may
# do so; elsewhere the tests that need them say that they were skipped. Servers of object stores are fetched.
set -u
"$(dirname "$0")/mirrors/servers/fetch.sh"
missing=""
for pair in mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs unshare:util-linux mount:mount strace:strace \
    slurmctld:slurm-wlm munged:munge; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086  # several words are several packages
    if { apt-get update -qq || true; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } \
        >/dev/null 2>&1; then
        echo "Installed for the tests:$missing"
        exit 0
    fi
    echo "These packages could not be installed, so tests that need them are skipped:$missing"
else
    echo "Tests that need these packages are skipped, since only root on Debian installs them here:$missing"
fi
