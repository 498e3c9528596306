"""Generates the configuration files of one ledger member, each of them complete.

Decides every PostgreSQL setting of the ledger. Does not know processes and connections: it turns values into text. The
sizes are for three regions on one laptop.
"""

import hashlib
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regions.identity import RegionName, physical_slot_name
from regions.member.process import Account
from regions.topology import Address

SUPERUSER = "palaver"
REPLICATION_ROLE = "palaver_replication"
DATABASE = "palaver"

SCRAM_ITERATIONS = 1
"""SCRAM iterations of the ledger's passwords. The passwords are random and long, so more iterations do not protect
them. With PostgreSQL's 4096 each connection costs the client 2 ms of CPU time, and a failover renews most
connections."""

SEGMENT_MB = 4
"""A WAL receiver starts at the beginning of the segment that it writes to. With initdb's default of 16 MB, 8 MB are
sent again on average between regions, while the first write after a failover waits for its quorum. With smaller
segments a lost leader's WAL ends more often within a record that continues in the next segment (ADR 0044)."""

CONFIGURATION = "palaver.conf"
PASSFILE = "palaver.passfile"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSettings:
    """Settings of a ledger member.

    Attributes:
        region: Its region, which is its name as a standby.
        data: Data folder.
        state: The agent's folder of files that must survive a crash.
        log: File of PostgreSQL's messages.
        programs: Folder with postgres, initdb, pg_basebackup and pg_rewind.
        listen: Address at which it listens.
        account: Account that it runs as if the agent is root.
        superuser_password: Password of role ``palaver``.
        replication_password: Password of role ``palaver_replication``.
        writer_password: Password of role ``palaver_writer``.
        wal_keep_mb: WAL in MB that a slot may retain before PostgreSQL invalidates it; bounds the disk usage.
    """

    region: RegionName
    data: Path
    state: Path
    log: Path
    programs: Path
    listen: Address
    account: Account | None
    superuser_password: str
    replication_password: str
    writer_password: str
    wal_keep_mb: int


# These values are the same for all members; `configuration` adds those that differ.
_CONSTANTS = """
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
# Only the files that the agent writes configure a member, so nobody can weaken a commit by ALTER SYSTEM.
allow_alter_system = off

max_connections = 60
shared_buffers = '48MB'
work_mem = '4MB'
maintenance_work_mem = '32MB'
# Bounds the WAL that a crashed member replays, and most of what a rewind copies; meanwhile the quorum lacks the member.
max_wal_size = '256MB'
min_wal_size = '80MB'
max_worker_processes = 8
max_parallel_workers_per_gather = 0
autovacuum_max_workers = 2
# Reads are short and cached: the three processes for asynchronous reads would cost more than they save.
io_method = 'sync'
jit = off

wal_level = 'logical'
wal_compression = on
# As much WAL as a checkpoint may span: pg_rewind removes WAL that its source lacks, and the member then requests the
# WAL between the beginning and the record of the checkpoint from which it starts.
wal_keep_size = '256MB'
synchronous_commit = on
full_page_writes = on
fsync = on
# Two per standby (WAL, slot synchronisation), one per change stream, two for a base backup, and a reserve.
max_wal_senders = 24
max_replication_slots = 64
# A round trip between regions takes 80 ms: a peer that is silent for five seconds is dead, not slow.
wal_sender_timeout = '5s'
wal_receiver_timeout = '5s'
wal_receiver_status_interval = '1s'
# With the default of 5 s, a follower would be away for that long after each crash of its leader.
wal_retrieve_retry_interval = '200ms'
tcp_keepalives_idle = 5
tcp_keepalives_interval = 1
tcp_keepalives_count = 3
client_connection_check_interval = '1s'

hot_standby = on
hot_standby_feedback = on
# A failover waits until a standby has replayed all its WAL (rule 4), and replay waits this long for a conflicting
# transaction of the standby itself. The slot synchronization worker has such transactions and may itself wait for
# replay: with the default of 30 s, a failover took 23 s.
max_standby_streaming_delay = '250ms'
max_standby_archive_delay = '250ms'
sync_replication_slots = on
# Rule 8: crash recovery makes rows visible that no standby may have, so only the agent may start PostgreSQL again.
restart_after_crash = off

timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_min_messages = 'warning'
log_checkpoints = off
log_line_prefix = '%m [%p] %q%u@%d '
"""

_HBA = """
host all all 127.0.0.1/32 scram-sha-256
host replication palaver_replication 127.0.0.1/32 scram-sha-256
"""


