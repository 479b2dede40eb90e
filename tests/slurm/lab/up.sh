#!/bin/bash
# up.sh DIR: starts a private Slurm of one machine in DIR, which down.sh stops.
#
# It has its own munged, slurmctld and one slurmd for each pretended node, everything of it lies in DIR, and
# it needs no root, systemd, cgroups or database. `. DIR/env.sh` lets Slurm's commands find it.
#
#   LAB_PORT=17600       the first of LAB_NODES + 1 ports
#   LAB_NODES=2          node1, node2, ...: 4 cores, 8 GB and one pretended GPU each
#   LAB_KILL_WAIT=10     seconds between SIGTERM and SIGKILL
#   LAB_PROCTRACK=pgid   or cgroup, with root and cgroups that can be written
#   LAB_CONTROLLER=      SlurmctldParameters, such as preempt_send_user_signal
#
# Partitions: short (the default) and gpu; lowpri and lowpri-grace, which jobs in hipri push aside, at once or
# after 5 seconds.
set -euo pipefail

place=${1:?usage: up.sh DIR}
nodes=${LAB_NODES:-2} port=${LAB_PORT:-17600}
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
umask 022

say() { echo "up.sh: $*" >&2; }

# fail WHAT [LOG]: says what failed and the end of its log, and takes down what was started.
fail() {
    say "$1"
    if [ -e "${2:-}" ]; then tail -n 8 "$2" >&2; fi
    "$(dirname "$0")/down.sh" "$place" || true
    exit 1
}

for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || { say "$program is not installed"; exit 1; }
done

mkdir -p "$place"
place=$(cd "$place" && pwd -P)
mkdir -p "$place"/{etc,log,pid,dev,munge,state/controller}
# Others may pass through and read what is public; munged insists on it, and job scripts may run as others.
chmod 755 "$place" "$place/log" "$place/pid"
chmod 711 "$place/munge"

# -- configuration ---------------------------------------------------------------------------------
# pgid and cgroup both kill what is left of a job when its first process ends, as clusters do. linuxproc
# does not: a python whose shell died would live on unseen.
# cred_expire is also how long a job that is requeued waits; 5 is the least, and 120 the default.
cat >"$place/etc/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=localhost
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$place/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$place/state/controller
SlurmdSpoolDir=$place/state/%n
SlurmctldPidFile=$place/pid/slurmctld.pid
SlurmdPidFile=$place/pid/slurmd-%n.pid
SlurmctldLogFile=$place/log/slurmctld.log
SlurmdLogFile=$place/log/slurmd-%n.log
ProctrackType=proctrack/${LAB_PROCTRACK:-pgid}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=1000,bf_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=${LAB_KILL_WAIT:-10}
CompleteWait=0
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=60
MessageTimeout=10
MaxArraySize=10001
DefMemPerCPU=100
GresTypes=gpu
${LAB_CONTROLLER:+SlurmctldParameters=$LAB_CONTROLLER}
CONF
for number in $(seq 1 "$nodes"); do
    echo "NodeName=node$number NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + number)) CPUs=4 Boards=1" \
        "SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:1 State=UNKNOWN"
done >>"$place/etc/slurm.conf"
names=$(seq -s, -f node%g 1 "$nodes")
cat >>"$place/etc/slurm.conf" <<CONF
PartitionName=short Nodes=$names Default=YES DefaultTime=5 MaxTime=60 PriorityTier=10
PartitionName=gpu Nodes=$names DefaultTime=5 MaxTime=UNLIMITED PriorityTier=10
PartitionName=lowpri Nodes=$names DefaultTime=5 MaxTime=UNLIMITED PriorityTier=1 GraceTime=0
PartitionName=lowpri-grace Nodes=$names DefaultTime=5 MaxTime=UNLIMITED PriorityTier=1 GraceTime=5
PartitionName=hipri Nodes=$names DefaultTime=5 MaxTime=UNLIMITED PriorityTier=100 PreemptMode=OFF
CONF
# A GPU without a device file would count as none.
ln -sfn /dev/null "$place/dev/gpu0"
printf 'AutoDetect=off\nName=gpu File=%s\n' "$place/dev/gpu0" >"$place/etc/gres.conf"
if [ "${LAB_PROCTRACK:-}" = cgroup ]; then
    printf 'CgroupAutomount=no\nCgroupMountpoint=/sys/fs/cgroup\n' >"$place/etc/cgroup.conf"
fi
printf 'export SLURM_CONF=%q\n' "$place/etc/slurm.conf" >"$place/env.sh"
export SLURM_CONF=$place/etc/slurm.conf

# -- start -----------------------------------------------------------------------------------------
if [ ! -s "$place/munge/key" ]; then
    (umask 077; head -c 1024 /dev/urandom >"$place/munge/key")
fi
munged --force --key-file="$place/munge/key" --socket="$place/munge/socket" --pid-file="$place/pid/munged.pid" \
    --log-file="$place/log/munged.log" --seed-file="$place/munge/seed" --num-threads=2 </dev/null >&2 \
    || fail "munged did not start" "$place/log/munged.log"
slurmctld </dev/null >>"$place/log/started" 2>&1 || fail "slurmctld did not start" "$place/log/started"
for number in $(seq 1 "$nodes"); do
    mkdir -p "$place/state/node$number"
    slurmd -N "node$number" </dev/null >>"$place/log/started" 2>&1 \
        || fail "slurmd did not start for node$number" "$place/log/started"
done

# Each goes on by itself before it has its port, so that one that finds it taken is missed only here.
for _ in $(seq 1 150); do
    ready=$(timeout 5 sinfo -h -N -p short -t idle -o %N 2>/dev/null | sort -u | wc -l || true)
    if [ "$ready" = "$nodes" ]; then
        say "Slurm is up; next: . $place/env.sh"
        exit 0
    fi
    taken=$(grep -l 'Address already in use' "$place"/log/*.log || true)
    [ -z "$taken" ] || fail "a port from $port to $((port + nodes)) is taken (LAB_PORT)" "${taken%%$'\n'*}"
    sleep 0.2
done
fail "Slurm was not ready after 30 seconds" "$place/log/slurmctld.log"
