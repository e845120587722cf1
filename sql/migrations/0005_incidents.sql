-- What was seen of statements that destroy, or that could be part of it: written by the capture and the event triggers in the
-- statement's own transaction. `at` is just before the statement's first queue entry; `until`, written at the end of the capture,
-- just after the last one. `contents`: hashes of what was deleted, in the order of `memory_ids`: a row that comes back under the
-- id of one that was deleted may be another one.
CREATE TABLE IF NOT EXISTS dionysus_sync.observations (
    seq bigserial PRIMARY KEY,
    kind varchar(20) NOT NULL CHECK (kind IN ('delete', 'update', 'truncate', 'drop', 'alter')),
    at timestamptz NOT NULL,
    until timestamptz NOT NULL DEFAULT clock_timestamp(),
    row_count bigint NOT NULL DEFAULT 0,
    memory_ids uuid[] NOT NULL DEFAULT '{}',
    contents bigint[] NOT NULL DEFAULT '{}',
    table_oid oid,
    detail text NOT NULL DEFAULT '',
    role text,
    application_name text,
    client_address text,
    pid integer,
    statement text,
    judged_at timestamptz
);
-- Random bytes: trying to compress them would take longer than the deletes of a large statement.
ALTER TABLE dionysus_sync.observations ALTER COLUMN memory_ids SET STORAGE EXTERNAL,
    ALTER COLUMN contents SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS idx_observations_new ON dionysus_sync.observations (seq) WHERE judged_at IS NULL;
CREATE INDEX IF NOT EXISTS idx_observations_at ON dionysus_sync.observations (at);

