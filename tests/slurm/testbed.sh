#!/usr/bin/env bash
# testbed.sh - a real Slurm cluster on one machine, on loopback only,
# without systemd and without cgroups. For tests and CI.
#
#   testbed.sh up        install what is missing, write config, start daemons,
#                              wait until all nodes are idle (a no-op when already up)
#   testbed.sh status    what runs; exit 0 when the cluster is usable
#   testbed.sh env       print the shell lines to use it:  eval "$(tests/slurm/testbed.sh env)"
#   testbed.sh down      cancel jobs, stop the daemons by pid, remove the files
#                              (--keep-logs: leave $DIR/log)
#
# Environment (all optional):
#   SLURM_TESTBED_DIR         state directory                  (slurm-testbed in the temporary folder)
#   SLURM_TESTBED_NODES       node daemons, node1..nodeN       (2)
#   SLURM_TESTBED_CPUS        CPUs each node claims to have    (2)
#   SLURM_TESTBED_MEM         memory each node claims, MiB     (4000)
#   SLURM_TESTBED_GPUS        fake GPUs on each node           (2)
#   SLURM_TESTBED_ACCOUNTING  1: slurmdbd + MariaDB, so sacct/sacctmgr work;  0: squeue only   (1)
#   SLURM_TESTBED_MEMKILL     1: a job over its memory request is killed (state FAILED, signal 9)   (0)
#   SLURM_TESTBED_PORT        first of the ports probed for    (26800)
#   SLURM_TESTBED_TIMEOUT     seconds to wait for each daemon  (60)
#
# Needs root (or a user who owns every file, munge key included; only root is tested).
set -euo pipefail

DIR=${SLURM_TESTBED_DIR:-${TMPDIR:-/tmp}/slurm-testbed}
NODES=${SLURM_TESTBED_NODES:-2}
CPUS=${SLURM_TESTBED_CPUS:-2}
MEM=${SLURM_TESTBED_MEM:-4000}
GPUS=${SLURM_TESTBED_GPUS:-2}
ACCOUNTING=${SLURM_TESTBED_ACCOUNTING:-1}
MEMKILL=${SLURM_TESTBED_MEMKILL:-0}
PORT0=${SLURM_TESTBED_PORT:-26800}
TIMEOUT=${SLURM_TESTBED_TIMEOUT:-60}
LINK=/etc/slurm/slurm.conf            # see link_config
HOSTS_TAG="# slurm-testbed"

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
export LC_ALL=C.UTF-8
# a caller inside a job, or with another cluster's settings, must not leak into the daemons
for v in $(compgen -e | grep -E '^(SLURM_|SLURMD_|SBATCH_|SRUN_|SACCT_|SQUEUE_|SINFO_)' | grep -v '^SLURM_TESTBED_' || true); do unset "$v"; done

export SLURM_TESTBED_MARK=$DIR         # in every daemon's environment: how `down` knows its own

say()  { printf 'slurm-testbed: %s\n' "$*"; }
die()  { printf 'slurm-testbed: error: %s\n' "$*" >&2; exit 1; }
node_names() { local i; for ((i = 1; i <= NODES; i++)); do echo "node$i"; done; }

