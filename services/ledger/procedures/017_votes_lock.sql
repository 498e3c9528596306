-- The key of the advisory lock of a comment's votes. Voters take it shared, so they do not wait for each other. A
-- deletion takes it alone: it waits for voters whose transactions are open, so that it deletes their votes too, and
-- later voters see the deleted comment. A lock on the comment's row would let a stream of voters delay an edit
-- indefinitely; a waiting exclusive request for this lock precedes later shared requests.
CREATE OR REPLACE FUNCTION palaver.votes_lock(p_comment uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN hashtextextended('palaver.votes ' || p_comment::text, 0);