def configuration(
    settings: MemberSettings, *, synchronous_standby_names: str, follows: Address | None, proxied: bool = False
) -> str:
    """Return the content of ``palaver.conf``.

    Args:
        settings: Settings of the member.
        synchronous_standby_names: The standbys that a commit waits for; '' for none.
        follows: The member whose WAL it receives; None for a primary.
        proxied: Whether the agent's replication proxy is the first host.
    """
    lines = [
        "# The region agent writes this whole file at each start; changes here are lost.",
        f"listen_addresses = {_quoted(settings.listen.host)}",
        f"port = {settings.listen.port}",
        f"max_slot_wal_keep_size = '{settings.wal_keep_mb}MB'",
        # Rule 5: in force before a member is primary, also at its start; the agent verifies it by SHOW.
        f"synchronous_standby_names = {_quoted(synchronous_standby_names)}",
        f"primary_conninfo = {_quoted(follow_conninfo(settings, follows, proxied=proxied) if follows else '')}",
        f"primary_slot_name = {_quoted(physical_slot_name(settings.region) if follows else '')}",
    ]
    return "\n".join(lines) + "\n" + _CONSTANTS


BACKUP_NAME = "base-backup"
"""application_name of a base backup. Its WAL stream reports flushed WAL; under the name of its region it would count in
the quorum before there is a standby."""


def follow_conninfo(settings: MemberSettings, leader: Address, *, proxied: bool = False) -> str:
    """Return the libpq connection string by which this member follows ``leader``.

    With ``proxied`` the first host is the agent's `replication_proxy`, and the second is the leader itself, for the
    time when the proxy does not listen. It names a database because slot synchronisation needs one (rule 19).
    """
    passwords = f"passfile='{settings.data / PASSFILE}'"
    if not proxied:
        return f"{_conninfo((leader,), settings.region)} {passwords}"
    hosts = (Address(f"@{proxy_name(settings)}", leader.port), leader)
    return f"{_conninfo(hosts, settings.region)} requirepeer='{_escaped(proxy_user() or '')}' {passwords}"


def proxy_name(settings: MemberSettings) -> str:
    """Return the folder part of the proxy's socket names, which are abstract (unix(7))."""
    return f"palaver-{hashlib.sha256(f'{settings.region} {settings.state}'.encode()).hexdigest()[:32]}"


def proxy_user() -> str | None:
    """Return the user name of this process, which the WAL receiver requires of the proxy; None if the uid has no name.

    libpq compares user names (``requirepeer``), so without a name the proxy cannot be used.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def proxy_conninfo(settings: MemberSettings, other: Address) -> str:
    """Return the libpq connection string by which the agent itself connects to another member to receive WAL.

    It names a database, because only such a replication connection accepts SQL.
    """
    password = _escaped(settings.replication_password)
    return f"{_conninfo((other,), settings.region)} replication=database password='{password}'"


def _escaped(value: str) -> str:
    """Return a value escaped for quotes in a connection string."""
    return value.replace("\\", "\\\\").replace("'", "\\'")


def backup_conninfo(leader: Address) -> str:
    """Return the libpq connection string of a base backup; the password is in the environment."""
    return _conninfo((leader,), BACKUP_NAME)


def _conninfo(hosts: Sequence[Address], name: str) -> str:
    return (
        f"host={','.join(one.host for one in hosts)} port={','.join(str(one.port) for one in hosts)} "
        f"user={REPLICATION_ROLE} dbname={DATABASE} "
        f"application_name={name} "
        "connect_timeout=3 sslmode=disable gssencmode=disable "
        "keepalives_idle=5 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=5000"
    )


def quorum_names(standbys: tuple[RegionName, ...], required: int) -> str:
    """Return the value of ``synchronous_standby_names``: any ``required`` of ``standbys``."""
    assert 0 < required <= len(standbys), f"{required} of {len(standbys)} standbys"
    names = ", ".join('"' + name + '"' for name in sorted(standbys))
    return f"ANY {required} ({names})"


def main_configuration() -> str:
    """Return the content of ``postgresql.conf``."""
    return f"include '{CONFIGURATION}'\n"


def host_based_authentication() -> str:
    """Return the content of ``pg_hba.conf``: connections from loopback with a password, and no others."""
    return _HBA


def passfile(settings: MemberSettings) -> str:
    """Return the content of the libpq password file with the replication password."""
    escaped = settings.replication_password.replace("\\", "\\\\").replace(":", "\\:")
    return f"*:*:*:{REPLICATION_ROLE}:{escaped}\n"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