# ---------------------------------------------------------------- processes
# alive NAME EXE: the pid in run/NAME.pid, when it is a live process of that program
alive() {
  local pid exe
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
  exe=${exe% (deleted)}
  [[ ${exe##*/} == "$2"* ]] || return 1      # slurmd is /usr/sbin/slurmd-wlm
  # never a process of someone else's cluster: ours was started with this in its environment
  grep -qzxF "SLURM_TESTBED_MARK=$DIR" "/proc/$pid/environ" 2>/dev/null || return 1
  echo "$pid"
}

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
  local end=$(( $(date +%s) + $1 )); shift
  until "$@" >/dev/null 2>&1; do
    (( $(date +%s) < end )) || return 1
    sleep 0.1
  done
}

stop_one() {  # NAME EXE
  local pid i
  pid=$(alive "$1" "$2") || { rm -f "$DIR/run/$1.pid"; return 0; }
  kill -TERM "$pid" 2>/dev/null || true
  for ((i = 0; i < 150; i++)); do
    alive "$1" "$2" >/dev/null || break
    sleep 0.1
  done
  if pid=$(alive "$1" "$2"); then
    say "$1 (pid $pid) ignored SIGTERM, sending SIGKILL"
    kill -KILL "$pid" 2>/dev/null || true
    sleep 0.2
  fi
  rm -f "$DIR/run/$1.pid"
}

# slurmstepd processes of this cluster: they inherit slurmd's environment; jobs do not
our_stepds() {
  local p exe
  for p in /proc/[0-9]*; do
    exe=$(readlink "$p/exe" 2>/dev/null) || continue
    [[ ${exe##*/} == slurmstepd* ]] || continue
    grep -qzxF "SLURM_TESTBED_MARK=$DIR" "$p/environ" 2>/dev/null && echo "${p#/proc/}"
  done
  return 0
}

# ---------------------------------------------------------------- install
install_packages() {
  local need=() made=0
  command -v slurmctld >/dev/null || need+=(slurmctld)
  command -v slurmd    >/dev/null || need+=(slurmd)
  command -v sbatch    >/dev/null || need+=(slurm-client)
  command -v munged    >/dev/null || need+=(munge)
  if [[ $ACCOUNTING == 1 ]]; then
    command -v slurmdbd >/dev/null || need+=(slurmdbd)
    # the -core package has mariadbd and mariadb-install-db; the full server package
    # would bring Perl, galera and a service that nothing here uses
    command -v mariadbd >/dev/null || need+=(mariadb-server-core)
    command -v my_print_defaults >/dev/null || need+=(mariadb-client-core)   # mariadb-install-db runs it
  fi
  ((${#need[@]})) || return 0
  [[ $(id -u) == 0 ]] || die "missing packages: ${need[*]} (install them, or run this as root)"
  say "installing: ${need[*]}"
  # no service may start by itself: the daemons here are started by hand
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1
  fi
  local log; log=$(mktemp) rc=0
  {
    apt-get -o DPkg::Lock::Timeout=600 update &&
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 \
      install -y --no-install-recommends "${need[@]}"
  } >"$log" 2>&1 </dev/null || rc=$?
  if ((made)); then rm -f /usr/sbin/policy-rc.d; fi
  if ((rc)); then tail -n 40 "$log" >&2; rm -f "$log"; die "apt-get failed ($rc)"; fi
  rm -f "$log"
}

# ---------------------------------------------------------------- configuration
port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
NEXT_PORT=$PORT0
take_port() {  # sets PORT
  while ! port_free "$NEXT_PORT"; do NEXT_PORT=$((NEXT_PORT + 1)); done
  PORT=$NEXT_PORT; NEXT_PORT=$((NEXT_PORT + 1))
}

write_config() {
  local host n i ctldport dbdport sqlport version
  host=$(hostname -s 2>/dev/null || cat /proc/sys/kernel/hostname); host=${host%%.*}
  version=$(slurmctld -V | grep -oE '[0-9]+\.[0-9]+' | head -1)

  mkdir -p "$DIR"/{etc,run,log,state,spool,dev,db}
  chmod 755 "$DIR" "$DIR"/{etc,run,log,state,spool,dev}
  chmod 700 "$DIR/db"
  for n in $(node_names); do mkdir -p "$DIR/spool/$n"; done
  [[ -s $DIR/etc/munge.key ]] || (umask 077; head -c 128 /dev/urandom > "$DIR/etc/munge.key")

  take_port; ctldport=$PORT
  take_port; dbdport=$PORT
  take_port; sqlport=$PORT

  {
    cat <<EOF
# written by tests/slurm/testbed.sh
ClusterName=testbed
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctldport
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again (default 120 s)
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny

StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info

# nothing here needs cgroups or systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
$( ((MEMKILL)) && echo JobAcctGatherParams=OverMemoryKill )
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides

SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2

# MinJobAge keeps ended jobs visible to squeue: the executor plugin polls it
MinJobAge=300
ReturnToService=2
KillWait=30
SlurmctldTimeout=30
SlurmdTimeout=60
InactiveLimit=0
UnkillableStepTimeout=30
JobRequeue=1

GresTypes=gpu
EOF
    if [[ $ACCOUNTING == 1 ]]; then
      cat <<EOF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbdport
# AuthInfo does not reach this connection: without this line it looks for /run/munge
AccountingStoragePass=$DIR/run/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
EOF
    else
      echo "AccountingStorageType=accounting_storage/none"
    fi
    echo
    i=0
    for n in $(node_names); do
      i=$((i + 1)); take_port
      echo "NodeName=$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$PORT CPUs=$CPUS RealMemory=$MEM Gres=gpu:fake:$GPUS Feature=testbed,rack$i State=UNKNOWN"
    done
    cat <<EOF

PartitionName=cpu Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
PartitionName=gpu Nodes=ALL Default=NO  MaxTime=60 DefaultTime=10 State=UP
EOF
  } > "$DIR/etc/slurm.conf"

  # one file per fake GPU: with File= Slurm sets CUDA_VISIBLE_DEVICES, as on a GPU node
  # (a regular file will not do: slurmd wants a device, any device)
  : > "$DIR/etc/gres.conf"
  for ((i = 0; i < GPUS; i++)); do
    [[ -c $DIR/dev/gpu$i ]] || mknod -m 666 "$DIR/dev/gpu$i" c 1 3 || die "mknod is not allowed here; set SLURM_TESTBED_GPUS=0"
    echo "Name=gpu Type=fake File=$DIR/dev/gpu$i" >> "$DIR/etc/gres.conf"
  done
  if ((GPUS == 0)); then sed -i -e 's/ Gres=gpu:fake:0//' "$DIR/etc/slurm.conf"; fi

  # slurmd loads a cgroup plugin although nothing above uses one, and its default, autodetect,
  # stops it where /sys/fs/cgroup is missing, or is version 2 without systemd's D-Bus
  # (containers). The v1 plugin does nothing until something asks; newer versions can say so.
  if [[ $(printf '%s\n' 23.11 "$version" | sort -V | head -1) == 23.11 ]]; then
    echo "CgroupPlugin=disabled" > "$DIR/etc/cgroup.conf"
  else
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' > "$DIR/etc/cgroup.conf"
  fi

  if [[ $ACCOUNTING == 1 ]]; then
    local password; password=$(head -c 18 /dev/urandom | base64 | tr -dc 'A-Za-z0-9')
    (umask 077; cat > "$DIR/etc/slurmdbd.conf" <<EOF
# written by tests/slurm/testbed.sh
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$dbdport
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket
CommunicationParameters=NoInAddrAny
PidFile=$DIR/run/slurmdbd.pid
LogFile=$DIR/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$sqlport
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm_acct_db
EOF
      cat > "$DIR/etc/init.sql" <<EOF
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '$password';
ALTER USER 'slurm'@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
FLUSH PRIVILEGES;
EOF
      cat > "$DIR/etc/my.cnf" <<EOF
[mariadbd]
datadir=$DIR/db
socket=$DIR/run/mariadb.sock
pid-file=$DIR/run/mariadbd.pid
log-error=$DIR/log/mariadbd.log
bind-address=127.0.0.1
port=$sqlport
user=$(id -un)
init-file=$DIR/etc/init.sql
skip-name-resolve
innodb-buffer-pool-size=64M
innodb-log-file-size=32M
innodb-lock-wait-timeout=900
innodb-flush-log-at-trx-commit=0
innodb-doublewrite=0
innodb-flush-method=nosync
sync-frm=0
performance-schema=OFF
EOF
    )
  fi
  cat > "$DIR/env.sh" <<EOF
export SLURM_CONF=$DIR/etc/slurm.conf
EOF
}

# The jobstep plugin of Snakemake removes every SLURM_* variable, SLURM_CONF with them,
# before it runs srun; so the configuration must also be where Slurm looks by default.
link_config() {
  [[ -w /etc ]] || return 0
  mkdir -p "${LINK%/*}"
  ln -sfn "$DIR/etc/slurm.conf" "$LINK"
}
unlink_config() {
  if [[ -L $LINK && $(readlink "$LINK") == "$DIR/etc/slurm.conf" ]]; then rm -f "$LINK"; fi
}

# node names resolve, as they do on a cluster: torchrun --rdzv-endpoint=node1:PORT
add_hosts() {
  [[ -w /etc/hosts ]] || return 0
  del_hosts
  echo "127.0.0.1 $(node_names | tr '\n' ' ')$HOSTS_TAG $DIR" >> /etc/hosts
}
del_hosts() {
  [[ -w /etc/hosts ]] || return 0
  grep -qF "$HOSTS_TAG $DIR" /etc/hosts || return 0
  # /etc/hosts may be a bind mount (containers): rewrite it in place
  local text; text=$(grep -vF "$HOSTS_TAG $DIR" /etc/hosts || true)
  printf '%s\n' "$text" > /etc/hosts
}

# ---------------------------------------------------------------- start
start_munge() {
  alive munged munged >/dev/null && return 0
  rm -f "$DIR/run/munge.socket"*
  # --force: running as root, with its own paths, draws warnings that are errors otherwise
  munged --force --socket="$DIR/run/munge.socket" --key-file="$DIR/etc/munge.key" \
    --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" \
    --seed-file="$DIR/run/munge.seed" --num-threads=4 </dev/null >>"$DIR/log/munged.out" 2>&1 ||
    { cat "$DIR/log/munged.out" "$DIR/log/munged.log" >&2; die "munged did not start"; }
  wait_for "$TIMEOUT" sh -c "munge -n -S '$DIR/run/munge.socket' | unmunge -S '$DIR/run/munge.socket'" ||
    die "munge gives no credentials; see $DIR/log/munged.log"
}

start_accounting() {
  if ! alive mariadbd mariadbd >/dev/null; then
    if [[ ! -d $DIR/db/mysql ]]; then
      mariadb-install-db --no-defaults --datadir="$DIR/db" --user="$(id -un)" \
        --auth-root-authentication-method=socket --skip-test-db --innodb-flush-method=nosync \
        </dev/null >"$DIR/log/mariadb-install.log" 2>&1 ||
        { tail -n 20 "$DIR/log/mariadb-install.log" >&2; die "mariadb-install-db failed"; }
    fi
    setsid mariadbd --defaults-file="$DIR/etc/my.cnf" </dev/null >>"$DIR/log/mariadbd.out" 2>&1 &
    wait_for "$TIMEOUT" alive mariadbd mariadbd ||
      { tail -n 20 "$DIR/log/mariadbd.log" >&2; die "mariadbd did not start"; }
    local sqlport; sqlport=$(sed -n 's/^port=//p' "$DIR/etc/my.cnf")
    wait_for "$TIMEOUT" bash -c "exec 3<>/dev/tcp/127.0.0.1/$sqlport" ||
      { tail -n 20 "$DIR/log/mariadbd.log" >&2; die "mariadbd does not listen"; }
  fi
  if ! alive slurmdbd slurmdbd >/dev/null; then
    # slurmdbd has no option for its configuration file's name but this variable
    SLURM_CONF=$DIR/etc/slurm.conf slurmdbd </dev/null >>"$DIR/log/slurmdbd.out" 2>&1 ||
      { tail -n 20 "$DIR/log/slurmdbd.out" "$DIR/log/slurmdbd.log" >&2; die "slurmdbd did not start"; }
    wait_for "$TIMEOUT" env SLURM_CONF="$DIR/etc/slurm.conf" sacctmgr -n show cluster ||
      { tail -n 20 "$DIR/log/slurmdbd.log" "$DIR/log/slurmdbd.out" >&2; die "slurmdbd does not answer"; }
  fi
  export SLURM_CONF=$DIR/etc/slurm.conf
  if [[ -z $(sacctmgr -nP show cluster testbed format=cluster) ]]; then
    sacctmgr -iQ add cluster testbed >/dev/null
    sacctmgr -iQ add account lab Cluster=testbed Description=testbed Organization=testbed >/dev/null
    sacctmgr -iQ add user "$(id -un)" Account=lab >/dev/null 2>&1 || true
  fi
}

nodes_idle() {
  local states
  states=$(sinfo -h -N -o '%N %t' 2>/dev/null | sort -u) || return 1
  [[ $(grep -cE '^node[0-9]+ (idle|mix|alloc)$' <<<"$states") == "$NODES" ]]
}

start_slurm() {
  export SLURM_CONF=$DIR/etc/slurm.conf
  local n
  if ! alive slurmctld slurmctld >/dev/null; then
    # -i: a state left by a killed controller is no reason not to start
    slurmctld -i -f "$SLURM_CONF" </dev/null >>"$DIR/log/slurmctld.out" 2>&1 ||
      { tail -n 20 "$DIR/log/slurmctld.out" "$DIR/log/slurmctld.log" >&2; die "slurmctld did not start"; }
  fi
  for n in $(node_names); do
    alive "slurmd-$n" slurmd >/dev/null && continue
    slurmd -N "$n" -f "$SLURM_CONF" </dev/null >>"$DIR/log/slurmd-$n.out" 2>&1 ||
      { tail -n 20 "$DIR/log/slurmd-$n.out" "$DIR/log/slurmd-$n.log" >&2; die "slurmd $n did not start"; }
  done
  wait_for "$TIMEOUT" scontrol ping || { tail -n 20 "$DIR/log/slurmctld.log" >&2; die "slurmctld does not answer"; }
  # a node that an earlier failure left down or drained
  for n in $(sinfo -h -N -o '%N %t' | awk '$2 ~ /^(down|drain|drng|fail)/ {print $1}' | sort -u); do
    scontrol update NodeName="$n" State=RESUME || true
  done
  wait_for "$TIMEOUT" nodes_idle ||
    { sinfo -N -l >&2; tail -n 20 "$DIR"/log/slurmd-*.log >&2; die "the nodes did not become idle"; }
}

# ---------------------------------------------------------------- commands
cmd_up() {
  local t0=$SECONDS
  install_packages
  if [[ -e $LINK && $(readlink -f "$LINK") != "$DIR/etc/slurm.conf" ]]; then
    die "$LINK is there already: this machine belongs to another cluster ($(readlink -f "$LINK"))"
  fi
  if [[ ! -f $DIR/etc/slurm.conf ]] || ! alive slurmctld slurmctld >/dev/null; then
    # a half-dead earlier cluster is cleared first; its ports may be gone too
    if [[ -d $DIR ]]; then cmd_down >/dev/null; fi
    write_config
  fi
  link_config
  add_hosts
  start_munge
  if [[ -f $DIR/etc/slurmdbd.conf ]]; then start_accounting; fi
  start_slurm
  say "up in $((SECONDS - t0)) s: Slurm $(sinfo -V | cut -d' ' -f2), $(sinfo -h -N -o %N | sort -u | wc -l) nodes, accounting $([[ -f $DIR/etc/slurmdbd.conf ]] && echo 'slurmdbd (sacct works)' || echo 'none (squeue only)')"
  sinfo -N -o '%N %t %c cpus %m MiB %G %f' | sort -u
  cat <<EOF
use:   eval "\$($0 env)"; srun -N2 hostname; sbatch --gres=gpu:1 --wrap 'echo \$CUDA_VISIBLE_DEVICES'
logs:  $DIR/log
stop:  $0 down
EOF
}

cmd_env() {
  [[ -f $DIR/env.sh ]] || die "not up"
  cat "$DIR/env.sh"
}

cmd_status() {
  local n bad=0 pid
  [[ -f $DIR/etc/slurm.conf ]] || { say "down"; return 3; }
  show() { if pid=$(alive "$1" "$2"); then printf '%-16s pid %s\n' "$1" "$pid"; else printf '%-16s not running\n' "$1"; bad=1; fi; }
  show munged munged
  if [[ -f $DIR/etc/slurmdbd.conf ]]; then show mariadbd mariadbd; show slurmdbd slurmdbd; fi
  show slurmctld slurmctld
  for n in $(sed -n 's/^NodeName=\([^ ]*\) .*/\1/p' "$DIR/etc/slurm.conf"); do show "slurmd-$n" slurmd; done
  export SLURM_CONF=$DIR/etc/slurm.conf
  if ((bad == 0)); then
    timeout 10 sinfo -N -o '%N %P %t %c %m %G' || bad=1
    timeout 10 squeue -o '%i %j %T %N %r' || bad=1
  fi
  return $((bad ? 1 : 0))
}

cmd_down() {
  local n i left
  [[ -d $DIR ]] || { say "not up"; unlink_config; del_hosts; return 0; }
  if [[ -f $DIR/etc/slurm.conf ]] && alive slurmctld slurmctld >/dev/null; then
    export SLURM_CONF=$DIR/etc/slurm.conf
    timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 10 scancel --quiet 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do
      [[ -z $(timeout 5 squeue -h 2>/dev/null) ]] && break
      sleep 0.2
    done
  fi
  if [[ -d $DIR/spool ]]; then
    for n in "$DIR"/spool/*/; do n=${n%/}; stop_one "slurmd-${n##*/}" slurmd; done
  fi
  for left in $(our_stepds); do
    say "slurmstepd $left is left over: killing it"
    kill -KILL "$left" 2>/dev/null || true
  done
  stop_one slurmctld slurmctld
  stop_one slurmdbd slurmdbd
  stop_one mariadbd mariadbd
  stop_one munged munged
  unlink_config
  del_hosts
  if [[ ${1:-} == --keep-logs ]]; then
    find "$DIR" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf {} +
  else
    rm -rf "$DIR"
  fi
  say "down"
}

[[ $DIR == /* && $DIR != / ]] || die "SLURM_TESTBED_DIR must be an absolute path"
((${#DIR} < 70)) || die "SLURM_TESTBED_DIR is too long for a Unix socket's path"
case ${1:-} in
  up | down)                            # one at a time; -o: the daemons do not inherit the lock
    if [[ ${SLURM_TESTBED_LOCKED:-} != "$DIR" ]]; then
      SLURM_TESTBED_LOCKED=$DIR exec flock -o -w 900 "$DIR.lock" bash "$0" "$@"
    fi ;;
esac
case ${1:-} in
  up) cmd_up ;;
  status) cmd_status ;;
  env) cmd_env ;;
  down) cmd_down "${2:-}" ;;
  *) sed -n '2,/^set -e/p' "$0" | sed -e '$d' -e 's/^# \{0,1\}//'; exit 2 ;;
esac
