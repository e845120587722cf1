-- What a recovery overwrote, so that it can be undone: the row's image before, and the hash of what was put in its place.
CREATE TABLE IF NOT EXISTS dionysus_sync.recovery_undo (
    recovery_id uuid NOT NULL,
    memory_id uuid NOT NULL,
    image jsonb NOT NULL,
    written_hash text NOT NULL,
    undone_at timestamptz,
    PRIMARY KEY (recovery_id, memory_id)
);

-- Recoveries into a scratch schema, compared and thrown away.
CREATE TABLE IF NOT EXISTS dionysus_sync.drills (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    result varchar(10) NOT NULL CHECK (result IN ('passed', 'failed', 'skipped')),
    report jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_drills_finished ON dionysus_sync.drills (finished_at DESC);

REVOKE ALL ON ALL TABLES IN SCHEMA dionysus_sync FROM PUBLIC;
