-- install_event_triggers --
-- What the database tells of DDL by itself. Only where the role may create event triggers are there functions for them: they
-- run in the sessions of all roles, so they must not belong to a lesser one.
CREATE OR REPLACE FUNCTION dionysus_sync.shape_of(target oid) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_build_object(
        'schema', place.nspname, 'name', c.relname,
        'columns', (SELECT jsonb_object_agg(a.attnum, jsonb_build_array(a.attname, format_type(a.atttypid, a.atttypmod)))
                    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'triggers', (SELECT coalesce(jsonb_agg(t.tgname), '[]')
                     FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                     WHERE t.tgrelid = c.oid AND t.tgenabled = 'A' AND p.pronamespace = 'dionysus_sync'::regnamespace))
    FROM pg_class c JOIN pg_namespace place ON place.oid = c.relnamespace WHERE c.oid = target
$$;

-- A table of the user's that has one of our triggers.
CREATE OR REPLACE FUNCTION dionysus_sync.captured(target oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid
        WHERE t.tgrelid = target AND p.pronamespace = 'dionysus_sync'::regnamespace AND c.relnamespace <> p.pronamespace)
$$;

-- Whether a statement could be about the table, going by its text: nothing is read for the sake of others. Null hides what it
-- is about, as a text does that is too long to be searched, or that is another statement's. What a table is a part of, or
-- made of, can take it along.
CREATE OR REPLACE FUNCTION dionysus_sync.may_concern(target oid, tag text, said text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN starts_with(tag, 'ALTER ') AND tag <> 'ALTER TABLE' THEN false
        WHEN said IS NULL OR tag IN ('DROP OWNED', 'DROP EXTENSION') OR length(said) > 100000 THEN true
        WHEN said !~* replace(tag, ' ', '\s+') OR said ~* 'cascade|u&"' THEN true
        ELSE strpos(lower(said), lower(replace(c.relname, '"', '""'))) > 0
            OR EXISTS (SELECT FROM pg_inherits WHERE target IN (inhrelid, inhparent))
        END
    FROM pg_class c WHERE c.oid = target
$$;

-- Counts a table's rows, and queues those that were not captured, without keeping the table's lock: whoever is about to lock
-- it would end in a deadlock with somebody else who is. The images outlive a lock that is given back; those of a page are held
-- in memory meanwhile. Null if it is locked already. Beyond 100,000 rows, the statistics say how many there are. Two that save
-- the same rows each leave an entry, since one of them may be undone.
CREATE OR REPLACE FUNCTION dionysus_sync.glance_at(target regclass, counted boolean) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET extra_float_digits = 1 SET datestyle = 'ISO'
SET intervalstyle = 'iso_8601' SET bytea_output = 'hex'
AS $$
DECLARE
    hit bigint;
    ids uuid[];
    images jsonb[];
    errors text[];
    versions integer[];
    bases integer[];
BEGIN
    FOR page IN 1..50 LOOP
        ids := NULL;
        BEGIN
            EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE NOWAIT', target);
            IF counted AND page = 1 THEN
                EXECUTE format('SELECT count(*) FROM (SELECT FROM %s LIMIT 100001) AS bounded', target) INTO hit;
            END IF;
            EXECUTE 'SELECT array_agg(missed.id), array_agg((missed.made).image - dionysus_sync.sync_columns()), '
                '       array_agg((missed.made).error), array_agg(missed.version), array_agg(missed.base) '
                'FROM (SELECT dionysus_row.id, dionysus_sync.image_of(dionysus_row.*) AS made, '
                '             coalesce(dionysus_row.sync_version, 1) AS version, dionysus_row.synced_version AS base '
                || dionysus_sync.from_missed(target) || ' LIMIT 2000) AS missed'
            INTO ids, images, errors, versions, bases;
            RAISE EXCEPTION USING ERRCODE = 'DS001'; -- gives the lock back, and keeps what was seen
        EXCEPTION WHEN SQLSTATE 'DS001' OR lock_not_available THEN
            NULL;
        END;
        EXIT WHEN ids IS NULL;
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version, last_error, parked_at)
        SELECT saved.id, 'create', coalesce(saved.image, jsonb_build_object('id', saved.id)), saved.version, saved.base,
               saved.error, CASE WHEN saved.error IS NOT NULL THEN clock_timestamp() END
        FROM unnest(ids, images, errors, versions, bases) AS saved (id, image, error, version, base);
    END LOOP;
    RETURN CASE WHEN hit > 100000 THEN greatest(hit, (SELECT reltuples::bigint FROM pg_class WHERE oid = target)) ELSE hit END;
END $$;

-- Notes how each table that we capture is before a statement that could destroy it, and saves what was not captured. A
-- statement within a function or a DO block stands in the path that led here, unless its language hides it.
CREATE OR REPLACE FUNCTION dionysus_sync.ddl_begins() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target oid;
    hit bigint;
    path text;
    said text;
    noted jsonb := '{}';
BEGIN
    PERFORM set_config('dionysus.before_ddl', '', true), set_config('dionysus.rewritten', '', true);
    IF dionysus_sync.by_engine() THEN
        RETURN;
    END IF;
    GET DIAGNOSTICS path = PG_CONTEXT;
    path := substr(path, nullif(strpos(path, chr(10)), 0) + 1);
    said := CASE WHEN path IS NULL THEN current_query() WHEN starts_with(path, 'SQL statement "') THEN path END;
    FOR target IN
        SELECT DISTINCT t.tgrelid
        FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid
        WHERE p.pronamespace = 'dionysus_sync'::regnamespace AND c.relnamespace <> p.pronamespace
    LOOP
        hit := NULL;
        IF dionysus_sync.may_concern(target, tg_tag, said) THEN
            BEGIN
                hit := dionysus_sync.glance_at(target, tg_tag <> 'ALTER TABLE');
            EXCEPTION WHEN OTHERS THEN
                RAISE WARNING 'dionysus-sync could not save the rows that were not captured yet: %', SQLERRM;
            END;
        END IF;
        noted := noted || jsonb_build_object(target, dionysus_sync.shape_of(target) || jsonb_build_object('rows', hit));
    END LOOP;
    PERFORM set_config('dionysus.before_ddl', noted::text, true);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'dionysus-sync could not look at the table before this change: %', SQLERRM;
END $$;

-- A table whose values are made anew, column by column: ALTER COLUMN ... TYPE, USING.
CREATE OR REPLACE FUNCTION dionysus_sync.ddl_rewrites() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_event_trigger_table_rewrite_reason() & 4 <> 0 THEN
        PERFORM set_config('dionysus.rewritten', pg_event_trigger_table_rewrite_oid()::text, true);
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'dionysus-sync could not observe this change: %', SQLERRM;
END $$;

-- What was noted of a table. The setting can be written by anybody: whatever it says, it keeps nothing from being observed.
CREATE OR REPLACE FUNCTION dionysus_sync.noted_of(target oid, OUT known boolean, OUT hit bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    noted jsonb;
BEGIN
    noted := nullif(current_setting('dionysus.before_ddl', true), '')::jsonb -> target::text;
    known := noted IS NOT NULL;
    hit := coalesce((noted ->> 'rows')::bigint, 0);
EXCEPTION WHEN OTHERS THEN
    known := false;
    hit := 0;
END $$;

-- The objects are gone from the catalogue. A table of ours is known by our triggers, which went with it.
CREATE OR REPLACE FUNCTION dionysus_sync.ddl_dropped() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    began timestamptz := clock_timestamp();
    gone record;
    parts text;
BEGIN
    IF dionysus_sync.by_engine() THEN
        RETURN;
    END IF;
    FOR gone IN
        SELECT dropped.objid, dropped.object_name AS name, place.object_name AS place, noted.hit
        FROM pg_event_trigger_dropped_objects() AS dropped
            CROSS JOIN LATERAL dionysus_sync.noted_of(dropped.objid) AS noted
            LEFT JOIN pg_event_trigger_dropped_objects() AS place
                ON place.object_type = 'schema' AND place.object_name = dropped.schema_name
        WHERE dropped.object_type = 'table' AND NOT dropped.is_temporary AND (
            noted.known
            OR EXISTS (SELECT FROM pg_event_trigger_dropped_objects() AS its
                       WHERE its.object_type = 'trigger' AND its.address_names[3] = 'dionysus_capture_delete'
                         AND its.address_names[1:2] = ARRAY[dropped.schema_name, dropped.object_name]))
    LOOP
        PERFORM dionysus_sync.observe(
            'drop', began, gone.hit, '{}', gone.objid,
            coalesce('schema ' || gone.place || ' dropped with table ' || gone.name, 'table ' || gone.name || ' dropped'));
    END LOOP;
    FOR gone IN
        SELECT dropped.objid,
               format('column %s dropped', string_agg(dropped.address_names[3], ', ' ORDER BY dropped.address_names[3])) AS said
        FROM pg_event_trigger_dropped_objects() AS dropped
        WHERE dropped.object_type = 'table column' AND dionysus_sync.captured(dropped.objid)
        GROUP BY dropped.objid
    LOOP
        PERFORM dionysus_sync.observe('alter', began, dionysus_sync.rows_of(gone.objid), '{}', gone.objid, gone.said);
    END LOOP;
    SELECT string_agg(part.name, ', ' ORDER BY part.name) INTO parts FROM (
        SELECT array_to_string(dropped.address_names[2:], '.') AS name
        FROM pg_event_trigger_dropped_objects() AS dropped
        WHERE dropped.object_type IN ('table', 'function', 'table column') AND dropped.address_names[1] = 'dionysus_sync'
        UNION ALL
        -- Not those that went with their tables.
        SELECT 'trigger ' || dropped.address_names[3]
        FROM pg_event_trigger_dropped_objects() AS dropped
            JOIN pg_namespace AS place ON place.nspname = dropped.address_names[1]
            JOIN pg_class AS its_table ON its_table.relnamespace = place.oid AND its_table.relname = dropped.address_names[2]
        WHERE dropped.object_type = 'trigger' AND dropped.address_names[3] ~ '^(zz_)?dionysus_' AND NOT dropped.is_temporary
    ) AS part;
    IF parts IS NOT NULL THEN
        PERFORM dionysus_sync.observe('drop', began, 0, '{}', NULL, parts || ' of the bookkeeping dropped');
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'dionysus-sync could not observe this change: %', SQLERRM;
END $$;

CREATE OR REPLACE FUNCTION dionysus_sync.rows_of(target regclass) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hit bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s', target) INTO hit;
    RETURN hit;
END $$;

-- How a table differs from what it was before the statement, as far as data is in danger or the capture ends. A type that was
-- changed without touching a value, and whatever was added, is none of it.
CREATE OR REPLACE FUNCTION dionysus_sync.dangers(before jsonb, after jsonb, rewritten boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH columns AS (
        SELECT was.value ->> 0 AS name, was.value ->> 1 AS type, after #>> ARRAY['columns', was.key, '0'] AS now_name,
               after #>> ARRAY['columns', was.key, '1'] AS now_type
        FROM jsonb_each(before -> 'columns') AS was WHERE after -> 'columns' ? was.key
    ), found AS (
        SELECT 1 AS number, format('table memories renamed to %s.%s', after ->> 'schema', after ->> 'name') AS said
        WHERE before ->> 'name' = 'memories'
          AND (before ->> 'schema', before ->> 'name') <> (after ->> 'schema', after ->> 'name')
        UNION ALL
        -- The user's own columns may be called what they like; those that we read may not.
        SELECT 2, format('column %s is called %s now', name, now_name) FROM columns
        WHERE name <> now_name
          AND (name = ANY (dionysus_sync.sync_columns())
               OR name IN ('id', 'content', 'memory_type', 'importance', 'source_project', 'session_id', 'tags',
                           'created_at', 'updated_at'))
        UNION ALL
        SELECT 3, format('column %s changed from %s to %s', name, type, now_type) FROM columns
        WHERE rewritten AND type <> now_type
        UNION ALL
        SELECT 4, 'values of a column computed anew'
        WHERE rewritten AND NOT EXISTS (SELECT FROM columns WHERE type <> now_type)
        UNION ALL
        SELECT 5, format('trigger %s switched off', string_agg(was.name, ', ' ORDER BY was.name))
        FROM jsonb_array_elements_text(before -> 'triggers') AS was (name)
        WHERE NOT after -> 'triggers' ? was.name HAVING count(*) > 0
    )
    SELECT string_agg(said, '; ' ORDER BY number, said) FROM found
$$;

CREATE OR REPLACE FUNCTION dionysus_sync.ddl_altered() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    began timestamptz := clock_timestamp();
    noted jsonb;
    rewritten text := current_setting('dionysus.rewritten', true);
    found record;
BEGIN
    IF dionysus_sync.by_engine() THEN
        RETURN;
    END IF;
    noted := coalesce(nullif(current_setting('dionysus.before_ddl', true), ''), '{}');
    FOR found IN
        SELECT was.key::oid AS oid, dionysus_sync.dangers(was.value, now, was.key = rewritten) AS dangers
        FROM jsonb_each(noted) AS was, dionysus_sync.shape_of(was.key::oid) AS now
    LOOP
        IF found.dangers IS NOT NULL THEN
            PERFORM dionysus_sync.observe(
                'alter', began, CASE WHEN starts_with(found.dangers, 'trigger') THEN 0 ELSE dionysus_sync.rows_of(found.oid) END,
                '{}', found.oid, found.dangers);
        END IF;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'dionysus-sync could not observe this change: %', SQLERRM;
END $$;

-- An event trigger cannot be replaced. The owner of the schema may run what takes all rights from everybody else.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'dionysus_sync'::regnamespace
          AND proname IN ('shape_of', 'captured', 'may_concern', 'glance_at', 'ddl_begins', 'ddl_rewrites', 'noted_of', 'ddl_dropped',
                          'rows_of', 'dangers', 'ddl_altered')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', name,
            (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'dionysus_sync'));
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'dionysus_before_ddl') THEN
        CREATE EVENT TRIGGER dionysus_before_ddl ON ddl_command_start
            WHEN TAG IN ('ALTER TABLE', 'ALTER SCHEMA', 'ALTER INDEX', 'ALTER TRIGGER', 'DROP TABLE', 'DROP SCHEMA', 'DROP OWNED',
                         'DROP EXTENSION', 'DROP TYPE', 'DROP DOMAIN', 'DROP COLLATION')
            EXECUTE FUNCTION dionysus_sync.ddl_begins();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'dionysus_rewrite') THEN
        CREATE EVENT TRIGGER dionysus_rewrite ON table_rewrite EXECUTE FUNCTION dionysus_sync.ddl_rewrites();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'dionysus_dropped') THEN
        CREATE EVENT TRIGGER dionysus_dropped ON sql_drop EXECUTE FUNCTION dionysus_sync.ddl_dropped();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'dionysus_altered') THEN
        CREATE EVENT TRIGGER dionysus_altered ON ddl_command_end
            WHEN TAG IN ('ALTER TABLE', 'ALTER SCHEMA', 'ALTER INDEX', 'ALTER TRIGGER')
            EXECUTE FUNCTION dionysus_sync.ddl_altered();
    END IF;
