-- This transaction can be seen when it is on the own disk. Whoever commits after it waits for the quorum for both.
SET LOCAL synchronous_commit TO local
