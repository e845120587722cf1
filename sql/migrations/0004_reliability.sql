-- Which pushes this database has seen. Each push moves both stores on to the next lineage, so that a database restored from
-- an old dump is told from one that is up to date. `compare_since`: since when a full compare is due, null if none is;
-- `gap_since`: the same, where the reason is that changes were not captured for a while.
ALTER TABLE dionysus_sync.store_identity
    ADD COLUMN IF NOT EXISTS generation bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS lineage uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD COLUMN IF NOT EXISTS compare_since timestamptz,
    ADD COLUMN IF NOT EXISTS gap_since timestamptz;

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
