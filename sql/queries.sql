-- mark_engine --
-- The rest of this transaction is the engine's own: capture leaves it out.
SELECT set_config('dionysus.origin', 'engine', true)

-- mark_restore --
-- The rest of this transaction writes whole rows: capture leaves them out, and their versions are the remote's.
SELECT set_config('dionysus.origin', 'restore', true)

-- users_path --
-- What follows changes the user's rows: the user's own triggers find what they name. The schema's owner may let others
-- create in it, so a statement that runs under this path leaves PostgreSQL no choice between functions or operators.
SELECT pg_catalog.set_config('search_path', :'path', true)

-- own_path --
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)

-- lock_migrations --
SELECT pg_advisory_xact_lock(7165101844001)

-- migrations_table --
CREATE SCHEMA IF NOT EXISTS dionysus_sync;
CREATE TABLE IF NOT EXISTS dionysus_sync.schema_migrations (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)

-- has_migrations --
SELECT to_regclass('dionysus_sync.schema_migrations') IS NOT NULL

-- put_back_columns --
-- Columns that somebody has removed from a table of the bookkeeping: a migration only makes a table as a whole, and needs them
-- for its indexes.
ALTER TABLE IF EXISTS dionysus_sync.sync_queue
    ADD COLUMN IF NOT EXISTS base_version integer,
    ADD COLUMN IF NOT EXISTS retry_count integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS next_retry_at timestamptz,
    ADD COLUMN IF NOT EXISTS last_error text,
    ADD COLUMN IF NOT EXISTS parked_at timestamptz;
ALTER TABLE IF EXISTS dionysus_sync.sync_events
    ADD COLUMN IF NOT EXISTS record_count integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS memory_ids uuid[] NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS error_message text,
    ADD COLUMN IF NOT EXISTS duration_ms integer,
    ADD COLUMN IF NOT EXISTS retry_count integer NOT NULL DEFAULT 0;
ALTER TABLE IF EXISTS dionysus_sync.conflicts ADD COLUMN IF NOT EXISTS closed_at timestamptz;
ALTER TABLE IF EXISTS dionysus_sync.comparison_due
    ADD COLUMN IF NOT EXISTS compare_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN IF NOT EXISTS gap_since timestamptz;
ALTER TABLE IF EXISTS dionysus_sync.alerts
    ADD COLUMN IF NOT EXISTS attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS next_try_at timestamptz,
    ADD COLUMN IF NOT EXISTS last_error text,
    ADD COLUMN IF NOT EXISTS delivered_at timestamptz;
ALTER TABLE IF EXISTS dionysus_sync.observations
    ADD COLUMN IF NOT EXISTS until timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN IF NOT EXISTS row_count bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS memory_ids uuid[] NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS table_oid oid,
    ADD COLUMN IF NOT EXISTS detail text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS role text,
    ADD COLUMN IF NOT EXISTS application_name text,
    ADD COLUMN IF NOT EXISTS client_address text,
    ADD COLUMN IF NOT EXISTS pid integer,
    ADD COLUMN IF NOT EXISTS statement text,
    ADD COLUMN IF NOT EXISTS judged_at timestamptz;
ALTER TABLE IF EXISTS dionysus_sync.incidents
    ADD COLUMN IF NOT EXISTS row_count bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS role text,
    ADD COLUMN IF NOT EXISTS application_name text,
    ADD COLUMN IF NOT EXISTS client_address text,
    ADD COLUMN IF NOT EXISTS pid integer,
    ADD COLUMN IF NOT EXISTS statement text,
    ADD COLUMN IF NOT EXISTS closed_at timestamptz,
    ADD COLUMN IF NOT EXISTS closed_reason text,
    ADD COLUMN IF NOT EXISTS revision integer NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS published integer NOT NULL DEFAULT 0;
ALTER TABLE IF EXISTS dionysus_sync.recovery_undo ADD COLUMN IF NOT EXISTS undone_at timestamptz

-- bookkeeping_whole --
-- Whether everything that the migrations make is there.
SELECT bool_and(present) FROM (
    SELECT to_regclass('dionysus_sync.' || name) IS NOT NULL AS present
    FROM unnest('{store_identity,sync_queue,sync_events,conflicts,recoveries,projects,sessions,memory_references,deletions,verifications,alerts,comparison_due,observations,incidents,watched,recovery_undo,drills}'::text[])
        AS made (name)
    UNION ALL
    SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                   WHERE n.nspname = 'dionysus_sync' AND p.proname = name)
    FROM unnest('{content_hash,sync_columns,by_engine,image_of,bound_version,note_generated,bump_version,capture_memories,capture_context,definition_of,recreate_table,recreate_column,one_statement,index_on,write_restored,restored_value,count_on,ensure_schema,legible,observe,from_missed,queue_missed,before_truncate,captured_hash,types_in,type_like,untamed,check_tame,check_in,give_default,default_of,make_type,known_type,make_check,adorn_column,adorn_table,grants_in,bare_words,attempt,rebuild_table,make_column,type_of,counting_of,widen_column,name_taken,make_constraint,make_index,give_again,complete_table,require_column,make_trigger,make_policy}'::text[])
        AS made (name)
    UNION ALL
    -- Columns that can be put back.
    SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('dionysus_sync.' || split_part(name, '.', 1))
                   AND attname = split_part(name, '.', 2) AND NOT attisdropped)
    FROM unnest('{store_identity.generation,store_identity.lineage,store_identity.repeated,comparison_due.compare_since,comparison_due.gap_since,sync_queue.superseded_at,sync_queue.base_version,sync_queue.retry_count,sync_queue.next_retry_at,sync_queue.last_error,sync_queue.parked_at,sync_events.record_count,sync_events.memory_ids,sync_events.error_message,sync_events.duration_ms,sync_events.retry_count,conflicts.closed_at,alerts.attempts,alerts.next_try_at,alerts.last_error,alerts.delivered_at,observations.until,observations.row_count,observations.memory_ids,observations.contents,observations.table_oid,observations.detail,observations.role,observations.application_name,observations.client_address,observations.pid,observations.statement,observations.judged_at,incidents.row_count,incidents.role,incidents.application_name,incidents.client_address,incidents.pid,incidents.statement,incidents.closed_at,incidents.closed_reason,incidents.revision,incidents.published,recovery_undo.undone_at}'::text[])
        AS made (name)
) AS parts

-- applied_migrations --
SELECT name, checksum FROM dionysus_sync.schema_migrations ORDER BY name

-- note_migration --
INSERT INTO dionysus_sync.schema_migrations (name, checksum) VALUES ($1, $2) ON CONFLICT DO NOTHING

-- inspect_table --
-- $1 schema: what stands at the name memories there; no row if nothing does.
SELECT c.oid::regclass::text AS name, c.relkind::text AS kind,
       pg_has_role(current_user, c.relowner, 'USAGE') AS owned,
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum)
                 FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
                 WHERE i.indrelid = c.oid AND i.indisprimary), '{}') AS primary_key
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = 'memories'

-- inspect_columns --
-- $1 schema: the columns of memories with the type's name without modifiers.
SELECT a.attname::text AS name, format_type(a.atttypid, NULL) AS type, t.typcategory::text AS category
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = 'memories' AND a.attnum > 0 AND NOT a.attisdropped

-- inspect_triggers --
-- $1 schema: our triggers on memories that fire always.
SELECT t.tgname::text AS name
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = 'memories' AND t.tgenabled = 'A'
  AND t.tgname IN ('dionysus_generated', 'zz_dionysus_bound', 'zz_dionysus_version', 'dionysus_capture_insert', 'dionysus_capture_update',
                   'dionysus_capture_delete', 'dionysus_truncate')

