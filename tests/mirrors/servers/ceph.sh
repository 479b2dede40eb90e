#!/bin/bash
# ceph.sh DIR: a real S3 server, Ceph's object gateway, for as long as its standard input is open (by hand: Ctrl-D).
#
# One monitor, one store of objects in memory and one gateway, all of whose files lie in DIR, which is removed in
# the end. It says "ready" when S3 is at http://127.0.0.1:$LAB_PORT; the keys are test and testsecret. A gateway
# that dies is started again; its number is in DIR/gateway.pid.
#
#   LAB_PORT=17700   the first of 12 ports
#   LAB_SYSROOT=     where Ceph's packages were unpacked by fetch.sh
set -euo pipefail

mkdir -p "${1:?usage: ceph.sh DIR}"
place=$(cd "$1" && pwd -P)
port=${LAB_PORT:-17700}
sysroot=${LAB_SYSROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast-tests/ceph}
lib=$(echo "$sysroot"/usr/lib/*-linux-gnu)
[ -x "$sysroot/usr/bin/radosgw" ] || { echo "ceph.sh: there is no Ceph in $sysroot" >&2; exit 1; }

export LD_LIBRARY_PATH=$lib:$lib/ceph:$sysroot/usr/lib:$sysroot/lib/${lib##*/}:$sysroot/usr/lib/ceph
export PATH=$sysroot/usr/bin:$PATH CEPH_CONF=$place/ceph.conf
export PYTHONPATH=$sysroot/usr/lib/python3/dist-packages
mkdir -p "$place"/{mon,osd/0,run,log}

children=()
finish() {
    trap - EXIT
    # The store is in memory and nobody waits for it to come to rest.
    [ ${#children[@]} -eq 0 ] || kill -KILL "${children[@]}" 2>/dev/null || true
    kill -KILL "$(cat "$place/gateway.pid" 2>/dev/null)" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf -- "$place"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# fail WHAT LOG: says what failed and the end of its log.
fail() {
    echo "ceph.sh: $1" >&2
    tail -n 8 "$2" >&2 || true
    exit 1
}

id=$(cat /proc/sys/kernel/random/uuid)
cat >"$place/ceph.conf" <<CONF
[global]
fsid = $id
mon host = [v2:127.0.0.1:$((port + 1))/0]
public network = 127.0.0.1/32
ms bind msgr1 = false
ms bind port min = $((port + 2))
ms bind port max = $((port + 11))
auth cluster required = none
auth service required = none
auth client required = none
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
keyring = $place/keyring
run dir = $place/run
pid file = $place/run/\$type.\$id.pid
admin socket =
log file = $place/log/\$name.log
plugin dir = $lib/ceph
erasure code dir = $lib/ceph/erasure-code
osd class dir = $lib/rados-classes
crash dir =
setuser match path =
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
paxos propose interval = 0.05
paxos min wait = 0.01
mon tick interval = 1
osd objectstore = memstore
memstore device bytes = 12884901888
[mon]
mon data = $place/mon/\$id
mon initial members = a
[osd]
osd data = $place/osd/\$id
[client.admin]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw cache enabled = false
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw gc processor max time = 5
rgw thread pool size = 32
CONF
# With its cache, a new gateway waits 30 seconds for the word of one that was killed.

{
    monmaptool --create --addv a "[v2:127.0.0.1:$((port + 1))]" --fsid "$id" "$place/monmap"
    touch "$place/keyring"
    ceph-authtool "$place/keyring" --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool "$place/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
    ceph-mon --mkfs -i a --monmap "$place/monmap" --keyring "$place/keyring"
} >"$place/log/setup" 2>&1 || fail "the monitor could not be prepared" "$place/log/setup"
ceph-mon -f -i a --public-addr 127.0.0.1 </dev/null >"$place/log/mon" 2>&1 &
children+=($!)
{
    osd=$(cat /proc/sys/kernel/random/uuid)
    timeout 60 ceph osd new "$osd" </dev/null
    ceph-osd -i 0 --mkfs --osd-uuid "$osd"
} >>"$place/log/setup" 2>&1 || fail "the store of objects could not be prepared" "$place/log/setup"
ceph-osd -f -i 0 </dev/null >"$place/log/osd" 2>&1 &
children+=($!)
(
    while true; do
        radosgw -f -n client.admin </dev/null >>"$place/log/gateway" 2>&1 &
        echo $! >"$place/gateway.pid"
        wait $! || true
        sleep 0.5
    done
) &
children+=($!)
for _ in $(seq 1 600); do
    (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    sleep 0.1
done
timeout 60 radosgw-admin user create --uid=test --display-name=test --access-key=test --secret-key=testsecret \
    </dev/null >>"$place/log/setup" 2>&1 || fail "the gateway did not start" "$place/log/gateway"
echo ready
cat >/dev/null
