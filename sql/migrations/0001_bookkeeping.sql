-- The bookkeeping has a schema of its own, so that the loss of the public schema leaves the queue and the audit standing.
-- Every statement here can be run again: what somebody removed of it is put back, and the rest stays as it is.
CREATE SCHEMA IF NOT EXISTS dionysus_sync;

CREATE TABLE IF NOT EXISTS dionysus_sync.store_identity (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO dionysus_sync.store_identity DEFAULT VALUES ON CONFLICT DO NOTHING;

-- No foreign key to memories: a cascade would remove the queued delete together with the row that it is about.
CREATE TABLE IF NOT EXISTS dionysus_sync.sync_queue (
    seq bigserial PRIMARY KEY,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    entity varchar(20) NOT NULL DEFAULT 'memory' CHECK (entity IN ('memory', 'session', 'project', 'reference')),
    memory_id uuid CHECK (memory_id IS NOT NULL OR entity <> 'memory'),
    operation varchar(20) NOT NULL CHECK (operation IN ('create', 'update', 'delete')),
    payload jsonb NOT NULL CHECK (jsonb_typeof(payload) = 'object'),
    sync_version integer,
    base_version integer,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    retry_count integer NOT NULL DEFAULT 0,
    next_retry_at timestamptz,
    last_error text,
    parked_at timestamptz
);
CREATE INDEX IF NOT EXISTS idx_sync_queue_ready ON dionysus_sync.sync_queue (seq) WHERE parked_at IS NULL;
CREATE INDEX IF NOT EXISTS idx_sync_queue_memory ON dionysus_sync.sync_queue (memory_id);

CREATE TABLE IF NOT EXISTS dionysus_sync.sync_events (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    timestamp timestamptz NOT NULL DEFAULT clock_timestamp(),
    direction varchar(20) NOT NULL CHECK (direction IN ('local_to_remote', 'remote_to_local')),
    result varchar(20) NOT NULL CHECK (result IN ('success', 'failed', 'partial', 'queued')),
    record_count integer NOT NULL DEFAULT 0,
    memory_ids uuid[] NOT NULL DEFAULT '{}',
    error_message text,
    duration_ms integer,
    retry_count integer NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS idx_sync_events_timestamp ON dionysus_sync.sync_events (timestamp DESC);
CREATE INDEX IF NOT EXISTS idx_sync_events_failed ON dionysus_sync.sync_events (result) WHERE result = 'failed';

CREATE TABLE IF NOT EXISTS dionysus_sync.conflicts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    memory_id uuid NOT NULL,
    detected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    winner varchar(10) NOT NULL CHECK (winner IN ('local', 'remote')),
    local_version integer NOT NULL,
    remote_version integer NOT NULL,
    local_content varchar(100) NOT NULL,
    remote_content varchar(100) NOT NULL,
    closed_at timestamptz
);
CREATE INDEX IF NOT EXISTS idx_conflicts_open ON dionysus_sync.conflicts (detected_at) WHERE closed_at IS NULL;

CREATE TABLE IF NOT EXISTS dionysus_sync.recoveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    report jsonb NOT NULL
);

CREATE TABLE IF NOT EXISTS dionysus_sync.projects (
    id text PRIMARY KEY,
    name text NOT NULL,
    description text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS dionysus_sync.sessions (
    id uuid PRIMARY KEY,
    project_id text NOT NULL,
    started_at timestamptz NOT NULL,
    last_activity_at timestamptz NOT NULL,
    ended_at timestamptz,
    summary text
);
CREATE INDEX IF NOT EXISTS idx_sessions_project ON dionysus_sync.sessions (project_id, started_at);

CREATE TABLE IF NOT EXISTS dionysus_sync.memory_references (
    source_id uuid NOT NULL,
    target_id uuid NOT NULL,
    context text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source_id, target_id, context)
);
