"""The files that configure one ledger member, written whole and never appended to.

Decides every PostgreSQL setting of the ledger and why. Refuses to know processes and connections: it
turns values into texts. Sized for three regions on one laptop.
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
"""Of the ledger's passwords, which are random and beyond guessing, so that iterations protect nothing. With
PostgreSQL's 4096 a connection costs each client 2 ms of a processor, and a failover makes most of them anew."""

SEGMENT_MB = 4
"""A receiver asks for the whole segment that it will write to. Of 16 MB, which initdb takes by itself, half are sent
again on average between regions, while the first write after a failover waits for its quorum. The smaller they are the
more often a leader ends within a record that goes on in the next one (ADR 0044)."""

CONFIGURATION = "palaver.conf"
PASSFILE = "palaver.passfile"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSettings:
    """Where a ledger member lives and what it must know.

    Attributes:
        region: Its region; its name as a standby.
        data: Its data folder.
        state: The agent's own folder for what must survive a crash.
        log: The file that takes PostgreSQL's messages.
        programs: Folder with postgres, initdb and pg_basebackup.
        listen: Where it listens.
        account: Whom it runs as when the agent is root.
        superuser_password: Of role ``palaver``.
        replication_password: Of role ``palaver_replication``.
        writer_password: Of role ``palaver_writer``.
        wal_keep_mb: WAL that slots may hold back before they are lost; bounds the disk.
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


# Each value is a constant of the ledger; what differs between members is added by `configuration`.
_CONSTANTS = """
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
# Only the files that the agent writes configure a member, so nobody can weaken a commit by ALTER SYSTEM.
allow_alter_system = off

max_connections = 60
shared_buffers = '48MB'
work_mem = '4MB'
maintenance_work_mem = '32MB'
# What a member that died replays, and most of what a rewind copies: both are time in which the quorum lacks it.
max_wal_size = '256MB'
min_wal_size = '80MB'
max_worker_processes = 8
max_parallel_workers_per_gather = 0
autovacuum_max_workers = 2
# Reads are short and cached: three processes for asynchronous reads would cost more than they bring.
io_method = 'sync'
jit = off

wal_level = 'logical'
wal_compression = on
# As much as a checkpoint may leave behind: pg_rewind drops WAL that its source lacks, and the member then asks for what
# lies between the beginning and the record of the checkpoint from which it starts.
wal_keep_size = '256MB'
synchronous_commit = on
full_page_writes = on
fsync = on
# Two of each standby (WAL, slot sync), one for each change stream, two for a base backup, and room.
max_wal_senders = 24
max_replication_slots = 64
# A round trip between regions is 80 ms: five seconds of silence is a dead peer, not a slow one.
wal_sender_timeout = '5s'
wal_receiver_timeout = '5s'
wal_receiver_status_interval = '1s'
# The default of 5 s would be the time a follower is away after each crash of its leader.
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
# Rule 8: after a crash, rows that no standby has become visible; only the agent may start it again.
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
    """Return the whole of ``palaver.conf``.

    Args:
        settings: Whose.
        synchronous_standby_names: Which standbys a commit waits for; '' waits for none.
        follows: The member whose WAL it receives; None for a primary.
        proxied: Whether the agent's replication proxy comes first.
    """
    lines = [
        "# Written whole by the region agent at each start; changes here are lost.",
        f"listen_addresses = {_quoted(settings.listen.host)}",
        f"port = {settings.listen.port}",
        f"max_slot_wal_keep_size = '{settings.wal_keep_mb}MB'",
        # Rule 5: set before a member is primary, in the file it starts with, and verified by SHOW.
        f"synchronous_standby_names = {_quoted(synchronous_standby_names)}",
        f"primary_conninfo = {_quoted(follow_conninfo(settings, follows, proxied=proxied) if follows else '')}",
        f"primary_slot_name = {_quoted(physical_slot_name(settings.region) if follows else '')}",
    ]
    return "\n".join(lines) + "\n" + _CONSTANTS


BACKUP_NAME = "base-backup"
"""A base backup that streams through a slot reports flushed WAL; under its region's name it would count as
a standby of the quorum before there is one."""


def follow_conninfo(settings: MemberSettings, leader: Address, *, proxied: bool = False) -> str:
    """Return the libpq connection string by which this member follows ``leader``.

    With ``proxied`` the first host is the agent's `replication_proxy`, and the second is the member
    itself, for when the proxy does not listen. It names a database because slot synchronisation needs one (rule 19).
    """
    passwords = f"passfile='{settings.data / PASSFILE}'"
    if not proxied:
        return f"{_conninfo((leader,), settings.region)} {passwords}"
    hosts = (Address(f"@{proxy_name(settings)}", leader.port), leader)
    return f"{_conninfo(hosts, settings.region)} requirepeer='{_escaped(proxy_user() or '')}' {passwords}"


def proxy_name(settings: MemberSettings) -> str:
    """Return the name of the folder of the line's sockets, in the kernel's name space (unix(7), abstract sockets)."""
    return f"palaver-{hashlib.sha256(f'{settings.region} {settings.state}'.encode()).hexdigest()[:32]}"


def proxy_user() -> str | None:
    """Return the user that a receiver expects at the line's other end; None where this one has no name.

    libpq compares by name (``requirepeer``), so without one there is no line.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def proxy_conninfo(settings: MemberSettings, other: Address) -> str:
    """Return the libpq connection string by which the agent itself connects to another member to receive WAL.

    With a database, because only such a connection takes SQL too; it reads nothing there.
    """
    password = _escaped(settings.replication_password)
    return f"{_conninfo((other,), settings.region)} replication=database password='{password}'"


def _escaped(value: str) -> str:
    """Return a value as it stands between quotes in a connection string."""
    return value.replace("\\", "\\\\").replace("'", "\\'")


def backup_conninfo(leader: Address) -> str:
    """Return the libpq connection string of a base backup; the password comes by the environment."""
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
    """Return the whole of ``postgresql.conf``."""
    return f"include '{CONFIGURATION}'\n"


def host_based_authentication() -> str:
    """Return the whole of ``pg_hba.conf``: passwords from loopback, and nobody else."""
    return _HBA


def passfile(settings: MemberSettings) -> str:
    """Return the whole of the file that holds the replication password (libpq's format)."""
    escaped = settings.replication_password.replace("\\", "\\\\").replace(":", "\\:")
    return f"*:*:*:{REPLICATION_ROLE}:{escaped}\n"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