END $$;
ALTER EVENT TRIGGER dionysus_before_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER dionysus_rewrite ENABLE ALWAYS;
ALTER EVENT TRIGGER dionysus_dropped ENABLE ALWAYS;
ALTER EVENT TRIGGER dionysus_altered ENABLE ALWAYS

-- event_triggers --
-- $1 JSON, the functions of the event triggers and the MD5 of each one's text: whether the event triggers are all there, fire
-- always and are the ones of this program, and whether this role may create them for certain. A release that changes them brings
-- a migration, so that the one before it leaves them alone. `lesser`: a role
-- that is neither this one nor a superuser, and could have its own code run in them, since it owns what they call and write to,
-- or may add to it.
SELECT (SELECT count(*) FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid
        WHERE t.evtname IN ('dionysus_before_ddl', 'dionysus_rewrite', 'dionysus_dropped', 'dionysus_altered')
          AND t.evtenabled = 'A' AND p.pronamespace = to_regnamespace('dionysus_sync')) = 4
       AND NOT EXISTS (SELECT FROM jsonb_each_text($1::text::jsonb) AS ours
                       WHERE NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace('dionysus_sync')
                                         AND proname = ours.key AND md5(prosrc) = ours.value)) AS present,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
       (SELECT CASE part.owner WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(part.owner)::text END
        FROM (SELECT nspowner AS owner FROM pg_namespace WHERE nspname = 'dionysus_sync'
              UNION SELECT relowner FROM pg_class WHERE relnamespace = to_regnamespace('dionysus_sync')
              UNION SELECT proowner FROM pg_proc WHERE pronamespace = to_regnamespace('dionysus_sync')
              UNION SELECT given.grantee FROM pg_namespace, aclexplode(nspacl) AS given
              WHERE nspname = 'dionysus_sync' AND given.privilege_type = 'CREATE'
              UNION SELECT given.grantee FROM pg_class, aclexplode(relacl) AS given
              WHERE relnamespace = to_regnamespace('dionysus_sync') AND given.privilege_type = 'TRIGGER') AS part
        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE oid = part.owner AND (rolsuper OR rolname = current_user))
        ORDER BY 1 LIMIT 1) AS lesser