-- inspect_indexes --
-- $1 schema: names of the indexes on memories.
SELECT indexname::text AS name FROM pg_indexes WHERE schemaname = $1 AND tablename = 'memories'

-- may_create --
-- $1 schema: whether it is there, and whether this role may create the table in it, and our schema.
SELECT place.oid IS NOT NULL AS schema_present,
       coalesce(has_schema_privilege(place.oid, 'CREATE'), false) AS may_create_table,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schema
FROM (SELECT) AS always LEFT JOIN pg_namespace AS place ON place.nspname = $1

-- create_memories --
CREATE TABLE :memories (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    content text NOT NULL,
    memory_type varchar(20) NOT NULL DEFAULT 'episodic'
        CHECK (memory_type IN ('episodic', 'semantic', 'procedural', 'strategic')),
    importance real NOT NULL DEFAULT 0.5 CHECK (importance BETWEEN 0 AND 1),
    source_project text,
    session_id uuid,
    tags text[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
)

-- add_sync_columns --
ALTER TABLE :memories
    ADD COLUMN IF NOT EXISTS sync_status varchar(20) DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS synced_at timestamptz,
    ADD COLUMN IF NOT EXISTS sync_version integer DEFAULT 1,
    ADD COLUMN IF NOT EXISTS remote_id varchar(255),
    ADD COLUMN IF NOT EXISTS synced_version integer

-- add_sync_indexes --
CREATE INDEX IF NOT EXISTS idx_memories_sync_status ON :memories (sync_status);
CREATE INDEX IF NOT EXISTS idx_memories_sync_version ON :memories (id, sync_version)

-- install_capture --
-- The version trigger is named to fire after the user's own BEFORE triggers.
CREATE OR REPLACE TRIGGER zz_dionysus_bound BEFORE INSERT ON :memories
    FOR EACH ROW WHEN (NEW.sync_version IS NULL OR NEW.sync_version NOT BETWEEN 1 AND 1000000000)
    EXECUTE FUNCTION dionysus_sync.bound_version();
CREATE OR REPLACE TRIGGER dionysus_generated BEFORE UPDATE ON :memories
    FOR EACH STATEMENT EXECUTE FUNCTION dionysus_sync.note_generated();
CREATE OR REPLACE TRIGGER zz_dionysus_version BEFORE UPDATE ON :memories
    FOR EACH ROW EXECUTE FUNCTION dionysus_sync.bump_version();
CREATE OR REPLACE TRIGGER dionysus_capture_insert AFTER INSERT ON :memories
    REFERENCING NEW TABLE AS dionysus_new FOR EACH STATEMENT EXECUTE FUNCTION dionysus_sync.capture_memories();
CREATE OR REPLACE TRIGGER dionysus_capture_update AFTER UPDATE ON :memories
    REFERENCING OLD TABLE AS dionysus_old NEW TABLE AS dionysus_new
    FOR EACH STATEMENT EXECUTE FUNCTION dionysus_sync.capture_memories();
CREATE OR REPLACE TRIGGER dionysus_capture_delete AFTER DELETE ON :memories
    REFERENCING OLD TABLE AS dionysus_old FOR EACH STATEMENT EXECUTE FUNCTION dionysus_sync.capture_memories();
CREATE OR REPLACE TRIGGER dionysus_truncate BEFORE TRUNCATE ON :memories
    FOR EACH STATEMENT EXECUTE FUNCTION dionysus_sync.before_truncate();
ALTER TABLE :memories ENABLE ALWAYS TRIGGER dionysus_generated;
ALTER TABLE :memories ENABLE ALWAYS TRIGGER zz_dionysus_bound;
ALTER TABLE :memories ENABLE ALWAYS TRIGGER zz_dionysus_version;
ALTER TABLE :memories ENABLE ALWAYS TRIGGER dionysus_capture_insert;
ALTER TABLE :memories ENABLE ALWAYS TRIGGER dionysus_capture_update;
ALTER TABLE :memories ENABLE ALWAYS TRIGGER dionysus_capture_delete;
ALTER TABLE :memories ENABLE ALWAYS TRIGGER dionysus_truncate

-- short_lock_wait --
-- Installing waits for the user's transactions at most this long; it never makes them queue up behind us.
SET LOCAL lock_timeout = '3s'

-- table_wait --
-- A push waits for whoever has locked the user's table no longer than this: the rest of the queue waits behind it.
SELECT set_config('lock_timeout', '500ms', true)

-- usual_wait --
SELECT set_config('lock_timeout', $1, true)

-- lock_for_stamps --
-- What is queued now is stamped then: while that cannot be, it would be pushed in vain.
LOCK TABLE :memories IN ROW EXCLUSIVE MODE

-- backfill --
-- Queues at most $1 rows that are not synced and have no entry; a row that somebody holds has one soon. The image is made
-- of the row that was locked: of an older one, it would be pushed after a newer one.
WITH missed AS (
    SELECT dionysus_row.id, to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image,
           coalesce(dionysus_row.sync_version, 1) AS version, dionysus_row.synced_version AS base
    FROM :memories AS dionysus_row
    WHERE (dionysus_row.sync_status IN ('pending', 'queued', 'failed') OR dionysus_row.sync_status IS NULL)
      AND NOT EXISTS (SELECT FROM dionysus_sync.sync_queue AS entry
                      WHERE entry.memory_id = dionysus_row.id AND entry.superseded_at IS NULL)
    ORDER BY dionysus_row.id
    LIMIT $1
    FOR SHARE OF dionysus_row SKIP LOCKED
)
INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
SELECT missed.id, 'create', missed.image, missed.version, missed.base FROM missed
RETURNING memory_id

-- backfill_one_by_one --
-- As `backfill`; a row that cannot be made JSON is parked with the reason.
WITH missed AS (
    SELECT dionysus_row.id, dionysus_sync.image_of(dionysus_row.*) AS made,
           coalesce(dionysus_row.sync_version, 1) AS version, dionysus_row.synced_version AS base
    FROM :memories AS dionysus_row
    WHERE (dionysus_row.sync_status IN ('pending', 'queued', 'failed') OR dionysus_row.sync_status IS NULL)
      AND NOT EXISTS (SELECT FROM dionysus_sync.sync_queue AS entry
                      WHERE entry.memory_id = dionysus_row.id AND entry.superseded_at IS NULL)
    ORDER BY dionysus_row.id
    LIMIT $1
    FOR SHARE OF dionysus_row SKIP LOCKED
)
INSERT INTO dionysus_sync.sync_queue
    (memory_id, operation, payload, sync_version, base_version, last_error, parked_at)
SELECT missed.id, 'create',
       coalesce((missed.made).image - dionysus_sync.sync_columns(), jsonb_build_object('id', missed.id)),
       missed.version, missed.base, (missed.made).error,
       CASE WHEN (missed.made).error IS NOT NULL THEN clock_timestamp() END
FROM missed
RETURNING memory_id

-- try_push_lock --
-- $1 ms: a process that was stopped while it held the lock must not keep the others from pushing for long.
-- Until the statistics have seen a long queue, the planner would read the whole of it for each claim.
SELECT pg_try_advisory_xact_lock(7165101844002), set_config('idle_in_transaction_session_timeout', $1, true),
       set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true)

-- end_left_behind --
-- $1 backends whose connection this process has given up, as words: for an array the driver would ask what that is, on each
-- new connection, which takes long where the line is slow. $2 this process's name: they may hold locks that nobody waits for.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = ANY (string_to_array($1, ' ')::integer[]) AND pid <> pg_backend_pid() AND application_name = $2
    AND datname = current_database() AND usename = current_user

