-- count_images --
-- $1 rows that were overwritten before, or null; $2 or of these memories.
SELECT count(*) FROM dionysus_sync.recovery_undo WHERE overwritten_at < $1::timestamptz OR memory_id = ANY ($2::uuid[])

-- purge_images --
-- The same, and $3 how many at most; how many were removed.
WITH old AS (
    SELECT recovery_id, memory_id FROM dionysus_sync.recovery_undo
    WHERE overwritten_at < $1::timestamptz OR memory_id = ANY ($2::uuid[])
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM dionysus_sync.recovery_undo AS kept USING old
    WHERE kept.recovery_id = old.recovery_id AND kept.memory_id = old.memory_id
    RETURNING 1
)
SELECT count(*) FROM purged
