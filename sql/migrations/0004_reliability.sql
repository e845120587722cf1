-- Which pushes this database has seen. Each push moves both stores on to the next lineage, so that a database restored from
-- an old dump is told from one that is up to date. `repeated`: the lineage that the last push had left remotely in an earlier
-- attempt of which the answer was lost; a backup may have been made of that.
ALTER TABLE dionysus_sync.store_identity
    ADD COLUMN IF NOT EXISTS generation bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS lineage uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD COLUMN IF NOT EXISTS repeated text NOT NULL DEFAULT '';

-- A row while a full comparison is due; `gap_since` where changes were not captured for a while. Not with the identity, which
-- a push keeps locked while it writes remotely: who puts the capture back would wait for it, and the users' writes with it.
CREATE TABLE IF NOT EXISTS dionysus_sync.comparison_due (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    compare_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    gap_since timestamptz
);

-- A parked entry of which a later version of the same memory went through: kept, and nothing to worry about any more.
ALTER TABLE dionysus_sync.sync_queue ADD COLUMN IF NOT EXISTS superseded_at timestamptz;
CREATE INDEX IF NOT EXISTS idx_sync_queue_parked ON dionysus_sync.sync_queue (seq)
    WHERE parked_at IS NOT NULL AND superseded_at IS NULL;

-- What waits of a memory is taken along with its next change; there is next to none, and none is searched for in the rest.
CREATE INDEX IF NOT EXISTS idx_sync_queue_waiting ON dionysus_sync.sync_queue (memory_id, seq)
    WHERE parked_at IS NULL AND next_retry_at IS NOT NULL;

-- Whether a conflict is on record already is asked for each that is told.
CREATE INDEX IF NOT EXISTS idx_conflicts_memory ON dionysus_sync.conflicts (memory_id);

-- Deletes that the remote store has confirmed: what tells a memory that was deleted here from one that was lost here.
CREATE TABLE IF NOT EXISTS dionysus_sync.deletions (
    memory_id uuid PRIMARY KEY,
    version integer NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS dionysus_sync.verifications (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind varchar(10) NOT NULL CHECK (kind IN ('quick', 'full', 'deep')),
    result varchar(10) NOT NULL CHECK (result IN ('clean', 'drift', 'skipped')),
    report jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_verifications_finished ON dionysus_sync.verifications (finished_at DESC);

-- What people are told of. `key` names the event: there is one alert for one event, however often it is seen.
CREATE TABLE IF NOT EXISTS dionysus_sync.alerts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    key text NOT NULL UNIQUE,
    kind varchar(30) NOT NULL,
    summary text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}',
    raised_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivered_at timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    next_try_at timestamptz,
    last_error text
);
CREATE INDEX IF NOT EXISTS idx_alerts_waiting ON dionysus_sync.alerts (raised_at) WHERE delivered_at IS NULL;

REVOKE ALL ON ALL TABLES IN SCHEMA dionysus_sync FROM PUBLIC;

-- As in 0002; and has the row trigger look anew at the columns that it names.
CREATE OR REPLACE FUNCTION dionysus_sync.note_generated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('dionysus.columns', '', true), set_config('dionysus.generated', (
        SELECT coalesce(array_agg(attname::text), '{}')::text
        FROM pg_attribute WHERE attrelid = TG_RELID AND attgenerated = 's'), true);
    RETURN NULL;
END $$;

-- As in 0002; but the user's statement goes through whatever becomes of the columns that are named here. A session reads a
-- column by the type that it had when the session first did: once for a statement it is tried whether it has that type still,
-- or is there at all. Where not, columns are read as text, by a statement that is made for each row; and where that fails
-- too, the version only counts on, and the guard puts back what is missing.
CREATE OR REPLACE FUNCTION dionysus_sync.bump_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    origin text := CASE WHEN dionysus_sync.by_engine() THEN current_setting('dionysus.origin', true) END;
    generated text := current_setting('dionysus.generated', true);
    columns text := coalesce(current_setting('dionysus.columns', true), '');
    tried record;