-- greet --
-- The process that answers, and its version; $1 the process that should. A setting that older servers do not know, and
-- which would be an error there when connecting, is made only where nobody else gets the process later.
SELECT pg_backend_pid() AS process, current_setting('server_version') AS version,
       CASE WHEN pg_backend_pid() = $1 AND current_setting('server_version_num')::integer >= 170000
            THEN set_config('transaction_timeout', '0', false) END AS transaction_timeout

-- no_transaction_timeout --
SET transaction_timeout = 0

-- identity --
SELECT id::text AS id, epoch::text AS epoch, generation, lineage::text AS lineage, repeated,
       (SELECT max(name COLLATE "C") FROM dionysus_sync.schema_migrations) AS newest_migration
FROM dionysus_sync.store_identity

-- lock_identity --
-- As `identity`, and locked: whatever becomes of the advisory lock, two pushes never settle side by side.
SELECT id::text AS id, epoch::text AS epoch, generation, lineage::text AS lineage, repeated,
       (SELECT max(name COLLATE "C") FROM dionysus_sync.schema_migrations) AS newest_migration
FROM dionysus_sync.store_identity FOR NO KEY UPDATE

-- move_lineage --
-- $1 the lineage that was claimed, $2 the next one, $3 that of an attempt that was repeated or ''. No row if the store has
-- moved on without us.
UPDATE dionysus_sync.store_identity
SET generation = generation + 1, lineage = $2::text::uuid, repeated = $3
WHERE lineage = $1::text::uuid
RETURNING true

-- has_entry --
-- $1 as `claim_entries` gives it: the id alone would be looked for in the whole queue.
SELECT EXISTS (
    SELECT FROM dionysus_sync.sync_queue
    WHERE seq = CASE WHEN $1 ~ '^[0-9]{1,18}:' THEN split_part($1, ':', 1)::bigint END AND id::text = split_part($1, ':', 2))

-- claim_entries --
-- The next entries in seq order: at most $1, and about $2 bytes; with each, what waits of the same memory from before it.
-- A payload counts by its size in memory. That of a compressed one is known only when it has been unpacked, so the entries
-- are looked at one by one and no further than the bound. Nothing waits longer than 16 s, so what seems to was made to wait
-- before the clock jumped back.
WITH RECURSIVE due AS (
    (SELECT first.seq, first.memory_id, 1 AS number, first.size
     FROM (SELECT seq, memory_id,
                  CASE WHEN pg_column_compression(payload) IS NULL THEN pg_column_size(payload)
                       ELSE octet_length(payload::text) END::bigint AS size
           FROM dionysus_sync.sync_queue
           WHERE parked_at IS NULL
             AND (next_retry_at IS NULL
                  OR next_retry_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute')
           ORDER BY seq LIMIT 1) AS first)
    UNION ALL
    SELECT following.seq, following.memory_id, due.number + 1, due.size + following.size
    FROM due CROSS JOIN LATERAL (
        SELECT seq, memory_id,
               CASE WHEN pg_column_compression(payload) IS NULL THEN pg_column_size(payload)
                    ELSE octet_length(payload::text) END AS size
        FROM dionysus_sync.sync_queue
        WHERE parked_at IS NULL AND seq > due.seq
          AND (next_retry_at IS NULL
               OR next_retry_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute')
        ORDER BY seq LIMIT 1
    ) AS following
    WHERE due.number < $1 AND due.size < $2
), bounded AS (
    SELECT seq FROM due
    UNION
    SELECT waiting.seq FROM due CROSS JOIN LATERAL (
        SELECT earlier.seq FROM (
            SELECT same.seq, same.parked_at, same.next_retry_at FROM dionysus_sync.sync_queue AS same
            WHERE same.memory_id = due.memory_id OFFSET 0
        ) AS earlier
        WHERE earlier.seq < due.seq AND earlier.parked_at IS NULL AND earlier.next_retry_at IS NOT NULL
    ) AS waiting
)
SELECT entry.seq || ':' || entry.id AS id, entry.seq, entry.entity, entry.operation, entry.retry_count,
       least(greatest(entry.created_at, '0001-01-02Z'), '9999-12-30Z') AS created_at,
       entry.memory_id::text AS memory_id, entry.payload ->> 'id' AS image_id, entry.sync_version, entry.base_version,
       entry.next_retry_at IS NOT NULL AS waited,
       to_jsonb(entry.created_at) #>> '{}' AS changed_at,
       dionysus_sync.content_hash(entry.payload) AS content_hash,
       entry.payload ->> 'content' AS content,
       entry.payload ->> 'memory_type' AS memory_type,
       entry.payload ->> 'importance' AS importance,
       entry.payload ->> 'source_project' AS source_project,
       entry.payload ->> 'session_id' AS session_id,
       nullif(entry.payload -> 'tags', 'null')::text AS tags,
       entry.payload ->> 'created_at' AS written_at,
       entry.payload ->> 'updated_at' AS updated_at,
       CASE WHEN entry.entity = 'memory' THEN
           (entry.payload - '{id,content,memory_type,importance,source_project,session_id,tags,created_at,updated_at}'::text[])::text
       ELSE entry.payload::text END AS rest
FROM dionysus_sync.sync_queue AS entry JOIN bounded ON bounded.seq = entry.seq
ORDER BY entry.seq

-- acknowledge --
DELETE FROM dionysus_sync.sync_queue WHERE seq = ANY ($1::bigint[])

-- stamp --
-- $1 ids, $2 versions that the remote confirmed, $3 the versions under which the rows were captured.
-- A row that somebody holds is about to change anyway; one that is older than what was sent (its table was recovered
-- meanwhile) does not become newer by being stamped.
WITH sent AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::integer[]) AS sent (id, version, captured)
), free AS (
    SELECT memories.id, sent.version, sent.captured
    FROM :memories JOIN sent ON sent.id = memories.id AND memories.sync_version >= sent.captured
    FOR NO KEY UPDATE OF memories SKIP LOCKED
)
UPDATE :memories
SET synced_version = free.version, synced_at = clock_timestamp(), remote_id = memories.id::text,
    sync_status = CASE WHEN memories.sync_version = free.captured THEN 'synced' ELSE memories.sync_status END
FROM free WHERE memories.id = free.id

-- lock_rows --
-- $1 ids: the rows that nobody else holds. Who holds one may keep it for hours, and is about to change it.
SELECT id::text AS id FROM :memories WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED

-- carry_on --
-- $1 ids of locked rows, $2 versions that the remote confirmed, $3 the lower ones under which the rows were captured,
-- $4 the seq of the last entry that was sent: the row and the changes captured since then count on from what the remote
-- holds. A row that was deleted and inserted once more since then is another one. Returns the ids of the rows that do.
WITH sent AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::integer[], $4::bigint[]) AS sent (id, version, captured, seq)
), carried AS (
    UPDATE :memories
    SET synced_version = sent.version, synced_at = clock_timestamp(), remote_id = memories.id::text,
        sync_version = memories.sync_version + sent.version - sent.captured,
        sync_status = CASE WHEN memories.sync_version = sent.captured THEN 'synced' ELSE memories.sync_status END
    FROM sent
    WHERE memories.id = sent.id AND memories.sync_version >= sent.captured
      AND NOT EXISTS (
          SELECT FROM dionysus_sync.sync_queue AS later
          WHERE later.memory_id = sent.id AND later.seq > sent.seq AND later.operation <> 'update'
      )
    RETURNING memories.id, sent.version, sent.captured, sent.seq
), counted AS (
    UPDATE dionysus_sync.sync_queue AS entry
    SET sync_version = entry.sync_version + carried.version - carried.captured, base_version = carried.version
    FROM carried WHERE entry.memory_id = carried.id AND entry.seq > carried.seq
)
SELECT id::text AS id FROM carried