-- One row for one event, however it was seen: the id follows from the store, which may be the one that this database was before,
-- and from the key, which names the event. `restore_point`: what was changed before it is good.
CREATE TABLE IF NOT EXISTS dionysus_sync.incidents (
    id uuid PRIMARY KEY,
    store uuid NOT NULL,
    key text NOT NULL,
    kind varchar(30) NOT NULL,
    detected_at timestamptz NOT NULL,
    restore_point timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    row_count bigint NOT NULL DEFAULT 0,
    summary text NOT NULL,
    role text,
    application_name text,
    client_address text,
    pid integer,
    statement text,
    closed_at timestamptz,
    closed_reason text,
    -- When the statements that belong to it were under way, pairs of times.
    spans jsonb NOT NULL DEFAULT '[]',
    -- Counts changes of the row; `published` is the state that the remote store has.
    revision integer NOT NULL DEFAULT 1,
    published integer NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS idx_incidents_open ON dionysus_sync.incidents (detected_at) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS idx_incidents_unpublished ON dionysus_sync.incidents (detected_at) WHERE published < revision;

-- How the table was when it was last looked at, so that what happened while nobody looked is seen.
CREATE TABLE IF NOT EXISTS dionysus_sync.watched (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seen_at timestamptz NOT NULL,
    sight jsonb NOT NULL
);

-- A text as every client can read it: not each byte that the database's encoding allows has an equivalent in UTF-8, or is a
-- character at all. What was cut within a character of more bytes loses that one.
CREATE OR REPLACE FUNCTION dionysus_sync.legible(said text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    encoding CONSTANT text := getdatabaseencoding();
BEGIN
    IF encoding = 'UTF8' THEN
        RETURN said;
    ELSIF encoding <> 'SQL_ASCII' THEN
        PERFORM convert_to(said, 'UTF8');
        RETURN said;
    END IF;
    said := CASE WHEN length(said) < 2000 THEN said ELSE regexp_replace(said, '[\xc0-\xff][\x80-\xbf]{0,3}$', '') END;
    PERFORM convert_from(convert_to(said, encoding), 'UTF8');
    RETURN said;
EXCEPTION WHEN OTHERS THEN
    RETURN regexp_replace(said, '[^\x01-\x7f]', '?', 'g');
END $$;

-- Puts an observation on record, and whose session it was. Called by functions that have pinned the path, and that run as
-- their owner: `session_user` is the client all the same.
CREATE OR REPLACE FUNCTION dionysus_sync.observe(
    observed text, began timestamptz, hit bigint, ids uuid[], target oid, said text, hashes bigint[] DEFAULT '{}') RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO dionysus_sync.observations
        (kind, at, row_count, memory_ids, contents, table_oid, detail, role, application_name, client_address, pid, statement)
    VALUES (observed, began, hit, ids, hashes, target, dionysus_sync.legible(said), dionysus_sync.legible(session_user::text),
            dionysus_sync.legible(pg_catalog.current_setting('application_name')),
            pg_catalog.host(pg_catalog.inet_client_addr()), pg_catalog.pg_backend_pid(),
            dionysus_sync.legible(pg_catalog.left(pg_catalog.current_query(), 2000)));
END $$;

-- As in 0002; and leaves an observation of what a statement has deleted, and of what it has put in the place of contents.
-- Contents are compared by their bytes: a collation may take different ones for equal. A statement that fails to be observed
-- is captured row by row, and then observed once more by itself: neither keeps the other from being done.
CREATE OR REPLACE FUNCTION dionysus_sync.capture_memories() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET extra_float_digits = 1 SET datestyle = 'ISO'
SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' SET enable_nestloop = off
AS $$
DECLARE
    began timestamptz := clock_timestamp();
    changed record;
    rows_left refcursor;
    hit uuid[];
    hashes bigint[];
    hit_rows bigint;
    kept_ids bigint;
BEGIN
    IF dionysus_sync.by_engine() THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'create', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1), dionysus_row.synced_version
        FROM dionysus_new AS dionysus_row;
    ELSIF TG_OP = 'DELETE' THEN
        WITH queued AS (
            INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
            SELECT dionysus_row.id, 'delete', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
                   coalesce(dionysus_row.sync_version, 1) + 1, dionysus_row.synced_version
            FROM dionysus_old AS dionysus_row
        )
        SELECT array_agg(gone.id), array_agg(hashtextextended(gone.content::text COLLATE "C", 0))
        INTO hit, hashes FROM dionysus_old AS gone;
        IF hit IS NOT NULL THEN
            PERFORM dionysus_sync.observe('delete', began, cardinality(hit), hit, TG_RELID, '', hashes);
        END IF;
    ELSE
        SELECT count(*), (SELECT count(*) FROM dionysus_new), array_agg(before.id) FILTER (
            WHERE before.content::text COLLATE "C" IS DISTINCT FROM dionysus_row.content::text COLLATE "C")
        INTO kept_ids, hit_rows, hit
        FROM dionysus_old AS before JOIN dionysus_new AS dionysus_row ON dionysus_row.id = before.id;
        IF hit_rows = 0 THEN
            RETURN NULL;
        END IF;
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id,
               CASE WHEN dionysus_row.sync_version = coalesce(before.sync_version, 1) + 1 THEN 'update' ELSE 'create' END,
               to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(), coalesce(dionysus_row.sync_version, 1),
               CASE WHEN dionysus_row.sync_version = coalesce(before.sync_version, 1) + 1
                   THEN dionysus_row.synced_version END
        FROM dionysus_new AS dionysus_row
        JOIN dionysus_old AS before ON before.id = dionysus_row.id
        WHERE before.sync_version IS DISTINCT FROM dionysus_row.sync_version OR before.* *<> dionysus_row.*;
        IF hit IS NOT NULL THEN
            PERFORM dionysus_sync.observe('update', began, cardinality(hit), hit, TG_RELID, '');
        END IF;
        -- Most statements change one row and leave its id.
        IF hit_rows > 1 OR kept_ids = 0 THEN
            -- A change of primary key is a delete and an insert. A row that took the id of another one that went on in the
            -- same statement is an insert too: the count of its versions is its own.
            WITH queued AS (
                INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
                SELECT dionysus_row.id, 'delete', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
                       coalesce(dionysus_row.sync_version, 1) + 1, dionysus_row.synced_version
                FROM dionysus_old AS dionysus_row
                WHERE NOT EXISTS (SELECT FROM dionysus_new AS after WHERE after.id = dionysus_row.id)
                RETURNING memory_id
            )
            SELECT array_agg(memory_id) INTO hit FROM queued;
            INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
            SELECT dionysus_row.id, 'create', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
                   coalesce(dionysus_row.sync_version, 1), NULL
            FROM dionysus_new AS dionysus_row
            WHERE NOT EXISTS (SELECT FROM dionysus_old AS before WHERE before.id = dionysus_row.id);
            IF hit IS NOT NULL THEN
                PERFORM dionysus_sync.observe('delete', began, cardinality(hit), hit, TG_RELID, '');
            END IF;
        END IF;
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    BEGIN
        IF TG_OP = 'INSERT' THEN
            OPEN rows_left FOR SELECT * FROM dionysus_new;
        ELSIF TG_OP = 'UPDATE' THEN
            OPEN rows_left FOR SELECT after.* FROM dionysus_new AS after
                WHERE NOT EXISTS (SELECT FROM dionysus_old AS before
                                  WHERE before.id = after.id AND before.* *= after.*);
        END IF;
        LOOP
            EXIT WHEN rows_left IS NULL;
            FETCH rows_left INTO changed;
            EXIT WHEN NOT FOUND;
            BEGIN
                INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
                VALUES (changed.id, 'update', to_jsonb(changed) - dionysus_sync.sync_columns(),
                        coalesce(changed.sync_version, 1), changed.synced_version);
            EXCEPTION WHEN OTHERS THEN
                INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, last_error, parked_at)
                VALUES (changed.id, 'update', jsonb_build_object('id', changed.id), coalesce(changed.sync_version, 1),
                        SQLERRM, clock_timestamp());
            END;
        END LOOP;
        rows_left := NULL;
        IF TG_OP = 'DELETE' THEN
            OPEN rows_left FOR SELECT * FROM dionysus_old;
        ELSIF TG_OP = 'UPDATE' THEN
            OPEN rows_left FOR SELECT before.* FROM dionysus_old AS before
                WHERE NOT EXISTS (SELECT FROM dionysus_new AS after WHERE after.id = before.id);
        END IF;
        LOOP
            EXIT WHEN rows_left IS NULL;
            FETCH rows_left INTO changed;
            EXIT WHEN NOT FOUND;
            BEGIN
                INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
                VALUES (changed.id, 'delete', to_jsonb(changed) - dionysus_sync.sync_columns(),
                        coalesce(changed.sync_version, 1) + 1, changed.synced_version);
            EXCEPTION WHEN OTHERS THEN
                INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, last_error, parked_at)
                VALUES (changed.id, 'delete', jsonb_build_object('id', changed.id), coalesce(changed.sync_version, 1) + 1,
                        SQLERRM, clock_timestamp());
            END;
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'dionysus-sync could not capture this change: %', SQLERRM;
    END;
    BEGIN
        hit := NULL;
        IF TG_OP = 'UPDATE' THEN
            SELECT array_agg(before.id) INTO hit
            FROM dionysus_old AS before JOIN dionysus_new AS dionysus_row ON dionysus_row.id = before.id
            WHERE before.content::text COLLATE "C" IS DISTINCT FROM dionysus_row.content::text COLLATE "C";
            IF hit IS NOT NULL THEN
                PERFORM dionysus_sync.observe('update', began, cardinality(hit), hit, TG_RELID, '');
            END IF;
            SELECT array_agg(before.id) INTO hit FROM dionysus_old AS before
            WHERE NOT EXISTS (SELECT FROM dionysus_new AS after WHERE after.id = before.id);
        ELSIF TG_OP = 'DELETE' THEN
            SELECT array_agg(dionysus_row.id) INTO hit FROM dionysus_old AS dionysus_row;
        END IF;
        IF hit IS NOT NULL THEN
            PERFORM dionysus_sync.observe('delete', began, cardinality(hit), hit, TG_RELID, '');
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'dionysus-sync could not observe this change: %', SQLERRM;
    END;
    RETURN NULL;
