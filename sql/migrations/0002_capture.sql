-- The one encoder of a row's hash; names are in full, since a pinned search_path would keep it from being inlined. Nulls are left out, so that a column added later does not change the hash of old rows.
CREATE OR REPLACE FUNCTION dionysus_sync.content_hash(image jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.encode(
        pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.jsonb_strip_nulls(image)::pg_catalog.text, 'UTF8')), 'hex')
$$;

CREATE OR REPLACE FUNCTION dionysus_sync.sync_columns() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT '{sync_status,synced_at,sync_version,remote_id,synced_version}'::text[] $$;

-- 'engine' stamps rows with their sync columns, 'restore' writes whole rows: neither is a change of the user's. Anybody can
-- say so of a session; only a role that could take the entry out of the queue again is believed.
CREATE OR REPLACE FUNCTION dionysus_sync.by_engine() RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT CASE WHEN pg_catalog.current_setting('dionysus.origin', true) IN ('engine', 'restore') THEN coalesce(
        pg_catalog.has_table_privilege(
            session_user, pg_catalog.to_regclass('dionysus_sync.sync_queue')::pg_catalog.oid, 'DELETE'), false)
    ELSE false END
$$;

-- A row's JSON, or why there is none: of rows read one by one, after a statement over many has failed at one of them.
CREATE OR REPLACE FUNCTION dionysus_sync.image_of(dionysus_row record, OUT image jsonb, OUT error text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    image := to_jsonb(dionysus_row);
EXCEPTION WHEN OTHERS THEN
    error := SQLERRM;
END $$;

-- A version out of these bounds could not be counted on from: a row that is inserted with one starts at 1.
CREATE OR REPLACE FUNCTION dionysus_sync.bound_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.sync_version := 1;
    RETURN NEW;
END $$;

-- Notes once for a statement which columns are generated: asking the catalogue for each row would double its time.
CREATE OR REPLACE FUNCTION dionysus_sync.note_generated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('dionysus.generated', (
        SELECT coalesce(array_agg(attname::text), '{}')::text
        FROM pg_attribute WHERE attrelid = TG_RELID AND attgenerated = 's'), true);
    RETURN NULL;
END $$;

-- Only a change of a column of the user's own counts; the sync columns are the engine's, whatever an UPDATE says of them.
-- *<> compares the stored bytes: it works for types without an equality operator, such as json and point. Generated
-- columns are not computed yet in a BEFORE trigger, so they are left out, by way of JSON, where a table has some. The note
-- only says whether to look for them: the statement itself can set it, and hide a change by naming another column.
-- When the engine stamps a row, a trigger of the user's own (one that sets updated_at, say) must not change it.
CREATE OR REPLACE FUNCTION dionysus_sync.bump_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    origin text := CASE WHEN dionysus_sync.by_engine() THEN current_setting('dionysus.origin', true) END;
    generated text := current_setting('dionysus.generated', true);
BEGIN
    IF origin = 'restore' THEN
        RETURN NEW;
    END IF;
    IF origin = 'engine' THEN
        OLD.sync_status := NEW.sync_status;
        OLD.synced_at := NEW.synced_at;
        OLD.sync_version := NEW.sync_version;
        OLD.remote_id := NEW.remote_id;
        OLD.synced_version := NEW.synced_version;
        RETURN OLD;
    END IF;
    NEW.sync_status := OLD.sync_status;
    NEW.synced_at := OLD.synced_at;
    NEW.sync_version := OLD.sync_version;
    NEW.remote_id := OLD.remote_id;
    NEW.synced_version := OLD.synced_version;
    IF NOT NEW *<> OLD THEN
        RETURN NEW;
    END IF;
    IF generated <> '{}' THEN
        BEGIN
            generated := (SELECT coalesce(array_agg(attname::text), '{}')::text
                          FROM pg_attribute WHERE attrelid = TG_RELID AND attgenerated = 's');
            IF (to_jsonb(NEW) - generated::text[])::text = (to_jsonb(OLD) - generated::text[])::text THEN
                RETURN NEW;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            NULL; -- a row that cannot be made JSON counts as changed
        END;
    END IF;
    NEW.sync_version := coalesce(OLD.sync_version, 1) + 1;
    NEW.sync_status := 'pending';
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END $$;

-- Captures a statement's changes in its own transaction. The settings are pinned, since a row's JSON depends on them;
-- a plan made for one row must not be a nested loop when the next statement changes a hundred thousand.
-- Its own failure never stops the user's statement: rows that cannot be made JSON are parked one by one, and without a
-- queue there is a warning, and the backfill finds the rows by their sync_status.
CREATE OR REPLACE FUNCTION dionysus_sync.capture_memories() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET extra_float_digits = 1 SET datestyle = 'ISO'
SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' SET enable_nestloop = off
AS $$
DECLARE
    changed record;
    rows_left refcursor;
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
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'delete', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1) + 1, dionysus_row.synced_version
        FROM dionysus_old AS dionysus_row;
    ELSE
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id,
               CASE WHEN dionysus_row.sync_version = coalesce(before.sync_version, 1) + 1 THEN 'update' ELSE 'create' END,
               to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(), coalesce(dionysus_row.sync_version, 1),
               CASE WHEN dionysus_row.sync_version = coalesce(before.sync_version, 1) + 1
                   THEN dionysus_row.synced_version END
        FROM dionysus_new AS dionysus_row
        JOIN dionysus_old AS before ON before.id = dionysus_row.id
        WHERE before.sync_version IS DISTINCT FROM dionysus_row.sync_version OR before.* *<> dionysus_row.*;
        -- A change of primary key is a delete and an insert. A row that took the id of another one that went on in the same
        -- statement is an insert too: the count of its versions is its own.
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'delete', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1) + 1, dionysus_row.synced_version
        FROM dionysus_old AS dionysus_row
        WHERE NOT EXISTS (SELECT FROM dionysus_new AS after WHERE after.id = dionysus_row.id);
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'create', to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1), NULL
        FROM dionysus_new AS dionysus_row
        WHERE NOT EXISTS (SELECT FROM dionysus_old AS before WHERE before.id = dionysus_row.id);
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
    RETURN NULL;
