-- seal_page --
-- $1 ids of the page whose state was put together of two: each gets the hash that a row has which holds just this, as the table
-- writes its values. Of what the table has no column for the value stays as it is, so that no row has that hash.
UPDATE pg_temp.dionysus_restore AS page SET content_hash = sealed.hash
FROM (
    SELECT part.id, dionysus_sync.content_hash(part.extra::jsonb || (to_jsonb(made.*) - dionysus_sync.sync_columns())) AS hash
    FROM pg_temp.dionysus_restore AS part CROSS JOIN LATERAL (SELECT jsonb_build_object(
            'id', part.id, 'content', part.content, 'memory_type', part.memory_type, 'importance', part.importance,
            'source_project', part.source_project, 'session_id', part.session_id, 'tags', part.tags,
            'created_at', part.created_at, 'updated_at', part.updated_at) || part.extra::jsonb AS image) AS wanted
        CROSS JOIN LATERAL jsonb_populate_record(NULL:::memories, wanted.image) AS made
    WHERE part.id = ANY ($1::uuid[])
) AS sealed WHERE sealed.id = page.id

-- lock_waiting --
-- $1 ids: locks the rows, waiting for who holds them.
SELECT id::text AS id FROM :memories WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE

-- leave_out_moved --
-- $1 ids of locked rows: takes those rows out of the page that are to replace one that is not as it was seen, or that is what
-- it is to become already. Their ids, and how they stand.
WITH seen AS MATERIALIZED (
    SELECT page.id, page.overwrites, page.content_hash, dionysus_sync.content_hash(here.image) AS hash
    FROM pg_temp.dionysus_restore AS page LEFT JOIN LATERAL (
        SELECT to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image
        FROM :memories AS dionysus_row WHERE dionysus_row.id = page.id LIMIT 1
    ) AS here ON true
    WHERE page.overwrites IS NOT NULL
), moved AS (
    SELECT id, CASE WHEN hash IS NULL THEN 'gone' WHEN NOT id = ANY ($1::uuid[]) THEN 'held'
                    WHEN hash = content_hash THEN 'there' ELSE 'changed' END AS state
    FROM seen WHERE hash IS DISTINCT FROM overwrites OR NOT id = ANY ($1::uuid[])
), taken AS (
    DELETE FROM pg_temp.dionysus_restore AS page USING moved WHERE page.id = moved.id
)
SELECT id::text AS id, state FROM moved

-- claim_table --
-- Whoever holds the whole table is waited for here, and not at one of its rows.
LOCK TABLE :memories IN ROW EXCLUSIVE MODE

-- brief_wait --
-- Of a page that was held up by somebody's rows before.
SET LOCAL lock_timeout = '50ms'

-- keep_overwritten --
-- $1 recovery, $2 ids: the rows of the page as they are, for an undo.
INSERT INTO dionysus_sync.recovery_undo (recovery_id, memory_id, image, written_hash)
SELECT $1::text::uuid, dionysus_row.id, to_jsonb(dionysus_row.*), page.content_hash
FROM :memories AS dionysus_row JOIN pg_temp.dionysus_restore AS page ON page.id = dionysus_row.id
WHERE dionysus_row.id = ANY ($2::uuid[])
ON CONFLICT (recovery_id, memory_id) DO NOTHING

-- other_hashes --
-- As `verify_restored`; with the hash of each such row, and those too that only have more columns than were captured of them.
SELECT page.id::text AS id, here.hash,
       coalesce(dionysus_sync.captured_hash(here.image, page.extra) = page.content_hash, false) AS fits
FROM pg_temp.dionysus_restore AS page LEFT JOIN LATERAL (
    SELECT made.image, dionysus_sync.content_hash(made.image) AS hash
    FROM :memories AS dionysus_row
        CROSS JOIN LATERAL (SELECT to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image) AS made
    WHERE dionysus_row.id = page.id LIMIT 1
) AS here ON true
WHERE here.hash IS DISTINCT FROM page.content_hash

-- note_written_hashes --
-- $1 recovery, $2 ids, $3 hashes of rows that have columns of which what was put in their place says nothing.
UPDATE dionysus_sync.recovery_undo AS kept SET written_hash = written.hash
FROM unnest($2::uuid[], $3::text[]) AS written (id, hash)
WHERE kept.recovery_id = $1::text::uuid AND kept.memory_id = written.id

-- wanted_images --
-- What each row of the page is to become, where `bump_version` finds it while rows are straightened in this transaction.
CREATE TEMPORARY TABLE IF NOT EXISTS dionysus_wanted (id uuid PRIMARY KEY, image jsonb) ON COMMIT DELETE ROWS;
DELETE FROM pg_temp.dionysus_wanted;
INSERT INTO pg_temp.dionysus_wanted
SELECT page.id, jsonb_build_object(
        'id', page.id, 'content', page.content, 'memory_type', page.memory_type, 'importance', page.importance,
        'source_project', page.source_project, 'session_id', page.session_id, 'tags', page.tags,
        'created_at', page.created_at, 'updated_at', page.updated_at) || coalesce(page.extra::jsonb, '{}')
FROM pg_temp.dionysus_restore AS page;
SET LOCAL dionysus.straighten = 'on'