-- altered_functions --
-- $1 JSON, functions of the migrations and the MD5 of each one's text; $2 the last one of these migrations: whether somebody has
-- put something else in the place of one. Of a newer program's, which may have others, nothing is said.
SELECT EXISTS (SELECT FROM jsonb_each_text($1::text::jsonb) AS ours
               JOIN pg_proc AS p ON p.proname = ours.key AND p.pronamespace = to_regnamespace('dionysus_sync')
               WHERE md5(p.prosrc) <> ours.value)
       AND (SELECT max(name COLLATE "C") FROM dionysus_sync.schema_migrations) = $2

-- capture_above_owner --
-- The owners of memories and of the capture, where the first has not the rights of the second: a row is made JSON with those,
-- and so are the casts of the types of its columns, which the table's owner chooses.
SELECT pg_get_userbyid(t.relowner)::text AS owner, pg_get_userbyid(p.proowner)::text AS capture
FROM pg_class t JOIN pg_proc p ON p.pronamespace = to_regnamespace('dionysus_sync') AND p.proname = 'capture_memories'
WHERE t.oid = to_regclass(:'memories') AND NOT pg_has_role(t.relowner, p.proowner, 'USAGE')

-- unjudged --
-- $1 how many at most, $2 how many ids in all of them, but for a first one that has more.
WITH head AS (
    SELECT seq, sum(cardinality(memory_ids)) OVER (ORDER BY seq) - cardinality(memory_ids) AS ids_before
    FROM (SELECT seq, memory_ids FROM dionysus_sync.observations WHERE judged_at IS NULL ORDER BY seq LIMIT $1) AS first
)
SELECT seen.seq, seen.kind::text AS kind, seen.at, seen.until, seen.row_count, seen.memory_ids::text[] AS memory_ids, seen.contents,
       seen.table_oid::bigint AS table_oid, seen.detail, seen.role, seen.application_name, seen.client_address, seen.pid,
       seen.statement, false AS judged
