INSERT INTO palaver.fence (epoch, fence_id, leader, established_at)
VALUES ($1, $2, $3, clock_timestamp())
ON CONFLICT (epoch) DO NOTHING