-- held_rows --
-- $1 ids, $2 those of them whose rows are locked: the rows that somebody else holds.
SELECT id::text AS id FROM :memories WHERE id = ANY ($1::uuid[]) AND id <> ALL ($2::uuid[])

-- changed_since --
-- $1 ids, $2 seqs: the ids that have an entry after that one.
SELECT sent.id::text AS id FROM unnest($1::uuid[], $2::bigint[]) AS sent (id, seq)
WHERE EXISTS (
    SELECT FROM dionysus_sync.sync_queue AS later
    WHERE later.memory_id = sent.id AND later.seq > sent.seq AND later.parked_at IS NULL
)

-- keep --
-- $1 seqs, $2 the version that the remote confirmed or null: the entry waits for its row, a second, then for as long again
-- as it is old, up to 16 s. A later change of the memory takes it along at once.
UPDATE dionysus_sync.sync_queue AS entry
SET base_version = coalesce(kept.version, entry.base_version),
    next_retry_at = clock_timestamp() + CASE WHEN entry.next_retry_at IS NULL THEN interval '1 second'
        ELSE greatest(interval '1 second', least(interval '16 seconds', clock_timestamp() - entry.created_at)) END
FROM unnest($1::bigint[], $2::integer[]) AS kept (seq, version) WHERE entry.seq = kept.seq

-- mark_status --
-- $1 ids, $2 the sync_status of their rows; rows that somebody holds are left as they are.
WITH free AS (
    SELECT id FROM :memories WHERE id = ANY ($1::uuid[]) AND sync_status::text IS DISTINCT FROM $2::text
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE :memories SET sync_status = $2 FROM free WHERE memories.id = free.id

-- park --
-- $1 seqs, $2 errors, $3 seconds until they are tried again.
UPDATE dionysus_sync.sync_queue AS entry
SET parked_at = clock_timestamp(), last_error = parked.error, retry_count = entry.retry_count + 1,
    next_retry_at = clock_timestamp() + interval '1 second' * parked.delay
FROM unnest($1::bigint[], $2::text[], $3::float8[]) AS parked (seq, error, delay) WHERE entry.seq = parked.seq

-- retry_parked --
-- Puts at most $1 parked entries back: all, or, if $2, those that are due and were refused less than $3 times. One that was
-- never refused was parked by the capture, which had no image of the row: sent, it would empty the memory.
WITH chosen AS (
    SELECT seq FROM dionysus_sync.sync_queue
    WHERE parked_at IS NOT NULL AND superseded_at IS NULL AND retry_count > 0
      AND (NOT $2::boolean OR next_retry_at <= clock_timestamp() AND retry_count < $3)
    ORDER BY seq LIMIT $1
    FOR UPDATE SKIP LOCKED
)
UPDATE dionysus_sync.sync_queue AS entry SET parked_at = NULL, next_retry_at = NULL
FROM chosen WHERE entry.seq = chosen.seq
RETURNING entry.memory_id::text AS id

-- supersede --
-- $1 ids, $2 seqs of entries that went through: what is parked of these memories from before has nothing to bring any more.
UPDATE dionysus_sync.sync_queue AS entry SET superseded_at = clock_timestamp()
FROM unnest($1::uuid[], $2::bigint[]) AS sent (id, seq)
WHERE entry.memory_id = sent.id AND entry.entity = 'memory' AND entry.seq < sent.seq
  AND entry.parked_at IS NOT NULL AND entry.superseded_at IS NULL

-- note_deletions --
-- $1 ids, $2 versions of tombstones that the remote holds.
INSERT INTO dionysus_sync.deletions (memory_id, version)
SELECT * FROM unnest($1::uuid[], $2::integer[])
ON CONFLICT (memory_id) DO UPDATE SET version = EXCLUDED.version, deleted_at = EXCLUDED.deleted_at
WHERE deletions.version <> EXCLUDED.version

-- forget_deletions --
-- $1 ids of memories that live in the remote.
DELETE FROM dionysus_sync.deletions WHERE memory_id = ANY ($1::uuid[])

-- rebase --
-- $1 ids of locked rows, $2 the remote's versions, $3 the seq of the last entry that was sent: the live row goes above what
-- the remote holds. Not one of which a later change waits: the remote may hold that already, and its turn decides. Where the
-- seq is null, whatever waits. Returns the rows that did.
WITH held AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) AS held (id, version, seq)
)
UPDATE :memories SET sync_version = held.version + 1, synced_version = held.version, sync_status = 'pending'
FROM held WHERE memories.id = held.id AND memories.sync_version <= held.version
    AND NOT EXISTS (
        SELECT FROM dionysus_sync.sync_queue AS later
        WHERE later.memory_id = held.id AND later.seq > held.seq AND later.parked_at IS NULL
    )
RETURNING memories.id

-- enqueue_rows --
-- Queues the rows with these ids as they are now.
INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
SELECT dionysus_row.id, 'update', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
       dionysus_row.sync_version, dionysus_row.synced_version
FROM :memories AS dionysus_row WHERE dionysus_row.id = ANY ($1::uuid[])

-- note_conflicts --
-- A conflict that is told again, since the acknowledgement was lost, is on record already.
INSERT INTO dionysus_sync.conflicts (memory_id, winner, local_version, remote_version, local_content, remote_content)
SELECT told.* FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::text[], $6::text[])
    AS told (memory_id, winner, local_version, remote_version, local_content, remote_content)
WHERE NOT EXISTS (
    SELECT FROM dionysus_sync.conflicts AS known
    WHERE known.memory_id = told.memory_id AND known.winner = told.winner
      AND known.local_version = told.local_version AND known.remote_version = told.remote_version
      AND known.local_content = told.local_content AND known.remote_content = told.remote_content
)

-- note_event --
INSERT INTO dionysus_sync.sync_events
    (direction, result, record_count, memory_ids, error_message, duration_ms, retry_count)
VALUES ($1, $2, $3, $4::uuid[], $5, $6, $7)

-- live_versions --
-- $1 ids: where the local rows stand.
SELECT id::text AS id, coalesce(sync_version, 1) AS version, left(content, 100) AS content, synced_version AS confirmed
FROM :memories WHERE id = ANY ($1::uuid[])

-- table_definition --
SELECT dionysus_sync.definition_of(to_regclass(:'memories'))::text

-- undo_narrowed --
-- $1 ids of rows of the page that were just written: those are taken out again for which the table lacks a column that
-- they fill. Their ids, and the columns.
WITH narrowed AS (
    SELECT page.id, string_agg(part.key, ', ' ORDER BY part.key) AS lacking
    FROM pg_temp.dionysus_restore AS page, jsonb_each(page.extra::jsonb) AS part
    WHERE page.id = ANY ($1::uuid[]) AND part.value <> 'null'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS present
                      WHERE present.attrelid = to_regclass(:'memories') AND present.attname = part.key
                        AND present.attnum > 0 AND NOT present.attisdropped)
    GROUP BY page.id
), undone AS (
    DELETE FROM :memories AS standing USING narrowed WHERE standing.id = narrowed.id RETURNING standing.id
)
SELECT narrowed.id::text AS id, narrowed.lacking FROM narrowed JOIN undone ON undone.id = narrowed.id