FROM head JOIN dionysus_sync.observations AS seen USING (seq)
WHERE head.ids_before < $2 ORDER BY seen.seq

-- observed_between --
-- $1 and $2: deletes and updates in this span.
SELECT seq, kind::text AS kind, at, until, row_count, memory_ids::text[] AS memory_ids, contents, table_oid::bigint AS table_oid, detail,
       role, application_name, client_address, pid, statement, judged_at IS NOT NULL AS judged
FROM dionysus_sync.observations WHERE kind IN ('delete', 'update') AND at BETWEEN $1 AND $2 ORDER BY at, seq

-- observed_rows --
-- $1 and $2: how many rows were deleted, and how many changed, in this span; one that was twice counts twice.
SELECT coalesce(sum(row_count) FILTER (WHERE kind = 'delete'), 0)::bigint AS deleted,
       coalesce(sum(row_count) FILTER (WHERE kind = 'update'), 0)::bigint AS updated
FROM dionysus_sync.observations WHERE kind IN ('delete', 'update') AND at BETWEEN $1 AND $2

-- live_ids --
-- $1 ids: those that are in the table.
SELECT id::text AS id FROM :memories WHERE id = ANY ($1::uuid[])

-- replaced_ids --
-- $1 ids, $2 hashes of contents: those that are in the table with another content, and when they were put there, where the queue
-- still knows.
SELECT now.id::text AS id,
       (SELECT max(entry.created_at) FROM dionysus_sync.sync_queue AS entry
        WHERE entry.memory_id = now.id AND entry.operation = 'create') AS put_at
