-- What was seen of statements that destroy, or that could be part of it: written by the capture and the event triggers in the
-- statement's own transaction. `at` is just before the statement's first queue entry; `until`, written at the end of the capture,
-- just after the last one.
CREATE TABLE IF NOT EXISTS dionysus_sync.observations (
    seq bigserial PRIMARY KEY,
    kind varchar(20) NOT NULL CHECK (kind IN ('delete', 'update', 'truncate', 'drop', 'alter')),
    at timestamptz NOT NULL,
    until timestamptz NOT NULL DEFAULT clock_timestamp(),
    row_count bigint NOT NULL DEFAULT 0,
    memory_ids uuid[] NOT NULL DEFAULT '{}',
    table_oid oid,
    detail text NOT NULL DEFAULT '',
    role text,
    application_name text,
    client_address text,
    pid integer,
    statement text,
    judged_at timestamptz
);
CREATE INDEX IF NOT EXISTS idx_observations_new ON dionysus_sync.observations (seq) WHERE judged_at IS NULL;
CREATE INDEX IF NOT EXISTS idx_observations_at ON dionysus_sync.observations (at);

-- One row for one event, however it was seen; `key` names the event. `restore_point`: what was changed before it is good.
CREATE TABLE IF NOT EXISTS dionysus_sync.incidents (
    id uuid PRIMARY KEY,
    key text NOT NULL UNIQUE,
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

REVOKE ALL ON ALL TABLES IN SCHEMA dionysus_sync FROM PUBLIC;