-- ensure_schema --
-- $1 schema: makes it if it is gone.
SELECT dionysus_sync.ensure_schema($1)

-- create_restore_page --
CREATE TEMPORARY TABLE IF NOT EXISTS dionysus_restore (
    id uuid, version integer, content_hash text, deleted_at text, content text, memory_type text,
    importance double precision, source_project text, session_id text, tags text[], created_at text, updated_at text,
    extra text, number integer, confirmed integer, is_new boolean, overwrites text, written boolean
) ON COMMIT DELETE ROWS

-- leave_out_present --
-- $1 whether the page was written: takes rows out of it that are not to replace any, and are not ours. Before it is written
-- those are the ones that are in memories; afterwards, those that were not inserted, since somebody else has inserted them
-- meanwhile, or a trigger leaves them out. Their ids, and how they stand. Each is looked up by its key, see below.
WITH seen AS MATERIALIZED (
    SELECT page.id, page.content_hash, page.extra, here.image
    FROM pg_temp.dionysus_restore AS page LEFT JOIN LATERAL (
        SELECT to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image
        FROM :memories AS dionysus_row WHERE dionysus_row.id = page.id LIMIT 1
    ) AS here ON true
    WHERE page.overwrites IS NULL AND page.written IS NOT TRUE AND ($1 OR here.image IS NOT NULL)
), left_out AS (
    SELECT id, CASE WHEN image IS NULL THEN 'skipped'
                    WHEN content_hash IN (dionysus_sync.content_hash(image), dionysus_sync.captured_hash(image, extra))
                    THEN 'there' ELSE 'changed' END AS state
    FROM seen
), taken AS (
    DELETE FROM pg_temp.dionysus_restore AS page USING left_out WHERE page.id = left_out.id
)
SELECT id::text AS id, state FROM left_out

-- write_restored --
-- $1 whether rows that are there are overwritten; the number of rows written.
SELECT dionysus_sync.write_restored(to_regclass(:'memories'), $1)

-- verify_restored --
-- The ids of the page whose row is not there or has another hash. A row with more columns than were captured of it is
-- compared by those that were. LIMIT keeps the look-up of each row by its key: the plan is made when memories is small, and
-- reading the whole of it for each page would make a recovery quadratic.
SELECT page.id::text AS id
FROM pg_temp.dionysus_restore AS page LEFT JOIN LATERAL (
    SELECT to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image
    FROM :memories AS dionysus_row WHERE dionysus_row.id = page.id LIMIT 1
) AS here ON true
WHERE here.image IS NULL
   OR (dionysus_sync.content_hash(here.image) <> page.content_hash
       AND dionysus_sync.content_hash((
               SELECT jsonb_object_agg(key, value) FROM jsonb_each(here.image)
               WHERE coalesce(page.extra::jsonb ? key, false)
                  OR key IN ('id', 'content', 'memory_type', 'importance', 'source_project', 'session_id', 'tags',
                             'created_at', 'updated_at'))) <> page.content_hash)

-- local_digests --
-- $1 ids (empty: all), $2 the first id of the page, $3 how many.
-- The version is read from the row's JSON, since a table that was made again meanwhile has no such column yet.
SELECT image ->> 'id' AS id, coalesce((image ->> 'sync_version')::integer, 1) AS version,
       coalesce((image ->> 'synced_version')::integer, 0) AS base,
       dionysus_sync.content_hash(image - dionysus_sync.sync_columns()) AS content_hash
FROM (
    SELECT to_jsonb(dionysus_row.*) AS image
    FROM :memories AS dionysus_row
    WHERE (cardinality($1::uuid[]) = 0 OR dionysus_row.id = ANY ($1)) AND dionysus_row.id >= $2::uuid
    ORDER BY dionysus_row.id
    LIMIT $3
) AS page

-- local_digests_one_by_one --
-- Parameters as of `local_digests`; a row that cannot be made JSON has an empty hash.
SELECT id::text AS id, coalesce(((made).image ->> 'sync_version')::integer, 1) AS version,
       coalesce(((made).image ->> 'synced_version')::integer, 0) AS base,
       coalesce(dionysus_sync.content_hash((made).image - dionysus_sync.sync_columns()), '') AS content_hash
FROM (
    SELECT dionysus_row.id, dionysus_sync.image_of(dionysus_row.*) AS made
    FROM :memories AS dionysus_row
    WHERE (cardinality($1::uuid[]) = 0 OR dionysus_row.id = ANY ($1)) AND dionysus_row.id >= $2::uuid
    ORDER BY dionysus_row.id
    LIMIT $3
) AS page

-- mark_recovery --
SELECT pg_advisory_lock_shared(7165101844004)

-- recovery_under_way --
SELECT EXISTS (
    SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE locktype = 'advisory' AND granted AND datname = current_database() AND objsubid = 1
      AND (classid::bigint << 32) + objid::bigint = 7165101844004)

-- restore_sessions --
-- $1 rows of sessions as a JSON array.
INSERT INTO dionysus_sync.sessions
SELECT made.* FROM jsonb_populate_recordset(NULL::dionysus_sync.sessions, $1::jsonb) AS made
ON CONFLICT (id) DO NOTHING

-- restore_projects --
-- $1 rows of projects as a JSON array.
INSERT INTO dionysus_sync.projects
SELECT made.id, coalesce(made.name, made.id), made.description, coalesce(made.created_at, clock_timestamp())
FROM jsonb_populate_recordset(NULL::dionysus_sync.projects, $1::jsonb) AS made
ON CONFLICT (id) DO NOTHING

-- note_recovery --
-- $1 report: one that names its recovery is kept under that id.
INSERT INTO dionysus_sync.recoveries (id, report)
SELECT coalesce(nullif(made.report ->> 'recovery_id', '')::uuid, gen_random_uuid()), made.report
FROM (SELECT $1::jsonb AS report) AS made
ON CONFLICT (id) DO UPDATE SET report = EXCLUDED.report, finished_at = EXCLUDED.finished_at

-- local_state --
-- What needs no table of the user's. $1: an entry that was refused so often failed for good. Beyond 100,000 entries the queue is not counted but bounded from above by its numbers:
-- counting a million that were just written takes longer than a status may.
WITH head AS MATERIALIZED (
    SELECT seq, created_at FROM dionysus_sync.sync_queue WHERE parked_at IS NULL ORDER BY seq LIMIT 100001
), counted AS (
    SELECT count(*) AS entries, coalesce(max(seq), 0) AS last FROM head
), parked AS MATERIALIZED (
    SELECT parked_at, retry_count >= $1 AS failed, retry_count = 0 AS unsent, last_error
    FROM dionysus_sync.sync_queue WHERE parked_at IS NOT NULL AND superseded_at IS NULL
)
SELECT to_regclass(:'memories') IS NOT NULL AS table_present,
       counted.entries + CASE WHEN counted.entries > 100000
           THEN (SELECT max(seq) FROM dionysus_sync.sync_queue) - counted.last ELSE 0 END AS queued,
       (SELECT count(*) FROM parked) AS parked,
       (SELECT count(*) FROM parked WHERE failed) AS failed,
       (SELECT max(parked_at) FROM parked WHERE failed) AS last_failed_at,
       (SELECT count(*) FROM parked WHERE unsent) AS unsent,
       (SELECT min(created_at) FROM (SELECT created_at FROM head ORDER BY seq LIMIT 100) AS first) AS oldest_queued_at,
       (SELECT max(timestamp) FROM dionysus_sync.sync_events
        WHERE result = 'success' AND direction = 'local_to_remote') AS last_success_at,
       (SELECT count(*) FROM dionysus_sync.conflicts WHERE closed_at IS NULL) AS open_conflicts,
       (SELECT last_error FROM parked ORDER BY parked_at DESC LIMIT 1) AS last_parked_error,
       identity.id::text AS id, identity.epoch::text AS epoch, identity.generation, identity.lineage::text AS lineage
