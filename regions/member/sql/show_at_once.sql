-- This transaction is visible as soon as it is on the own disk. A later commit waits until a quorum has both.
SET LOCAL synchronous_commit TO local