-- straighten --
-- $1 ids of rows that this transaction has written, and that a trigger of the user's own has changed.
UPDATE :memories SET sync_version = sync_version WHERE id = ANY ($1::uuid[])

-- new_ids --
-- The ids of the page whose state the remote store does not hold as its newest: they are queued.
SELECT id FROM pg_temp.dionysus_restore WHERE is_new

-- page_ids --
SELECT id::text AS id FROM pg_temp.dionysus_restore

-- restore_references --
-- $1 rows of memory_references as a JSON array: those of which both memories are here.
INSERT INTO dionysus_sync.memory_references (source_id, target_id, context, created_at)
SELECT made.source_id, made.target_id, coalesce(made.context, ''), coalesce(made.created_at, clock_timestamp())
FROM jsonb_populate_recordset(NULL::dionysus_sync.memory_references, $1::jsonb) AS made
WHERE (SELECT true FROM :memories WHERE memories.id = made.source_id LIMIT 1)
  AND (SELECT true FROM :memories WHERE memories.id = made.target_id LIMIT 1)
ON CONFLICT DO NOTHING

-- rebuild_memories --
-- $1 schema, $2 definition, $3 names of columns that get its type back: what could not be made, a sentence each.
SELECT dionysus_sync.rebuild_table($1, 'memories', $2::jsonb, $3::text[])

-- complete_memories --
-- $1 schema, $2 definition: what could not be made, a sentence each.
SELECT dionysus_sync.complete_table(format('%I.memories', $1::text), $2::jsonb)

-- last_overwriting --
-- The recovery that overwrote rows last, of those that have rows which are not back; else the last one of all.
SELECT recovery_id::text AS id FROM dionysus_sync.recovery_undo
ORDER BY undone_at IS NULL DESC, overwritten_at DESC LIMIT 1

-- kept_recoveries --
-- $1 how many: recoveries with rows that are not back, newest first. One that was cut off may be on record nowhere else.
SELECT recovery_id::text AS id, count(*)::integer AS rows, max(overwritten_at) AS last_at
FROM dionysus_sync.recovery_undo WHERE undone_at IS NULL
GROUP BY recovery_id ORDER BY max(overwritten_at) DESC LIMIT $1

-- recovery_known --
-- $1 id.
SELECT EXISTS (SELECT FROM dionysus_sync.recoveries WHERE id = $1::text::uuid)
    OR EXISTS (SELECT FROM dionysus_sync.recovery_undo WHERE recovery_id = $1::text::uuid)

-- kept_rows --
-- $1 recovery, $2 the last id of the page before or null, $3 how many: rows that it overwrote, and how they stand now.
SELECT kept.memory_id::text AS id,
       CASE WHEN kept.undone_at IS NOT NULL THEN 'undone' WHEN here.image IS NULL THEN 'gone'
            WHEN dionysus_sync.content_hash(here.image) <> kept.written_hash THEN 'changed' ELSE 'waiting' END AS state,
       coalesce((SELECT string_agg(part.key, ', ' ORDER BY part.key)
                 FROM jsonb_each(kept.image - dionysus_sync.sync_columns()) AS part
                 WHERE part.value <> 'null' AND NOT here.image ? part.key), '') AS lacking
FROM dionysus_sync.recovery_undo AS kept LEFT JOIN LATERAL (
    SELECT to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image
    FROM :memories AS dionysus_row WHERE dionysus_row.id = kept.memory_id LIMIT 1
) AS here ON true
WHERE kept.recovery_id = $1::text::uuid AND ($2::uuid IS NULL OR kept.memory_id > $2)
ORDER BY kept.memory_id
LIMIT $3

-- fill_undo_page --
-- $1 recovery, $2 ids, $3 the versions that the remote store holds of them: the page of a restore. Each row goes above every
-- version that there is of it.
INSERT INTO pg_temp.dionysus_restore (id, version, content_hash, extra, number, confirmed, is_new, overwrites)
SELECT kept.memory_id, coalesce(here.version, 1),
       dionysus_sync.content_hash(kept.image - dionysus_sync.sync_columns()),
       (kept.image - dionysus_sync.sync_columns())::text,
       greatest(here.version, held.version, here.confirmed, (kept.image ->> 'sync_version')::integer) + 1,
       coalesce(nullif(held.version, 0), here.confirmed), true, kept.written_hash
FROM dionysus_sync.recovery_undo AS kept
    JOIN unnest($2::uuid[], $3::integer[]) AS held (id, version) ON held.id = kept.memory_id
    LEFT JOIN LATERAL (
        SELECT coalesce(dionysus_row.sync_version, 1) AS version, dionysus_row.synced_version AS confirmed
        FROM :memories AS dionysus_row WHERE dionysus_row.id = kept.memory_id LIMIT 1
    ) AS here ON true
WHERE kept.recovery_id = $1::text::uuid AND kept.undone_at IS NULL

-- mark_undone --
-- $1 recovery, $2 ids.
UPDATE dionysus_sync.recovery_undo SET undone_at = clock_timestamp()
WHERE recovery_id = $1::text::uuid AND memory_id = ANY ($2::uuid[]) AND undone_at IS NULL

-- note_undo --
-- $1 report of an undo.
INSERT INTO dionysus_sync.recoveries (report) VALUES (jsonb_build_object('undo', $1::jsonb))