BEGIN
    IF origin = 'restore' THEN
        RETURN NEW;
    END IF;
    IF columns = '' THEN
        BEGIN
            tried := NEW;
            tried.sync_status := OLD.sync_status;
            tried.synced_at := OLD.synced_at;
            tried.sync_version := OLD.sync_version;
            tried.remote_id := OLD.remote_id;
            tried.synced_version := OLD.synced_version;
            tried.sync_status := 'pending';
            tried.updated_at := clock_timestamp();
            columns := 'known';
        EXCEPTION WHEN OTHERS THEN
            columns := 'changed';
        END;
        PERFORM set_config('dionysus.columns', columns, true);
    END IF;
    IF columns = 'known' AND origin = 'engine' THEN
        OLD.sync_status := NEW.sync_status;
        OLD.synced_at := NEW.synced_at;
        OLD.sync_version := NEW.sync_version;
        OLD.remote_id := NEW.remote_id;
        OLD.synced_version := NEW.synced_version;
        RETURN OLD;
    END IF;
    IF columns = 'known' THEN
        NEW.sync_status := OLD.sync_status;
        NEW.synced_at := OLD.synced_at;
        NEW.sync_version := OLD.sync_version;
        NEW.remote_id := OLD.remote_id;
        NEW.synced_version := OLD.synced_version;
    ELSE
        BEGIN
            EXECUTE 'SELECT ($1).sync_status::text, ($1).synced_at::text, ($1).sync_version::text, ($1).remote_id::text, '
                '($1).synced_version::text' INTO tried USING CASE WHEN origin = 'engine' THEN NEW ELSE OLD END;
            IF origin = 'engine' THEN
                OLD.sync_status := tried.sync_status;
                OLD.synced_at := tried.synced_at;
                OLD.sync_version := tried.sync_version;
                OLD.remote_id := tried.remote_id;
                OLD.synced_version := tried.synced_version;
                RETURN OLD;
            END IF;
            NEW.sync_status := tried.sync_status;
            NEW.synced_at := tried.synced_at;
            NEW.sync_version := tried.sync_version;
            NEW.remote_id := tried.remote_id;
            NEW.synced_version := tried.synced_version;
        EXCEPTION WHEN OTHERS THEN
            columns := 'gone';
        END;
    END IF;
    IF columns = 'gone' AND origin = 'engine' OR NOT NEW *<> OLD THEN
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
    IF columns = 'known' THEN
        NEW.sync_version := coalesce(OLD.sync_version, 1) + 1;
        NEW.sync_status := 'pending';
        NEW.updated_at := clock_timestamp();
        RETURN NEW;
    END IF;
    BEGIN
        EXECUTE 'SELECT (coalesce(($1).sync_version, 1) + 1)::text AS version' INTO tried USING OLD;
        NEW.sync_version := tried.version;
        NEW.sync_status := 'pending';
        NEW.updated_at := clock_timestamp();
    EXCEPTION WHEN OTHERS THEN
        NULL; -- the capture sees what is changed of the user's own columns all the same
    END;
    RETURN NEW;
END $$;

-- As in 0003; but the default becomes the column's type as an INSERT would make it: `text DEFAULT now()` is allowed.
CREATE OR REPLACE FUNCTION dionysus_sync.restored_value(target oid, name name, counted boolean, default_text text)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN counted THEN format('coalesce(made.%I, nextval(%L))', name, pg_get_serial_sequence(target::regclass::text, name))
        WHEN default_text IS NULL OR name = ANY (dionysus_sync.sync_columns())
            OR name IN ('id', 'content', 'memory_type', 'importance', 'source_project', 'session_id', 'tags',
                        'created_at', 'updated_at') THEN format('made.%I', name)
        ELSE format('CASE WHEN imaged.image ? %L THEN made.%I ELSE CAST((%s) AS %s) END', name, name, default_text,
                    format_type(col.atttypid, col.atttypmod))
    END
    FROM pg_attribute AS col WHERE col.attrelid = target AND col.attname = restored_value.name
$$;
