#!/bin/sh
# fetch.sh: what servers of object stores need, fetched once into ~/.cache/holdfast-tests. The network is used
# here alone. Nothing is installed: Ceph's Debian packages are unpacked, Azurite is an npm package.
#
# Says what it fetched and what it could not, and why; tests that need that are skipped with a reason.
set -u
cache=${XDG_CACHE_HOME:-$HOME/.cache}/holdfast-tests
mkdir -p "$cache"

# What is being fetched gets its name when it is complete.
begin() { draft=$(mktemp -d "$cache/.fetching-XXXXXX"); }
keep() { chmod 755 "$draft" && rm -rf "${cache:?}/$1" && mv "$draft" "$cache/$1" && echo "Fetched for the tests: $2"; }
drop() {
    rm -rf "${draft:?}"
    echo "$1 could not be fetched, so tests that need it are skipped: $2"
}

# Administration of disks and of services, which a server that lives in memory does not need.
LEFT_OUT='^(lvm2|dmeventd|sudo|nvme-cli|smartmontools|dmidecode|xfsprogs|parted|hdparm|gdisk|logrotate|uuid-runtime)$'

ceph() {
    [ ! -x "$cache/ceph/usr/bin/radosgw" ] || return 0
    begin
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        drop "Ceph's gateway" "it is taken from Debian's packages, and there is no apt-get"
        return 0
    fi
    [ "$(id -u)" -ne 0 ] || apt-get update -qq >/dev/null 2>&1
    packages=$(apt-get install -s --no-install-recommends radosgw ceph-mon ceph-osd 2>/dev/null |
        awk '/^Inst/ { print $2 }' | grep -Ev "$LEFT_OUT")
    [ -n "$packages" ] || { drop "Ceph's gateway" "apt-get knows no package radosgw"; return 0; }
    mkdir "$draft/.debs"
    # shellcheck disable=SC2086  # several words are several packages
    if ! (cd "$draft/.debs" && apt-get download -qq $packages) >"$draft/.log" 2>&1; then
        drop "Ceph's gateway" "$(tail -n 1 "$draft/.log")"
        return 0
    fi
    for package in "$draft"/.debs/*.deb; do
        dpkg -x "$package" "$draft" || { drop "Ceph's gateway" "$package could not be unpacked"; return 0; }
    done
    rm -rf "$draft/.debs" "$draft/.log" "$draft/usr/share/doc" "$draft/usr/share/man"
    keep ceph "Ceph's object gateway"
}

azurite() {
    [ ! -x "$cache/azurite/node_modules/.bin/azurite-blob" ] || return 0
    begin
    if ! command -v npm >/dev/null; then
        drop Azurite "it is an npm package, and there is no npm"
        return 0
    fi
    if npm install --prefix "$draft" --silent --no-audit --no-fund --ignore-scripts --omit=dev azurite@3 \
        >"$draft/.log" 2>&1; then
        keep azurite Azurite
    else
        drop Azurite "$(tail -n 1 "$draft/.log")"
    fi
}

ceph
azurite
