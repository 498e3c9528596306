"""What can go wrong with a ledger member."""


class MemberError(Exception):
    """A ledger member could not be brought to the state asked for; the message is one line."""


class MemberFailed(MemberError):
    """PostgreSQL or one of its programs failed or did not answer in time. Trying again may help."""


class MemberRefused(MemberFailed):
    """Nobody listens where the member should be: its host said so, which is more than silence."""


class SchemaMissing(MemberFailed):
    """The ledger's database or a table of it is not there yet: whoever made the member did not come that far."""


class MemberUnusable(MemberError):
    """The data folder cannot be used by this program: only an operator can help."""


class QuorumUnknown(MemberError):
    """A commit returned, but nobody knows whether a quorum has it. The member must not lead any more."""
