"""Errors of a ledger member."""


class MemberError(Exception):
    """A ledger member did not reach the requested state; the message is one line."""


class MemberFailed(MemberError):
    """PostgreSQL or one of its programs failed or did not answer in time. A retry may help."""


class MemberRefused(MemberFailed):
    """The member's host refused the connection, which shows that PostgreSQL does not listen; a timeout does not."""


class SchemaMissing(MemberFailed):
    """The ledger's database or a table does not exist yet: the agent that created the member did not finish."""


class MemberUnusable(MemberError):
    """The data folder cannot be used by this program; an operator must act."""


class QuorumUnknown(MemberError):
    """A commit returned, but it is unknown whether a quorum has it. The member must not lead any more."""
