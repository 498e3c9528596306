-- Stores a change that the view rejected, with the reason.
INSERT INTO dead_letters (cell, epoch, lsn, change, reason) VALUES ($1, $2, $3, $4::jsonb, $5)
