-- lock_drill --
-- One drill at a time, for as long as this connection lives: whatever stands of another one was left behind.
SELECT pg_try_advisory_lock(7165101844010)

-- may_drill --
-- Whether this role may make a schema here.
SELECT has_database_privilege(current_database(), 'CREATE')

-- name_scratch --
-- $1 the scratch schema, $2 its mark: for the statements after it, in this transaction.
SELECT set_config('dionysus.scratch', $1, true), set_config('dionysus.scratch_mark', $2, true)

-- make_scratch --
-- Fails where something has that name already.
DO $$
BEGIN
    EXECUTE format('CREATE SCHEMA %I', current_setting('dionysus.scratch'));
    EXECUTE format('COMMENT ON SCHEMA %I IS %L', current_setting('dionysus.scratch'), current_setting('dionysus.scratch_mark'));
END $$

-- unlog_scratch --
-- Of the scratch table: nobody needs its rows after a crash.
ALTER TABLE :memories SET UNLOGGED

-- scratch_schemas --
-- $1 the mark: schemas that drills have made, and that this role may remove.
SELECT nspname::text AS name FROM pg_namespace
WHERE nspname ~ '^dionysus_drill_[0-9a-f]{8}$' AND obj_description(oid, 'pg_namespace') = $1
  AND pg_has_role(current_user, nspowner, 'USAGE')

-- remove_scratch --
-- The schema that `name_scratch` names, if it bears the mark. What somebody else has put into it, or made of it, stays,
-- and the schema with it.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = current_setting('dionysus.scratch')
               AND obj_description(oid, 'pg_namespace') = current_setting('dionysus.scratch_mark')) THEN
        EXECUTE format('DROP TABLE IF EXISTS %I.memories', current_setting('dionysus.scratch'));
        EXECUTE format('DROP SCHEMA %I', current_setting('dionysus.scratch'));
    END IF;
END $$

-- leave_out_absent --
-- Memories of the page that are not here have nothing to be compared with. Each is looked up by its key, as in
-- `leave_out_present`.
DELETE FROM pg_temp.dionysus_restore AS page
WHERE (SELECT true FROM :memories WHERE memories.id = page.id LIMIT 1) IS NULL

-- clear_scratch --
-- $1 ids, which are brought back again.
DELETE FROM :memories WHERE id = ANY ($1::uuid[])

-- scratch_hashes --
-- $1 ids: the hashes of those that came back, each looked up by its key.
SELECT wanted.id::text AS id, found.content_hash
FROM unnest($1::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
    SELECT dionysus_sync.content_hash(to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns()) AS content_hash
    FROM :memories AS dionysus_row WHERE dionysus_row.id = wanted.id LIMIT 1
) AS found

-- drill_examples --
-- $1 ids: what people are shown of these rows.
SELECT id::text AS id, source_project::text AS project, left(content::text, 200) AS content
FROM :memories WHERE id = ANY ($1::uuid[])

-- note_drill --
INSERT INTO dionysus_sync.drills (id, result, report) VALUES ($1::text::uuid, $2, $3::jsonb)

-- prune_drills --
-- Keeps the newest $1, and the newest of each result.
DELETE FROM dionysus_sync.drills
WHERE id IN (SELECT id FROM dionysus_sync.drills ORDER BY finished_at DESC OFFSET $1)
  AND id NOT IN (SELECT DISTINCT ON (result) id FROM dionysus_sync.drills ORDER BY result, finished_at DESC)

-- drill_ages --
-- Seconds since the last drill that was carried out, and since the last one that was tried, by this server's clock.
SELECT extract(epoch FROM clock_timestamp() - max(finished_at) FILTER (WHERE result <> 'skipped'))::float8 AS since_done,
       extract(epoch FROM clock_timestamp() - max(finished_at))::float8 AS since_tried
FROM dionysus_sync.drills

-- last_drill --
SELECT report::text AS report FROM dionysus_sync.drills ORDER BY finished_at DESC LIMIT 1