FROM dionysus_sync.store_identity AS identity, counted

-- local_activity --
-- $1 since when: what the sync has done, from the audit. What a repair did, what was put back and what was found to be lost
-- have rows of their own there, which are neither pushes nor outages.
SELECT pushes.*, conflicts.*, repairs.*
FROM (
    SELECT count(*) FILTER (WHERE pushed) AS pushes,
           coalesce(sum(record_count) FILTER (WHERE pushed), 0)::bigint AS pushed,
           count(*) FILTER (WHERE pushed AND result <> 'success') AS failed_pushes,
           count(*) FILTER (WHERE away) AS outages,
           avg(duration_ms) FILTER (WHERE pushed)::float8 AS average_ms,
           max(duration_ms) FILTER (WHERE pushed) AS slowest_ms
    FROM (
        SELECT result, record_count, duration_ms,
               result <> 'queued' AND coalesce(error_message, '') NOT LIKE 'repair: %' AS pushed,
               result = 'queued' AND error_message <> 'parked entries are tried again'
                   AND error_message NOT LIKE 'the remote store has lost %' AS away
        FROM dionysus_sync.sync_events WHERE timestamp >= $1 AND direction = 'local_to_remote'
    ) AS events
) AS pushes, (
    SELECT count(*) AS conflicts FROM dionysus_sync.conflicts WHERE detected_at >= $1
) AS conflicts, (
    SELECT coalesce(sum(mended.count::integer), 0) AS repaired
    FROM dionysus_sync.verifications AS past
        CROSS JOIN LATERAL jsonb_each_text(coalesce(past.report -> 'repaired', '{}')) AS mended (class, count)
    WHERE past.finished_at >= $1
) AS repairs

