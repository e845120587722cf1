-- The one encoder of a row's hash. Nulls are left out, so that a column added later does not change the hash of old rows.
CREATE FUNCTION dionysus_sync.content_hash(image jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT encode(sha256(convert_to(jsonb_strip_nulls(image)::text, 'UTF8')), 'hex') $$;

CREATE FUNCTION dionysus_sync.sync_columns() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT '{sync_status,synced_at,sync_version,remote_id,synced_version}'::text[] $$;

CREATE FUNCTION dionysus_sync.by_engine() RETURNS boolean
LANGUAGE sql STABLE
AS $$ SELECT coalesce(current_setting('dionysus.origin', true), '') = 'engine' $$;

-- Only a change of a column of the user's own counts; the sync columns are the engine's, whatever an UPDATE says of them.
-- *<> compares the stored bytes: it works for types without an equality operator, such as json and point.
CREATE FUNCTION dionysus_sync.bump_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
BEGIN
    IF dionysus_sync.by_engine() THEN
        RETURN NEW;
    END IF;
    NEW.sync_status := OLD.sync_status;
    NEW.synced_at := OLD.synced_at;
    NEW.sync_version := OLD.sync_version;
    NEW.remote_id := OLD.remote_id;
    NEW.synced_version := OLD.synced_version;
    IF NEW *<> OLD THEN
        NEW.sync_version := coalesce(OLD.sync_version, 1) + 1;
        NEW.sync_status := 'pending';
        NEW.updated_at := clock_timestamp();
    END IF;
    RETURN NEW;
END $$;

-- Captures a statement's changes in its own transaction. The settings are pinned, since a row's JSON depends on them;
-- a plan made for one row must not be a nested loop when the next statement changes a hundred thousand.
-- Its own failure never stops the user's statement: rows that cannot be made JSON are parked one by one, and without a
-- queue there is a warning, and the backfill finds the rows by their sync_status.
CREATE FUNCTION dionysus_sync.capture_memories() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET extra_float_digits = 1 SET datestyle = 'ISO'
SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' SET enable_nestloop = off
AS $$
DECLARE
    changed record;
    reason text;
BEGIN
    IF dionysus_sync.by_engine() THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'create', to_jsonb(dionysus_row) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1), dionysus_row.synced_version
        FROM dionysus_new AS dionysus_row;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'delete', to_jsonb(dionysus_row) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1) + 1, dionysus_row.synced_version
        FROM dionysus_old AS dionysus_row;
    ELSE
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'update', to_jsonb(dionysus_row) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1), dionysus_row.synced_version
        FROM dionysus_new AS dionysus_row
        JOIN dionysus_old AS before ON before.id = dionysus_row.id
        WHERE before.sync_version IS DISTINCT FROM dionysus_row.sync_version;
        -- A change of primary key is a delete and an insert.
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'delete', to_jsonb(dionysus_row) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1) + 1, dionysus_row.synced_version
        FROM dionysus_old AS dionysus_row
        WHERE NOT EXISTS (SELECT FROM dionysus_new AS after WHERE after.id = dionysus_row.id);
        INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, base_version)
        SELECT dionysus_row.id, 'create', to_jsonb(dionysus_row) - dionysus_sync.sync_columns(),
               coalesce(dionysus_row.sync_version, 1), NULL
        FROM dionysus_new AS dionysus_row
        WHERE NOT EXISTS (SELECT FROM dionysus_old AS before WHERE before.id = dionysus_row.id);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    reason := SQLERRM;
    BEGIN
        IF TG_OP = 'DELETE' THEN
            FOR changed IN SELECT dionysus_row.id, coalesce(dionysus_row.sync_version, 1) + 1 AS version
                           FROM dionysus_old AS dionysus_row LOOP
                INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, last_error, parked_at)
                VALUES (changed.id, 'delete', jsonb_build_object('id', changed.id), changed.version, reason,
                        clock_timestamp());
            END LOOP;
        ELSE
            FOR changed IN SELECT dionysus_row.id, coalesce(dionysus_row.sync_version, 1) AS version
                           FROM dionysus_new AS dionysus_row LOOP
                BEGIN
                    INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version)
                    SELECT changed.id, 'update', to_jsonb(dionysus_row) - dionysus_sync.sync_columns(), changed.version
                    FROM dionysus_new AS dionysus_row WHERE dionysus_row.id = changed.id;
                EXCEPTION WHEN OTHERS THEN
                    INSERT INTO dionysus_sync.sync_queue
                        (memory_id, operation, payload, sync_version, last_error, parked_at)
                    VALUES (changed.id, 'update', jsonb_build_object('id', changed.id), changed.version, SQLERRM,
                            clock_timestamp());
                END;
            END LOOP;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'dionysus-sync could not capture this change: %', SQLERRM;
    END;
    RETURN NULL;
END $$;

-- Sessions, projects and references travel through the same queue, last state wins.
CREATE FUNCTION dionysus_sync.capture_context() RETURNS trigger
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

CREATE TRIGGER dionysus_capture AFTER INSERT OR UPDATE OR DELETE ON dionysus_sync.sessions
    FOR EACH ROW EXECUTE FUNCTION dionysus_sync.capture_context('session');
CREATE TRIGGER dionysus_capture AFTER INSERT OR UPDATE OR DELETE ON dionysus_sync.projects
    FOR EACH ROW EXECUTE FUNCTION dionysus_sync.capture_context('project');
CREATE TRIGGER dionysus_capture AFTER INSERT OR UPDATE OR DELETE ON dionysus_sync.memory_references
    FOR EACH ROW EXECUTE FUNCTION dionysus_sync.capture_context('reference');
ALTER TABLE dionysus_sync.sessions ENABLE ALWAYS TRIGGER dionysus_capture;
ALTER TABLE dionysus_sync.projects ENABLE ALWAYS TRIGGER dionysus_capture;
ALTER TABLE dionysus_sync.memory_references ENABLE ALWAYS TRIGGER dionysus_capture;
