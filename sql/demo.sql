-- What only the demo does, to a database of its own.

-- demo_images --
-- Every column of every row, without the sync columns: what the demo compares before and after.
SELECT id, (to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns())::text AS image FROM memories AS dionysus_row ORDER BY id

-- demo_destruction --
-- What the demo's careless client does, as an agent is known to have done it: the table goes, an empty one takes its place ...
DROP TABLE memories;
CREATE TABLE memories (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    content text NOT NULL,
    memory_type varchar(20) NOT NULL DEFAULT 'episodic',
    importance real NOT NULL DEFAULT 0.5,
    source_project text,
    session_id uuid,
    tags text[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
)

-- demo_made_up --
-- ... and is filled with rows that never were. $1 how many. The ids.
INSERT INTO memories (content, source_project)
SELECT 'Everything works as expected, user ' || number || ' is satisfied.', 'made-up' FROM generate_series(1, $1::integer) AS number
RETURNING id