-- last_checks --
-- The newest comparison, and the newest that found differences, unless one that looked as closely was clean since. The
-- differences are those that it left.
WITH ranked AS (
    SELECT id, finished_at, result, array_position('{quick,full,deep}', kind::text) AS depth FROM dionysus_sync.verifications
), chosen AS (
    (SELECT id, false AS open FROM ranked ORDER BY finished_at DESC LIMIT 1)
    UNION ALL
    (SELECT id, true FROM ranked AS drift
     WHERE result = 'drift' AND NOT EXISTS (
         SELECT FROM ranked AS clean
         WHERE clean.result = 'clean' AND clean.finished_at > drift.finished_at AND clean.depth >= drift.depth)
     ORDER BY finished_at DESC LIMIT 1)
)
SELECT chosen.open, past.finished_at, past.kind::text AS kind, past.result::text AS result,
       (SELECT coalesce(sum(greatest(0, found.count::integer - coalesce((past.report #>> ARRAY['repaired', found.class])::integer, 0))), 0)
        FROM jsonb_each_text(coalesce(past.report -> 'counts', '{}')) AS found (class, count))
       + coalesce((past.report ->> 'unlooked')::bigint, 0) AS differences
FROM chosen JOIN dionysus_sync.verifications AS past USING (id)

-- undelivered_alerts --
-- Those that were sent in vain so far, and why the last of them was.
SELECT count(*) AS undelivered, (array_agg(last_error ORDER BY next_try_at DESC NULLS LAST))[1] AS undelivered_error
FROM dionysus_sync.alerts WHERE delivered_at IS NULL AND last_error IS NOT NULL

-- recent_alerts --
-- $1 how many: the newest first.
SELECT kind::text AS kind, summary, raised_at, delivered_at, last_error FROM dionysus_sync.alerts ORDER BY raised_at DESC LIMIT $1

-- count_memories --
SELECT count(*) FROM :memories

-- waiting_ids --
-- Memories that have queue entries which are not parked.
SELECT DISTINCT memory_id::text AS id FROM dionysus_sync.sync_queue WHERE parked_at IS NULL AND memory_id IS NOT NULL

-- confirmed_ids --
-- $1 the last id of the page before or null, $2 how many.
SELECT id::text AS id FROM :memories WHERE sync_status = 'synced' AND ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2

-- one_moment --
-- Every statement of this transaction sees the same rows.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- snapshot_queue --
-- The queue in a comparison's snapshot: how many memories wait, and when the oldest change was captured.
SELECT count(DISTINCT memory_id) AS waiting, min(created_at) FILTER (WHERE parked_at IS NULL) AS oldest_at
FROM dionysus_sync.sync_queue WHERE superseded_at IS NULL

-- snapshot_waiting --
-- Memories of which a change waits or is parked, and whether it is parked.
SELECT memory_id::text AS id, bool_or(parked_at IS NOT NULL) AS parked
FROM dionysus_sync.sync_queue WHERE memory_id IS NOT NULL AND superseded_at IS NULL GROUP BY memory_id

-- local_tallies --
-- $1 ids to leave out: rows and the sum of their versions by project.
SELECT source_project AS project, count(*) AS memories, sum(coalesce(sync_version, 1)::bigint)::bigint AS versions
FROM :memories WHERE NOT id = ANY ($1::uuid[]) GROUP BY source_project

-- confirmed_deletions --
-- $1 ids: versions of the deletes that the remote store has confirmed.
SELECT memory_id::text AS id, version FROM dionysus_sync.deletions WHERE memory_id = ANY ($1::uuid[])

-- waiting_of --
-- $1 ids: those of which a change waits or is parked.
SELECT DISTINCT memory_id::text AS id FROM dionysus_sync.sync_queue
WHERE memory_id = ANY ($1::uuid[]) AND superseded_at IS NULL

-- page_hashes --
-- The hash that each memory of the page has as a row of memories. What the table has no column for counts as captured.
SELECT page.id::text AS id,
       dionysus_sync.content_hash(
           coalesce(page.extra::jsonb, '{}') || (to_jsonb(made.*) - dionysus_sync.sync_columns())) AS content_hash
FROM pg_temp.dionysus_restore AS page
    CROSS JOIN LATERAL (SELECT jsonb_build_object(
        'id', page.id, 'content', page.content, 'memory_type', page.memory_type, 'importance', page.importance,
        'source_project', page.source_project, 'session_id', page.session_id, 'tags', page.tags,
        'created_at', page.created_at, 'updated_at', page.updated_at) || coalesce(page.extra::jsonb, '{}') AS image) AS imaged
    CROSS JOIN LATERAL jsonb_populate_record(NULL:::memories, imaged.image) AS made

-- lock_unchanged --
-- $1 ids, $2 versions, $3 hashes: locks the rows that still are so; those that somebody holds are about to change. $4 whether
-- rows of which a change waits are locked too.
SELECT dionysus_row.id::text AS id
FROM :memories AS dionysus_row
    JOIN unnest($1::uuid[], $2::integer[], $3::text[]) AS seen (id, version, content_hash) ON seen.id = dionysus_row.id
WHERE coalesce(dionysus_row.sync_version, 1) = seen.version
  AND dionysus_sync.content_hash(to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns()) = seen.content_hash
  AND ($4 OR NOT EXISTS (SELECT FROM dionysus_sync.sync_queue AS entry
                         WHERE entry.memory_id = dionysus_row.id AND entry.superseded_at IS NULL))
ORDER BY dionysus_row.id
FOR NO KEY UPDATE OF dionysus_row SKIP LOCKED

-- enqueue_deletes --
-- Queues a delete of each memory of the page, above the remote's version, unless it is here or a change of it waits. The
-- image is what the remote holds, so that the tombstone has it.
INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
SELECT page.id, 'delete',
       coalesce(page.extra::jsonb, '{}') || (to_jsonb(made.*) - dionysus_sync.sync_columns()), page.version + 1, page.version
FROM pg_temp.dionysus_restore AS page
    CROSS JOIN LATERAL (SELECT jsonb_build_object(
        'id', page.id, 'content', page.content, 'memory_type', page.memory_type, 'importance', page.importance,
        'source_project', page.source_project, 'session_id', page.session_id, 'tags', page.tags,
        'created_at', page.created_at, 'updated_at', page.updated_at) || coalesce(page.extra::jsonb, '{}') AS image) AS imaged
    CROSS JOIN LATERAL jsonb_populate_record(NULL:::memories, imaged.image) AS made
WHERE NOT EXISTS (SELECT FROM :memories WHERE memories.id = page.id)
  AND NOT EXISTS (SELECT FROM dionysus_sync.sync_queue AS entry
                  WHERE entry.memory_id = page.id AND entry.superseded_at IS NULL)
RETURNING memory_id

-- row_states --
-- $1 ids: the rows as they are, and their states that wait in the queue, in the columns of `claim_entries`.
SELECT state.memory_id::text AS memory_id, state.operation, state.sync_version, state.base_version,
       to_jsonb(state.captured_at) #>> '{}' AS changed_at,
       dionysus_sync.content_hash(state.payload) AS content_hash,
       state.payload ->> 'content' AS content,
       state.payload ->> 'memory_type' AS memory_type,
       state.payload ->> 'importance' AS importance,
       state.payload ->> 'source_project' AS source_project,
       state.payload ->> 'session_id' AS session_id,
       nullif(state.payload -> 'tags', 'null')::text AS tags,
       state.payload ->> 'created_at' AS written_at,
       state.payload ->> 'updated_at' AS updated_at,
       (state.payload - '{id,content,memory_type,importance,source_project,session_id,tags,created_at,updated_at}'::text[])::text
           AS rest
FROM (
    SELECT entry.memory_id, entry.operation::text AS operation, entry.sync_version, entry.base_version,
           entry.created_at AS captured_at, entry.payload, entry.seq
    FROM dionysus_sync.sync_queue AS entry
    WHERE entry.memory_id = ANY ($1::uuid[]) AND entry.parked_at IS NULL AND entry.sync_version IS NOT NULL
    UNION ALL
    SELECT dionysus_row.id, 'update', coalesce(dionysus_row.sync_version, 1), dionysus_row.synced_version, clock_timestamp(),
           to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(), NULL
    FROM :memories AS dionysus_row WHERE dionysus_row.id = ANY ($1::uuid[])
) AS state
ORDER BY state.memory_id, state.seq NULLS LAST

-- lower_rows --
-- $1 ids of locked rows, $2 the remote's versions: a row that was changed more often here comes down to the remote's number,
-- since a row is overwritten only by what is not older.
UPDATE :memories SET sync_version = held.version
FROM unnest($1::uuid[], $2::integer[]) AS held (id, version)
WHERE memories.id = held.id AND memories.sync_version > held.version

-- drop_waiting --
-- $1 ids, $2 operations, $3 hashes of states that were kept elsewhere: only these stop waiting.
DELETE FROM dionysus_sync.sync_queue AS entry
USING unnest($1::uuid[], $2::text[], $3::text[]) AS kept (id, operation, content_hash)
WHERE entry.memory_id = kept.id AND entry.parked_at IS NULL AND entry.sync_version IS NOT NULL
  AND entry.operation::text = kept.operation AND dionysus_sync.content_hash(entry.payload) = kept.content_hash

-- new_epoch --
UPDATE dionysus_sync.store_identity SET epoch = gen_random_uuid()

-- comparison_due --
SELECT compare_since, gap_since FROM dionysus_sync.comparison_due

-- comparison_ages --
-- Seconds since the last comparison, and since the last one of all ids that was not skipped, by this server's clock.
SELECT extract(epoch FROM clock_timestamp() - max(finished_at))::float8 AS since_any,
       extract(epoch FROM clock_timestamp() - max(finished_at) FILTER (WHERE kind <> 'quick' AND result <> 'skipped'))::float8 AS since_full
FROM dionysus_sync.verifications

-- last_clean --
-- A quick look does not see everything that a comparison of all ids does.
SELECT max(finished_at) FROM dionysus_sync.verifications WHERE kind <> 'quick' AND result = 'clean'

-- settle_due --
-- $1 the `compare_since` that was read: a later one stays.
DELETE FROM dionysus_sync.comparison_due WHERE compare_since = $1

-- note_due --
-- The stores have to be compared.
INSERT INTO dionysus_sync.comparison_due DEFAULT VALUES ON CONFLICT (only_row) DO UPDATE SET compare_since = EXCLUDED.compare_since

-- note_gap --
-- Changes were not captured for a while: a full comparison is due.
INSERT INTO dionysus_sync.comparison_due (gap_since) VALUES (clock_timestamp())
ON CONFLICT (only_row) DO UPDATE SET compare_since = EXCLUDED.compare_since, gap_since = EXCLUDED.gap_since

-- any_confirmed --
SELECT EXISTS (SELECT FROM :memories WHERE synced_version IS NOT NULL)

-- note_verification --
INSERT INTO dionysus_sync.verifications (kind, result, report) VALUES ($1, $2, $3::jsonb)

-- prune_verifications --
-- Keeps the newest $1, and the newest of each kind and result: a difference counts until it is found to be gone.
DELETE FROM dionysus_sync.verifications
WHERE id IN (SELECT id FROM dionysus_sync.verifications ORDER BY finished_at DESC OFFSET $1)
  AND id NOT IN (SELECT DISTINCT ON (kind, result) id FROM dionysus_sync.verifications ORDER BY kind, result, finished_at DESC)

-- send_page --
-- $1 the last id of the page before or null, $2 how many rows: those of them that have nothing queued are. The last id.
WITH page AS MATERIALIZED (
    SELECT dionysus_row.id FROM :memories AS dionysus_row
    WHERE $1::uuid IS NULL OR dionysus_row.id > $1 ORDER BY dionysus_row.id LIMIT $2
), free AS MATERIALIZED (
    SELECT dionysus_row.id, to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image,
           coalesce(dionysus_row.sync_version, 1) AS version, dionysus_row.synced_version AS base
    FROM :memories AS dionysus_row JOIN page ON page.id = dionysus_row.id
    WHERE NOT EXISTS (SELECT FROM dionysus_sync.sync_queue AS entry
                      WHERE entry.memory_id = dionysus_row.id AND entry.superseded_at IS NULL)
    FOR SHARE OF dionysus_row SKIP LOCKED
), queued AS (
    INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
    SELECT free.id, 'update', free.image, free.version, free.base FROM free
)
SELECT max(page.id::text) AS id, (SELECT count(*) FROM free) AS queued FROM page

-- send_page_one_by_one --
-- As `send_page`; a row that cannot be made JSON is parked with the reason.
WITH page AS MATERIALIZED (
    SELECT dionysus_row.id FROM :memories AS dionysus_row
    WHERE $1::uuid IS NULL OR dionysus_row.id > $1 ORDER BY dionysus_row.id LIMIT $2
), free AS MATERIALIZED (
    SELECT dionysus_row.id, dionysus_sync.image_of(dionysus_row.*) AS made,
           coalesce(dionysus_row.sync_version, 1) AS version, dionysus_row.synced_version AS base
    FROM :memories AS dionysus_row JOIN page ON page.id = dionysus_row.id
    WHERE NOT EXISTS (SELECT FROM dionysus_sync.sync_queue AS entry
                      WHERE entry.memory_id = dionysus_row.id AND entry.superseded_at IS NULL)
    FOR SHARE OF dionysus_row SKIP LOCKED
), queued AS (
    INSERT INTO dionysus_sync.sync_queue
        (memory_id, operation, payload, sync_version, base_version, last_error, parked_at)
    SELECT free.id, 'update',
           coalesce((free.made).image - dionysus_sync.sync_columns(), jsonb_build_object('id', free.id)),
           free.version, free.base, (free.made).error,
           CASE WHEN (free.made).error IS NOT NULL THEN clock_timestamp() END
    FROM free
)
SELECT max(page.id::text) AS id, (SELECT count(*) FROM free) AS queued FROM page

-- queue_length --
-- As in `local_state`: exact up to 100,000, an upper bound beyond.
SELECT count(*) + CASE WHEN count(*) > 100000 THEN (SELECT max(seq) FROM dionysus_sync.sync_queue) - max(seq) ELSE 0 END
FROM (SELECT seq FROM dionysus_sync.sync_queue WHERE parked_at IS NULL ORDER BY seq LIMIT 100001) AS head

-- anything_queued --
SELECT EXISTS (SELECT FROM dionysus_sync.sync_queue WHERE parked_at IS NULL)

-- search_local --
-- $1 words, $2 projects, $3 sessions, $4 types, $5 tags (empty: any), $6 after, $7 before, $8 limit.
SELECT dionysus_row.id::text AS memory_id,
       ts_rank(to_tsvector('english', coalesce(dionysus_row.content, '')), wanted.query)::float8 AS score,
       dionysus_row.content, dionysus_row.memory_type::text AS memory_type, dionysus_row.importance::float8 AS importance,
       dionysus_row.source_project, dionysus_row.session_id::text AS session_id, dionysus_row.tags,
       to_jsonb(dionysus_row.created_at) #>> '{}' AS created_at,
       to_jsonb(session.started_at) #>> '{}' AS session_started_at, session.summary AS session_summary
FROM (SELECT replace(plainto_tsquery('english', $1)::text, ' & ', ' | ')::tsquery AS query) AS wanted,
     :memories AS dionysus_row LEFT JOIN dionysus_sync.sessions AS session ON session.id::text = dionysus_row.session_id::text
WHERE to_tsvector('english', coalesce(dionysus_row.content, '')) @@ wanted.query
  AND (cardinality($2::text[]) = 0 OR dionysus_row.source_project = ANY ($2))
  AND (cardinality($3::text[]) = 0 OR dionysus_row.session_id::text = ANY ($3))
  AND (cardinality($4::text[]) = 0 OR dionysus_row.memory_type::text = ANY ($4))
  AND (cardinality($5::text[]) = 0 OR dionysus_row.tags && $5)
  AND ($6::timestamptz IS NULL OR dionysus_row.created_at >= $6)
  AND ($7::timestamptz IS NULL OR dionysus_row.created_at < $7)
ORDER BY score DESC, dionysus_row.id
LIMIT $8

-- save_session --
-- $1 id, $2 project, $3 started, $4 last activity: an end, once noted, stays.
INSERT INTO dionysus_sync.sessions AS standing (id, project_id, started_at, last_activity_at)
VALUES ($1::uuid, $2, $3, $4)
ON CONFLICT (id) DO UPDATE SET last_activity_at = EXCLUDED.last_activity_at
WHERE EXCLUDED.last_activity_at > standing.last_activity_at

-- end_session --
-- $1 id, $2 when, $3 summary or null.
UPDATE dionysus_sync.sessions
SET ended_at = coalesce(ended_at, $2), summary = coalesce($3::text, summary)
WHERE id = $1::uuid AND (ended_at IS NULL OR $3::text IS NOT NULL)
RETURNING id

-- save_project --
INSERT INTO dionysus_sync.projects (id, name) VALUES ($1, $1) ON CONFLICT (id) DO NOTHING

-- list_sessions --
-- $1 project or null for all, $2 limit; newest first.
SELECT id::text AS id, project_id, started_at, last_activity_at, ended_at, summary
FROM dionysus_sync.sessions WHERE $1::text IS NULL OR project_id = $1
ORDER BY started_at DESC, id LIMIT $2

-- raise_alert --
-- $1 key, $2 kind, $3 summary, $4 details as JSON; no row if this event has its alert already.
INSERT INTO dionysus_sync.alerts (key, kind, summary, details) VALUES ($1, $2, $3, $4::jsonb)
ON CONFLICT (key) DO NOTHING
RETURNING id

-- take_alert --
-- $1 seconds for which nobody else takes it. None waits longer than 5 minutes, so what seems to was made to wait before the
-- clock jumped back.
UPDATE dionysus_sync.alerts AS alert
SET attempts = alert.attempts + 1, next_try_at = clock_timestamp() + interval '1 second' * $1::float8
FROM (
    SELECT due.id, due.attempts FROM dionysus_sync.alerts AS due
    WHERE due.delivered_at IS NULL
      AND (due.next_try_at IS NULL OR due.next_try_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '6 minutes')
    ORDER BY due.raised_at LIMIT 1
    FOR UPDATE SKIP LOCKED
) AS taken, dionysus_sync.store_identity AS store
WHERE alert.id = taken.id
RETURNING alert.id::text AS id, alert.kind::text AS kind, alert.summary, alert.details::text AS details,
          alert.raised_at, store.id::text AS store_id, taken.attempts

-- note_delivered --
UPDATE dionysus_sync.alerts SET delivered_at = clock_timestamp(), next_try_at = NULL, last_error = NULL
WHERE id = $1::text::uuid

-- postpone_alert --
-- $1 id, $2 seconds, $3 why.
UPDATE dionysus_sync.alerts
SET next_try_at = clock_timestamp() + interval '1 second' * $2::float8, last_error = $3
WHERE id = $1::text::uuid AND delivered_at IS NULL

-- prune_events --
-- $1 how many at most; how many were. What went well is kept for 30 days, and the last of it for good, since the status
-- says when that was; what did not go well is kept for a year.
WITH last AS (
    SELECT id FROM dionysus_sync.sync_events WHERE result = 'success' AND direction = 'local_to_remote'
    ORDER BY timestamp DESC LIMIT 1
), old AS (
    SELECT id FROM dionysus_sync.sync_events
    WHERE timestamp < now() - interval '30 days'
      AND (result IN ('success', 'queued') OR timestamp < now() - interval '1 year')
      AND id NOT IN (SELECT id FROM last)
    ORDER BY timestamp LIMIT $1
    FOR UPDATE SKIP LOCKED
), pruned AS (
    DELETE FROM dionysus_sync.sync_events AS event USING old WHERE event.id = old.id RETURNING 1
)
SELECT count(*) FROM pruned

-- prune_alerts --
-- $1 how many at most; how many were. What was delivered is kept for 30 days, what was not for a year.
WITH old AS (
    SELECT id FROM dionysus_sync.alerts
    WHERE raised_at < now() - CASE WHEN delivered_at IS NULL THEN interval '1 year' ELSE interval '30 days' END
    ORDER BY raised_at LIMIT $1
    FOR UPDATE SKIP LOCKED
), pruned AS (
    DELETE FROM dionysus_sync.alerts AS alert USING old WHERE alert.id = old.id RETURNING 1
)
SELECT count(*) FROM pruned