END $$;

-- Rows that wait for the sync and have no queue entry, as the end of a statement on `target`: written while the capture was off.
CREATE OR REPLACE FUNCTION dionysus_sync.from_missed(target regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
        'FROM %s AS dionysus_row '
        'WHERE (dionysus_row.sync_status IN (''pending'', ''queued'', ''failed'') OR dionysus_row.sync_status IS NULL) '
        'AND NOT EXISTS (SELECT FROM dionysus_sync.sync_queue AS entry '
        '                WHERE entry.memory_id = dionysus_row.id AND entry.superseded_at IS NULL)', target)
$$;

-- Queues these rows, so that their images outlive them; one that cannot be made JSON is parked with the reason.
CREATE OR REPLACE FUNCTION dionysus_sync.queue_missed(target regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET extra_float_digits = 1 SET datestyle = 'ISO'
SET intervalstyle = 'iso_8601' SET bytea_output = 'hex'
AS $$
BEGIN
    EXECUTE 'INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version) '
        'SELECT dionysus_row.id, ''create'', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(), '
        '       coalesce(dionysus_row.sync_version, 1), dionysus_row.synced_version '
        || dionysus_sync.from_missed(target);
EXCEPTION WHEN OTHERS THEN
    EXECUTE 'INSERT INTO dionysus_sync.sync_queue '
        '    (memory_id, operation, payload, sync_version, base_version, last_error, parked_at) '
        'SELECT missed.id, ''create'', coalesce((missed.made).image - dionysus_sync.sync_columns(), '
        '                                       jsonb_build_object(''id'', missed.id)), '
        '       missed.version, missed.base, (missed.made).error, '
        '       CASE WHEN (missed.made).error IS NOT NULL THEN clock_timestamp() END '
        'FROM (SELECT dionysus_row.id, dionysus_sync.image_of(dionysus_row.*) AS made, '
        '             coalesce(dionysus_row.sync_version, 1) AS version, dionysus_row.synced_version AS base '
        || dionysus_sync.from_missed(target) || ' OFFSET 0) AS missed';
END $$;

-- TRUNCATE fires no trigger for its rows, and has locked the table when it fires this one.
CREATE OR REPLACE FUNCTION dionysus_sync.before_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hit bigint;
BEGIN
    BEGIN
        IF dionysus_sync.by_engine() THEN
            RETURN NULL;
        END IF;
        PERFORM dionysus_sync.queue_missed(TG_RELID);
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'dionysus-sync could not save the rows that were not captured yet: %', SQLERRM;
    END;
    BEGIN
        EXECUTE format('SELECT count(*) FROM %s', TG_RELID::regclass) INTO hit;
        PERFORM dionysus_sync.observe('truncate', clock_timestamp(), hit, '{}', TG_RELID, '');
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'dionysus-sync could not observe this change: %', SQLERRM;
    END;
    RETURN NULL;
END $$;

-- Triggers need no such right to run: it was checked when they were made.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dionysus_sync FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA dionysus_sync FROM PUBLIC;
