\set key random(1, 9000000000000000000)
\set thread random(1, 50)
CALL palaver.post_comment(:epoch, :site, 'bench-' || :thread, 'Bench', NULL, 'A comment of the usual length, with *some* emphasis and a [link](https://example.com/page).', 'Reader', NULL, NULL, :key::text, sha256(:key::text::bytea), 20, NULL);