END $$;

-- Sessions, projects and references travel through the same queue, last state wins.
CREATE OR REPLACE FUNCTION dionysus_sync.capture_context() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO'
AS $$
BEGIN
    IF dionysus_sync.by_engine() THEN
        RETURN NULL;
    END IF;
    INSERT INTO dionysus_sync.sync_queue (entity, operation, payload)
    VALUES (
        TG_ARGV[0],
        CASE TG_OP WHEN 'INSERT' THEN 'create' WHEN 'UPDATE' THEN 'update' ELSE 'delete' END,
        CASE TG_OP WHEN 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END
    );
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER dionysus_capture AFTER INSERT OR UPDATE OR DELETE ON dionysus_sync.sessions
    FOR EACH ROW EXECUTE FUNCTION dionysus_sync.capture_context('session');
CREATE OR REPLACE TRIGGER dionysus_capture AFTER INSERT OR UPDATE OR DELETE ON dionysus_sync.projects
    FOR EACH ROW EXECUTE FUNCTION dionysus_sync.capture_context('project');
CREATE OR REPLACE TRIGGER dionysus_capture AFTER INSERT OR UPDATE OR DELETE ON dionysus_sync.memory_references
    FOR EACH ROW EXECUTE FUNCTION dionysus_sync.capture_context('reference');
ALTER TABLE dionysus_sync.sessions ENABLE ALWAYS TRIGGER dionysus_capture;
ALTER TABLE dionysus_sync.projects ENABLE ALWAYS TRIGGER dionysus_capture;
ALTER TABLE dionysus_sync.memory_references ENABLE ALWAYS TRIGGER dionysus_capture;