FROM :memories AS now JOIN unnest($1::text[]::uuid[], $2::bigint[]) AS was (id, content) ON was.id = now.id
WHERE hashtextextended(now.content::text COLLATE "C", 0) IS DISTINCT FROM was.content

-- look_at_catalogue --
-- $1 schema, $2 our columns, $3 our triggers: what stands at the name memories there, and which parts of the bookkeeping can be read. By the transaction's
-- snapshot, as the rows are: what a look-up by name finds may be newer.
SELECT clock_timestamp() AS seen_at, (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database_oid,
       here.oid::bigint AS table_oid, here.relfilenode::bigint AS file,
       ARRAY(SELECT a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
             WHERE a.attrelid = here.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL ($2::text[])
             ORDER BY a.attname) AS columns,
       ARRAY(SELECT t.tgname::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
             JOIN pg_namespace ours ON ours.oid = p.pronamespace AND ours.nspname = 'dionysus_sync'
             WHERE t.tgrelid = here.oid AND t.tgenabled = 'A' AND t.tgname = ANY ($3::text[])) AS triggers,
       (SELECT count(*) FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid
            JOIN pg_namespace ours ON ours.oid = p.pronamespace AND ours.nspname = 'dionysus_sync'
        WHERE t.evtname IN ('dionysus_before_ddl', 'dionysus_rewrite', 'dionysus_dropped', 'dionysus_altered')
          AND t.evtenabled = 'A') = 4 AS event_triggers,
       (SELECT count(*) = 1 FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'dionysus_sync' AND c.relname = 'store_identity' AND a.attname = 'id' AND a.atttypid = 'uuid'::regtype
       ) AS has_identity,
       (SELECT count(*) = 3 FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'dionysus_sync' AND c.relname = 'observations'
          AND (a.attname, a.atttypid) IN (('seq', 'bigint'::regtype), ('kind', 'varchar'::regtype), ('row_count', 'bigint'::regtype))
       ) AS has_observations
FROM (SELECT) AS always LEFT JOIN (
    SELECT c.oid, c.relfilenode FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'memories' AND c.relkind IN ('r', 'p')
) AS here ON true

-- look_at_rows --
-- $1 how many are counted at most; null for more. The name and the file as they are now, which are another table's where it was
-- replaced or emptied since the snapshot: what is counted is then neither. `hidden`: policies may keep rows from this role.
SELECT row_security_active(to_regclass(:'memories')) AS hidden, CASE WHEN count(*) <= $1 THEN count(*) END AS rows, to_regclass(:'memories')::oid::bigint AS table_oid,
       pg_relation_filenode(to_regclass(:'memories'))::bigint AS file
FROM (SELECT FROM :memories LIMIT $1 + 1) AS bounded

-- look_at_identity --
SELECT id::text AS id FROM dionysus_sync.store_identity

-- look_at_observations --
-- $1 the newest one of the look before: the newest one now, and how many rows those since then account for. Numbers are not
-- given in the order of commits: while somebody may have one that is not seen yet, or had when the snapshot was taken, the next
-- look counts from where this one did. Where the table was made anew, they have begun again.
WITH newest AS MATERIALIZED (
    SELECT coalesce(max(seq), 0) AS seq FROM dionysus_sync.observations
), since AS MATERIALIZED (
    SELECT CASE WHEN newest.seq < $1::bigint THEN 0 ELSE $1 END AS seq FROM newest
)
SELECT CASE WHEN EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()) AS writer
                         WHERE pg_xact_status(writer) <> 'in progress')
              OR EXISTS (SELECT FROM pg_locks
                         WHERE locktype = 'relation' AND relation = 'dionysus_sync.observations'::regclass AND granted
                           AND mode = 'RowExclusiveLock' AND pid IS DISTINCT FROM pg_backend_pid()
                           AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
       THEN since.seq ELSE newest.seq END AS last_seq,
       (SELECT coalesce(sum(row_count), 0)::bigint FROM dionysus_sync.observations
        WHERE observations.seq > (SELECT since.seq FROM since) AND kind IN ('delete', 'truncate')) AS gone
FROM newest, since

-- remembered_sight --
SELECT sight::text FROM dionysus_sync.watched

-- remember_sight --
-- $1 when, $2 the look as JSON.
INSERT INTO dionysus_sync.watched (seen_at, sight) VALUES ($1, $2::jsonb)
ON CONFLICT (only_row) DO UPDATE SET seen_at = EXCLUDED.seen_at, sight = EXCLUDED.sight

-- prune_observations --
-- $1 how many at most; how many were. What was judged is kept for 7 days.
WITH old AS (
    SELECT seq FROM dionysus_sync.observations
    WHERE judged_at < now() - interval '7 days' ORDER BY seq LIMIT $1
    FOR UPDATE SKIP LOCKED
), pruned AS (
    DELETE FROM dionysus_sync.observations AS seen USING old WHERE seen.seq = old.seq RETURNING 1
)
SELECT count(*) FROM pruned

-- last_recovered --
-- When the newest recovery was finished.
SELECT max(finished_at) FROM dionysus_sync.recoveries WHERE NOT report ? 'undo'

-- lock_incidents --
-- Whoever records incidents does it alone: what is on record is read, widened, and written.
SELECT pg_advisory_xact_lock(7165101844005)

-- mark_judged --
-- $1 numbers of observations: whether nobody had judged one of them until now; if somebody had, none is marked.
WITH due AS (
    SELECT count(*) AS seen FROM dionysus_sync.observations WHERE seq = ANY ($1::bigint[]) AND judged_at IS NULL
), marked AS (
    UPDATE dionysus_sync.observations SET judged_at = clock_timestamp()
    WHERE seq = ANY ($1::bigint[]) AND (SELECT seen FROM due) = cardinality($1::bigint[])
)
SELECT seen = cardinality($1::bigint[]) FROM due

-- incidents_by_id --
-- $1 ids.
SELECT id::text AS id, key, kind::text AS kind, store::text AS store, detected_at, restore_point, last_at, row_count AS rows,
       summary, role, application_name, client_address, pid, statement, closed_at, closed_reason, revision,
       spans::text AS spans
FROM dionysus_sync.incidents WHERE id = ANY ($1::text[]::uuid[])

-- newest_incidents --
-- $1 whether only open ones, $2 how many.
SELECT id::text AS id, key, kind::text AS kind, store::text AS store, detected_at, restore_point, last_at, row_count AS rows,
       summary, role, application_name, client_address, pid, statement, closed_at, closed_reason, revision,
       spans::text AS spans
FROM dionysus_sync.incidents WHERE NOT $1 OR closed_at IS NULL ORDER BY detected_at DESC, id LIMIT $2

-- unpublished_incidents --
-- $1 how many.
SELECT id::text AS id, key, kind::text AS kind, store::text AS store, detected_at, restore_point, last_at, row_count AS rows,
       summary, role, application_name, client_address, pid, statement, closed_at, closed_reason, revision,
       spans::text AS spans
FROM dionysus_sync.incidents WHERE published < revision ORDER BY detected_at, id LIMIT $1

-- write_incident --
-- The columns in their order here.
INSERT INTO dionysus_sync.incidents
    (id, key, kind, store, detected_at, restore_point, last_at, row_count, summary, role, application_name, client_address, pid,
     statement, closed_at, closed_reason, revision, spans)
VALUES ($1::text::uuid, $2, $3, $4::text::uuid, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::jsonb)
ON CONFLICT (id) DO UPDATE
SET kind = EXCLUDED.kind, detected_at = EXCLUDED.detected_at, restore_point = EXCLUDED.restore_point,
    last_at = EXCLUDED.last_at, row_count = EXCLUDED.row_count, summary = EXCLUDED.summary, role = EXCLUDED.role,
    application_name = EXCLUDED.application_name, client_address = EXCLUDED.client_address, pid = EXCLUDED.pid,
    statement = EXCLUDED.statement, closed_at = EXCLUDED.closed_at, closed_reason = EXCLUDED.closed_reason,
    revision = EXCLUDED.revision, spans = EXCLUDED.spans

-- raise_incident_alert --
-- $1 the incident's id, which the alert has too, $2 summary, $3 details as JSON, $4 whether it was delivered before. What a
-- receiver may have seen stays as it is.
INSERT INTO dionysus_sync.alerts (id, key, kind, summary, details, delivered_at)
VALUES ($1::text::uuid, 'incident:' || $1::text, 'incident', $2, $3::jsonb, CASE WHEN $4 THEN clock_timestamp() END)
ON CONFLICT (key) DO UPDATE
SET summary = CASE WHEN alerts.attempts = 0 AND alerts.delivered_at IS NULL THEN EXCLUDED.summary ELSE alerts.summary END,
    details = CASE WHEN alerts.attempts = 0 AND alerts.delivered_at IS NULL THEN EXCLUDED.details ELSE alerts.details END,
    delivered_at = coalesce(alerts.delivered_at, EXCLUDED.delivered_at)

-- close_incident --
-- $1 id, $2 why: whether it was open until now.
WITH closed AS (
    UPDATE dionysus_sync.incidents SET closed_at = clock_timestamp(), closed_reason = $2, revision = revision + 1
    WHERE id = $1::text::uuid AND closed_at IS NULL RETURNING 1
)
SELECT count(*) = 1 FROM closed

-- note_published --
-- $1 ids, $2 the revisions of them that the remote store has.
UPDATE dionysus_sync.incidents AS incident SET published = there.revision
FROM unnest($1::text[]::uuid[], $2::int[]) AS there (id, revision)
WHERE incident.id = there.id AND incident.published < there.revision

-- note_there --
-- $1 local stores, $2 ids and $3 revisions of all of their incidents that the remote store has: others that it had are to be
-- published again.
UPDATE dionysus_sync.incidents AS incident SET published = 0
WHERE incident.store = ANY ($1::text[]::uuid[]) AND incident.published > 0
  AND NOT EXISTS (
      SELECT FROM unnest($2::text[]::uuid[], $3::int[]) AS there (id, revision)
      WHERE there.id = incident.id AND there.revision >= incident.published)
